"""The README's figure: the headline figure of the page of one model, as a file in book/assets.

`python -m book.extension.readme_figure` writes it; a test holds it against the page.
"""

import base64
import re

import nbformat

from book.extension.pages import ROOT, executed

FILE = ROOT / "book" / "assets" / "headline.svg"
PAGE = executed("model-Qwen2.5-Coder-1.5B-Instruct-question-answering")


def headline() -> bytes:
    """The static half of the headline figure of the executed notebook."""
    for cell in nbformat.read(PAGE, as_version=4).cells:
        for output in cell.get("outputs", []):
            html = output.get("data", {}).get("text/html", "")
            if 'id="headline"' in html:
                return base64.b64decode(re.search(r"data:image/svg\+xml;base64,([^\"]+)", html)[1])
    raise SystemExit(f"{PAGE} has no figure named headline: run make book first")


if __name__ == "__main__":
    FILE.write_bytes(headline())
