"""Sentences whose numbers come from a frame: no number in prose is typed."""

import pandas as pd

from deeper_layers.report.names import as_html

NOT_MEASURED = "Not measured."


class Said:
    """Some sentences, as HTML that has a name, by which other pages show them too."""

    def __init__(self, sentences: list[str], name: str):
        self.sentences, self.name = sentences, name

    def __str__(self) -> str:
        return " ".join(self.sentences) or NOT_MEASURED

    def _repr_html_(self) -> str:
        return f'<p class="said" id="{as_html(self.name)}">{as_html(str(self))}</p>'


def said(sentence: str, rows: pd.DataFrame, *, name: str = "answer") -> Said:
    """One sentence for each row of a frame, with its columns where the sentence has them in braces.

    Example:
        >>> print(said("{model} keeps {kept:.0%}.", pd.DataFrame({"model": ["a", "b"], "kept": [0.5, 0.25]})))
        a keeps 50%. b keeps 25%.
    """
    return Said([sentence.format(**row) for row in rows.to_dict("records")], name)
