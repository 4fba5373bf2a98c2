"""Claims: made-up measurements that agree, differ or are missing get the verdict they deserve."""

import dataclasses
import html
import re
import shutil

import numpy as np
import pandas as pd
import pytest

from deeper_layers.report.claims import claims, decisions, healing_decisions
from deeper_layers.report.claims.claims import (
    CLAIMS,
    FIGURES,
    details,
    figure_table,
    result,
    ruled,
    summary_table,
    verdict_of,
)
from deeper_layers.report.claims.half_gone import half_gone, halves, in_words
from deeper_layers.report.claims.verdicts import (
    AGREES,
    DIFFERS,
    NOTHING,
    OPEN,
    UNMEASURED,
    Finding,
    Obstacle,
    Ruling,
    together,
)
from deeper_layers.report.figures.drawing import GREY, styles_of
from deeper_layers.report.paper import CLIFFS
from deeper_layers.report.statistics import outcomes
from deeper_layers.report.statistics.evidence import Evidence, by_model
from deeper_layers.report.thresholds import AT_ONCE, DEEP, EARLIEST, LATEST
from deeper_layers.results.places import results_folder
from deeper_layers.results.units import all_units
from tests.made_up import (
    FLAT,
    GUESSES,
    LAYERS,
    SIZES,
    SLOPE,
    distances,
    healings,
    of_each_sequence,
    prompts,
    sweep,
    unhealed,
)


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    """Enough for what is made up here, which lies far on one side."""
    monkeypatch.setattr(outcomes, "RESAMPLES", 400)


def verdict(identifier, *units):
    (claim,) = [claim for claim in CLAIMS if claim.identifier == identifier]
    return verdict_of(claim.decide(Evidence(list(units))))


def finding(low, value, high, **limits):
    """A number that is as surely where it is as an interval from resampled values says."""
    draws = np.concatenate([[value], np.linspace(low, high, 1001)])
    return Finding.of_draws("x", draws, **limits)


def test_an_interval_decides_only_where_it_lies_on_one_side():
    def said(*numbers, **limits):
        return Ruling("a", [finding(*numbers, **limits)]).verdict

    assert said(0.25, 0.3, 0.35, floor=0.2, ceiling=0.5) == AGREES
    assert said(0.05, 0.1, 0.19, floor=0.2) == said(0.51, 0.6, 0.7, ceiling=0.5) == DIFFERS
    assert said(0.15, 0.3, 0.35, floor=0.2) == OPEN
    yes, no = finding(0.9, 1.0, 1.1, floor=0.0), finding(0.9, 1.0, 1.1, ceiling=0.0)
    both = Ruling("a", [yes, no])
    assert both.verdict == DIFFERS and "outside the claim: x" in both.reason and both.p == 2 * Ruling("a", [no]).p
    assert Ruling("a").verdict == UNMEASURED
    nothing = Obstacle(NOTHING, "nothing")
    assert Ruling("a", [no], nothing).verdict == NOTHING, "an obstacle decides, whatever was found"
    # a part that has no number: the others may speak against the claim, and never for it alone
    assert Ruling("a", [yes], missing=nothing).verdict == NOTHING
    assert Ruling("a", [no], missing=nothing).verdict == DIFFERS
    # what the paper did not ask decides nothing
    assert verdict_of([Ruling("a", [yes]), Ruling("b", [no], of_paper=False)]) == AGREES


def test_what_is_no_number_speaks_for_neither():
    for limits in ({"floor": 0.0}, {"ceiling": 0.0}, {"floor": -1.0, "ceiling": 1.0}):
        found = Finding.of_draws("x", np.full(401, np.nan), items=9, **limits)
        assert found.p_agrees == found.p_differs == 1.0 and np.isinf(found.items_needed())
        assert Ruling("a", [found]).verdict == OPEN and "no number (no number to no number)" in str(found)


def test_distances_of_few_layers_say_nothing_of_depth():
    for layers in (1, 2, 3):
        rows = [(start, size) for size in range(1, layers + 1) for start in range(layers - size + 1)]
        unit = distances(lambda start, size: 0.1)
        rows = pd.DataFrame(rows, columns=["start", "size"]).assign(distance=0.1, stderr=0.0, samples=4)
        unit = dataclasses.replace(unit, rows=rows, details=unit.details | {"num_layers": layers})
        assert verdict("deep-blocks", unit) == verdict("last-layer", unit) == UNMEASURED


