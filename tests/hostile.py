"""Names that a page must show and never understand, and measured units that bear them."""

import importlib.util
import json
import re
import shutil
from html.parser import HTMLParser
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


# that have pages of their own: the others stand on those of all models, and building theirs would take long
WITH_PAGES = [f"{NAMES[0]} {NAMES[1]} a\\qb", "two/lines\nhere", "two-lines-here"]


def add_models(folder: Path) -> None:
    """The distances and a sweep that a folder of results holds, once more for models, tasks and devices of such names.

    Those of WITH_PAGES have a record, too, which asks for a page of its distances.
    """
    units = {unit.kind: unit for unit in all_units(folder) if unit.kind in ("similarity", "sweep")}
    asked = all_records(folder)[0].parameters
    for number, name in enumerate(dict.fromkeys([*NAMES, *WITH_PAGES])):
        for unit in units.values():
            task = NAMES[number // 8].replace("/", "") if unit.kind == "sweep" else unit.name
            text = json.dumps([unit.key, unit.rows.to_dict("records"), unit.details])
            key, rows, details = json.loads(text.replace(json.dumps(unit.name), json.dumps(task)))
            key["model"] = key["model"] | {"name": name}
            write_unit(unit.kind, task, key, unit.provenance | {"device": name}, pd.DataFrame(rows), details, folder)
        parameters = {k: asked[k] for k in ("model", "dtype", "samples", "sequence_length") if k in asked}
        if name in WITH_PAGES:
            write_record("01-similarity", name, parameters, folder, title=f"Of {name}")


class Understood(HTMLParser):
    """What a page makes of names that it ought to show: handlers, scripts, addresses and pictures that are not ours."""

    def __init__(self, path: Path):
        super().__init__()
        self.found, self.heading, self.within = [], "", ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.within = tag if dict(attributes).get("type") != "application/json" else ""
        for name, value in attributes:
            handler = name.startswith("on") and value != "window.print()"  # a button of the theme
            if (
                handler
                or re.match(r"\s*(javascript|vbscript):", value or "")
                or (tag, name, value) == ("img", "src", "x")
            ):
                self.found.append((tag, name, value))

    def handle_data(self, data):
        if self.within == "script" and "alert(1)" in data:
            self.found.append(("script", "", data))
        if self.within == "h1" and not self.heading:
            self.heading = data.translate(str.maketrans("“”‘’", "\"\"''"))  # the book's own quotation marks


def dialogs(pages: list[str]) -> list[str] | None:
    """What pages say in a browser that they ought not to: dialogs and errors; None where there is no browser."""
    executable = shutil.which("chromium")
    if executable is None or importlib.util.find_spec("playwright") is None:
        return None
    from playwright.sync_api import sync_playwright

    said: list[str] = []
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.on("dialog", lambda dialog: (said.append(f"{page.url}: a dialog"), dialog.dismiss()))
        page.on("pageerror", lambda error: said.append(f"{page.url}: {error}"))
        page.on("console", lambda line: said.append(f"{page.url}: {line.text}") if line.type == "error" else None)
        for address in pages:
            page.goto(address)
            if "search" in address:
                page.locator("#search-results li a").first.wait_for()
            elif page.locator("figure.measured").count():
                page.locator('figure.measured[data-drawn="true"]').last.wait_for(state="attached")
            wide = page.evaluate("document.documentElement.scrollWidth")
            said += [f"{address} is {wide} pixels wide"] if wide > 391 else []
        browser.close()
    return said
