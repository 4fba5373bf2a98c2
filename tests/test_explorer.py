"""The sliders that take layers away: what they are told of every block, and of nothing else."""

import json

import pytest

from book.extension import explorer, places
from tests.test_report import made

pytestmark = pytest.mark.quick
LOSS = {"metric": "loss", "chance": 10.0, "rule": "blocks of 2"}


def explored(*rows: tuple, layers: int = 8) -> dict:
    """What is told of a model, of a cut, a task, its outcome, and what is not as it mostly is."""
    usual = {"chance": 0.0, "rule": "simple"}
    rows = [usual | {"cut": cut, "task": task, "outcome": outcome, **more} for cut, task, outcome, more in rows]
    (found,) = explorer.collect_models(made(rows, layers=layers))
    return found


def test_every_block_says_what_each_task_keeps():
    similar, blocks = {"rule": "similarity"}, {"rule": "blocks of 2", "limit": 80}
    model = explored(
        ("0,0", "capitals", [1] * 40, {}),
        ("4,3", "capitals", [1, 0] * 20, {}),
        ("0,0", "capitals", [1] * 40, similar),
        ("2,3", "capitals", [1, 1, 1, 0] * 10, similar),
        ("0,0", "capitals", [1] * 80, blocks),  # a second measurement, with more items
        ("6,2", "capitals", [1, 0, 0, 0] * 20, blocks),
        ("0,0", "c4", [2.0, 4.0], LOSS),
        ("6,2", "c4", [6.5, 6.5], LOSS),
        ("0,0", "boolq", [0] * 40, similar),
        ("2,3", "boolq", [0] * 40, similar),
        ("0,0", "capitals", [1] * 40, {"rule": "greedy"}),
        ("2,3", "capitals", [0] * 40, {"rule": "laco", "changed": "merged"}),  # no plain blocks from here on
        ("6,2", "capitals", [0] * 40, {"healing": "{}"}),
    )
    json.dumps(model, allow_nan=False)
    shares = {cut: [told["capitals"][1], told["capitals"][4]] for cut, told in model["cuts"].items()}
    assert shares == {"4,3": [0.5, 0.5], "2,3": [0.75, 0.75], "6,2": [0.25, 0.25]}
    number, kept, low, high, _ = model["cuts"]["6,2"]["capitals"]
    assert low < kept < high and model["asked"][number]["items"] == 80 and not model["asked"][number]["floor"]
    assert model["cuts"]["6,2"]["c4"][1::3] == pytest.approx([(10 - 6.5) / (10 - 3), 6.5], abs=1e-3)
    assert model["tasks"] == ["capitals", "boolq", "c4"] and model["layers"] == 8
    assert model["rules"] == {"similarity": ["2,3"], "simple": ["4,3"]}
    assert model["opens"] == "2,3" and list(model["lines"]) == ["words", "text"]
    said = explorer.describe_cut(model, "6,2")
    assert said.endswith(
        "layers 6 to 7 keeps, above guessing: 25% of capitals in words; C4's perplexity goes from 20.1 to 665."
    )
    assert b"<svg" in explorer.draw_picture(model)
    assert ("m", "4", "3", "capitals", 40, 0.5) in [row[:6] for row in explorer.list_rows([model])]
    number, *no_value_reason = model["cuts"]["2,3"]["boolq"]
    assert no_value_reason == [None, None, None, 0.0] and model["asked"][number]["floor"], "the whole model guesses"


def test_a_slider_over_blocks_of_a_size_stays_on_the_items_of_all_of_them():
    """Of a block that a rule was asked of with more items, too."""
    model = explored(
        ("0,0", "capitals", [1] * 80, {"limit": 80}),
        ("4,3", "capitals", [1, 1, 1, 0] * 20, {"limit": 80}),
        ("2,2", "capitals", [1, 0] * 40, {"limit": 80}),
        *((cut, "capitals", [1] * 40, {"rule": "blocks of 2", "limit": 40}) for cut in ("0,0", "2,2", "3,2")),
    )
    items = {cut: model["asked"][told["capitals"][0]]["items"] for cut, told in model["cuts"].items()}
    assert items == {"4,3": 80, "2,2": 40, "3,2": 40}


def test_a_share_is_rounded_once():
    found = explored(("0,0", "capitals", [1] * 127, {}), ("4,3", "capitals", [1] * 40 + [0] * 87, {}))
    assert f"{100 * found['cuts']['4,3']['capitals'][1]:.0f}" == "31"  # 40 of 127 are 31.496%


def test_a_model_that_was_never_pruned_is_not_offered(monkeypatch, tmp_path):
    usual = {"cut": "0,0", "task": "capitals", "outcome": [1] * 40, "chance": 0.0, "rule": "simple"}
    monkeypatch.setattr(explorer.results, "scores", lambda: made([usual], layers=8))
    explorer.draw_explorer(tmp_path / "cuts.js")
    assert (tmp_path / "cuts.js").read_text() == "window.CUTS = [];\n"
    assert not (tmp_path / "first-figure.svg").exists()


