"""The page "Model families", made of two files in benchmarks/measured: nothing on it is typed by hand."""

import json
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from book.extension.measured import not_measured, short, table
from book.extension.pages import ROOT

MEASURED = ROOT / "benchmarks" / "measured" / "families.json"
OF_DAMAGED = MEASURED.with_name("damaged.json")
WAYS = {
    "ours": "ours",
    "mergekit": "mergekit",
    "optipfair": "optipfair",
    "delete": "del layers",
    "delete_and_count": "del layers, count lowered",
}


class Measured(SphinxDirective):
    """Tables of one file, and where it comes from."""

    file: Path

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(str(self.file))
        content = measured(self.file)
        if content is None:
            return [not_measured(f"{self.file.relative_to(ROOT)} is not there or can't be read.")]
        return [*self.tables(content), origin(content)]

    def tables(self, content: dict) -> list[nodes.Node]:
        raise NotImplementedError


class Families(Measured):
    """Tables of who cuts which family right, and of what the others' errors say."""

    file = MEASURED

    def tables(self, content: dict) -> list[nodes.Node]:
        return [
            table("How many families", totals(content)),
            table(f"{len(content['families'])} families, {content['layers']} layers each", rows(content)),
            table("What the errors and refusals say", messages(content), "set-ups"),
            table("Versions", versions(content)),
        ]


class Damaged(Measured):
    """A table of what comes of damaged checkpoints, by tool."""

    file = OF_DAMAGED

    def tables(self, content: dict) -> list[nodes.Node]:
        found = [
            {"Way": " ".join(filter(None, [way, content["versions"].get(way, {}).get(way)]))} | results
            for way, results in content["results"].items()
        ]
        families = ", ".join(content["families"])
        return [table(f"{content['cases']} damaged checkpoints of {families}", found)]


def origin(content: dict) -> nodes.Node:
    """When, at which commit and by which command something was measured."""
    dirty = " with uncommitted changes" if content["provenance"]["dirty"] else ""
    commit = f"Measured {content['provenance']['measured'][:10]} at commit "
    command = nodes.paragraph("", f"{commit}{short(content['provenance']['commit'])}{dirty} by ")
    command += nodes.literal("", content["command"])
    return command


def measured(path: Path) -> dict | None:
    """What was measured; None where it is missing or can't be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def totals(content: dict) -> list[dict]:
    """For each way of cutting, how many families come out how."""
    found = content["families"].values()
    results = ("right", "refused", "fails", "silently wrong")
    return [
        {"Way": name} | {result: sum(family[way]["result"] == result for family in found) for result in results}
        for way, name in names(content).items()
    ]


def rows(content: dict) -> list[dict]:
    """One row a family: what became of it each way."""
    return [
        {"Family": family} | {name: in_short(found[way], len(content["cuts"])) for way, name in names(content).items()}
        for family, found in content["families"].items()
    ]


def in_short(found: dict, cuts: int) -> str:
    """What a cell says: the result, by how much it is off, and of how many cuts, where not of all."""
    notes = []
    if found["result"] == "silently wrong":
        # the logits may agree where the text, generated with a cache, does not
        notes.append(f"by {found['largest_difference']:.2g}" if found["largest_difference"] > 1e-4 else "text")
        notes += ["random weights"] if found["random_weights"] else []
    if found["cuts"] < cuts:
        notes.append(f"{found['cuts']} of {cuts} cuts")
    return f"{found['result']} ({', '.join(notes)})" if notes else found["result"]


def messages(content: dict) -> list[dict]:
    """Every distinct message, and the families in which it came up."""
    found: dict[tuple[str, str], list[str]] = {}
    for family, ways in content["families"].items():
        for way, name in names(content).items():
            if message := ways[way].get("error") or ways[way].get("reason"):
                found.setdefault((name, message), []).append(family)
    return [
        {"Way": name, "Families": ", ".join(families), "Message": message}
        for (name, message), families in sorted(found.items())
    ]


def names(content: dict) -> dict[str, str]:
    """What a column is called: the way, and its version where it is a package."""
    return {way: " ".join(filter(None, [name, content["versions"][way].get(way)])) for way, name in WAYS.items()}


def versions(content: dict) -> list[dict]:
    return [
        {"Way": WAYS[way], "Versions": ", ".join(f"{name} {version}" for name, version in found.items())}
        for way, found in content["versions"].items()
    ]


def setup(app: Sphinx) -> dict:
    app.add_directive("families", Families)
    app.add_directive("damaged", Damaged)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
