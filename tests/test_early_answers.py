"""Asking that stops early: what comes out is that of asking at once, nothing is asked twice, and results say why."""

import dataclasses
import io
import json
import os
import signal
import sys
import warnings

import numpy as np
import pytest

from deeper_layers import data, sweeping
from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.errors import InputError
from deeper_layers.packing import unpack
from deeper_layers.sweeping.shards import Shards
from deeper_layers.sweeping.sweeps import sweep
from deeper_layers_companion.jobs import ask_until, looks
from deeper_layers_companion.jobs.job import scores_job
from deeper_layers_companion.jobs.listing import list_sweep
from deeper_layers_companion.jobs.notebook_options import EarlyScanParameters, ScanParameters
from deeper_layers_companion.jobs.options import SweepParameters
from deeper_layers_companion.jobs.session import Session
from deeper_layers_companion.jobs.until import parse_seconds
from deeper_layers_companion.report import looking, stopping
from deeper_layers_companion.report.stopping import StoppingRule, Tally, look_at, plan_looks
from deeper_layers_companion.results.frames import tabulate_scores
from tests.test_command import answer, typed

CUTS = [UNPRUNED, Cut(4, 1), Cut(3, 2)]  # of the rule "reverse", sizes 0-2 of 5 layers
ASKED = {"tasks": "capitals", "rules": "reverse", "sizes": "0-2", "dtype": "float32"}
CAPITALS = 181
LOOKS = [30, 60, 120, CAPITALS]
NEVER = {"precision": 0.001, "decides": "accuracy"}  # nothing is so precise before the last item


@pytest.fixture
def asked(tiny_folder, opened, tmp_path, monkeypatch):
    """A session that sweeps tasks of the tiny model, opened already; and which items are asked of it, in order."""
    items: list[tuple[str, int]] = []
    ask = sweeping.Questions.ask

    def note(questions, which, shards=None):
        items.extend(which)
        return ask(questions, which, shards)

    def of(kind=SweepParameters, results="results", **given):
        places = {"model": str(tiny_folder), "results": str(tmp_path / results)}
        session = Session(kind(**ASKED | places | given))
        session.open = lambda *_: opened
        return session

    monkeypatch.setattr(sweeping.Questions, "ask", note)
    return of, items


@pytest.fixture(scope="module")
def plain(opened):
    """By task and cut whether each of all items is right, from one sweep that never stops."""
    tasks = ["capitals", "sums_one_digit", "sums_two_digits"]
    table = sweep(*opened, tasks, CUTS)
    found: dict = {}
    for row in table.query("metric == 'acc'").to_dict("records"):
        cut = Cut(row["start"], row["size"]).name
        packed = table.attrs["outcomes"][cut][row["task"]]["acc"]
        found[row["task"], cut] = unpack(packed, row["items"])
    return found


def get(session):
    (job,) = list_sweep(session)
    return session.get(job)


def assert_alike(first, second) -> None:
    """What two results keep item by item. In other batches log-probabilities are rounded in another way."""
    rows = zip(*(tabulate_scores([result]).to_dict("records") for result in (first, second)), strict=True)
    for one, other in rows:
        for name in ("outcome", "chosen", "target"):
            assert one[name].tolist() == other[name].tolist()
        np.testing.assert_allclose(one["logprobs"], other["logprobs"], rtol=2e-3)


def assert_is_plain(result, plain, items) -> None:
    """The outcomes of a result are those of a sweep of all items, in the order in which they are asked."""
    rows = [row for row in result.records if row["metric"] == "acc"]
    assert {row["task"] for row in rows} == {name for name, _ in items}
    for row in rows:
        numbers = [number for name, number in items if name == row["task"]]
        assert unpack(row["outcome"], row["items"]).tolist() == plain[row["task"], row["cut"]][numbers].tolist()