def test_shots_are_compared_on_the_same_tasks_in_one_order():
    subjects = ["mmlu_virology", "mmlu_anatomy"]
    five, none = ([sweep(name, FLAT, shots=shots) for name in names]
                  for shots, names in ((5, subjects), (0, subjects[::-1])))  # fmt: skip
    found = Evidence([*five, *none]).by_shots("MMLU", "similarity")
    assert (
        list(found) == [0, 5]
        and len({answers.described.replace("0-shot", "5-shot") for answers in found.values()}) == 1
    )
    assert (found[0].right == found[5].right).all()
    alone = Evidence([five[0], none[0]]).by_shots("MMLU", "similarity")
    assert len(alone) == 1, "another subject is no other prompt"


def test_a_claim_of_two_parts_needs_both():
    yes, no = Ruling("a", [finding(0.9, 1.0, 1.1, floor=0.0)]), Ruling("b", [finding(0.9, 1.0, 1.1, ceiling=0.0)])
    for state in (UNMEASURED, NOTHING, OPEN):
        other = Ruling("c", obstacle=Obstacle(state, "why"))
        assert together([yes, other]) == state and together([other, no]) == DIFFERS
    assert together([yes, yes]) == AGREES and together([]) == UNMEASURED


@pytest.mark.parametrize("task, identifier", [("mmlu_anatomy", "plateau"), ("boolq", "boolq")])
def test_a_plateau_is_flat_and_ends_at_once(task, identifier):
    assert verdict(identifier, sweep(task, FLAT)) == AGREES
    assert verdict(identifier, sweep(task, SLOPE)) == DIFFERS
    early = [0.8 if size < EARLIEST * LAYERS - 2 else 0.25 for size in SIZES]
    late = [0.8 if size < LATEST * LAYERS + 2 else 0.25 for size in SIZES]
    assert verdict(identifier, sweep(task, early)) == verdict(identifier, sweep(task, late)) == DIFFERS
    # up to the last cut nothing is lost, which lies within the paper's range
    # what lies beyond the last cut is not measured
    assert verdict(identifier, sweep(task, FLAT[:7])) == OPEN
    # nothing to lose
    assert verdict(identifier, sweep(task, GUESSES)) == NOTHING
    (ruling, *_) = next(claim for claim in CLAIMS if claim.identifier == identifier).decide(
        Evidence([sweep(task, GUESSES)])
    )
    assert "surely no more than 0.05 above guessing" in ruling.reason and "0.250" in ruling.reason
    assert verdict(identifier, sweep(task, FLAT, rule="simple")) == UNMEASURED


def test_other_tasks_stand_beside_the_verdict():
    found = decisions.plateau(Evidence([sweep("capitals", SLOPE), sweep("embedded_piqa", GUESSES)]))
    assert [(ruling.of_paper, ruling.verdict) for ruling in found] == [(True, UNMEASURED), (False, DIFFERS)]
    assert "not measured: MMLU" in found[0].reason


def test_the_subjects_of_mmlu_count_together():
    (ruling, *_) = decisions.plateau(Evidence([sweep("mmlu_anatomy", FLAT), sweep("mmlu_virology", FLAT)]))
    assert ruling.about == "MMLU, 2 of 57 subjects, 6,000 items"
    # of two measurements the one with more items
    (ruling, *_) = decisions.plateau(
        Evidence([sweep("mmlu", SLOPE), sweep("mmlu_anatomy", FLAT), sweep("mmlu_virology", FLAT)])
    )
    assert ruling.verdict == AGREES


