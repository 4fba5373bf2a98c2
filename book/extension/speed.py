"""The table of the page "What it saves", made of benchmarks/measured: nothing of it is typed by hand."""

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from benchmarks import table
from book.extension.measured import not_measured


class MeasuredSpeed(SphinxDirective):
    """What each saving was timed beside, the ratio, and how closely both sides agree."""

    def run(self) -> list[nodes.Node]:
        for path in sorted(table.MEASURED.glob("*.json")):
            self.env.note_dependency(str(path))
        lines = table.rows()
        if len(lines) == len(table.HEAD):
            return [not_measured("benchmarks/measured holds no timing.")]
        box = nodes.container("", classes=["wide-table", "sentences"])
        self.state.nested_parse(StringList(lines), 0, box)
        for found in box.findall(nodes.table):
            found.insert(0, nodes.title("", "What each saving was timed beside"))
        return [box]


def setup(app: Sphinx) -> dict:
    app.add_directive("measured-speed", MeasuredSpeed)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