def test_item_by_item_it_is_the_sweep_of_all_items_in_a_fixed_random_order(asked, plain):
    of, items = asked
    result = get(of(**NEVER))
    assert items == data.order_items({"capitals": CAPITALS})
    assert_is_plain(result, plain, items)
    told = result.details["stopping"]
    assert (told["items"], told["reason"]) == (CAPITALS, stopping.ALL_ASKED)
    assert told["looks"] == told["rule"]["looks"] == [*plan_looks(CAPITALS)] == LOOKS


def test_the_tasks_of_a_group_are_mixed_in_one_order(asked, plain):
    of, items = asked
    result = get(of(tasks="sums", limit=20, **NEVER))
    told = result.details["stopping"]
    assert items == data.order_items(told["counts"])[:40], "as many as without a rule: 20 of each task"
    assert {task for task, _ in items[:10]} == {"sums_one_digit", "sums_two_digits"}
    assert_is_plain(result, plain, items)
    assert (told["looks"], told["reason"]) == ([30, 40], stopping.UP_TO_LIMIT)
    seen = looks.look_at_result(result)
    line = looking.describe_line(seen, StoppingRule(0.1, (40,)))
    unable = "the whole model is not surely above guessing yet"
    assert line == f"sums_one_digit: {unable}; sums_two_digits: {unable}"


def test_subjects_of_mmlu_are_one_curve_above_the_guessing_of_all_items(asked):
    of, _ = asked
    result = get(of(tasks="sums", limit=20, **NEVER))
    content = json.dumps([result.key, result.records, result.details])
    for name, other in {
        "sums_one_digit": "mmlu_anatomy",
        "sums_two_digits": "mmlu_virology",
        '"sums"': '"mmlu"',
    }.items():
        content = content.replace(name, other)
    key, records, details = json.loads(content)
    (seen,) = looks.look_at_result(dataclasses.replace(result, key=key, records=records, details=details))
    assert (seen.task, seen.look.items) == ("mmlu", 40)
    counts = details["stopping"]["counts"]
    chances = [details["levels"][name]["chance"] for name in counts]
    assert details["levels"]["mmlu"]["chance"] == pytest.approx(np.average(chances, weights=[*counts.values()]))
    assert seen.guessing == max(details["levels"]["mmlu"].values())


def test_it_stops_at_the_first_look_by_the_intervals_of_all_looks_and_a_finer_precision_goes_on(asked, plain, capsys):
    session_of, items = asked
    order = [number for _, number in data.order_items({"capitals": CAPITALS})]
    right = np.stack([plain["capitals", cut.name][order] for cut in CUTS])
    by_precision = {}
    for precision in (0.2, 0.13):
        rule = StoppingRule(precision, tuple(LOOKS), "accuracy")
        found = [look_at(Tally.of(right[:, :items]), [0, 1, 2], 5, 0.25, rule) for items in LOOKS]
        by_precision[precision] = next(look for look in found if look.stops)
    coarse, fine = by_precision.values()
    assert 30 < coarse.items < fine.items < CAPITALS
    for precision, look in by_precision.items():
        result = get(session_of(precision=precision, decides="accuracy"))
        told = result.details["stopping"]
        assert (told["items"], told["reason"]) == (look.items, stopping.PRECISE)
        assert told["looks"] == [items for items in LOOKS if items <= look.items]
        assert told["rule"] == {"precision": precision, "looks": LOOKS, "decides": "accuracy", "level": 0.95}
        (seen,) = looks.look_at_result(result)
        for name in ("value", "low", "high"):
            own, expected = (getattr(of.accuracies, name) for of in (seen.look, look))
            np.testing.assert_allclose(own, expected)
    assert [number for _, number in items] == order[: fine.items], "each item once"
    again = get(session_of(precision=0.2, decides="accuracy"))
    assert again.details == result.details and len(items) == fine.items, "more is known than is asked for"
    assert "capitals: 60 of 181 items, every accuracy within" in capsys.readouterr().err
    at_once = get(session_of(results="others", precision=0.13, decides="accuracy"))
    assert_alike(result, at_once)
    assert result.details == at_once.details


