"""Which measures predict what dropping costs: the statistic beside a plain reading of it, and where it is known."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import pearsonr, rankdata

from deeper_layers.report.figures.row_figures import in_rows
from deeper_layers.report.questions import geometry
from deeper_layers.report.questions.geometry import MEASURES, PREDICTS, WORDS, Prediction
from deeper_layers.results.units import Unit

LAYERS = 12
PLACES = [(start, size) for size in range(1, LAYERS - 1) for start in range(LAYERS - size + 1)]


def table(**columns) -> pd.DataFrame:
    return pd.DataFrame(PLACES, columns=["start", "size"]).assign(**columns)


def noise(seed, scale=1.0):
    return np.random.default_rng(seed).normal(scale=scale, size=len(PLACES))


def of_each(found):
    return {one.measure: one for one in found}


def test_a_measure_is_compared_with_blocks_of_its_own_size():
    """Costs that rise with size alone are not predicted by what rises with size alone."""
    sizes = np.array([size for _, size in PLACES])
    blocks = table(distance=sizes + noise(1, 0.1), cka=sizes + noise(2, 0.1), skip=noise(3))
    cost = table(cost=10 * sizes + blocks["skip"] + noise(4, 0.05))
    found = of_each(geometry.predictions(blocks, cost, "loss"))
    assert np.corrcoef(blocks["cka"], cost["cost"])[0, 1] > 0.95
    assert found["cka"].verdict != "predicts" and abs(found["cka"].correlation) < 0.3
    skip = found["skip"]
    assert skip.verdict == "predicts" and skip.low > PREDICTS and skip.beside == "better"
    assert skip.low <= skip.correlation <= skip.high
    # a plain reading: ranks within each size, each about its mean
    pairs = []
    for size in range(1, LAYERS - 1):
        own = blocks["size"] == size
        ranks = [rankdata(one[own]) / (own.sum() + 1) for one in (blocks["skip"], cost["cost"])]
        pairs.append([of_one - of_one.mean() for of_one in ranks])
    assert skip.correlation == pytest.approx(pearsonr(*np.concatenate(pairs, axis=1))[0], abs=1e-9)
    assert skip.blocks == len(PLACES)
    said = geometry.in_words(list(found.values()))
    assert said.startswith(f"**loss**, {len(PLACES)} blocks, 3 measures: predicted by output without a layer (+")
    assert "surely better than the angular distance: output without a layer (+" in said
    untold = sum(one.verdict == geometry.UNTOLD for one in found.values())
    assert f"; of {untold} it can't be told; " in said


def test_the_measure_that_goes_most_with_costs_is_drawn_first():
    told = [Prediction("cka", "loss", 20, 0.2, -0.1, 0.5), Prediction("skip", "loss", 20, -0.7, -0.9, -0.5),
            Prediction("cka", "BoolQ", 20, 0.3, 0.0, 0.6),
            Prediction("skip", "BoolQ", 0, obstacle="not measured")]  # fmt: skip
    rows = geometry.drawn(told)
    assert rows["row"].tolist() == [WORDS["skip"], WORDS["cka"], WORDS["cka"]]
    assert rows["line"].tolist() == ["loss", "loss", "BoolQ"] and rows["value"].tolist() == [-0.7, 0.2, 0.3]
    figure = in_rows(rows, across="Correlation", said="x.", model="m", name="r")
    assert {trace.name for trace in figure.interactive.data} == {"loss", "BoolQ"}
    assert "predicted by output without a layer (-0.70)" in geometry.in_words(told[1:2])


def test_either_direction_predicts_and_ranks_are_all_that_counts():
    blocks = table(distance=noise(1), cosine_layer=noise(2))
    found = of_each(geometry.predictions(blocks, table(cost=np.exp(-3 * blocks["cosine_layer"])), "loss"))
    assert (
        found["cosine_layer"].correlation == pytest.approx(-1, abs=1e-6) and found["cosine_layer"].verdict == "predicts"
    )
    assert found["distance"].verdict == "not" and found["distance"].beside == ""


def test_what_was_not_measured_is_missing():
    blocks = table(distance=noise(1), skip_later=np.nan, two_nn=noise(2))
    blocks.loc[20:, "two_nn"] = np.nan
    found = of_each(geometry.predictions(blocks, table(cost=noise(3)), "loss"))
    assert found["skip_later"].verdict == found["cka"].verdict == "not measured"
    assert found["two_nn"].blocks == 20  # of sizes 1 and 2
    of_two = table(cost=noise(3)).groupby("size").head(2)  # the cuts of two rules
    found = of_each(geometry.predictions(blocks, of_two, "loss"))
    assert found["distance"].verdict == "too few blocks of a size: 20 in all"
    shown = geometry.table_of(list(found.values()))
    assert list(shown["measure"]) == [*WORDS.values()] and shown["loss"].iloc[0].startswith("too few")


@pytest.mark.parametrize(("low", "high", "verdict"), [
    (0.5, 0.9, "predicts"), (-0.8, -0.5, "predicts"), (-0.4, 0.49, "not"), (0.3, 0.7, "can't be told"),
    (-0.6, 0.6, "can't be told"),
])  # fmt: skip
def test_verdicts(low, high, verdict):
    assert Prediction("skip", "loss", 99, (low + high) / 2, low, high).verdict == verdict


def test_neighbouring_starts_are_drawn_together():
    starts = np.array([start for start, _ in PLACES])
    times = geometry.resampled_starts(starts, 400)
    assert (times[0] == 1).all() and times.shape == (401, len(PLACES))
    of_start = np.stack([times[1:, starts == start][:, 0] for start in range(LAYERS)], axis=1)
    assert all((times[1:, starts == start].T == of_start[:, start]).all() for start in range(LAYERS))
    assert (of_start.sum(axis=1) == LAYERS).all()  # three runs of four each
    assert of_start.mean(axis=0) == pytest.approx(np.ones(LAYERS), abs=0.15)
    assert np.corrcoef(of_start[:, 3], of_start[:, 4])[0, 1] > 0.5 > np.corrcoef(of_start[:, 3], of_start[:, 8])[0, 1]


def test_the_interval_covers_what_neighbours_share():
    """Where blocks are alike their neighbours, a bootstrap of single blocks would be far too sure."""
    draw, inside = np.random.default_rng(0), 0
    for _ in range(25):
        first, second = draw.normal(size=(2, LAYERS))
        means = [np.array([of_layer[a : a + n].mean() for a, n in PLACES]) for of_layer in (first, second)]
        found = of_each(geometry.predictions(table(distance=means[0]), table(cost=means[1]), "loss", resamples=100))
        inside += found["distance"].low <= 0 <= found["distance"].high
    assert inside >= 22  # of unrelated ones


def test_power_rises_with_the_correlation_and_with_blocks():
    """And nothing of what is not there is seen in more than a few trials."""
    weak, strong, few, nothing = (
        geometry.power(16, sizes, correlation, trials=40, resamples=60)
        for sizes, correlation in ((range(1, 15), 0.6), (range(1, 15), 0.99), ([4], 0.99), (range(1, 15), 0.0))
    )
    assert strong > few > weak >= nothing and strong > 0.8 and nothing <= 0.05
    assert geometry.power(5, [4], 1.0, trials=2) == 0  # too few blocks


def a_unit() -> Unit:
    """A unit of geometry whose values say where they stand."""
    layers = ("norm_attention", "norm_mlp", "norm_layer", "cosine_attention", "cosine_mlp", "cosine_layer", "skip")
    states = ("lens_divergence", "lens_overlap", "prompt_entropy", "effective_rank", "two_nn", "two_nn_shuffled")
    rows = [{"metric": name, "start": at, "size": 1, "value": at + 1.0} for name in layers for at in range(LAYERS)]
    rows += [{"metric": name, "start": at, "size": 0, "value": 2.0**at} for name in states for at in range(LAYERS + 1)]
    pairs = {name: [[1 - (m - at) / 100 for m in range(at + 1, LAYERS + 1)] for at in range(LAYERS)]
             for name in ("cka", "neighbour_overlap")}  # fmt: skip
    pairs["skip_later"] = [[10.0 * s + m for m in range(s + 1, LAYERS)] for s in range(LAYERS - 1)]
    return Unit("geometry", "text", {}, {}, pd.DataFrame(rows), {"num_layers": LAYERS, "pairs": pairs})


def test_each_measure_of_a_block():
    distances = table(distance=noise(1))
    blocks = geometry.of_blocks(a_unit(), distances).set_index(["start", "size"])
    assert len(blocks) == LAYERS * (LAYERS + 1) // 2
    assert set(blocks) == {measure.name for measure in MEASURES} | {"distance"}
    block = blocks.loc[3, 4]  # layers 3, 4, 5, 6; states 3 and 7
    assert block["distance"] == distances.set_index(["start", "size"]).loc[(3, 4), "distance"]
    assert block["cka"] == block["neighbour_overlap"] == pytest.approx(0.04)
    assert block["norm_attention"] == block["cosine_layer"] == block["skip"] == np.mean([4, 5, 6, 7])
    assert block["lens_divergence"] == 2**3 - 2**7 and block["lens_overlap"] == 2**7 - 2**3 == block["prompt_entropy"]
    assert block["two_nn"] == block["effective_rank"] == pytest.approx(4 * np.log(2))
    assert block["skip_later"] == np.mean([10 * s + m for s in range(3, 7) for m in range(7, LAYERS)])
    assert blocks["skip_later"].isna().equals(blocks.index.map(sum).to_series(blocks.index) == LAYERS)


def test_costs_are_of_the_unit_with_most_blocks():
    def unit(kind, name, rows, **key):
        frame = pd.DataFrame(rows, columns=["task", "metric", "start", "size", "value"])
        frame["items"], details = 100, {"levels": {name: {"chance": 0.5}}}
        return Unit(kind, name, {"quantization": None, "num_fewshot": 5, **key}, {"measured": "2026"}, frame, details)

    few = unit("loss", "c4", [("c4", "loss", 0, 0, 3.0), ("c4", "loss", 1, 1, 3.5)])
    more = unit("blocks", "c4", [("c4", "loss", 0, 0, 3.0), ("c4", "loss", 1, 1, 3.25), ("c4", "loss", 2, 1, 4.0)],
                quantization="nf4")  # fmt: skip
    task = unit("sweep", "boolq", [("boolq", "acc", 0, 0, 0.75), ("boolq", "acc", 2, 1, 0.5)])
    three = unit("sweep", "capitals", [("capitals", "acc", at, min(at, 1), 1.0) for at in range(4)])
    two_each = unit("sweep", "capitals", [("capitals", "acc", 0, 0, 1.0)] + [
        ("capitals", "acc", at, size, 1.0) for size in (1, 2, 3) for at in range(2)])  # fmt: skip
    assert geometry.costs([two_each, three])["Capitals, 5-shot"][1] is three
    nothing = unit("sweep", "piqa", [("piqa", "acc", 2, 1, 0.5)])  # beside what?
    found = geometry.costs([few, more, task, nothing])
    assert {what: unit for what, (_, unit) in found.items()} == {"loss on C4": more, "BoolQ, 5-shot": task}
    guesses = unit("sweep", "boolq", [("boolq", "acc", 0, 0, 0.55), ("boolq", "acc", 2, 1, 0.5)])
    assert geometry.costs([guesses]) == {}, "it has nothing to lose"
    assert found["loss on C4"][0]["cost"].tolist() == [0.25, 1.0]
    assert found["BoolQ, 5-shot"][0].values.tolist() == [[2, 1, 0.25]]