def test_losses_after_healing():
    slow, fast = np.linspace(3, 5, 8), np.array([3, 3.1, 3.2, 3.3, 16, 16.5, 17, 18])
    both = {"mmlu": FLAT, "boolq": FLAT}
    units = [unhealed({"similarity": fast}), *healings(slow, both)]
    assert verdict("healed-loss", *units) == AGREES
    assert verdict("healed-loss", unhealed({"similarity": slow}), *healings(fast, both)) == DIFFERS
    assert verdict("healed-loss", *units[1:]) == verdict("healed-loss", units[0]) == UNMEASURED
    # the loss jumps between 6 and 8 layers; the cliff lies there, or far away
    far = [0.8 if size < 15 else 0.25 for size in SIZES]
    assert verdict("unhealed-loss", *units, sweep("mmlu", FLAT)) == AGREES
    assert verdict("unhealed-loss", *units, sweep("mmlu", far)) == DIFFERS
    assert verdict("unhealed-loss", *units) == NOTHING
    straight = [unhealed({"similarity": np.linspace(3, 20, 8)}), *healings(slow, both)]
    assert verdict("unhealed-loss", *straight, sweep("mmlu", FLAT)) == DIFFERS
    assert verdict("unhealed-loss", units[0], sweep("mmlu", FLAT)) == AGREES, "nothing need be healed for it"
    # three sizes say whether the loss grows slowly, but neither straight nor with a jump
    few = [unhealed({"similarity": [3, 3.1, 9]}), *healings([3, 3.2, 3.5], both)]
    assert verdict("healed-loss", *few) == UNMEASURED
    assert verdict("unhealed-loss", *few, sweep("mmlu", FLAT)) == UNMEASURED
    assert verdict("healed-loss", few[0], *healings([3, 4, 8], both)) == DIFFERS
    # however little is lost, healing either gives half of it back or not; of nothing there is no half
    little, nothing = np.linspace(3, 3.4, 8), np.full(8, 3.0)
    assert verdict("healed-loss", unhealed({"similarity": little}), *healings(little, both)) == DIFFERS
    assert verdict("healed-loss", unhealed({"similarity": nothing}), *healings(little, both)) == NOTHING


def test_the_simple_heuristic():
    at_once = [0.8] + [0.25] * (LAYERS - 2)
    assert AT_ONCE * LAYERS > 1
    down = [sweep(task, at_once, rule="simple") for task in ("mmlu", "boolq")]
    assert verdict("simple-unhealed", *down) == AGREES and verdict("simple-unhealed", down[0]) == UNMEASURED
    assert verdict("simple-unhealed", sweep("mmlu", FLAT, rule="simple")) == DIFFERS
    assert verdict("simple-unhealed", sweep("mmlu", at_once)) == UNMEASURED
    losses, before = np.linspace(3, 5, 8), np.linspace(3, 15, 8)
    sweeps = [
        sweep(task, FLAT, rule=rule, quantization="nf4")
        for task in ("mmlu", "boolq")
        for rule in ("similarity", "simple")
    ]
    flat, worse = {"mmlu": FLAT, "boolq": FLAT}, {"mmlu": at_once, "boolq": FLAT}

    def units(simple_loss, simple_right):
        healed = [*healings(losses, flat), *healings(simple_loss, simple_right, "simple")]
        return [*sweeps, unhealed({"similarity": losses, "simple": before}), *healed]

    assert verdict("simple-healed", *units(losses + 0.01, flat)) == AGREES
    assert verdict("simple-healed", *units(before - 1, flat)) == DIFFERS
    assert verdict("simple-healed", *units(losses + 0.01, worse)) == DIFFERS
    assert verdict("simple-healed", *units(losses, flat)[:5]) == UNMEASURED


def test_healing_matters_more_for_boolq():
    before = [sweep(task, SLOPE, quantization="nf4") for task in ("mmlu", "boolq")]
    losses = np.linspace(3, 5, 8)
    helped = [*before, *healings(losses, {"mmlu": SLOPE, "boolq": FLAT})]
    assert verdict("boolq-healing", *helped) == AGREES
    assert verdict("boolq-healing", *before, *healings(losses, {"mmlu": FLAT, "boolq": SLOPE})) == DIFFERS
    assert verdict("boolq-healing", *helped[1:]) == UNMEASURED
    assert verdict("plateau-healed", *before, *healings(losses, {"mmlu": FLAT, "boolq": FLAT})) == AGREES
    assert verdict("plateau-healed", *before, *healings(losses, {"mmlu": SLOPE, "boolq": SLOPE})) == DIFFERS
    decided = healing_decisions.plateau_healed, healing_decisions.healing_matters
    for ruling in [ruling for decide in decided for ruling in decide(Evidence(helped))]:
        assert ruling.about.endswith(", healed in nf4 on 163,840 tokens, 0.10% of the paper's tokens, one seed")


def test_distances():
    deep = distances(lambda start, size: 0.3 - 0.01 * start + 0.4 * (start + size == LAYERS))
    shallow = distances(lambda start, size: 0.1 + 0.01 * start - 0.09 * (start + size == LAYERS))
    assert verdict("deep-blocks", deep) == verdict("last-layer", deep) == AGREES
    assert verdict("deep-blocks", shallow) == verdict("last-layer", shallow) == DIFFERS