def test_a_higher_limit_goes_on_and_the_looks_that_were_made_count_among_the_planned(asked, plain):
    of, items = asked
    first = get(of(limit=40, **NEVER))
    assert first.details["stopping"]["reason"] == stopping.UP_TO_LIMIT
    result = get(of(limit=70, **NEVER))
    told = result.details["stopping"]
    assert told["looks"] == told["rule"]["looks"] == [30, 40, 60, 70]
    assert items == data.order_items({"capitals": CAPITALS})[:70] and first.path == result.path
    assert_is_plain(result, plain, items)
    assert result.provenance["seconds_in_earlier_runs"] >= first.provenance["seconds"]


def test_killed_it_goes_on_from_its_parts(asked, monkeypatch):
    """Killed in the third part, as no program can prevent."""
    of, items = asked
    ask = sweeping.Questions.ask
    with warnings.catch_warnings(action="ignore"):  # that there are other threads: progress bars have one
        child = os.fork()
    if child == 0:

        def die(questions, which, shards=None):
            if len(items) == 60:
                os.kill(os.getpid(), signal.SIGKILL)
            return ask(questions, which, shards)

        try:
            sweeping.Questions.ask = die
            get(of(**NEVER))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    put, parts = Shards.put, []

    def note(shards, *arguments):
        parts.append(shards.folder.name)
        return put(shards, *arguments)

    monkeypatch.setattr(Shards, "put", note)
    result = get(of(**NEVER))
    assert set(parts) == {"60-120", "120-181"}, "what was finished is read"
    assert not result.path.with_suffix(".partial").exists()
    at_once = get(of(results="others", **NEVER))
    assert_alike(result, at_once)
    assert result.details == at_once.details


def test_interrupted_it_prints_the_answer_so_far_and_goes_on(asked, monkeypatch, capsys):
    of, items = asked
    ask = sweeping.Questions.ask

    def interrupted(questions, which, shards=None):
        if len(items) == 60:
            raise KeyboardInterrupt
        return ask(questions, which, shards)

    with monkeypatch.context() as patch:
        patch.setattr(sweeping.Questions, "ask", interrupted)
        with pytest.raises(KeyboardInterrupt):
            get(of(**NEVER))
    said = capsys.readouterr().err
    by_look = [line for line in said.splitlines() if line.startswith("capitals: ") and "items, every accuracy" in line]
    assert [line.split()[1] for line in by_look] == ["30", "60", "60"], "a line a look, then the last under a table"
    assert "capitals, acc: 60 items, guessing 0." in said and "at most 121 items are left, about" in by_look[-1]
    get(of(**NEVER))
    assert items[60:90] == items[:30], "the first parts are read, and stand for what was asked"


class Clock:
    """A clock by which an item takes a second, and whatever else is done no time."""

    def __init__(self, items):
        self.items = items

    def monotonic(self) -> float:
        return float(len(self.items))


def test_a_clock_stops_it_and_more_time_goes_on(asked, plain, monkeypatch):
    of, items = asked
    monkeypatch.setattr(ask_until, "time", Clock(items))
    result = get(of(within="50 s", decides="accuracy"))
    told = result.details["stopping"]
    assert (told["items"], told["looks"], told["reason"]) == (50, [30, 50], stopping.OUT_OF_TIME)
    assert told["rule"]["looks"] == LOOKS and told["rule"]["precision"] is None
    result = get(of(within="1min", decides="accuracy"))
    told = result.details["stopping"]
    assert (told["items"], told["looks"], told["reason"]) == (110, [30, 50, 60, 110], stopping.OUT_OF_TIME)
    assert told["rule"]["looks"] == [30, 50, 60, 120, 181]
    assert items == data.order_items({"capitals": CAPITALS})[:110]
    assert_is_plain(result, plain, items)
    assert get(of(within="1h", decides="accuracy")).details["stopping"]["reason"] == stopping.ALL_ASKED


