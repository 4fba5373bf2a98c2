"""Tasks that are loaded once and asked in parts: some of their items now, others later or never.

What is asked of an item does not depend on the others that are asked with it: examples that lm-eval draws at random for
each prompt are drawn by the item.
"""

import functools
import json
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from deeper_layers.cuts import Cut
from deeper_layers.models.measuring import measuring
from deeper_layers.sweeping import harness
from deeper_layers.sweeping.generation import generate
from deeper_layers.sweeping.planning import BATCH_TOKENS, MEMORY
from deeper_layers.sweeping.shards import Shards
from deeper_layers.sweeping.sweeps import check_cuts, loglikelihoods, tabulate_answers
from deeper_layers.sweeping.tree_model import ANSWER, TreeModel

Item = tuple[str, int]  # a task, and the number of its item


class Questions:
    """One task or group for some pruned models of one network, to be asked in parts.

    Args:
        model, tokenizer, task, cuts: as in `sweep`; cuts are distinct.
        memory: bytes beside the weights, as in `sweep`.
        prompts: `num_fewshot`, `fewshot_order` and `datasets` of `sweep`.

    Attributes:
        counts: by task, the number of its items.
        levels: by multiple-choice task, and of a group of such, the accuracy of guessing on all items: chance and
            majority.

    Raises InputError as `sweep` does.
    """

    def __init__(
        self, model, tokenizer, task: str, cuts: list[Cut], *, memory: int = MEMORY, **prompts
    ):
        check_cuts(model, cuts)
        self.model = model
        self.tokenizer = tokenizer
        self.task = task
        self.cuts = cuts
        self.memory = memory
        self.loaded = harness.load_tasks([task], **prompts)["tasks"]
        self.counts: dict[str, int] = {}
        self.levels: dict[str, dict[str, float]] = {}
        choices: list[tuple] = []  # tasks of multiple choice, with their items
        for name, one in self.loaded.items():
            documents = list(one.eval_docs)
            self.counts[name] = len(documents)
            if one.OUTPUT_TYPE == "multiple_choice":
                choices.append((one, documents))
                self.levels[name] = harness.find_levels(choices[-1:])
            one.fewshot_context = functools.partial(_build_prompt, one, one.fewshot_context)
        if len(choices) == len(self.loaded) > 1:
            self.levels[task] = harness.find_levels(choices)
        self.family = _make_family(model, cuts)

    def ask(self, items: Sequence[Item], shards: Shards | None = None) -> pd.DataFrame:
        """The table of `sweep` for these items, without rows of groups. Its `attrs` hold "outcomes", whose vectors have
        the items of each task by their numbers, and "levels"."""
        return _ask(self.model, self, items, shards)


@measuring
def _make_family(model, cuts: list[Cut]) -> TreeModel:
    return TreeModel(model, cuts)


@measuring
def _ask(model, questions: Questions, items: Sequence[Item], shards: Shards | None) -> pd.DataFrame:
    numbers: dict[str, list[int]] = defaultdict(list)
    for task, number in sorted(items):
        numbers[task].append(number)
    for name in numbers:
        vars(questions.loaded[name]).pop("build_all_requests", None)  # score_answers turns it off
    loaded = {
        "tasks": {name: questions.loaded[name] for name in numbers},
        "groups": {},
        "group_map": {},
    }
    tasks = harness.collect_requests(loaded, model, questions.tokenizer, items=dict(numbers))
    answers = np.full(
        (len(questions.cuts), len(tasks.requests.pairs)), np.array((np.nan, False), ANSWER)
    )
    options = {"memory": questions.memory, "shards": shards, "what": questions.task}
    loglikelihoods(
        questions.family, tasks.requests, batch_tokens=BATCH_TOKENS, out=answers, **options
    )
    written = generate(questions.family, questions.tokenizer, tasks.generations, **options)
    table = tabulate_answers(tasks, questions.cuts, answers, written)
    table.attrs["levels"] = questions.levels
    return table


def _build_prompt(task, build: Callable, document: dict, **settings) -> str:
    """The prompt of an item, for which lm-eval draws the same examples whatever was asked before."""
    task.set_fewshot_seed(
        f"{harness.FEWSHOT_SEED} {json.dumps(document, sort_keys=True, default=str)}"
    )
    return build(document, **settings)
