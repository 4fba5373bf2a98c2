"""The random order of items: fixed, of all items once, mixed over tasks, and the same whatever is asked with it."""

import numpy as np
import pytest

from deeper_layers.data import order_items
from deeper_layers.errors import InputError

pytestmark = pytest.mark.quick
GROUP = {"mmlu_anatomy": 135, "mmlu_virology": 166, "mmlu_law": 1534}


def test_every_item_is_asked_once_in_an_order_that_only_the_seed_changes():
    order = order_items(GROUP, seed=3)
    assert sorted(order) == [(task, item) for task in sorted(GROUP) for item in range(GROUP[task])]
    assert order == order_items(dict(reversed(GROUP.items())), seed=3)
    assert order != order_items(GROUP, seed=4)
    # results depend on it: these are the first ones for ever
    assert order_items({"capitals": 120})[:6] == [("capitals", item) for item in (81, 104, 25, 3, 77, 118)]


def test_more_items_and_more_tasks_leave_the_order_of_the_others():
    """So what was measured of one task, or of fewer items, serves a run that asks more."""
    order = order_items(GROUP)
    assert [pair for pair in order if pair[0] == "mmlu_law"] == order_items({"mmlu_law": 1534})
    fewer = order_items({"mmlu_law": 1000})
    assert [pair for pair in order_items({"mmlu_law": 1534}) if pair[1] < 1000] == fewer


def test_a_group_is_mixed_and_its_beginning_is_a_random_sample():
    order = order_items(GROUP)
    law = np.array([task == "mmlu_law" for task, _ in order[:480]])
    assert abs(law.mean() - 1534 / 1835) < 0.05
    assert max(map(len, "".join(np.where(law, "x", " ")).split())) < 60  # no task stands in one piece
    places = np.array([item for task, item in order[:480] if task == "mmlu_law"])
    assert abs(places.mean() / 1534 - 0.5) < 0.05  # from its beginning as from its end
    pairs = np.array([item for task, item in order if task == "mmlu_law"])
    assert abs(np.corrcoef(pairs[:-1], pairs[1:])[0, 1]) < 0.08


@pytest.mark.parametrize(
    ("items", "seed", "said"),
    [
        ({"capitals": 0}, 0, "items of capitals is 0; expected a whole number from 1"),
        ({"capitals": 120}, -1, "seed is -1; expected a whole number from 0"),
    ],
)
def test_what_can_be_no_order_is_refused_in_one_line(items, seed, said):
    with pytest.raises(InputError, match=said):
        order_items(items, seed)
