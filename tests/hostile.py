"""Names that a page must show and never understand, and measured units that bear them."""

import json
from pathlib import Path

import pandas as pd

from deeper_layers.results.records import all_records, write_record
from deeper_layers.results.units import all_units, write_unit

NAMES = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "a\\qb",
    "a_b*c",
    "$x$ \\(y\\)",
    "{math}`x` {{ title }} ```{raw} html",
    "=1+1",
    "x" * 100,
    "\u202egnp.exe",
    "two\nlines\r\n# here",
    "[a](javascript:alert(1)) <javascript:alert(1)>",
    "`code` & &lt;b&gt; &#60;i&#62;",
    "</title></h1></script><svg onload=alert(1)>",
    "%{x} %{customdata[0]}",
    "' onmouseover='alert(1)",
    "- a | b | c :::{note}",
    "constructor",
    "__proto__",
    "_hidden",
    "-2",
    "@SUM(A1)",
    "é 漢字 🙂",
]


def add_models(folder: Path, names: list[str]) -> None:
    """The distances and a sweep that a folder of results holds, once more for models, tasks and devices of such names.

    Each model has a record, too, which asks for a page of its distances.
    """
    units = {unit.kind: unit for unit in all_units(folder) if unit.kind in ("similarity", "sweep")}
    asked = all_records(folder)[0].parameters
    for number, name in enumerate(names):
        for unit in units.values():
            task = NAMES[-number].replace("/", "") if unit.kind == "sweep" else unit.name
            text = json.dumps([unit.key, unit.rows.to_dict("records"), unit.details])
            key, rows, details = json.loads(text.replace(json.dumps(unit.name), json.dumps(task)))
            key["model"] = key["model"] | {"name": name}
            write_unit(unit.kind, task, key, unit.provenance | {"device": name}, pd.DataFrame(rows), details, folder)
        parameters = {k: asked[k] for k in ("model", "dtype", "samples", "sequence_length") if k in asked}
        write_record("01-similarity", name, parameters, folder, title=f"Of {name}")
