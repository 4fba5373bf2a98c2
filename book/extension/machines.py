"""The tables of the page "Machines": data sheets, arithmetic for large models, and predicted beside measured."""

import json

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from benchmarks import large
from benchmarks.table import MEASURED
from book.extension.measured import not_measured, table
from book.extension.outdated import made_of
from deeper_layers.experiments.costs import duration
from deeper_layers.models.machines import DEVICES, REACHED, Machine


class Sheets(SphinxDirective):
    """A table of the devices that a plan knows, each with its source."""

    def run(self) -> list[nodes.Node]:
        return [table("Devices, by their data sheets", [sheet(device) for device in DEVICES.values()])]


def sheet(device: Machine) -> dict:
    """One row: what the sheet of a device says, products as it has them without sparsity."""
    teraflops = {dtype: f"{reached / REACHED / 1e12:,.1f}" for dtype, reached in device.throughput.items()}
    return {
        "Device": device.name,
        "Memory, GB": f"{device.memory / 1e9:,.0f}",
        "Bandwidth, TB/s": f"{device.bandwidth / 1e12:.2f}",
        "bfloat16, TFLOPS": teraflops["bfloat16"],
        "float32, TFLOPS": teraflops["float32"],
        "Source": device.source,
    }


class Large(SphinxDirective):
    """A table of what large models would cost, which nobody measured."""

    def run(self) -> list[nodes.Node]:
        made_of(self.env, large.COSTS)
        content = json.loads(large.COSTS.read_text(encoding="utf-8"))
        return [table("Arithmetic, not measured: large models", large_rows(content))]


def large_rows(content: dict) -> list[dict]:
    """One row a model and machine."""
    found: dict[tuple[str, str], dict] = {}
    for row in content["costs"]:
        shape = content["shapes"][row["model"]]
        cells = found.setdefault(
            (row["model"], row["machine"]),
            {
                "Model": row["model"],
                "Parameters (of a token)": f"{shape['parameters'] / 1e9:,.0f} billion "
                f"({(shape['used'] + shape['head']) / 1e9:,.0f})",
                "Machine": row["machine"],
            },
        )
        needs = f"{row['memory'] / 1e9:,.0f} GB on {row['devices']}"
        cells[row["work"].capitalize()] = f"{duration(row['seconds'])}, {needs}"
    return list(found.values())


class Predicted(SphinxDirective):
    """A table of predictions beside what was measured on the machine that they were made for."""

    def run(self) -> list[nodes.Node]:
        paths = sorted(MEASURED.glob("predicted-*.json"))
        made_of(self.env, *paths)
        contents = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
        rows = [predicted_row(row, content) for content in contents for row in content["rows"]]
        return [table("Predicted and measured", rows)] if rows else [not_measured("benchmarks/measured has none yet.")]


def predicted_row(row: dict, content: dict) -> dict:
    return {
        "Model": row["model"],
        "Work": row["work"],
        "Predicted": duration(row["predicted"]),
        "Measured": duration(row["measured"]),
        "Measured over predicted": f"{row['measured_over_predicted']:.2f}",
        "Pace": f"{row['pace']:.2f}",
        "Number format": content["dtype"],
        "Machine": content["provenance"]["device"],
    }


def setup(app: Sphinx) -> dict:
    app.add_directive("machine-sheets", Sheets)
    app.add_directive("large-models", Large)
    app.add_directive("predicted", Predicted)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
