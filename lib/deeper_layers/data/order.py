"""The fixed random order in which items of a task, or of a group of tasks, are asked. No torch.

Stopped at any moment, what was asked is a random sample of all items, and of a group each task has about its share.
"""

import hashlib
from collections.abc import Mapping

from deeper_layers.checks import MANY, SEED, check_whole_number


def order_items(items: Mapping[str, int], seed: int = 0) -> list[tuple[str, int]]:
    """All items of some tasks in one random order.

    The order is that of hashes of the seed, the task and the item. So it is the same on every machine and under every
    version; asking for more items goes on where fewer stopped; and the items of a task keep their order whatever tasks
    are mixed with them.

    Args:
        items: by name of the task, its number of items: one task, or all tasks of a group such as MMLU.
        seed: another seed, another order.

    Returns:
        Pairs of a task and the number of its item, counted from 0; as many as there are items.

    Raises:
        InputError: a number of items below 1, or a seed that is no whole number from 0 on.

    Example:
        >>> order_items({"mmlu_anatomy": 2, "mmlu_virology": 2})[:3]
        [('mmlu_anatomy', 1), ('mmlu_anatomy', 0), ('mmlu_virology', 0)]
    """
    check_whole_number("seed", seed, 0, SEED)
    pairs: list[tuple[str, int]] = []
    for task, count in items.items():
        check_whole_number(f"items of {task}", count, 1, MANY)
        pairs += [(task, item) for item in range(count)]
    return sorted(pairs, key=lambda pair: _hash_item(seed, *pair))


def _hash_item(seed: int, task: str, item: int) -> bytes:
    return hashlib.sha256(f"{seed} {task} {item}".encode()).digest()