def test_the_command_shows_the_table_says_why_it_stopped_and_goes_on_in_words(tiny_folder, tmp_path):
    words = ["sweep", tiny_folder, "--tasks", "capitals", "--rules", "reverse", "--sizes", "0-2"]
    words += ["--results", tmp_path, "--limit", 40, "--decides", "accuracy"]
    done = typed(*words, "--precision", 0.4)
    assert "capitals, acc: 30 items, guessing 0." in done.stdout and "half gone" in done.stdout
    reason = "capitals: 30 of 181 items asked (precise enough); 95% intervals hold at all 2 planned looks together"
    assert reason in done.stdout
    content = answer(*words, "--precision", 0.001)
    (told,) = content["stopping"]
    assert (told["task"], told["items"], told["of"], told["reason"]) == ("capitals", 40, 181, stopping.UP_TO_LIMIT)
    assert told["rule"]["looks"] == told["looks"] == [30, 40]
    assert {row["items"] for row in content["rows"]} == {40}
    with open(content["units"][0], encoding="utf-8") as file:
        stored = json.load(file)
    assert stored["details"]["stopping"]["reason"] == stopping.UP_TO_LIMIT


def test_the_key_has_the_seed_of_the_order_and_nothing_of_when_it_stops(asked):
    of, _ = asked
    keys = []
    for given in ({}, {"precision": 0.1}, {"precision": 0.2, "limit": 50}, {"within": "2min"}):
        session = of(**given)
        keys.append(scores_job(session.source, session.options, ["capitals"], {"reverse": CUTS}).key)
    plain_key, *early = keys
    assert plain_key["tasks"]["capitals"] == {"shots": None, "limit": 120}
    assert early == [early[0]] * 3 and early[0]["tasks"]["capitals"] == {"shots": None, "limit": None, "seed": 0}


@pytest.mark.quick
def test_a_scan_that_may_stop_early_has_the_defaults_of_the_notebook():
    early, usual = EarlyScanParameters().model_dump(), ScanParameters().model_dump()
    assert {name: early[name] for name in usual} == usual
    assert {"precision", "decides", "within"} == early.keys() - usual.keys()


@pytest.mark.quick
def test_a_duration_is_read():
    assert [parse_seconds(text) for text in ("90s", "2min", "1.5 h")] == [90, 120, 5400]


@pytest.mark.parametrize(("kind", "given", "said"), [
    (SweepParameters, {"precision": 1.0}, "precision is 1.0"),
    (SweepParameters, {"within": "soon"}, 'within is \'soon\', expected a time like "90s"'),
    (SweepParameters, {"precision": 0.1, "decides": "taste"}, "decides is 'taste'"),
    (SweepParameters, {"precision": 0.1, "sizes": "0"}, "has no whole model and cut"),
    (SweepParameters, {"precision": 0.1, "mlp": "3"}, "a cut of sublayers has no number of layers"),
    (EarlyScanParameters, {"precision": 0.1, "decides": "half gone", "rules": "simple"}, "several cuts of one size"),
])  # fmt: skip
def test_what_cannot_be_asked_until_it_is_known_is_refused(kind, given, said, asked):
    of, _ = asked
    with pytest.raises(InputError, match=said):
        get(of(kind, **given))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_the_table_is_redrawn_in_place_and_fits(asked, monkeypatch):
    of, _ = asked
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("LINES", "7")
    monkeypatch.setenv("COLUMNS", "120")
    get(of(limit=60, **NEVER))
    drawn = terminal.getvalue()
    first, second = (drawn.index(f"capitals, acc: {items} items") for items in (30, 60))
    assert "\x1b[A" in drawn[first:second], "the cursor goes up again"
    assert "..." in drawn[first:second]
