"""What engines make of pruned checkpoints: the table of "Model families", and the page "Open it in".

Made of two files in conformance/ and of the library's table of engines that count layers: nothing is typed by hand.
"""

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from book.extension.families import Measured
from book.extension.measured import table
from conformance.measured import MEASURED, OPEN_IN
from deeper_layers.checkpoints.engines import TABLE
from deeper_layers.report.names import visible


class Conformance(Measured):
    """Tables of what each engine makes of each family's cuts, of what it refuses, and of the versions."""

    file = MEASURED

    def tables(self, content: dict) -> list[nodes.Node]:
        found = [table(f"Tokens of pruned models in {len(content['engines'])} engines", rows(content))]
        if said := messages(content):
            found.append(table("What engines say that refuse", said, "set-ups"))
        return [*found, table("Versions of the engines", versions(content))]


def rows(content: dict) -> list[dict]:
    """One row a family, one column an engine."""
    tried = {title(engine): engine.get("families", {}) for engine in content["engines"].values()}
    families = dict.fromkeys(family for found in tried.values() for family in found)
    return [
        {"Family": family} | {name: in_short(found.get(family)) for name, found in tried.items()} for family in families
    ]


def title(engine: dict) -> str:
    """What a column is called: the engine, and the version of its package."""
    return " ".join([engine["label"], *list(engine.get("versions", {}).values())[:1]])


def in_short(found: dict | None) -> str:
    """What a cell says: the worst result of the cuts, how many of them it is, and ties where there were any."""
    if found is None:
        return "not tried"
    cuts = [cut for cut in found["cuts"].values() if cut["result"] != "not tried"]
    alike = sum(cut["result"] == found["result"] for cut in cuts)
    notes = [f"{alike} of {len(cuts)} cuts"] if alike < len(cuts) else []
    ties = sum(cut.get("ties", 0) for cut in cuts)
    notes += [f"{ties} tied"] if ties else []
    return f"{found['result']} ({', '.join(notes)})" if notes else found["result"]


def messages(content: dict) -> list[dict]:
    """Every distinct line of an engine that refuses, and the families in which it came up."""
    found: dict[tuple[str, str], list[str]] = {}
    for engine in content["engines"].values():
        if "not_tried" in engine:
            found[title(engine), engine["not_tried"]] = ["all"]
        for family, result in engine.get("families", {}).items():
            for said in dict.fromkeys(cut["said"] for cut in result["cuts"].values() if "said" in cut):
                found.setdefault((title(engine), said), []).append(family)
    return [{"Engine": name, "Families": ", ".join(families), "Line": said} for (name, said), families in found.items()]


def versions(content: dict) -> list[dict]:
    return [
        {
            "Engine": engine["label"],
            "Versions": ", ".join(f"{name} {version}" for name, version in engine.get("versions", {}).items()),
            "Day": engine["measured"][:10],
        }
        for engine in content["engines"].values()
    ]


class CountingEngines(SphinxDirective):
    """A table of the engines that take a layer's kind from its number."""

    def run(self) -> list[nodes.Node]:
        found = [
            {
                "Engine": line.engine,
                "Family": line.family,
                "What it counts": f"every {line.named or line.every}th layer {line.what}",
                "Read in": line.source,
            }
            for line in TABLE
        ]
        return [table("Engines that count layers", found)]


class OpenIn(Measured):
    """For each model and engine the lines that were typed, what they said, and whether transformers says the same."""

    file = OPEN_IN

    def tables(self, content: dict) -> list[nodes.Node]:
        found: list[nodes.Node] = []
        for name, model in content["models"].items():
            part = nodes.section("", nodes.title("", visible(name)), ids=[nodes.make_id(name)])
            part += paragraph("Two layers are dropped, once into a folder and once into a GGUF file:")
            part += code("\n".join(model["made_by"]), "bash")
            part += paragraph(f"transformers, given the model cut in memory, goes on after “{model['prompt']}” with:")
            part += code(model["expected"], "text")
            for engine in model["engines"].values():
                part += self.of_engine(engine, name)
            found.append(part)
        return found

    def of_engine(self, engine: dict, model: str) -> nodes.Node:
        title_of = title(engine)
        part = nodes.section("", nodes.title("", title_of), ids=[nodes.make_id(f"{model} {title_of}")])
        if "not_tried" in engine:
            part += paragraph(f"Not tried: {engine['not_tried']}")
            return part
        part += [code(engine["first"], "bash")] if engine["first"] else []
        part += [code(engine["lines"].rstrip(), "python"), code(engine["said"], "text"), paragraph(verdict(engine))]
        if served := engine.get("served"):
            part += paragraph("And its OpenAI server, asked by curl:")
            part += [code("\n".join(served["typed"]), "bash"), code(served["said"], "json"), paragraph(verdict(served))]
        return part


def verdict(found: dict) -> str:
    """Whether an engine said what transformers says, in words."""
    if found["equal"]:
        return "The same."
    if "tokens_equal" not in found:
        return "Not the same."
    return (
        f"The same for {found['tokens_equal']} tokens; the next one is {found['below']:g} below the likeliest logit "
        "of transformers."
    )


def paragraph(text: str) -> nodes.Node:
    return nodes.paragraph("", visible(text))


def code(text: str, language: str) -> nodes.Node:
    return nodes.literal_block(text, text, language=language)


def setup(app: Sphinx) -> dict:
    app.add_directive("conformance", Conformance)
    app.add_directive("counting-engines", CountingEngines)
    app.add_directive("open-in", OpenIn)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
