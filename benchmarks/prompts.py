"""What each task asks, word for word, of its first item: written down from lm-eval, no model is run.

python -m benchmarks.prompts --datasets FOLDER
"""

import argparse

from benchmarks import side_by_side
from deeper_layers.evaluation import harness

TASKS = {
    "mmlu_abstract_algebra": 5, "mmlu_abstract_algebra_continuation": 5, "boolq": None, "gsm8k": None,
    "capitals": None, "lettered_capitals": None, "sums_one_digit": None,
    "sums_two_digits": None, "sums_one_digit_generated": None, "embedded_mmlu": None, "embedded_boolq": None,
    "embedded_piqa": None,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", help="folder of a local mirror of the hub")
    options = parser.parse_args()
    asked = {task: first_item(task, shots, options.datasets) for task, shots in TASKS.items()}
    side_by_side.keep("prompts", {"tasks": asked})


def first_item(task: str, shots: int | None, datasets: str | None = None) -> dict:
    """The prompt of a task's first item, what follows it (choices, or where an answer ends) and what is right."""
    (loaded,) = harness.load_tasks([task], num_fewshot=shots, datasets=datasets)["tasks"].values()
    with harness._quiet():
        loaded.build_all_requests(limit=1, rank=0, world_size=1)
    first = loaded.instances[0]
    found = {"shots": loaded.get_config("num_fewshot"), "prompt": first.args[0]}
    if loaded.OUTPUT_TYPE == harness.GENERATED:
        return found | {"until": first.args[1]["until"], "right": str(loaded.doc_to_target(first.doc))}
    return found | {
        "choices": [instance.args[1] for instance in loaded.instances if instance.doc_id == first.doc_id],
        "right": loaded.doc_to_target(first.doc),
    }


if __name__ == "__main__":
    main()
