"""What readers are told of how claims are judged: changes, thresholds and their commits, how sure verdicts are."""

import json
import re
import subprocess

import numpy as np
import pytest

from deeper_layers.report.claims import history, said_before
from deeper_layers.report.claims.claims import CLAIMS, ruled
from deeper_layers.report.claims.history import BEFORE, CHANGES, LOWEST, came_first
from deeper_layers.report.claims.verdicts import AGREES, DIFFERS
from deeper_layers.report.questions import dissociation, early_cliff, geometry
from deeper_layers.report.thresholds import THRESHOLDS
from deeper_layers.results import packing
from deeper_layers.results.places import AROUND
from deeper_layers.results.units import all_units
from tests import made_up
from tests.made_up import sweep

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


def test_what_the_criterion_of_letters_and_words_judges_is_younger():
    """Of every unit that its page names; the page says so."""
    said = (AROUND / "notebooks" / "12-where.ipynb").read_text(encoding="utf-8")
    assert "committed as `66b431ac3ddc` on 28 November 2026" in said and "all of them later ones" in said
    units = [unit for kind in ("scan", "blocks", "sweep") for unit in all_units(kind=kind)]
    judged = [*dissociation.scans(units).values(), *early_cliff.of_both_rules(units).values()]
    measured = [unit.provenance["measured"] for of_model in judged for unit in of_model.values()]
    assert measured and min(measured) > "2026-11-28T03:40:18"
    if date := git("log", "-1", "--format=%cI", "66b431ac3ddc").strip():
        assert date[:19] == "2026-11-28T03:40:18"


@pytest.mark.parametrize("page, kind", [("13-which-layers", "blocks"), ("14-geometry", "geometry")])
def test_criteria_of_pages_are_older_than_what_they_judge(page, kind):
    """By the commit, day and minute that the page names, and the first units of its kind, which it names too."""
    said = (AROUND / "notebooks" / f"{page}.ipynb").read_text(encoding="utf-8")
    ((commit, day, minute),) = re.findall(
        r"criteria were committed as `(\w+)` on (\d+) November 2026, (\d\d:\d\d) UTC", said
    )
    first = min(unit.provenance["measured"] for unit in all_units(kind=kind))
    assert f"2026-11-{day}T{minute}" < first and f"{first[11:16]}" in said
    if date := git("log", "-1", "--format=%cI", commit).strip():
        assert date[:16] == f"2026-11-{day}T{minute}"


def test_the_page_of_geometry_says_how_sure_its_intervals_are():
    said = (AROUND / "notebooks" / "14-geometry.ipynb").read_text(encoding="utf-8")
    tried = re.findall(r"(\d+)\s+to\s+(\d+)\s+(?:of\s+100|where)", geometry.__doc__)
    assert tried and f"{' to '.join(tried[0])} of 100 trials, and in {' to '.join(tried[1])} where" in said
    assert f"And {len(geometry.WORDS)} measures are tried" in said and "without a correction for their number" in said
    first = said.index("*predicts* a cost means here that the whole 95% interval")
    assert first < said.index("## The answer"), "said where the word is first used"


def test_which_came_first_is_told_by_dates():
    assert came_first("2026-01-02", ["2026-01-03", "2026-01-04"]) == "the threshold"
    assert came_first("2026-01-05", ["2026-01-03", "2026-01-04"]) == "the data"
    assert came_first("2026-01-03T12", ["2026-01-03", "2026-01-04"]) == "some data; the rest later"
    unit = sweep("mmlu", made_up.FLAT)
    unit.provenance.update(measured="2026-11-27T00:00:00+00:00", commit="0123456789")
    page = history.thresholds([unit])
    assert "2026-11-27 00:00 (0123456)" in page and "not measured" in page and "<details>" in page
    assert page.count("f3a273f") + page.count("b666f12") + page.count("b14764a") == len(THRESHOLDS)


def test_every_change_says_what_was_and_why():
    assert set(BEFORE) == {claim.identifier for claim in CLAIMS} and len(CHANGES) >= 17
    page = history.changes(ruled([sweep("mmlu", made_up.FLAT)]), [])
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