def by_sequence(own, last):
    """Distances of 64 sequences, each of which moves all of them by so much, and those of the last layer; both units.

    Their standard errors are those of either, as if it moved each distance by itself.
    """
    unit = distances(lambda start, size: 0.25 if start + size == LAYERS else 0.3 - 0.01 * start)
    draw, rows = np.random.default_rng(0), unit.rows
    moves = own * draw.standard_normal((64, 1)) + 0.002 * draw.standard_normal((64, len(rows)))
    moves += last * draw.standard_normal((64, 1)) * (rows["start"] + rows["size"] == LAYERS).to_numpy()
    moves -= moves.mean(axis=0)
    unit.rows["stderr"], unit.rows["samples"] = moves.std(axis=0, ddof=1) / 8, 64
    return unit, of_each_sequence(unit, rows["distance"].to_numpy() + moves)


def place_of_the_last_layer(*units):
    return decisions.resampled_distances(Evidence(list(units)), decisions.height)[0]


@pytest.mark.parametrize(("own", "last", "least", "most"), [(0.05, 0.0, 0.0, 0.3), (0.0, 0.05, 1.5, 9.0)])
def test_distances_of_the_same_sequences_are_drawn_together(own, last, least, most):
    """What moves all distances moves none beside the others; what moves those of all sizes is no mean over sizes."""
    unit, each = by_sequence(own, last)
    apart, together_ = place_of_the_last_layer(unit), place_of_the_last_layer(unit, each)
    assert together_.shape == apart.shape == (401,) and together_[0] == apart[0], "the published means stay"
    low, high = np.quantile(together_[1:], [0.025, 0.975])
    assert low < together_[0] < high
    assert least <= (high - low) / np.subtract(*np.quantile(apart[1:], [0.975, 0.025])) <= most


def test_what_is_drawn_by_sequence_is_of_every_block():
    unit, each = by_sequence(0.05, 0.0)
    matrix = decisions.distance_matrix(unit.rows)
    tables, how = zip(*(decisions._drawn_anew(one, matrix) for one in (unit, each)), strict=True)
    assert how == ("each block drawn by itself", "all blocks drawn together")
    assert tables[0].shape == tables[1].shape == (400, LAYERS, LAYERS)
    assert (np.isnan(tables[0]) == np.isnan(tables[1])).all() and np.isnan(tables[0]).any()


def test_distances_on_the_papers_corpus_come_first_then_those_by_sequence_then_those_not_quantized():
    unit, each = by_sequence(0.05, 0.0)
    on_c4, quantized = (
        dataclasses.replace(one, name=other.get("corpus", one.name), key=one.key | other)
        for one, other in ((unit, {"corpus": "c4"}), (each, {"quantization": "nf4"}))
    )
    assert Evidence([unit]).distances() is unit and Evidence([]).distances() is None
    assert Evidence([quantized, unit]).distances() is quantized
    assert Evidence([each, quantized, unit]).distances() is each
    assert Evidence([on_c4, each, quantized, unit]).distances() is on_c4


def test_what_lies_exactly_on_a_limit_speaks_for_neither():
    exactly = np.full(401, float(DEEP))
    for limits in ({"floor": DEEP}, {"ceiling": DEEP}):
        found = Finding.of_draws("x", exactly, items=256, **limits)
        ruling = Ruling("a", [found])
        assert found.p_agrees == found.p_differs == 1.0 and ruling.verdict == OPEN
        assert ruling.reason.endswith("no number of items would decide: a number lies exactly on its limit")
    beside = np.where(np.arange(401) % 100, float(DEEP) + 0.01, float(DEEP))
    assert Ruling("a", [Finding.of_draws("x", beside, floor=DEEP)]).verdict == AGREES


def test_a_depth_on_its_limit_is_not_moved_off_it_by_rounding():
    """Every choice of blocks of 18 layers that lies at two thirds, whichever sizes lie above and which below."""
    starts = np.stack(np.meshgrid(*[np.arange(8, 14)] * 4), axis=-1).reshape(-1, 4)
    starts = starts[starts.sum(axis=1) + 5 == 48]
    found = np.ones((len(starts), 18, 18))
    for size in range(1, 5):
        found[np.arange(len(starts)), size - 1, starts[:, size - 1]] = 0.0
    assert len(starts) > 100 and (decisions.depth(found) == DEEP).all()


