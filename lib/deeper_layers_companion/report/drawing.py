"""Draw each picture twice, panel by panel: for print (matplotlib, styled by seaborn), and as data for the site.

book/assets/plots.js draws those data at the width and in the theme of the page, with a text under the pointer. The
static picture is shown where scripts are off. figures.py decides what is drawn, and its words.
"""

import base64
import io
import json
import re
from collections.abc import Sequence

import matplotlib
import matplotlib.figure
import numpy as np
import pandas as pd
import seaborn
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_hex
from matplotlib.ticker import MaxNLocator, PercentFormatter

from deeper_layers_companion.report.names import as_csv, as_html, escape_invisible, shorten
from deeper_layers_companion.results.frames import VECTORS

INK = "#1a1a1a"  # plots.js gives it the colour of the page's text
GREY = "#8a8a8a"
WHITE = "#ffffff"  # its markers have an edge in ink, to be seen on a white page
# Okabe and Ito's colours stay distinct under every common colour blindness; markers serve black and white.
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", INK]
MARKERS = {
    "circle": "o",
    "square": "s",
    "triangle-up": "^",
    "diamond": "D",
    "triangle-down": "v",
    "cross": "P",
}
LINES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}
HEAT = matplotlib.colormaps["viridis"]
PRINT = {
    **seaborn.axes_style("whitegrid"),
    **seaborn.plotting_context("paper"),
    "font.family": "DejaVu Sans",  # a browser's substitutes are no wider; text stays text, so that pages are light
    "figure.constrained_layout.w_pad": 0.08,  # inches: browsers set the letters a little wider
    "text.parse_math": False,  # names of models and tasks are shown as they are, dollar signs too
}
MOST_NAMES = 4  # in a legend; more stand on their lines