def test_no_point_of_the_recomputation_is_without_what_was_said_before_and_what_is_said_now():
    """Whatever it is about: claims have their verdicts, pages their words and numbers."""
    made = sweep("mmlu", made_up.FLAT)
    made.key["model"] = made.key["model"] | {"name": history.QWEN}
    of_pages = [unit for kind in ("sweep", "bits") for unit in all_units(kind=kind, model=history.QWEN)]
    page = history.changes(ruled([made]), of_pages)
    blocks = {found[1]: one for one in page.split('<div class="change">') if (found := re.search(r"Point (\d+):", one))}
    for point in range(1, 18):
        parts = re.findall("<li>(.*?)</li>", blocks[str(point)])  # what a page said, and claim by claim
        assert parts, f"point {point} touches nothing"
        assert all(re.fullmatch(".+: .+, (now|still) .+", part) for part in parts), f"{point} lacks a side: {parts}"
        assert re.findall("<dt>(.*?)</dt>", blocks[str(point)]) == ["before", "now", "why", "verdicts", "since"]
    named = {claim for change in CHANGES for claim in change.claims}
    assert named <= set(BEFORE), "these are claims"


def test_what_pages_without_a_verdict_say_now_is_read_from_units():
    said = {change.point: change.said for change in CHANGES if change.said}
    assert set(said) == {4, 6, 15, 17}
    units = [unit for kind in ("sweep", "bits") for unit in all_units(kind=kind, model=history.QWEN)]
    kept, worth = said[4].now(units), said[15].now(units)
    assert re.match(r"Capitals kept at n = 2 to \d+, lost at n = 1, ", kept), "only n = 1 dips"
    assert re.search(r"PIQA lost at n = .*, undecided at n = 1 to 13", kept), "for want of items"
    assert re.sub(r"\d+", "0", worth) == re.sub(r"\d+", "0", said[15].once), "the same counts, of the same tasks"
    assert said[4].now([]) == said[15].now([]) == ""
    assert said_before.NOT_ALL in (AROUND / "notebooks" / "04-reasoning.ipynb").read_text(encoding="utf-8")


@pytest.mark.parametrize("point, path", [
    (4, "notebooks/02-question-answering.ipynb"), (6, "lib/decisions.py"), (17, "notebooks/04-reasoning.ipynb"),
])  # fmt: skip
def test_what_pages_said_before_is_told_word_for_word(point, path):
    before = git("show", f"{history.RECOMPUTED}:{path}")
    if not before:
        pytest.skip("this checkout has no history")
    (change,) = [change for change in CHANGES if change.point == point]
    (quoted,) = re.findall("“(.*?)”", change.said.once)
    assert quoted in before


def test_the_second_meaning_of_a_limit_has_its_day_and_its_commit():
    """That models are surely no more than so far above guessing was asked for after the data."""
    commit, date = history.THIRD
    assert f"since {date[:10]} (commit {commit}, after the data)" in THRESHOLDS["ALIKE"].meaning


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
    assert "exactly on a limit of “So it does after healing”; " in page and "limit of “Accuracy stays" not in page
    every = [decided("exactly half", 0.02) | {"claim": claim.identifier} for claim in CLAIMS]
    assert "No model was drawn" not in history.reliability(drawn | {"decisions": every})
    assert "not measured" in history.reliability(None).lower()


# ---- a little of what `python -m benchmarks.verdicts` does -----------------------------------------------------


@pytest.fixture
def drawn(monkeypatch):
    from benchmarks import verdicts
    from deeper_layers.report.questions import dissociation, regret
    from deeper_layers.report.statistics import outcomes

    for module in (outcomes, dissociation, regret):
        monkeypatch.setattr(module, "RESAMPLES", 200)
    monkeypatch.setattr(packing, "LEVEL", 0)
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


def test_every_claim_is_drawn_on_a_limit(drawn):
    of_claims = {(claim.partition(",")[0], "exactly" in truth) for claim, truth, *_ in drawn.cases()}
    assert of_claims == {(claim.identifier, exactly) for claim in CLAIMS for exactly in (True, False)}


def test_what_is_published_was_drawn_of_the_cases_of_today(drawn):
    """By their names, at least: where a limit is of something else, they are to be drawn again."""
    published = json.loads((AROUND / "benchmarks" / "measured" / "verdicts.json").read_text(encoding="utf-8"))
    assert [(one["claim"], one["truth"]) for one in published["decisions"]] == [case[:2] for case in drawn.cases()]
    assert [one["interval"] for one in published["intervals"]] == [kind[0] for kind in drawn.KINDS]