@pytest.fixture
def by_place() -> dict:
    """A model of 28 layers. By the third study's words its middle third holds the blocks that start at 10 to 15, and a
    late block is one of those at 19 to 23."""
    kept = {start: start / 28 for start in range(25)}
    of_cut = {}
    for start, share in kept.items():
        facts, letters, loss = [0, share, 0, 0, 0], [0, 1.0, 0, 0, 0], [1, 0, 0, 0, 3 + share]
        of_cut[start] = {"facts": facts, "mmlu": letters, "c4": loss}
    return {
        "name": "org/m-Instruct",
        "layers": 28,
        "lines": {"letters": {"mmlu": "MMLU"}, "written": {"facts": "facts"}, "text": {"c4": "C4"}},
        "cuts": {f"{start},4": told for start, told in of_cut.items()},
        "places": {"middle": {"facts": [200, 0.5, 0.4, 0.6], "c4": [32, 0.45, 0.4, 0.5]}},
        "asked": [{"whole": 0.5, "loss": False, "items": 90}, {"whole": 3.0, "loss": True, "items": 32}],
        "rules": {"similarity": ["12,3", "11,4"], "simple": ["23,4"]},
    }


def test_places_show_the_mean_of_all_their_blocks_and_name_the_rules_that_cut_there(by_place):
    rows = places.tabulate_places(by_place)
    assert [row["means"]["written"] for row in rows] == [None, [200, 0.5, 0.4, 0.6], None, None]
    assert [row["rules"] for row in rows] == [{}, {"similarity": 11}, {"simple": 23}, {}]
    own = rows[1]["own"]["similarity"]
    assert own["written"] == pytest.approx(11 / 28)
    assert own["text"] == pytest.approx(11 / 28), "the loss is told beside the whole model's"
    table = places.draw_table(by_place, rows)
    assert "<caption>What m keeps" in table and "similarity-informed: 11 to 14" in table
    assert "facts kept (200 facts)" in table and "50% <small>40% to 60%</small>" in table and "+0.45" in table
    assert places.tabulate_places(by_place | {"places": {}}) == []


def test_a_spike_of_a_rule_is_named_where_its_block_stands_alone(by_place):
    by_place["cuts"] |= {f"{start},{size}": {"mmlu": [0, 0.25, 0, 0, 0]} for start, size in ((12, 3), (24, 3), (22, 5))}
    by_place["rules"]["simple"] += ["24,3", "22,5"]
    assert places.describe_spikes(by_place) == (
        "At 4 layers the simple heuristic keeps 100% of MMLU (90 questions); at 3 and 5 layers 25% and 25% (90 and 90)."
    )
    by_place["cuts"]["24,3"]["mmlu"][1] = 0.8
    assert places.describe_spikes(by_place) == "", "beside one of them alone it is no spike"


def test_letters_of_another_task_are_told_beside_those_of_the_table(by_place):
    assert places.describe_letters(by_place) == ""
    by_place["lines"]["easy"] = {"capitals": "capitals' letters"}
    by_place["places"]["middle"]["capitals"] = [181, 0.7, 0.6, 0.8]
    told = "By letter, too, it depends on the task: of capitals' letters the middle third keeps 70% (60% to 80%)."
    assert places.describe_letters(by_place) == told
    by_place["places"]["middle"]["capitals"] = [181, None, None, None]
    assert places.describe_letters(by_place) == "", "the whole model only guesses"


def test_places_mean_the_blocks_that_the_study_calls_middle_and_late():
    """Of 15 layers blocks of 4 lie in the first third from layers 0 and 1 on, in the middle one from 5 and 6 on."""
    whole = ("0,0", "capitals", [1] * 40, {"rule": "blocks of 4"})
    scan = []
    for start in range(12):
        right = 40 - 2 * start
        scan.append((f"{start},4", "capitals", [1] * right + [0] * (40 - right), {"rule": "blocks of 4"}))
    found = explored(whole, *scan, layers=15)["places"]
    means = {place: told["capitals"][1] for place, told in found.items()}
    right = {"first": (40 + 38) / 2, "middle": (30 + 28) / 2, "late": 20, "end": 18}
    assert means == pytest.approx({place: number / 40 for place, number in right.items()})
    items, mean, low, high = found["middle"]["capitals"]
    assert items == 40 and low < mean < high
    assert "first" not in explored(whole, *scan[1:], layers=15)["places"], "a mean is of all blocks, or there is none"


def test_the_caption_says_which_block_each_line_misses_least(by_place):
    assert explorer.describe_peaks(by_place) == (
        "The block of 4 layers to miss least depends on the task: 0 to 3 for MMLU (100% kept); 24 to 27 for facts "
        "(86% kept)."
    )
    assert explorer.describe_peaks(by_place | {"cuts": {}}) == ""
