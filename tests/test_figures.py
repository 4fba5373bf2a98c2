"""Figures: the measured is drawn, the missing is a gap, the HTML is small, safe and self-contained."""

import base64
import dataclasses
import html
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from deeper_layers.errors import InputError
from deeper_layers.report.figures import cost_figures, drawing, paper_figures, scan_figures

L = 6
MODEL = "Model <b>&</b>"
REFERENCES = {
    "knowledge": {"chance": 0.25, "majority": None, "unpruned": 0.5},
    "yes-no": {"chance": 0.5, "majority": 0.62, "unpruned": 0.7},
}


COST = pd.DataFrame({"cuts": [1, 3], "layers": [6, 8], "layers_of_model": 6, "passes": [0.9, 1.3]})


@pytest.fixture(scope="module")
def all_distances() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    blocks = [(start, size) for size in range(1, L + 1) for start in range(L - size + 1)]
    rows = pd.DataFrame(blocks, columns=["start", "size"])
    return rows.assign(distance=rng.uniform(0.05, 0.6, len(rows)), stderr=0.01, samples=32)


@pytest.fixture
def distances(all_distances) -> pd.DataFrame:
    """A copy that a test may spoil."""
    return all_distances.copy()


@pytest.fixture(scope="module")
def best(all_distances) -> pd.DataFrame:
    kept = all_distances[all_distances["start"] + all_distances["size"] < L]
    return kept.loc[kept.groupby("size")["distance"].idxmin(), ["size", "start", "distance"]]


@pytest.fixture(scope="module")
def all_accuracy() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = [
        (task, rule, size, L - 1 - size, size / L, value, value - 0.05, value + 0.05, 100, "acc")
        for task in REFERENCES
        for rule in paper_figures.RULES
        for size in range(1, L)
        for value in [rng.uniform(0.2, 0.8)]
    ]
    columns = ["task", "rule", "size", "start", "fraction", "value", "low", "high", "items", "metric"]
    return pd.DataFrame(rows, columns=columns)


@pytest.fixture
def accuracy(all_accuracy) -> pd.DataFrame:
    return all_accuracy.copy()


def in_bytes(accuracy: pd.DataFrame) -> pd.DataFrame:
    """The rule stands for a kind of weights; a layer has a million bytes."""
    return accuracy.assign(bytes=(L - accuracy["size"]) * 1e6)


def shares(accuracy: pd.DataFrame) -> pd.DataFrame:
    """The task stands for what is measured."""
    return accuracy.query("rule == 'similarity'").assign(line=accuracy["task"])


@pytest.fixture(scope="module")
def drawn(all_distances, best, all_accuracy) -> dict[str, paper_figures.Figure]:
    """One of each kind, by name."""
    distances, accuracy = all_distances, all_accuracy
    curves = {"ours": best.assign(num_layers=L), "theirs": best.assign(num_layers=L)}
    made = [
        paper_figures.distance_curves(distances, L, best=best, model=MODEL),
        paper_figures.distance_heatmap(distances, L, best=best, model=MODEL, reference=best),
        paper_figures.best_start_comparison(curves, measured=["ours"]),
        paper_figures.accuracy_curves(accuracy, REFERENCES, tasks=list(REFERENCES), model=MODEL),
        paper_figures.headline(accuracy, REFERENCES, tasks={"knowledge": "K", "yes-no": "Y"}, model=MODEL),
        cost_figures.sweep_cost({"boolq, bfloat16": COST}),
        cost_figures.accuracy_against_bytes(
            in_bytes(accuracy), REFERENCES, tasks=list(REFERENCES), bits={"similarity": "nf4"}, model=MODEL
        ),
        cost_figures.gained(shares(accuracy), lines={"knowledge": "bytes", "yes-no": "time"}, model=MODEL),
    ]
    return {figure.name: figure for figure in made}