def test_ranks_and_seeds():
    losses, known = np.linspace(3, 5, 5), sweep("mmlu", FLAT)
    better = {"mmlu": [0.7] * LAYERS}

    def of_rank(rank, by, accuracies, seeds=range(3)):
        return [unit for seed in seeds for unit in healings(losses + by, accuracies, rank=rank, seed=seed)]

    high = [*of_rank(64, 0.0, {"mmlu": [0.5] * LAYERS}), known]
    assert verdict("ranks", *high, *of_rank(2, 0.2, better)) == AGREES
    assert verdict("ranks", *high, *of_rank(2, -0.2, better)) == DIFFERS
    assert verdict("ranks", *high) == verdict("ranks", *high, *of_rank(2, 0.2, better, seeds=[0])) == UNMEASURED
    assert verdict("ranks", *high, *of_rank(2, 0.2, better, seeds=range(3, 6))) == UNMEASURED  # differ in two settings
    assert not Evidence(list(healings(losses, better, objective="distill", temperature=1.0))).ways  # not the paper's
    first = [*healings(losses, better, seed=0), known]
    assert verdict("seeds", *first, *healings(losses, {"mmlu": [0.71] * LAYERS}, seed=1)) == AGREES
    assert verdict("seeds", *first, *healings(losses, {"mmlu": [0.5] * LAYERS}, seed=1)) == DIFFERS
    assert verdict("seeds", *first) == UNMEASURED


def test_shots():
    few = sweep("mmlu", FLAT, shots=0)
    assert verdict("more-shots", few, sweep("mmlu", [value + 0.02 for value in FLAT], shots=5)) == AGREES
    assert verdict("more-shots", few, sweep("mmlu", [value - 0.02 for value in FLAT], shots=5)) == DIFFERS
    assert verdict("more-shots", few) == verdict("shot-order", few) == UNMEASURED


def test_prompts_that_differ_in_one_setting():
    known = sweep("mmlu", FLAT, shots=5)
    own, other = prompts(FLAT, 5, 0), prompts([value + 0.005 for value in FLAT], 5, 1)
    assert verdict("shot-order", known, own, other) == AGREES
    assert verdict("shot-order", known, own, prompts([value - 0.2 for value in FLAT], 5, 1)) == DIFFERS
    assert verdict("shot-order", known, own, prompts(FLAT, 3, 1)) == UNMEASURED  # differ in two settings
    assert verdict("shot-order", sweep("mmlu", GUESSES), own, other) == NOTHING  # nothing that could matter
    assert verdict("more-shots", known, own, prompts([value - 0.02 for value in FLAT], 0, 0)) == AGREES
    assert verdict("more-shots", known, own, prompts([value + 0.02 for value in FLAT], 0, 0)) == DIFFERS


def test_reasoning_falls_before_knowledge():
    written = [0.5 - 0.1 * size if size < 5 else 0.0 for size in SIZES]
    reasoning = sweep("gsm8k", written)
    reasoning.details["levels"].clear()  # no answer that is written has a level of guessing
    assert verdict("reasoning", reasoning, sweep("mmlu", FLAT)) == AGREES
    assert verdict("reasoning", sweep("gsm8k", FLAT), sweep("mmlu", FLAT)) == DIFFERS
    assert verdict("reasoning", reasoning) == NOTHING
    (ruling,) = decisions.reasoning(Evidence([sweep("mmlu", FLAT)]))
    assert ruling.reason == "not measured: GSM8K"


def test_without_units_nothing_is_said():
    """No number on the page is typed by hand: what is left without measurements is the paper's."""
    rulings = ruled([])
    for claim in CLAIMS:
        (found,) = rulings[claim.identifier].values()
        assert all(ruling.reason.startswith("not measured: ") and not ruling.findings for ruling in found)
    assert half_gone(rulings) is None and in_words(rulings) == ""
    page = result(rulings) + summary_table(rulings) + details(rulings)
    page = re.sub("<p>The (paper|share).*?</p>", "", page)
    words = html.unescape(re.sub("<[^>]*>", " ", page)).replace("GSM8K", "").replace(f"{len(CLAIMS)} claims", "")
    assert sorted(re.findall(r"[0-9]+", words)) == [*"0000", str(len(CLAIMS))]  # agree, differ, can't be tested