class Panel:
    """A panel of a figure. Each method draws an element for print, on `ax`, and for the site, as an item of `live`."""

    def __init__(self, ax, title: str, x: str, y: str, height: int, legend: dict):
        title = escape_lines(title)
        ax.set_title(title, loc="left")
        self.ax = ax
        self.legend = legend
        self.ends = {}
        self.live = {
            "title": title,
            "height": height,
            "x": {"title": x},
            "y": {"title": y},
            "items": [],
        }

    def draw_line(
        self,
        x,
        y,
        *,
        colour,
        label=None,
        line="solid",
        width=1.5,
        marker=None,
        size=4,
        filled=True,
        hover=None,
    ) -> None:
        """Draw points and the line through them, one of which may be None; `hover` has a text for each point."""
        look = {
            "linestyle": LINES.get(line, ""),
            "marker": MARKERS.get(marker, ""),
            "color": colour,
        }
        look |= {
            "linewidth": width,
            "markersize": size,
            "markerfacecolor": colour if filled else "none",
        }
        if colour == WHITE and filled:
            look["markeredgecolor"] = INK
        (artist,) = self.ax.plot(x, y, **look)
        if label is not None:
            self.legend.setdefault(label, artist)
            self._note_end(label, x, y, colour)
        item = {"kind": "line", "x": round_values(x), "y": round_values(y), "colour": colour}
        if line:
            item |= {"line": line, "width": width}
        if marker:
            item |= {"marker": marker, "size": size, "filled": filled}
        if hover is not None:
            item["hover"] = list(map(escape_lines, hover))
        if label is not None:
            item["label"] = shorten(label)
        self.live["items"].append(item)

    def draw_band(self, x, low, high, *, colour) -> None:
        """Draw a band between two heights, in one piece for each run without gaps."""
        x, low, high = np.array([x, low, high], dtype=float)
        self.ax.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
        gaps = np.ma.masked_invalid(high - low)
        for run in np.ma.clump_unmasked(gaps):
            across = [*round_values(x[run]), *round_values(x[run][::-1])]
            up = [*round_values(low[run]), *round_values(high[run][::-1])]
            self.live["items"].append({"kind": "band", "x": across, "y": up, "colour": colour})

    def draw_map(self, z: np.ndarray, hover: list[list[str]]) -> None:
        """Draw a map of values from 0 to 1, [rows from 1 on, columns from 0 on]; `hover` has a text for each value."""
        edges = np.arange(z.shape[1] + 1) - 0.5, np.arange(z.shape[0] + 1) + 0.5
        look = {"cmap": HEAT, "vmin": 0, "vmax": 1, "rasterized": True, "zorder": 2}
        self.ax.pcolormesh(*edges, np.ma.masked_invalid(z), **look)
        colours = [list(map(find_heat, row)) for row in z]
        self.live["items"].append({"kind": "map", "colours": colours, "hover": hover})

    def annotate(self, x: float, y: float, text: str) -> None:
        """Write what happens at a point beside it."""
        low, high = self.ax.get_xlim()
        is_right = x > low + 0.7 * (high - low)
        look: dict = {"xytext": (6, 8), "ha": "left"}
        if is_right:
            look = {"xytext": (-6, 8), "ha": "right"}
        self.ax.annotate(
            text, (x, y), **look, textcoords="offset points", fontsize=8, fontstyle="italic"
        )
        self.live["items"].append({"kind": "note", "text": text, "x": float(x), "y": float(y)})

    def set_ranges(
        self, x: Sequence[float], y: Sequence[float], percent: str = "", rows: Sequence[str] = ()
    ) -> None:
        """Set the ranges of the axes; `percent` names axes of shares, `rows` the heights 0, 1, ... from the top."""
        self.ax.set(xlim=x, ylim=y)
        for name, axis, ends in (("x", self.ax.xaxis, x), ("y", self.ax.yaxis, y)):
            self.live[name] |= {"range": list(map(float, ends)), "percent": name in percent}
            axis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 4, 5, 10]))
            if name in percent:
                axis.set_major_formatter(PercentFormatter(1, decimals=0))
        if rows:
            self.ax.set_yticks(range(len(rows)), list(map(shorten, rows)))
            self.live["rows"] = list(map(shorten, rows))

    def _note_end(self, label: str, x, y, colour: str) -> None:
        """Keep where a line ends, for its name."""
        known = [
            (across, up) for across, up in zip(x, y) if np.isfinite(across) and np.isfinite(up)
        ]
        if known:
            is_upright = len(known) > 1 and len({across for across, _ in known}) == 1
            self.ends[label] = (*known[-1], colour, is_upright)

    def name_lines(self) -> None:
        """Write the name of each line at its right end, in print; names that would touch are moved apart."""
        low, high = self.ax.get_ylim()
        gap = (high - low) / (self.live["height"] / 14)
        place = -np.inf
        for label, (across, up, colour, is_upright) in sorted(
            self.ends.items(), key=lambda item: item[1][1]
        ):
            if is_upright:
                at = {
                    "xycoords": ("data", "axes fraction"),
                    "rotation": 90,
                    "va": "top",
                    "ha": "right",
                    "fontsize": 7,
                }
                self.ax.annotate(shorten(label), (across, 0.98), color=colour, **at)
                continue
            place = max(up, place + gap)
            at = {
                "xycoords": ("axes fraction", "data"),
                "va": "center",
                "fontsize": 7,
                "annotation_clip": False,
            }
            self.ax.annotate(shorten(label), (1.01, place), color=colour, **at)


