"""Notebooks as a kernel runs them, in this process: cell by cell, in names of their own.

Imports nothing of ours and nothing heavy, so that it can say what a notebook itself imports.
"""

import ast
import json
from pathlib import Path
from unittest import mock

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"


def run(name: str, **parameters) -> str:
    """What the cells of a notebook show, one after another. `parameters` come after its own, as papermill has it."""
    names, shown = {"__name__": "__main__"}, []
    with mock.patch("IPython.display.display", lambda value: shown.append(as_text(value))):
        _run(name, names, shown, parameters)
    return "\n".join(shown)


def _run(name: str, names: dict, shown: list[str], parameters: dict) -> None:
    for cell in json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code":
            continue
        body = ast.parse("".join(cell["source"])).body
        last = body.pop() if isinstance(body[-1], ast.Expr) else None
        exec(compile(ast.Module(body, []), name, "exec"), names)
        if last is not None:
            shown.append(as_text(eval(compile(ast.Expression(last.value), name, "eval"), names)))
        if "parameters" in cell["metadata"].get("tags", []):
            names |= parameters


def as_text(value: object) -> str:
    """How a page shows a value: in HTML or Markdown where it has such a form."""
    for form in ("_repr_html_", "_repr_markdown_"):
        if hasattr(value, form) and (text := getattr(value, form)()) is not None:
            return text
    return repr(value)