class Parts(HTMLParser):
    """The tags of a figure, the attributes of its image, the texts inside its script and elsewhere."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.image, self.script, self.text = [], {}, "", ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "img":
            self.image = dict(attributes)

    def handle_data(self, data):
        if self.cdata_elem == "script":
            self.script += data
        else:
            self.text += data


def trace_named(figure: paper_figures.Figure, name: str, panel: str = "x"):
    """The line of that name, not the band below it."""
    found = [t for t in figure.interactive.data if t.name == name and t.xaxis == panel and t.mode != "none"]
    assert len(found) == 1
    return found[0]


def printed_line(figure: paper_figures.Figure, colour: str, panel: int = 0):
    return next(line for line in figure.static.axes[panel].lines if line.get_color() == colour)


def test_html_is_complete_and_self_contained(drawn):
    for name, figure in drawn.items():
        text = figure._repr_html_()
        parts = Parts(text)
        assert parts.tags[:4] == ["figure", "div", "img", "script"], name
        assert text.startswith(f'<figure class="measured" id="{name}"><div class="plot">')
        svg = base64.b64decode(parts.image["src"].removeprefix("data:image/svg+xml;base64,")).decode()
        assert svg.lstrip().startswith("<?xml")
        for address in re.findall(r"https?://[\w.]+", text + svg):
            assert address.endswith("www.w3.org"), name
        plot = json.loads(parts.script)
        assert len(plot["data"]) == len(figure.interactive.data)
        assert "bdata" not in parts.script and len(str(plot["layout"]["template"])) < 60
        assert set(plot["layout"]["meta"]) == {"wide", "narrow"}
        assert len(text) < 200_000 and len(svg) < 150_000
        rows = re.search(rf'download="{name}.csv" href="data:text/csv;charset=utf-8;base64,([^"]+)"', text)
        assert base64.b64decode(rows[1]).decode() == figure.data.to_csv(index=False)


def test_same_rows_give_same_bytes(distances, best):
    one, two = (paper_figures.distance_heatmap(distances, L, best=best, model=MODEL) for _ in range(2))
    assert one._repr_html_() == two._repr_html_()


def test_number_of_traces(drawn):
    count = {name: len(figure.interactive.data) for name, figure in drawn.items()}
    assert count["distance-curves"] == 2 * L + 3  # curve and last block of each size; legend, l*, colour bar
    assert count["distance-heatmap"] == 4  # cells, l*, the authors' l*, colour bar
    assert count["best-start"] == 3  # limit, two models
    assert count["accuracy-curves"] == 2 * (2 * 2) + 2 + 3  # line and band of two rules in two panels; levels
    assert count["sweep-cost"] == 2  # one layer a layer, one benchmark
    assert count["accuracy-bytes"] == 2 * 3  # chance, line and band of one kind of weights in two panels
    assert count["gained"] == 3  # the ideal, two measured
    assert count["headline"] == 2 * 4  # guessing, unpruned, line and band of each task


def test_both_axes_have_numbers(drawn):
    for name, figure in drawn.items():
        layout = figure.interactive.layout
        assert layout.xaxis.showticklabels is not False and layout.yaxis.showticklabels is not False, name
        assert len(figure.static.axes[0].get_xticks()) > 1 and len(figure.static.axes[0].get_yticks()) > 1, name


def test_alt_text_states_what_is_seen(drawn, accuracy):
    for figure in drawn.values():
        assert Parts(figure._repr_html_()).image["alt"] == figure.alt
    assert MODEL in drawn["headline"].alt
    first = accuracy.query("task == 'knowledge' and rule == 'similarity'").iloc[0]
    assert f"{first.value:.2g} at fraction {first.fraction:.2g}" in drawn["headline"].alt
    assert "starts at" in drawn["distance-curves"].alt


def test_no_text_can_break_out(accuracy):
    evil = "</script><script>alert(1)</script><!--"
    accuracy = accuracy.replace({"task": {"knowledge": evil}})
    options = {"tasks": {evil: evil}, "model": evil, "rules": {"similarity": evil}, "provenance": evil}
    figure = paper_figures.accuracy_curves(accuracy, {}, **options)
    figure = dataclasses.replace(figure, caption=f"<em>kept</em> {evil} <img src=x>")
    parts = Parts(figure._repr_html_())
    assert parts.tags == ["figure", "div", "img", "script", "figcaption", "em", "small", "span", "a", "a"]
    assert evil in parts.text
    # a live plot takes some tags and addresses in its texts for markup
    assert html.escape(evil) in [trace["name"] for trace in json.loads(parts.script)["data"]]


def test_caption_of_a_strange_model_name(drawn):
    assert "Model &lt;b&gt;&amp;&lt;/b&gt;" in drawn["distance-curves"].caption


def test_name_is_a_slug(drawn):
    with pytest.raises(InputError, match="'A figure'"):
        dataclasses.replace(drawn["headline"], name="A figure")


@pytest.mark.parametrize("absent", ["nan", "no row"])
def test_missing_distance_is_a_gap(distances, best, absent):
    hole = (distances["size"] == 2) & (distances["start"] == 1)
    if absent == "nan":
        distances.loc[hole, ["distance", "stderr"]] = math.nan
    else:
        distances = distances[~hole]
    curves = paper_figures.distance_curves(distances, L, best=best, model=MODEL)
    curve = next(t for t in curves.interactive.data if (t.hovertemplate or "").startswith("n = 2,"))
    assert list(curve.x) == [0, 1, 2, 3]
    assert [y is None for y in curve.y] == [False, True, False, False]
    line = next(line for line in curves.static.axes[0].lines if len(line.get_xdata()) == L - 2)
    assert np.isnan(line.get_ydata()).tolist() == [False, True, False, False]
    assert line.get_markevery() == [0]  # between two gaps: only a marker shows it
    heat = paper_figures.distance_heatmap(distances, L, best=best, model=MODEL)
    assert heat.interactive.data[0].z[1][1] is None and heat.interactive.data[0].customdata[1][1] is None
    (mesh,) = (c for c in heat.static.axes[0].collections if c.get_rasterized())
    assert mesh.get_array().mask[1].tolist() == [False, True, False, False, False, True]


def test_block_with_the_last_layer_stands_apart(drawn, distances):
    figure = drawn["distance-curves"]
    apart = [t for t in figure.interactive.data if t.marker.symbol == "circle-open" and t.hovertemplate]
    assert sorted(t.x[0] for t in apart) == list(range(L))
    assert {t.x[0] + int(t.hovertemplate.split(",")[0].removeprefix("n = ")) for t in apart} == {L}
    joined = [t for t in figure.interactive.data if t.mode == "lines+markers" and t.meta != "ink"]
    assert [len(t.x) for t in joined] == [5, 4, 3, 2, 1, 0]
    assert "last layer" in " ".join(figure.static.legends[0].get_texts()[0].get_text().split())


def test_best_line_is_the_one_passed_in(drawn, best):
    (line,) = (t for t in drawn["distance-curves"].interactive.data if t.meta == "ink")
    assert list(line.x) == best["start"].tolist()
    assert list(line.y) == pytest.approx(best["distance"].tolist(), rel=1e-3)


def test_heatmap_is_rescaled_row_by_row(drawn, distances):
    cells = drawn["distance-heatmap"].interactive.data[0]
    assert len(cells.z) == L and all(len(row) == L for row in cells.z)
    for size in range(1, L):
        row = distances[distances["size"] == size].sort_values("start")["distance"].to_numpy()
        expected = (row - row.min()) / (row.max() - row.min())
        assert list(cells.z[size - 1][: len(row)]) == pytest.approx(expected.tolist(), abs=1e-4)
        assert set(cells.z[size - 1][len(row) :]) <= {None}
    assert set(cells.z[L - 1]) == {None}  # one block: nothing to rescale
    start, size = 2, 3
    distance = distances.query("start == @start and size == @size")["distance"].item()
    assert list(cells.customdata[size - 1][start]) == [5, "0.01", pytest.approx(distance, rel=1e-3)]
    assert "[0:%{x}] + [%{customdata[0]}:6]" in cells.hovertemplate


@pytest.mark.parametrize("absent", ["nan", "no row"])
def test_missing_accuracy_is_a_gap(accuracy, absent):
    hole = (accuracy["task"] == "knowledge") & (accuracy["rule"] == "simple") & (accuracy["size"] == 3)
    if absent == "nan":
        accuracy.loc[hole, ["value", "low", "high"]] = math.nan
    else:
        accuracy = accuracy[~hole]
    figure = paper_figures.accuracy_curves(accuracy, REFERENCES, tasks=list(REFERENCES), model=MODEL)
    line = trace_named(figure, "simple heuristic")
    assert [y is None for y in line.y] == [False, False, True, False, False]
    assert None not in line.x
    printed = printed_line(figure, drawing.STYLES[1]["colour"])
    assert np.isnan(printed.get_ydata()).tolist() == [False, False, True, False, False]
    band = next(t for t in figure.interactive.data if t.name == line.name and t.mode == "none")
    assert [x is None for x in band.x] == [False] * 4 + [True] + [False] * 4 + [True]  # two polygons
    assert line.customdata[2][3] == "missing"
    whole = trace_named(figure, "similarity-informed")
    assert None not in whole.y


def test_a_point_without_neighbours_shows_its_interval(accuracy):
    """Where a band would have no width, a bar; points that all lack the same layers stand side by side."""
    both = accuracy[accuracy["task"] == "knowledge"]
    hole = (both["rule"] == "simple") & (both["size"] == 2)
    figure = paper_figures.accuracy_curves(both[~hole], {}, tasks=["knowledge"], model=MODEL)
    (bar,) = (t for t in figure.interactive.data if t.name == "simple heuristic" and t.mode == "lines")
    lonely = both[(both["rule"] == "simple") & (both["size"] == 1)].iloc[0]
    assert list(bar.x) == pytest.approx([lonely["fraction"]] * 2, abs=1e-4)
    assert list(bar.y) == pytest.approx([lonely["low"], lonely["high"]], abs=1e-4)

    figure = paper_figures.accuracy_curves(both[both["size"] == 2], {}, tasks=["knowledge"], model=MODEL)
    points = {t.name: t.x[0] for t in figure.interactive.data if t.mode == "lines+markers"}
    bars = {t.name: list(t.x) for t in figure.interactive.data if t.mode == "lines"}
    assert bars == {name: [x, x] for name, x in points.items()} and len(points) == 2
    left, right = sorted(points.values())
    assert right - left > 0.005 and (left + right) / 2 == pytest.approx(2 / L, abs=1e-4)
    assert right < figure.interactive.layout.xaxis.range[1] and "side by side" in figure.caption


def test_models_of_other_depths_keep_their_own_fractions(accuracy):
    """Each model is drawn at its own n / L, and a size that only another model has is no gap in its line."""
    small = accuracy[(accuracy["task"] == "knowledge") & (accuracy["rule"] == "simple")]
    large = small[small["size"] != 3].assign(fraction=lambda rows: rows["size"] / 24)
    both = pd.concat([small.assign(model="small", rule="small"), large.assign(model="large", rule="large")])
    names = {name: name for name in ("small", "large")}
    figure = paper_figures.accuracy_curves(both, REFERENCES, tasks=["knowledge"], rules=names, model="each")
    for name, rows in (("small", small), ("large", large)):
        line = trace_named(figure, name)
        assert list(line.x) == pytest.approx(rows["fraction"].tolist(), abs=1e-4)
        assert list(line.y) == pytest.approx(rows["value"].tolist(), abs=1e-4)
    with pytest.raises(InputError, match="column model"):
        paper_figures.accuracy_curves(both.drop(columns="model"), {}, tasks=["knowledge"], rules=names, model="each")


def test_missing_reference_is_not_drawn(accuracy):
    references = {"knowledge": {"chance": None, "majority": math.nan}}
    figure = paper_figures.accuracy_curves(accuracy, references, tasks=["knowledge"], model=MODEL)
    assert {t.name for t in figure.interactive.data} == set(paper_figures.RULES.values())
    figure = paper_figures.headline(accuracy, {}, tasks=["knowledge"], model=MODEL)
    assert [list(t.y) for t in figure.interactive.data[:2]] == [[None] * 20, [None]]


def test_accuracy_axes_and_hover(drawn, accuracy):
    figure = drawn["accuracy-curves"]
    assert list(figure.interactive.layout.yaxis.range) == drawing.SHARES
    assert list(figure.interactive.layout.yaxis2.range) == drawing.SHARES
    assert figure.static.axes[0].get_ylim() == tuple(drawing.SHARES)
    line = trace_named(figure, "similarity-informed", "x2")
    row = accuracy.query("task == 'yes-no' and rule == 'similarity' and size == 2").iloc[0]
    assert list(line.customdata[1]) == ["2", "3", "acc", f"{row.low:.4g}", f"{row.high:.4g}", "100"]
    levels = {t.name: t.y[0] for t in figure.interactive.data if t.xaxis == "x2" and t.mode == "lines"}
    assert levels == {"chance": 0.5, "always the commonest answer": 0.62, "unpruned model": 0.7}


def test_narrow_screens_stack_the_panels(drawn):
    meta = drawn["accuracy-curves"].interactive.layout.meta
    assert meta["wide"]["xaxis.domain"][1] < meta["wide"]["xaxis2.domain"][0]
    assert meta["narrow"]["xaxis.domain"] == meta["narrow"]["xaxis2.domain"] == [0, 1]
    assert meta["narrow"]["yaxis.domain"][0] > meta["narrow"]["yaxis2.domain"][1]
    assert meta["narrow"]["legend"]["y"] < 0 < meta["wide"]["legend"]["y"]


def test_headline_names_lines_and_shows_what_guessing_scores(drawn):
    figure = drawn["headline"]
    assert {re.sub("<.*> ", "", note.text) for note in figure.interactive.layout.annotations} == {"K", "Y"}
    assert {"K", "Y"} <= {text.get_text() for text in figure.static.axes[0].texts}
    guessing = [t for t in figure.interactive.data if t.hovertemplate and "guessing" in t.hovertemplate]
    assert [t.y[0] for t in guessing] == [0.25, 0.62]
    assert guessing[0].marker.color != guessing[1].marker.color


def test_colours_and_markers_are_distinct(drawn):
    assert len({style["colour"] for style in drawing.STYLES}) == len(drawing.STYLES)
    assert len({style["marker"] for style in drawing.STYLES}) == len(drawing.STYLES)
    assert {style["marker"] for style in drawing.STYLES} <= set(drawing.MARKERS)
    curves = [t for t in drawn["distance-curves"].interactive.data if t.mode == "lines+markers"]
    assert len({t.line.color for t in curves}) == L + 1


def test_published_and_measured_models_look_different(drawn):
    figure = drawn["best-start"]
    ours, theirs = trace_named(figure, "ours"), trace_named(figure, "theirs")
    assert ours.line.width > theirs.line.width
    assert theirs.marker.symbol.endswith("-open") and not ours.marker.symbol.endswith("-open")
    assert list(ours.x) == pytest.approx([size / L for size in range(1, L)], abs=1e-4)
    assert set(figure.data["model"]) == {"ours", "theirs"}


def test_cost_beside_the_price_of_bare_layers(drawn):
    bare, measured = drawn["sweep-cost"].interactive.data
    assert list(measured.x) == [6, 8] and list(measured.y) == [0.9, 1.3]
    assert bare.y[-1] / bare.x[-1] == pytest.approx(1 / 6, rel=1e-3)


def test_accuracy_against_bytes_in_megabytes(drawn, accuracy):
    figure = drawn["accuracy-bytes"]
    line = trace_named(figure, "nf4")
    rows = accuracy.query("task == 'knowledge' and rule == 'similarity'")
    assert list(line.x) == [L - size for size in rows["size"]]
    assert list(line.y) == pytest.approx(list(rows["value"]), rel=1e-3)
    (band,) = (t for t in figure.interactive.data if t.name == "nf4" and t.xaxis == "x" and t.mode == "none")
    assert list(band.x[: len(rows)]) == list(line.x)
    assert list(band.y[: len(rows)]) == pytest.approx(list(rows["low"]), rel=1e-3)
    assert "%{x} MB" in line.hovertemplate
    with pytest.raises(InputError, match=r"add \['bytes'\]"):
        cost_figures.accuracy_against_bytes(accuracy, {}, tasks=["knowledge"], bits={"similarity": "nf4"}, model=MODEL)


def test_gained_beside_the_ideal(drawn, accuracy):
    ideal = trace_named(drawn["gained"], "ideal, 1 - n / L")
    assert list(ideal.y) == pytest.approx([1 - x for x in ideal.x], rel=1e-3)
    rows = accuracy.query("task == 'yes-no' and rule == 'similarity'")
    assert list(trace_named(drawn["gained"], "time").y) == pytest.approx(list(rows["value"]), rel=1e-3)
    with pytest.raises(InputError, match="no value of 'decode'"):
        cost_figures.gained(shares(accuracy), lines={"decode": "time"}, model=MODEL)


def test_save_writes_picture_and_rows(drawn, distances, tmp_path):
    distances.loc[0, "distance"] = math.nan
    figure = dataclasses.replace(drawn["distance-curves"], data=distances)
    picture, rows = paper_figures.save(figure, tmp_path / "new" / "folder")
    assert (picture.name, rows.name) == ("distance-curves.svg", "distance-curves.csv")
    assert picture.read_bytes() == figure.svg()
    pd.testing.assert_frame_equal(pd.read_csv(rows), distances)
    assert rows.read_text().splitlines()[1].split(",")[2] == ""


def test_a_row_is_no_formula(drawn, tmp_path):
    """A spreadsheet runs a cell that begins with one of these; a number stays a number, negative ones too."""
    rows = pd.DataFrame({"task": ["=1+1", "+a", "-a", "@a", "\ta", "\ra", "a=b", "-3", "1e-3"], "value": -1.5})
    rows = rows.rename(columns={"task": "=task"})
    figure = dataclasses.replace(drawn["headline"], data=rows)
    saved = paper_figures.save(figure, tmp_path)[1].read_text()
    given = re.search(r'href="data:text/csv;charset=utf-8;base64,([^"]+)"', figure._repr_html_())[1]
    assert base64.b64decode(given).decode().splitlines() == saved.splitlines()
    read = pd.read_csv(tmp_path / "headline.csv")
    assert list(read) == ["'=task", "value"] and (read["value"] == -1.5).all()
    assert list(read["'=task"]) == ["'=1+1", "'+a", "'-a", "'@a", r"\ta", r"\ra", "a=b", "-3", "1e-3"]


def test_wrong_distances_are_named(distances, best):
    for rows, message in (
        (distances.drop(columns="stderr"), "stderr"),
        (distances.assign(start=distances["start"] + 1), "start + size at most 6"),
        (pd.concat([distances, distances.head(1)]), "each block once"),
        (distances.assign(distance=distances["distance"] * 180), "distance in [0, 1]"),
        (distances.assign(distance=math.nan), "no distance"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            paper_figures.distance_curves(rows, L, best=best, model=MODEL)
    with pytest.raises(InputError, match="best has the columns"):
        paper_figures.distance_curves(distances, L, best=best.drop(columns="start"), model=MODEL)


def test_wrong_accuracies_are_named(accuracy):
    for rows, tasks, message in (
        (accuracy.drop(columns="items"), ["knowledge"], "items"),
        (accuracy, ["unheard-of"], "0 rows of task 'unheard-of'"),
        (accuracy, [], "tasks is empty"),
        (accuracy.assign(metric=["acc", "f1"] * 10), ["knowledge"], "['acc', 'f1']"),
        (pd.concat([accuracy, accuracy.head(1)]), ["knowledge"], "1 repeated"),
        (accuracy.assign(value=accuracy["value"] * 100), ["knowledge"], "expected values in [0, 1]"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            paper_figures.accuracy_curves(rows, REFERENCES, tasks=tasks, model=MODEL)
    with pytest.raises(InputError, match="no line"):
        paper_figures.best_start_comparison({})


def test_any_number_of_lines_is_drawn_and_each_looks_its_own_way():
    """A results folder of fifty models, or a run with forty orders of examples, must not stop a page."""
    curves = {f"model {i}": pd.DataFrame({"size": [1], "start": [1], "num_layers": [L]}) for i in range(50)}
    figure = paper_figures.best_start_comparison(curves)
    lines = [t for t in figure.interactive.data if t.marker.symbol]
    assert len(lines) == 50 and len({(t.line.color, t.line.dash, t.marker.symbol) for t in lines[:36]}) == 36
    panel = figure.static.axes[0].get_position().height * figure.static.get_figheight()
    assert panel > 2, "inches: the names have left no room"
    few = paper_figures.best_start_comparison({"one": curves["model 0"]})
    assert few.interactive.layout.meta["wide"]["height"] < figure.interactive.layout.meta["wide"]["height"]


def test_a_legend_is_no_wider_than_its_picture():
    long = [f"{how} on so many tokens, layers by the rule {rule}" for how in ("healed", "not healed") for rule in "ab"]
    for names in (long, ["a", "b"]):
        picture = drawing.Picture("x", "y", titles=["one", "two", "three"], columns=3)
        for label, style in zip(names, drawing.styles_of(names)):
            picture.line([0, 1], [0, 1], **style, label=label)
        picture.caption = picture.alt = "lines"
        made = picture.finish("wide", "", pd.DataFrame(), x=[0, 1], y=[0, 1]).static
        (legend,) = made.legends
        assert legend.get_tightbbox().width <= made.get_size_inches()[0] * made.dpi
        assert len(legend.get_texts()) == len(names)


def scanned(heights: dict[str, list[float]], **more) -> drawing.Figure:
    """A panel, a line for each model, of points one after another."""
    columns = ["panel", "line", "size", "start", "at", "value", "low", "high", "items", "metric"]
    rows = [
        ("text", model, 4, start, start / L, value, 0.9 * value, 1.1 * value, 32, "rise")
        for model, values in heights.items()
        for start, value in enumerate(values)
    ]
    rows, look = pd.DataFrame(rows, columns=columns), {"x": scan_figures.START, "y": "Rise", "name": "scanned"}
    lines = {"lines": {model: model for model in ("first", "second")}, "levels": {"whole model": 0.0}}
    return scan_figures.panels(rows, panels={"text": "Text"}, caption="Rises.", **look | lines | more)


def test_a_model_has_one_colour_whichever_others_have_rows():
    both, alone = scanned({"first": [1, 2], "second": [3, 4]}), scanned({"second": [3, 4]})
    assert trace_named(alone, "second").line == trace_named(both, "second").line
    assert trace_named(alone, "second").line.color != trace_named(both, "first").line.color
    assert "first" not in {trace.name for trace in alone.interactive.data}, "no entry of what is not drawn"


def test_heights_far_apart_stand_on_a_logarithmic_axis():
    figure = scanned({"first": [0.13, 8.1], "second": [1.4, 17.2]}, log=True)
    axis, (ax,) = figure.interactive.layout.yaxis, figure.static.axes
    assert axis.type == ax.get_yscale() == "log"
    assert list(axis.ticktext) == ["0.1", "0.2", "0.5", "1", "2", "5", "10", "20"]
    assert [label.get_text() for label in ax.get_yticklabels()] == list(axis.ticktext)
    assert [10**end for end in axis.range] == pytest.approx(ax.get_ylim())
    assert 10 ** axis.range[0] < 0.9 * 0.13 and 10 ** axis.range[1] > 1.1 * 17.2
    assert "logarithmic" in figure.caption and "logarithmic" in figure.alt
    assert "whole model" not in {trace.name for trace in figure.interactive.data}, "0 has no place there"
    # what is 0 would be left out: then the axis stays as it is
    figure = scanned({"first": [0.0, 8.1]}, log=True)
    assert figure.interactive.layout.yaxis.type is None and figure.static.axes[0].get_yscale() == "linear"
    assert "logarithmic" not in figure.caption + figure.alt


def test_what_lies_far_below_is_cut_off_and_said_to_be():
    figure = scanned({"first": [-2.0, 0.9], "second": [0.1, 1.1]}, least=-0.5)
    bottom, top = figure.static.axes[0].get_ylim()
    assert -0.6 < bottom < -0.5 and top > 1.1 and list(figure.interactive.layout.yaxis.range) == [bottom, top]
    assert "below -0.5 is cut off" in figure.caption and figure.data["value"].min() == -2.0
    figure = scanned({"first": [-0.2, 0.9]}, least=-0.5)  # nothing to cut off
    assert -0.3 < figure.static.axes[0].get_ylim()[0] < -0.2 and "cut off" not in figure.caption


def test_round_numbers_of_a_logarithmic_axis():
    assert drawing.ticks_of(0.11, 21.0) == pytest.approx([0.2, 0.5, 1, 2, 5, 10, 20])
    assert drawing.ticks_of(0.001, 10.0) == pytest.approx([0.001, 0.01, 0.1, 1, 10])
    assert drawing.ticks_of(3.0, 4.0) == [3.0, 4.0]
