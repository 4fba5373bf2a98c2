"""What readers are told of how claims are judged: changes, thresholds and their commits, how sure verdicts are."""

import json
import subprocess

import numpy as np
import pytest

from deeper_layers.report.claims import history
from deeper_layers.report.claims.claims import CLAIMS, ruled
from deeper_layers.report.claims.history import BEFORE, CHANGES, LOWEST, came_first
from deeper_layers.report.claims.verdicts import AGREES, DIFFERS
from deeper_layers.report.thresholds import THRESHOLDS
from deeper_layers.results.places import AROUND
from tests.made_up import FLAT, sweep

TESTS = "".join(path.read_text(encoding="utf-8") for path in sorted((AROUND / "tests").glob("test_*.py")))


def git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=AROUND, capture_output=True, text=True, check=False).stdout


@pytest.mark.parametrize("name", [name for name, threshold in THRESHOLDS.items()])
def test_the_commit_of_a_threshold_set_it(name):
    threshold = THRESHOLDS[name]
    date = git("log", "-1", "--format=%cI", threshold.commit).strip()
    if not date:
        pytest.skip("this checkout has no history")
    assert date[:19] == threshold.date[:19]
    added = [line for line in git("show", threshold.commit, "--", "lib").splitlines() if line.startswith(f"+{name} = ")]
    assert added, f"{threshold.commit} does not set {name}"
    plain = added[0].partition("= ")[2].partition("#")[0].strip()
    assert plain.startswith(("Threshold(", "min(", "max(")) or eval(plain) == pytest.approx(float(threshold))


def test_the_criterion_of_letters_and_words_is_word_by_word_the_one_that_was_committed():
    before = git("show", "66b431a:notebooks/12-where.ipynb")
    if not before:
        pytest.skip("this checkout has no history")
    now = (AROUND / "notebooks" / "12-where.ipynb").read_text(encoding="utf-8")
    texts = [["".join(cell["source"]) for cell in json.loads(notebook)["cells"]] for notebook in (before, now)]
    (criterion,), later = ([text for text in of if text.startswith("## What would decide it")] for of in texts)
    assert later == [criterion]


def test_which_came_first_is_told_by_dates():
    assert came_first("2026-01-02", ["2026-01-03", "2026-01-04"]) == "the threshold"
    assert came_first("2026-01-05", ["2026-01-03", "2026-01-04"]) == "the data"
    assert came_first("2026-01-03T12", ["2026-01-03", "2026-01-04"]) == "some data; the rest later"
    unit = sweep("mmlu", FLAT)
    unit.provenance.update(measured="2026-11-27T00:00:00+00:00", commit="0123456789")
    page = history.thresholds([unit])
    assert "2026-11-27 00:00 (0123456)" in page and "not measured" in page and "<details>" in page
    assert page.count("f3a273f") + page.count("b666f12") + page.count("b14764a") == len(THRESHOLDS)


def test_every_change_says_what_was_and_why():
    assert set(BEFORE) == {claim.identifier for claim in CLAIMS} and len(CHANGES) >= 17
    page = history.changes(ruled([sweep("mmlu", FLAT)]))
    assert page.count("<details>") == 2 and "2026-11-28" in page
    assert all(len({change.was, change.now, change.why}) == 3 for change in CHANGES)
    assert sorted(change.point for change in CHANGES if change.point) == list(range(1, 18)), "each point once"


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.test)
def test_a_change_is_held_by_a_test_and_was_made_by_a_commit(change):
    """Its claims are claims, its test is one of ours, and its commit has the date that is told."""
    assert f"def {change.test}(" in TESTS
    date = git("log", "-1", "--format=%cI", change.set_by[0]).strip()
    if not date:
        pytest.skip("this checkout has no history")
    assert date.replace("Z", "+00:00") == change.set_by[1]


def test_intervals_that_are_none_are_named():
    def interval(held):
        return {"interval": "x", "of": "y", "items": 120, "held": held}

    def decided(truth, agrees):
        return {"claim": "plateau, MMLU", "truth": truth, "items": 120, "draws": 10, AGREES: agrees, DIFFERS: 0.0}

    drawn = {
        "data_sets": 2000, "draws": 1000, "resamples": 400, "command": "c", "provenance": {"commit": "0123456789"},
        "intervals": [interval(0.95), interval(0.99), interval(LOWEST)],
        "decisions": [decided("exactly half", 0.07), decided("exactly 5%", 0.02), decided("clearly", 1.0)],
    }  # fmt: skip
    page = history.reliability(drawn)
    assert "2 of 3 kinds" in page and page.count("(not 95%)") == 1
    assert "Of 2 models" in page and "1 get “agrees” in at most 5%" in page and "the most of either is 7.0%" in page
    assert "not measured" in history.reliability(None).lower()


# ---- a little of what `python -m benchmarks.verdicts` does -----------------------------------------------------


@pytest.fixture
def drawn(monkeypatch):
    from benchmarks import verdicts
    from deeper_layers.report.questions import dissociation, regret
    from deeper_layers.report.statistics import outcomes
    from tests import made_up

    for module in (outcomes, dissociation, regret):
        monkeypatch.setattr(module, "RESAMPLES", 200)
    monkeypatch.setattr(made_up, "pack", verdicts.quickly_packed)
    return verdicts


def test_intervals_hold_the_truth(drawn):
    """Of 80 intervals about 76 hold it; fewer than 68 is rarer than one in a thousand."""
    kinds = [kind for kind in drawn.KINDS if kind[0] != "drawn distances" and kind[2] < 1000]
    held = [drawn.coverage(*kind, 80)["held"] for kind in kinds]
    assert min(held) >= 68 / 80 and np.mean(held) == pytest.approx(0.95, abs=0.03)


@pytest.mark.slow
def test_clear_cases_are_never_judged_wrong(drawn):
    for claim, truth, items, make, decide in drawn.cases():
        if truth.startswith("clearly") and items != 1140:
            said = drawn.error_rates(claim, truth, items, make, decide, 5)
            assert said[DIFFERS if truth == "clearly as the claim has it" else AGREES] == 0, (claim, truth)


def test_at_a_limit_few_are_judged_either_way(drawn):
    """At 2.5% each way, more than 5 of 40 is rarer than one in a thousand."""
    for claim, truth, items, make, decide in drawn.cases():
        if claim in ("ranks", "seeds") and items == 120 and not truth.startswith("clearly"):
            said = drawn.error_rates(claim, truth, items, make, decide, 40)
            assert max(said[AGREES], said[DIFFERS]) <= 5 / 40, (claim, truth)


def test_what_is_published_was_drawn_of_the_cases_of_today(drawn):
    """By their names, at least: where a limit is of something else, they are to be drawn again."""
    published = json.loads((AROUND / "benchmarks" / "measured" / "verdicts.json").read_text(encoding="utf-8"))
    assert [(one["claim"], one["truth"]) for one in published["decisions"]] == [case[:2] for case in drawn.cases()]
    assert [one["interval"] for one in published["intervals"]] == [kind[0] for kind in drawn.KINDS]
