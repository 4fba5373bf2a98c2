"""What a model scores on the words of answers whose questions it is not shown: guessing, where no chance is known.

A task that scores the words of each choice (MMLU as cloze) has no constant answer, and a choice may be likelier than
others by its words alone. Each item is asked as the task asks it, examples included, but for its own question, which is
left empty; the whole model answers.

    python -m benchmarks.unasked NAME --model MODEL --limit 20 --num-fewshot 5 --datasets FOLDER
"""

import argparse

import numpy as np
from lm_eval.api.task import ConfigurableTask

from benchmarks import side_by_side
from deeper_layers.cuts import UNPRUNED
from deeper_layers.models.opening import load_model
from deeper_layers.report.estimates import accuracy
from deeper_layers.results.packing import unpack
from deeper_layers.sweeping import harness
from deeper_layers.sweeping.sweeps import loglikelihoods


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the file in benchmarks/measured")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--task", default="mmlu_continuation", help="whose items have a question")
    parser.add_argument("--metric", default="acc_norm")
    parser.add_argument("--limit", type=int, help="items a task")
    parser.add_argument("--num-fewshot", type=int)
    parser.add_argument("--datasets", help="a local mirror of the hub")
    options = parser.parse_args()
    side_by_side.start()

    model, tokenizer = load_model(options.model, dtype=options.dtype)
    loaded = harness.load_tasks([options.task], num_fewshot=options.num_fewshot, datasets=options.datasets)
    for task in loaded["tasks"].values():
        unask(task)
    asked = harness.collect_requests(loaded, model, tokenizer, limit=options.limit)
    logprobs, greedy = loglikelihoods(
        model, asked.contexts, asked.continuations, [UNPRUNED], max_length=asked.max_length, what=options.task
    )
    _, outcomes = harness.score(asked, logprobs[0], greedy[0])
    right = {task: unpack(of_task[options.metric]) for task, of_task in outcomes.items()}
    levels = harness.reference_levels(asked)
    chance = np.concatenate([np.full(len(of_task), levels[task]["chance"]) for task, of_task in right.items()])
    every = np.concatenate(list(right.values()))
    share, sure = float(every.mean()), accuracy(every.astype(float))
    side_by_side.keep(
        options.name,
        {
            "model": options.model, "dtype": options.dtype, "task": options.task, "metric": options.metric,
            "num_fewshot": options.num_fewshot, "limit": options.limit, "items": len(every),
            "right": int(every.sum()), "guessing": share, "interval": [sure.low, sure.high],
            "chance": float(chance.mean()),
        },
    )  # fmt: skip


def unask(task: ConfigurableTask) -> None:
    """Leave the question of each item out of what a task asks; those of the examples in its prompts stay."""
    whole = task.fewshot_context
    task.fewshot_context = lambda doc, *given, **named: whole({**doc, "question": ""}, *given, **named)


if __name__ == "__main__":
    main()
