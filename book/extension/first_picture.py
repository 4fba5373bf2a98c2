"""The first figure where scripts are off: the strip of layers, the lines and the bars of one cut, drawn once."""

import io
import math

import matplotlib
import matplotlib.figure

from deeper_layers_companion.report import drawing, panels

COLOURS = {
    "letters": panels.RED,
    "easy": panels.YELLOW,
    "words": panels.BLUE,
    "written": panels.GREEN,
    "text": drawing.GREY,
}


def get_share(model: dict, cut: str, task: str) -> float | None:
    """What a task keeps without a cut; of a text how likely its next token is, beside the whole model."""
    told = model["cuts"].get(cut, {}).get(task)
    if told is None:
        return None
    number, share, _, _, score = told
    asked = model["asked"][number]
    return math.exp(asked["whole"] - score) if asked["loss"] else share


@matplotlib.rc_context(drawing.PRINT)
def draw_picture(model: dict) -> bytes:
    """The picture of the cut that the figure opens on, as SVG."""
    start, size = map(int, model["opens"].split(","))
    picture = matplotlib.figure.Figure((9.6, 4.4), layout="constrained")
    shape = {"width_ratios": [3, 1], "height_ratios": [1, 10]}
    (strip, spare), (chart, bars) = picture.subplots(2, 2, gridspec_kw=shape)
    spare.remove()
    for layer in range(model["layers"]):
        dropped = start <= layer < start + size
        look = {"facecolor": "none", "linestyle": ":"} if dropped else {"facecolor": "#33475b"}
        strip.barh(0, 0.9, left=layer + 0.05, height=0.8, edgecolor="#33475b", **look)
        strip.text(layer + 0.5, 0, str(layer), ha="center", va="center", fontsize=7, color="k" if dropped else "w")
    strip.set_axis_off()
    strip.set_title(f"{model['name']} without layers {start} to {start + size - 1}", loc="left")
    chart.axvspan(start, start + size, color=drawing.GREY, alpha=0.2)
    labels, shares, colours = [], [], []
    for colour, tasks in model["lines"].items():
        measured = [task for task in tasks if get_share(model, model["opens"], task) is not None]
        if not measured:  # as explorer.js, no bar stands for what was not measured
            continue
        task = measured[0]
        starts = range(model["layers"] - size + 1)
        kept = [get_share(model, f"{first},{size}", task) for first in starts]
        known = [(first + size / 2, share) for first, share in zip(starts, kept) if share is not None]
        chart.plot(*zip(*known, strict=True), color=COLOURS[colour], linewidth=2)
        labels.append(tasks[task])
        shares.append(get_share(model, model["opens"], task))
        colours.append(COLOURS[colour])
    drawn = bars.barh(labels, [max(0, share) for share in shares], color=colours)
    bars.bar_label(drawn, [f"{share:.0%}" for share in shares], padding=3)
    bars.set(xlim=(0, 1.35), xticks=[0, 1], xticklabels=["guessing", "whole"])
    bars.invert_yaxis()
    for ax in (strip, chart):
        ax.set_xlim(0, model["layers"])
    chart.set(
        ylim=(-0.25, 1.2), xlabel=f"layer (lines: a block of {size} dropped around it)", ylabel="kept above guessing"
    )
    buffer = io.BytesIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.hashsalt": "first-figure", "svg.fonttype": "none"}):
        picture.savefig(buffer, format="svg", metadata=nothing)
    return buffer.getvalue()
