"""Regret: the best block of a map, and how far from it a choice is, on losses made by hand."""

import numpy as np
import pandas as pd
import pytest

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.experiments.losses import blocks
from deeper_layers.report.questions.regret import MARGIN, Map, in_halves, mean_regret, place, ranks, regret
from deeper_layers.results.units import Unit

LAYERS, SEQUENCES = 6, 40


def unit_of(losses: dict[Cut, np.ndarray]) -> Unit:
    rows = [{"task": "c4", "metric": "loss", "start": cut.start, "size": cut.size, "value": found.mean(),
             "stderr": 0.1, "items": SEQUENCES} for cut, found in losses.items()]  # fmt: skip
    details = {"num_layers": LAYERS, "by_sequence": {cut.name: found.tolist() for cut, found in losses.items()}}
    return Unit("loss", "c4", {}, {}, pd.DataFrame(rows), details)


@pytest.fixture(scope="module")
def losses():
    """Each block has a loss of its own, and each sequence too; those with the last layer have the least."""
    draw = np.random.default_rng(0)
    of_sequence = draw.normal(3, 1, SEQUENCES)
    return {
        cut: of_sequence + 0.3 * cut.size + 0.1 * cut.start - 5 * (cut.stop == LAYERS)
        for cut in blocks(range(4), LAYERS)
    }


def test_blocks_are_all_there_are_and_the_whole_model():
    found = blocks([0, 1, 4], 5)
    assert found == [Cut(0, 0), *(Cut(start, 1) for start in range(5)), Cut(0, 4), Cut(1, 4)]
    assert len(blocks(range(29), 30)) == 1 + 30 * 31 // 2 - 1 - 2  # but those of 29 and 30 layers


def test_the_best_block_keeps_the_last_layer(losses):
    every = Map.of(unit_of(losses))
    assert every.sizes == [1, 2, 3]
    assert every.best[["size", "start"]].values.tolist() == [[1, 0], [2, 0], [3, 0]]
    assert [place(every, Cut(start, 2)) for start in range(4)] == [0, 1 / 3, 2 / 3, 1]
    with pytest.raises(InputError, match="no block that keeps the last layer"):
        place(every, Cut(4, 2))
    with pytest.raises(InputError, match="no block that keeps"):
        place(every, Cut.of([0, 2]))
    assert every.of_cut(Cut.of([0, 2])) is None and every.of_cut(Cut(0, 5)) is None


def test_a_size_that_lacks_a_block_is_no_part_of_the_map(losses):
    every = Map.of(unit_of({cut: found for cut, found in losses.items() if cut != Cut(1, 2)}))
    assert every.sizes == [1, 3]
    with pytest.raises(InputError, match="size is 2, expected one of 1, 3"):
        every.losses(2)
    with pytest.raises(InputError, match="every block was measured of no size"):
        Map.of(unit_of({cut: losses[cut] for cut in (Cut(0, 0), Cut(2, 2))}))


def test_regret_is_the_difference_from_the_best_block(losses):
    every = Map.of(unit_of(losses))
    for start in range(3):
        found = regret(every, 3, every.of_cut(Cut(start, 3)))
        # sequences differ by 1 nat and their differences by nothing: pairs tell exactly
        assert (found.value, found.low, found.high) == pytest.approx((0.1 * start,) * 3, abs=1e-9)
        assert found.verdict == ("as good" if start == 0 else "worse")
    better = regret(every, 3, every.of_cut(Cut(0, 3)) - 0.2)
    assert better.value == pytest.approx(-0.2) and better.verdict == "as good"
    with pytest.raises(InputError, match="losses has 3 sequences, and the map 40"):
        regret(every, 3, np.ones(3))


def test_the_best_is_not_flattered_by_its_choice():
    """Twenty blocks that are equally good: each choice among them has no regret but for chance."""
    draw = np.random.default_rng(1)
    found = []
    for _ in range(60):
        noise = {cut: draw.normal(3, 1, SEQUENCES) for cut in blocks([0, 1], LAYERS)}
        every = Map.of(unit_of(noise))
        found.append(regret(every, 1, every.of_cut(Cut(2, 1))).value)
        # judged on what chose it, the best would win each time
        assert every.best["value"][0] <= every.losses(1).mean(axis=1)[2]
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(len(found))


def test_what_noise_hides_can_not_be_told(losses):
    draw = np.random.default_rng(2)
    every = Map.of(unit_of(losses))
    noisy = every.of_cut(Cut(0, 3)) + draw.normal(MARGIN, 1, SEQUENCES)
    assert regret(every, 3, noisy).verdict == "can't be told"


def test_ranks_are_by_mean_regret_over_sizes(losses):
    every = Map.of(unit_of(losses))
    means = {
        rule: mean_regret([regret(every, size, every.of_cut(Cut(start, size))) for size in (1, 2, 3)])
        for rule, start in {"late": 2, "early": 0, "middle": 1}.items()
    }
    assert means["late"].value == pytest.approx(0.2) and means["early"].value == pytest.approx(0)
    table = ranks(means)
    assert table["rule"].tolist() == ["early", "middle", "late"]
    assert table[["rank", "low", "high"]].values.tolist() == [[1, 1, 1], [2, 2, 2], [3, 3, 3]]
    tied = ranks({"a": means["early"], "b": means["early"]})
    assert tied["rank"].tolist() == [1.5, 1.5]
    assert [in_halves(rank) for rank in (2.5, 3.0, 9.98)] == ["2.5", "3", "10"]


def test_blocks_that_tie_are_as_good_as_each_other_and_none_is_better_than_the_best():
    """Of two blocks that tie on one half of the items the mean judges on the other, and what lies below 0 is chance."""
    wrong = np.array([[1, 0, 0, 0, 1, 0, 0, 0], [0, 0, 1, 0, 0, 0, 0, 1]], dtype=float)  # tie on even items
    costs = {Cut(0, 0): np.zeros(8), Cut(0, 1): wrong[0], Cut(1, 1): wrong[1], Cut(2, 1): np.ones(8)}
    costs[Cut(0, 1)][4] = 0
    found = regret(Map(3, costs), 1, costs[Cut(0, 1)])
    # on even items both cost 1/4, on odd ones 0 and 1/4: chosen on even ones both, on odd ones the first
    assert found.value == pytest.approx(((0 - 0.125) + (0.25 - 0.25)) / 2)
    assert found.of_a_block.value == 0 and found.of_a_block.low == 0
