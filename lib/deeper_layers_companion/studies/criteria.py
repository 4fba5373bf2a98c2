"""What was registered before its data, word for word: the texts of registered/, with their commits and dates.

A page shows a text by `read_criterion("letters_or_words")` as the last line of a cell. Nothing else is called the
criterion. The function that judges by it stands in the file of its study, and is called `judge_as_registered`.
"""

import tomllib
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel

REGISTERED = Path(__file__).with_name("registered")


class Criterion(BaseModel, frozen=True, extra="forbid"):
    """One registered text: the file that held it when it was committed, and the SHA-256 of its bytes."""

    name: str
    commit: str
    committed: datetime
    source: str
    sha256: str

    @property
    def text(self) -> str:
        return (REGISTERED / f"{self.name}.md").read_bytes().decode()

    def _repr_markdown_(self) -> str:
        """The text, folded, under its commit and date."""
        head = f"The criterion, word for word, as it was committed on {self.committed:%-d %B %Y} ({self.commit[:8]})"
        return f"<details><summary>{head}</summary>\n\n{self.text}\n\n</details>"


def list_criteria() -> dict[str, Criterion]:
    """All criteria by name, in the order of their commits."""
    table = tomllib.loads((REGISTERED / "registered.toml").read_text(encoding="utf-8"))
    return {name: Criterion(name=name, **fields) for name, fields in table.items()}


def read_criterion(name: str) -> Criterion:
    """The criterion of that name, such as "letters_or_words"; KeyError if there is none."""
    return list_criteria()[name]
