"""What each task asks, word for word, of its first item: written down from lm-eval, no model is run.

python -m benchmarks.prompts --datasets FOLDER
"""

import argparse

from benchmarks import harness
from deeper_layers.data import corpora
from deeper_layers.sweeping import harness as tasks_of

# each with a number of examples, None for the task's own; of MMLU one subject stands for all
TASKS = [*(("mmlu_abstract_algebra", shots) for shots in (5, 0, 1, 3)), ("mmlu_abstract_algebra_continuation", 5)]
OWN = "boolq gsm8k capitals lettered_capitals sums_one_digit sums_two_digits sums_one_digit_generated "
OWN += "sums_two_digits_generated written_facts embedded_mmlu embedded_boolq embedded_piqa"
TASKS += [(task, None) for task in OWN.split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", help="folder of a local mirror of the hub")
    options = parser.parse_args()
    asked: dict[str, dict] = {}
    for task, shots in TASKS:  # a task that is asked in several ways has each by its name and number of examples
        asked[f"{task}:{shots}" if task in asked else task] = first_item(task, shots, options.datasets)
    ((problem, solution),) = corpora.solved_problems(datasets=options.datasets, documents=1)
    asked[corpora.SOLUTIONS] = {"shots": 0, "prompt": problem, "scored": solution}
    harness.keep("prompts", {"tasks": asked})


def first_item(task: str, shots: int | None, datasets: str | None = None) -> dict:
    """The prompt of a task's first item, what follows it (choices, or where an answer ends) and what is right."""
    (loaded,) = tasks_of.load_tasks([task], num_fewshot=shots, datasets=datasets)["tasks"].values()
    with tasks_of.quiet():
        loaded.build_all_requests(limit=1, rank=0, world_size=1)
    first = loaded.instances[0]
    found = {"shots": loaded.get_config("num_fewshot"), "prompt": first.args[0]}
    if loaded.OUTPUT_TYPE == tasks_of.GENERATED:
        return found | {"until": first.args[1]["until"], "right": str(loaded.doc_to_target(first.doc))}
    return found | {
        "choices": [instance.args[1] for instance in loaded.instances if instance.doc_id == first.doc_id],
        "right": loaded.doc_to_target(first.doc),
    }


if __name__ == "__main__":
    main()