class Figure:
    """One picture in both forms. A notebook shows it with its rows and the command that makes it.

    `name` identifies the figure on its page and names its files: a-z, 0-9 and single hyphens. `titles` has one title
    for each panel, row by row, in one column or two; `tall` are the heights of the rows in pixels, or that of each.
    """

    @matplotlib.rc_context(PRINT)
    def __init__(
        self, name: str, x: str, y: str, titles: Sequence[str], *, columns: int = 1, tall=0
    ):
        rows = -(-len(titles) // columns)
        usual = 200 if columns > 1 else 240
        if len(titles) == 1:
            usual = 340
        tall = np.broadcast_to(tall or usual, rows).tolist()
        self.name = name
        self.columns = columns
        self.scale = None
        self.legend = {}
        self.static = matplotlib.figure.Figure(
            (6.6, (sum(tall) + 60 * rows) / 90), layout="constrained"
        )
        grid = self.static.add_gridspec(rows, columns, height_ratios=tall)
        # where the last row would have a hole, the first panel has the whole width
        first = len(titles) % columns
        places = [(0, slice(None))] if first else []
        shift = columns - 1 if first else 0
        places += [divmod(index + shift, columns) for index in range(len(places), len(titles))]
        self.panels = []
        for (row, column), title in zip(places, titles):
            panel = Panel(
                self.static.add_subplot(grid[row, column]), title, x, y, tall[row], self.legend
            )
            panel.ax.set(xlabel=x if row == rows - 1 else None, ylabel=None if column == 1 else y)
            self.panels.append(panel)

    @matplotlib.rc_context(PRINT)
    def add_scale(self, title: str, colours=HEAT, ends: Sequence = (0, 1)) -> ScalarMappable:
        """Add the scale of the colours to the figure, and return it."""
        scale = ScalarMappable(Normalize(*ends), colours)
        self.static.colorbar(
            scale, ax=[panel.ax for panel in self.panels], label=title, ticks=list(ends)
        )
        self.scale = {
            "title": title,
            "stops": list_colour_stops(colours),
            "ends": round_values(ends),
        }
        return scale

    @matplotlib.rc_context(PRINT)
    def finish(self, data: pd.DataFrame, caption: str, alt: str) -> "Figure":
        """Add the rows that were drawn, a caption, which may hold <em> <strong> <b> <i> <code> <sub> <sup> <br>, and
        the alternative text; then lay out the figure."""
        vectors = [name for name in VECTORS if name in data and data[name].dtype == object]
        self.data = data.drop(columns=vectors)
        self.caption = caption
        self.alt = alt
        names = list(map(shorten, self.legend))
        if len(names) > MOST_NAMES:
            for panel in self.panels:
                panel.name_lines()
        elif names:
            columns = max(1, min(4, len(names), 80 // (4 + max(map(len, names)))))
            self.static.legend(
                self.legend.values(), names, loc="outside upper center", ncols=columns
            )
            wide, high = self.static.get_size_inches()
            self.static.set_size_inches(wide, high + 0.2 * (-(-len(names) // columns) - 1))
        for _ in range(2):  # the second layout corrects the first
            self.static.draw_without_rendering()
        self.static.set_layout_engine("none")
        return self

    def svg(self) -> bytes:
        """The static picture; the same rows give the same bytes."""
        buffer = io.BytesIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        with matplotlib.rc_context({"svg.hashsalt": self.name, "svg.fonttype": "none"}):
            self.static.savefig(buffer, format="svg", dpi=200, metadata=nothing)
        return buffer.getvalue()

    @property
    def live(self) -> dict:
        """The panels, how many stand beside each other, the scale of colours, and whether there is a legend."""
        panels = [panel.live for panel in self.panels]
        has_legend = len(panels) > 1 and len(self.legend) <= MOST_NAMES
        return {
            "panels": panels,
            "columns": self.columns,
            "scale": self.scale,
            "legend": has_legend,
        }

    def _repr_html_(self) -> str:
        """The HTML that a notebook shows: a picture that needs no script, and the live plot's data for plots.js."""
        # In JSON "<" occurs only inside strings. Escaped, no label can end the script. Browsers reject NaN.
        live = json.dumps(self.live, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
        visible = escape_invisible(" ".join(self.caption.split()))
        caption = re.sub(r"<(?!/?(?:em|strong|b|i|code|sub|sup|br)>)", "&lt;", visible)
        return (
            f'<figure class="measured" id="{self.name}"><div class="plot"><img alt="{as_html(self.alt)}" '
            f'src="data:image/svg+xml;base64,{base64.b64encode(self.svg()).decode()}"></div>'
            f'<script type="application/json" class="figure-data">{live}</script><figcaption>{caption}'
            f'<span class="downloads">{make_csv_link(self.data, self.name)} '
            f'<a class="picture" download="{self.name}.svg" hidden>picture (SVG)</a></span></figcaption></figure>'
        )


def make_csv_link(rows: pd.DataFrame, name: str) -> str:
    """A link that saves rows as NAME.csv; its address holds the rows."""
    content = base64.b64encode(as_csv(rows).encode(errors="backslashreplace")).decode()
    return f'<a download="{name}.csv" href="data:text/csv;charset=utf-8;base64,{content}">data (CSV)</a>'


def find_heat(value: float) -> str | None:
    """The colour of a value of a map, from 0 to 1; None where it is missing."""
    return None if np.isnan(value) else to_hex(HEAT(value))


def escape_lines(text: str) -> str:
    """Text of several lines, each short and without characters that nobody sees."""
    return "\n".join(map(shorten, text.split("\n")))


def list_colour_stops(colours) -> list:
    """A colour map as a list of stops: place and colour."""
    return [[stop, to_hex(colours(stop))] for stop in np.linspace(0, 1, 11).round(1).tolist()]


def round_values(values) -> list[float | int | None]:
    """Values for JSON: four significant digits, more than a screen shows; None where missing, as JSON has no NaN."""
    rounded = [
        float(f"{value:.4g}") if np.isfinite(value) else None
        for value in np.asarray(values, dtype=float)
    ]
    return [int(value) if value is not None and value.is_integer() else value for value in rounded]