@pytest.mark.parametrize(
    "kinds, gone",
    [
        (("similarity", "distances"), ["deep-blocks", "last-layer"]),
        (("loss",), ["healed-loss", "unhealed-loss"]),
        (("sweep",), ["boolq"]),
    ],
)
def test_a_deleted_unit_is_not_measured(kinds, gone, tmp_path):
    shutil.copytree(results_folder(), tmp_path, dirs_exist_ok=True)

    def reasons():
        return {
            (model, claim.identifier): [ruling.reason for ruling in claim.decide(found)]
            for model, found in by_model(all_units(tmp_path)).items()
            for claim in CLAIMS
            if claim.identifier in gone
        }

    # not every model has every kind of unit
    measured = [of for of, said in reasons().items() if not any("not measured" in reason for reason in said)]
    assert {claim for _, claim in measured} == set(gone)
    for path in (path for kind in kinds for path in tmp_path.glob(f"*/{kind}-*.json")):
        path.unlink()
    left = reasons()
    assert all(reason.startswith("not measured: ") for of in measured for reason in left[of])


def test_every_figure_of_the_paper_has_its_page_and_its_claims():
    assert [figure[0] for figure in FIGURES] == ["1", "1", *"23456789", "G"]
    assert {figure for claim in CLAIMS for figure in claim.figures} == set(FIGURES)
    rulings = ruled([sweep("mmlu", FLAT)])
    assert list(by_model([sweep("mmlu", FLAT)])) == ["made up"]
    table = figure_table(rulings)
    assert all(f'href="{page}.html"' in table for page in FIGURES.values())
    page = summary_table(rulings) + details(rulings)
    for claim in CLAIMS:
        assert f'href="#claim-{claim.identifier}"' in page and f'id="claim-{claim.identifier}"' in page
    assert claims.CLIFFS.startswith("Llama-2 45% to 55%")
    assert re.search(r"MMLU</th><td>\d+% \(", result(rulings)) and "BoolQ</th><td>–<" in result(rulings)
    guesses = ruled([sweep("mmlu", GUESSES)])  # measured, and still nothing is told of it
    (ruling,) = guesses["plateau"]["made up"]
    assert re.search(f"MMLU</th><td>[○?] {ruling.verdict}<", result(guesses))
    figure = half_gone(rulings)
    assert figure.interactive.layout.yaxis.showticklabels is False  # rows have names
    (half,) = halves(rulings)
    assert figure.data[["row", "value"]].values.tolist() == [["MMLU", half.finding.value]] and "MMLU: " in figure.alt
    assert in_words(rulings) == ""  # one task is nothing to compare


def test_markers_stand_below_the_name_of_their_row_and_apart_from_those_of_the_paper():
    def known(model, value):
        return (
            Ruling("", [finding(value - 0.01, value, value + 0.01, floor=0.0)], topic="MMLU") if value else Ruling("")
        )

    values = {"c": 0.3, "a": 0.1, "b": None}
    rulings = {claim: {} for claim in ("plateau", "boolq", "reasoning")}
    rulings["plateau"] = {model: [known(model, value)] for model, value in values.items()}
    figure = half_gone(rulings)
    layout, names = figure.interactive.layout, {}
    for note in layout.annotations:
        names[note.text] = note.y
    markers = {trace.name: trace for trace in figure.interactive.data if trace.mode == "markers"}
    first, *paper = (shape for shape in layout.shapes)
    # heights are counted downwards
    assert layout.yaxis.range[0] > layout.yaxis.range[1]
    assert first.y0 < names["MMLU"] < markers["c"].y[0] < markers["a"].y[0] < first.y1
    heading = names["<b>The paper, healed: accuracy kept up to here</b>"]
    (divider,) = (trace.y[0] for trace in figure.interactive.data if trace.meta == "ink")
    assert first.y1 <= divider < heading < min(band.y0 for band in paper)
    grey = [trace.y[0] for trace in figure.interactive.data if trace.line.color == GREY]
    assert len(grey) == len(CLIFFS) and min(grey) > heading
    assert [figure.static.axes[0].get_ylim()] == [layout.yaxis.range]
    # a colour goes by the place among all models, those of which nothing is known too
    looks = [style["colour"] for style in styles_of("abc")]
    assert [markers[model].marker.color for model in "ac"] == [looks[0], looks[2]]
    assert "MMLU, Llama-2 45% to 55%" in figure.alt
