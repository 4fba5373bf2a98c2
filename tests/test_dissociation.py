"""The criterion of letters and words on models of known truth; what log-probabilities say, against plain sums."""

import dataclasses
import math
import re

import numpy as np
import pandas as pd
import pytest
from scipy.special import ndtri

from book.extension.rooms import HEAVY
from deeper_layers.cuts import Cut, simple_cut
from deeper_layers.errors import InputError
from deeper_layers.report.questions import dissociation, early_cliff, scan_rows
from deeper_layers.report.questions.dissociation import CONFIRMED, LATE, MIDDLE, OPEN, REFUTED
from deeper_layers.report.statistics import answers, joined
from deeper_layers.results.packing import pack, pack_halves, unpack, unpack_halves
from deeper_layers.results.units import Unit, write_unit
from tests import notebook
from tests.test_house import fresh

LAYERS = 18  # blocks from 6, 7, 8 are middle, from 12 and 13 late
BLOCKS = [Cut(0, 0), *(Cut(start, 4) for start in range(LAYERS - 3))]
OF_THE_MODEL = {"num_layers": LAYERS, "weights": "float32"}
PROVENANCE = {
    "measured": "2026-11-28T00:00:00", "packages": {}, "commit": "0123456789abcdef", "dirty": False, "device": "none",
    "seconds": 1.0, "peak_memory_bytes": 1,
}  # fmt: skip
RULES = sorted({Cut(0, 0), *(simple_cut(LAYERS, size) for size in (1, 2, 3)), *(Cut(6, size) for size in (1, 2, 3))})


@pytest.fixture(autouse=True)
def fewer_resamples(monkeypatch):
    monkeypatch.setattr(dissociation, "RESAMPLES", 500)
    monkeypatch.setattr(early_cliff, "SIZES", range(1, 4))


def unit(task, cuts, chance_of_right, items, draw, *, metric="acc", model="tiny", keep=True, target=None) -> Unit:
    """A scan in which each item is right with the probability that its cut has, and else another choice is made."""
    target = np.arange(items) % 4 if target is None else target
    outcomes, rows = {}, []
    for cut in cuts:
        right = draw.random(items) < chance_of_right(cut)
        chosen = np.where(right, target, (target + draw.integers(1, 4, items)) % 4)
        logprobs = np.where(np.arange(4) == chosen[:, None], -0.5, -2.5) + draw.normal(0, 0.1, (items, 4))
        packed = {metric: pack(right), "chosen": pack(chosen)}
        if keep:
            packed |= {"logprobs": pack_halves(logprobs), "target": pack(target)}
        outcomes[cut.name] = {task: packed}
        rows.append({"task": task, "metric": metric, "start": cut.start, "size": cut.size, "value": right.mean(),
                     "stderr": 0.1, "items": items})  # fmt: skip
    rule = "similarity, simple" if cuts is RULES else "blocks of 4"
    key = key_of(model, cuts) | {"rule": rule, "task": task, "limit": items, "num_fewshot": None}
    details = OF_THE_MODEL | {"levels": {}, "outcomes": outcomes}
    return Unit("scan", task, key, PROVENANCE, pd.DataFrame(rows), details)


def key_of(model, cuts) -> dict:
    cuts = [[cut.start, cut.size] for cut in cuts]
    opened = {"dtype": "float32", "version": 1, "data": "made up", "quantization": None}
    return {"model": {"name": model, "weights": "x"}, "cuts": cuts, **opened}


def pair(letters, words, items=600, seed=0, **more) -> list[Unit]:
    """Both forms of MMLU; `letters` and `words` are the chances of being right: whole, middle, late."""
    draw = np.random.default_rng(seed)

    def of(chances):
        at = {MIDDLE: chances[1], LATE: chances[2], "": 0.3}
        return lambda cut: at[dissociation.place_of(cut.start, LAYERS)] if cut.size == 4 else chances[0]

    return [
        unit("mmlu", BLOCKS, of(letters), items, draw, **more),
        unit("mmlu_continuation", BLOCKS, of(words), items, draw, metric="acc_norm", **more),
    ]


def verdict(*arguments, **named):
    (found,) = dissociation.rulings(pair(*arguments, **named))[1:]  # before it stands Capitals, which is not measured
    return found


@pytest.mark.parametrize(
    ("layers", "middle", "late"),
    [(28, range(10, 16), range(19, 24)), (18, range(6, 9), range(12, 14)), (30, range(10, 17), range(20, 26)),
     (12, range(4, 5), range(8, 8))],  # too few: no late block
)  # fmt: skip
def test_middle_and_late_blocks_are_thirds_without_the_last_layer(layers, middle, late):
    found = {place: [cut.start for cut in dissociation.all_blocks(layers, place)] for place in (MIDDLE, LATE)}
    assert found == {MIDDLE: [*middle], LATE: [*late]}


def test_a_double_dissociation_is_confirmed_and_its_mirror_refuted():
    found = verdict((0.6, 0.3, 0.5), (0.6, 0.5, 0.3))
    assert (found.model, found.what, found.verdict, found.level) == ("tiny", "MMLU", CONFIRMED, 1 - 0.05 / 2)
    middle, late = found.statistics[MIDDLE], found.statistics[LATE]
    # by hand: guessing is 1/4, so that 0.5 is 5/7 of what 0.6 is, and 0.3 is 1/7
    assert middle[0] == pytest.approx(-4 / 7, abs=0.15) and late[0] == pytest.approx(4 / 7, abs=0.15)
    assert middle[1] < middle[0] < middle[2] < 0 < late[1] < late[0] < late[2]
    assert verdict((0.6, 0.5, 0.3), (0.6, 0.3, 0.5)).verdict == REFUTED
    assert verdict((0.6, 0.3, 0.3), (0.6, 0.5, 0.5)).verdict == REFUTED  # letters are only the weaker of both
    assert verdict((0.6, 0.3, 0.5), (0.6, 0.5, 0.3), items=60).verdict in (OPEN, CONFIRMED)


def test_wrong_verdicts_are_rare(monkeypatch):
    """1,000 models in which nothing of the kind is, and as many in which it is: at most 5% are called the other."""
    monkeypatch.setattr(dissociation, "RESAMPLES", 100)
    draw = np.random.default_rng(0)
    middle, late = (dissociation.all_blocks(LAYERS, place) for place in (MIDDLE, LATE))
    cuts, target = [Cut(0, 0), *middle, *late], np.zeros(570, dtype=int)

    def called(letters, words):
        pair = []
        for whole, in_middle, in_late in (letters, words):
            chances = np.array([whole, *[in_middle] * len(middle), *[in_late] * len(late)])
            pair.append(dissociation.Kept(cuts, draw.random((len(cuts), 570)) < chances[:, None], target, 0.25))
        both = dissociation.differences(*pair, LAYERS)
        return dissociation.verdict_of(*(dissociation.interval(both[place], 2) for place in (MIDDLE, LATE)))

    nothing = [called((0.5, 0.4, 0.4), (0.4, 0.34, 0.34)) for _ in range(1000)]
    strong = [called((0.5, 0.33, 0.45), (0.4, 0.37, 0.28)) for _ in range(1000)]
    assert nothing.count(CONFIRMED) <= 50 and strong.count(REFUTED) <= 50
    assert strong.count(CONFIRMED) > 300  # and it is told where it is there


@pytest.mark.parametrize(
    ("units", "why"),
    [
        (pair((0.27, 0.26, 0.26), (0.6, 0.5, 0.3)), "is not surely 0.05 above guessing on mmlu$"),
        (pair((0.6, 0.5, 0.3), (0.27, 0.26, 0.26)), "is not surely 0.05 above guessing on mmlu_continuation$"),
        (pair((0.6, 0.3, 0.5), (0.6, 0.5, 0.3))[:1], "not measured: mmlu_continuation"),
        ([pair((0.6, 0.3, 0.5), (0.6, 0.5, 0.3), items=n)[i] for i, n in enumerate((600, 500))], "different items"),
    ],
)
def test_what_cannot_be_shown_says_why(units, why):
    (found,) = dissociation.rulings(units)[1:]
    assert found.verdict == "" and re.search(why, found.why)
    assert dissociation.of_models([found]) == {}


@pytest.mark.parametrize(("chance", "known"), [(0.26, False), (0.6, True)])
def test_a_sweep_may_say_that_a_scan_would_show_nothing(chance, known):
    letters, words = pair((chance, 0.3, 0.5), (0.6, 0.5, 0.3))
    sweep = dataclasses.replace(letters, kind="sweep", details=letters.details | {"levels": {"mmlu": {"chance": 0.25}}})
    (found,) = dissociation.rulings([sweep, words])[1:]
    assert found.verdict == "" and found.why.startswith("not measured: mmlu")
    assert ("asked 600 items of mmlu, the whole model is not surely" in found.why) is not known
    other = dataclasses.replace(sweep, key=sweep.key | {"model": {"name": "another", "weights": "x"}})
    assert dissociation.rulings([other, words])[1].why == "not measured: mmlu"


def test_an_open_verdict_says_how_many_questions_would_decide():
    def needed(middle, late):
        ruling = dissociation.Ruling("tiny", "", OPEN, {MIDDLE: middle, LATE: late}, 0.95, 100)
        items, verdict = dissociation.items_needed(ruling)
        return round(items / 100, 1), verdict

    # half as wide an interval leaves 0 in half of all samples; both do in 80% of them at 1 + 1.28 / 1.96 times that
    assert needed((-0.2, -0.6, 0.2), (0.4, 0.2, 0.6)) == (round(4 * (1 + 1.2816 / 1.96) ** 2, 1), CONFIRMED)
    once = (1 + 0.8416 / 1.96) ** 2  # one alone in 80%
    assert needed((0.0, -0.3, 0.3), (0.4, 0.2, 0.6)) == (round(9 * once, 1), REFUTED)  # a third as wide
    assert needed((0.0, -0.3, 0.3), (0.05, -0.05, 0.15)) == (round(4 * once, 1), REFUTED)  # whichever comes first


def test_so_many_questions_decide_in_four_of_five_samples():
    """D is normal here: of the middle blocks surely below 0, of the late ones 0.02 of what was to be 0.10."""
    draw, error = np.random.default_rng(0), 0.6  # of one question
    late, level = 0.02, 0.9875
    z = float(ndtri((1 + level) / 2))

    def seen(items, value):
        half = z * error / math.sqrt(items)
        return value, value - half, value + half

    ruling = dissociation.Ruling("tiny", "", OPEN, {MIDDLE: seen(570, -0.5), LATE: seen(570, late)}, level, 570)
    items, verdict = dissociation.items_needed(ruling)
    told = [dissociation.verdict_of(seen(items, -0.5), seen(items, draw.normal(late, error / math.sqrt(items))))
            for _ in range(2000)]  # fmt: skip
    assert verdict == REFUTED and told.count(REFUTED) / 2000 == pytest.approx(0.8, abs=0.03)


def test_blocks_that_a_scan_lacks_are_named():
    draw = np.random.default_rng(0)
    whole = unit("mmlu", BLOCKS, lambda cut: 0.5, 40, draw)
    some = unit(
        "capitals", [cut for cut in BLOCKS if not cut.size or cut.start in (2, 3, 9)], lambda cut: 0.5, 40, draw
    )
    assert scan_rows.not_scanned([whole]) == []
    assert scan_rows.not_scanned([whole, some]) == ["tiny, without 4 layers from 0 to 1, 4 to 8, 10 to 14: Capitals"]


def test_what_stands_beside_the_verdicts_and_was_not_asked_is_named():
    draw = np.random.default_rng(0)
    scanned = unit("mmlu", BLOCKS, lambda cut: 0.5, 40, draw)
    assert scan_rows.not_asked([scanned]) == (["BoolQ (tiny)", "Facts, written (tiny)"], [])
    boolq = unit("boolq", BLOCKS, lambda cut: 0.5, 40, draw)
    swept = dataclasses.replace(boolq, kind="sweep", details=boolq.details | {"levels": {"boolq": {"majority": 0.6}}})
    assert scan_rows.not_asked([scanned, swept]) == (["Facts, written (tiny)"], ["BoolQ (tiny)"])
    assert scan_rows.not_asked([scanned, boolq, swept]) == (["Facts, written (tiny)"], [])


def test_what_the_last_block_leaves_is_said():
    """It is shown and not counted: a scan that lacks it says nothing."""
    able, _ = dissociation.pairs(pair((0.6, 0.3, 0.5), (0.6, 0.5, 0.3), items=60))
    ((letters, words, layers),) = able.values()
    (said,) = scan_rows.without_the_last(able)
    last = [f"{form.at([Cut(layers - 4, 4)])[0, 0]:.2f} (" for form in (letters, words)]
    assert said.startswith(f"MMLU (tiny), {last[0]}") and f"of the letters and {last[1]}" in said
    fewer = [cut for cut in BLOCKS if cut.start != layers - 4]
    few, _ = dissociation.pairs([some_of(one, fewer) for one in pair((0.6, 0.3, 0.5), (0.6, 0.5, 0.3), items=60)])
    assert few and scan_rows.without_the_last(few) == []


def some_of(one: Unit, cuts) -> Unit:
    """What a scan of fewer blocks would have measured."""
    have = {cut.name for cut in cuts}
    rows = one.rows[[Cut(row.start, row.size) in cuts for row in one.rows.itertuples()]]
    outcomes = {name: found for name, found in one.details["outcomes"].items() if name in have}
    key = one.key | {"cuts": [[cut.start, cut.size] for cut in cuts]}
    return dataclasses.replace(one, key=key, rows=rows, details=one.details | {"outcomes": outcomes})


@pytest.mark.parametrize("in_groups", [False, True])
def test_scans_of_some_blocks_each_say_what_one_of_all_says(tmp_path, in_groups):
    """Blocks scanned on another day stand beside the first; of a cut that both have the one with more cuts counts."""
    first, others = [cut for cut in BLOCKS if not cut.size or cut.start >= 5], [Cut(0, 0), *BLOCKS[1:8]]
    whole = pair((0.6, 0.3, 0.5), (0.6, 0.5, 0.3), items=60)
    other = pair((0.5, 0.4, 0.4), (0.5, 0.4, 0.4), items=60, seed=1)  # the same cuts, answered otherwise
    apart = [some_of(one, first) for one in whole]
    for one, again in zip(whole, other, strict=True):
        added = some_of(one, others)
        for name in set(added.details["outcomes"]) & {cut.name for cut in first}:
            added.details["outcomes"][name] = again.details["outcomes"][name]
        apart.append(added)

    def written(units):
        """As a group of one task each, on disk."""
        groups = []
        for one in units:
            task = f"{one.name}_b"
            outcomes = {name: {task: packed} for name, of_cut in one.details["outcomes"].items()
                        for packed in of_cut.values()}  # fmt: skip
            right = [unpack(outcomes[f"{row.start},{row.size}"][task][row.metric]) for row in one.rows.itertuples()]
            rows = one.rows.assign(task=task, value=[found.mean() for found in right])
            details = one.details | {"outcomes": outcomes}
            leaf = write_unit("scan", task, one.key | {"task": task}, PROVENANCE, rows, details, tmp_path)
            details = OF_THE_MODEL | {"levels": {}, "units": [leaf.path.name]}
            groups.append(write_unit("scan", one.name, one.key, PROVENANCE, one.rows, details, tmp_path))
        return groups

    if in_groups:
        whole, apart = written(whole), written(apart)
    assert dissociation.rulings(apart) == dissociation.rulings(whole)
    assert scan_rows.not_scanned(apart) == [] != scan_rows.not_scanned(apart[:2])
    by_start = [scan_rows.kept_by_start(units)[0] for units in (apart, whole)]
    pd.testing.assert_frame_equal(*(rows.sort_values(["panel", "start"], ignore_index=True) for rows in by_start))
    (of_letters, of_words) = joined.together(apart)
    assert [len(of_letters), len(of_words)] == [2, 2] and joined.together([apart[0], apart[0]]) == [[apart[0]]]


def test_a_part_of_a_scan_that_is_not_complete_stands_nowhere():
    """Subjects that were asked so far, beside all of them without other blocks; without these it is a scan."""
    whole = pair((0.6, 0.3, 0.5), (0.6, 0.5, 0.3), items=60)
    part = [dataclasses.replace(some_of(one, BLOCKS[:8]), name=one.name.replace("mmlu", "mmlu_anatomy"))
            for one in whole]  # fmt: skip
    assert [one.name for one in part] == ["mmlu_anatomy", "mmlu_anatomy_continuation"]
    assert dissociation.scans([*part, *whole]) == dissociation.scans(whole)
    (of_model,) = dissociation.scans(part).values()
    assert list(of_model) == ["mmlu_anatomy", "mmlu_anatomy_continuation"]


def test_losses_of_some_blocks_stand_beside_the_others():
    whole = loss_unit(0.8)
    apart = []
    for cuts in (BLOCKS[:9], [BLOCKS[0], *BLOCKS[9:]]):
        names = [cut.name for cut in cuts]
        details = whole.details | {"by_sequence": {name: whole.details["by_sequence"][name] for name in names}}
        key = whole.key | {"cuts": [[cut.start, cut.size] for cut in cuts]}
        apart.append(dataclasses.replace(whole, key=key, details=details))
    pd.testing.assert_frame_equal(scan_rows.rises_by_start(apart), scan_rows.rises_by_start([whole]))


def test_the_early_cliff_where_words_are_guessed_better():
    """The same answers: the better the words are guessed, the more of what was known of them is gone."""
    draw = np.random.default_rng(0)
    letters = unit("mmlu", RULES, lambda cut: 0.35 if cut.size else 0.6, 400, draw)
    words = unit("mmlu_continuation", RULES, lambda cut: 0.45 if cut.size else 0.6, 400, draw, metric="acc_norm")
    both = [letters, words]
    found = [early_cliff.cliffs(both, guessing)[0].statistics["C"][0] for guessing in (None, 0.25, 0.35)]
    assert found[0] == found[1] < found[2] - 0.1


def test_verdicts_by_what_guessing_was_measured_to_score():
    """Of a model asked without the questions: at chance, at what it scored, and at most; of others what is supposed."""
    draw = np.random.default_rng(0)
    letters = unit("mmlu", RULES, lambda cut: 0.35 if cut.size else 0.6, 400, draw)
    words = unit("mmlu_continuation", RULES, lambda cut: 0.45 if cut.size else 0.6, 400, draw, metric="acc_norm")
    found = {"chance": 0.25, "guessing": 0.3, "interval": [0.2, 0.4]}
    supposed = early_cliff.by_guessing([letters, words], {"another": found})
    assert {(how, value) for how, value, _ in supposed} == {("supposed", value) for value in early_cliff.SUPPOSED}
    one = found | {"model": "tiny", "metric": "acc_norm"} | {
        name: words.key[name] for name in ("task", "limit", "num_fewshot", "dtype")
    }  # fmt: skip
    by_rule = early_cliff.of_both_rules([letters, words])
    others = [one | {"limit": 20}, one | {"dtype": "bfloat16"}, one | {"metric": "acc"}, one | {"model": "another"}]
    assert early_cliff.without_questions(by_rule, others) == {}
    assert early_cliff.without_questions(by_rule, [one, *others]) == {"tiny": one}
    measured = early_cliff.by_guessing([letters, words], {"tiny": one})
    assert [value for _, value, ruling in measured if ruling.what == "simple"] == [0.25, 0.3, 0.4]
    assert [how for how, _, _ in measured][-1] == "at most, without the questions"
    for _, value, ruling in [*supposed, *measured]:
        same = {other.what: other for other in early_cliff.cliffs([letters, words], value)}
        assert ruling == same[ruling.what] and ruling.verdict


def test_a_model_follows_all_its_questions():
    def of(*verdicts):
        rulings = [dissociation.Ruling("tiny", str(number), verdict) for number, verdict in enumerate(verdicts)]
        return dissociation.of_models(rulings).get("tiny")

    assert of(CONFIRMED, CONFIRMED) == of(CONFIRMED, "") == CONFIRMED
    assert of(CONFIRMED, REFUTED) == of(OPEN, REFUTED) == REFUTED
    assert of(CONFIRMED, OPEN) == OPEN and of("", "") is None


def test_letters_guess_as_well_as_the_best_constant_one():
    """Where 40% of right answers are D, a model that names D is at guessing, and words have no such answer."""
    draw, target = np.random.default_rng(0), np.repeat([0, 1, 2, 3], [120, 120, 120, 240])
    one = unit("mmlu", BLOCKS, lambda cut: 0.4, 600, draw, target=target)
    assert dissociation.kept(one, dissociation.Form("mmlu", letters=True)).guessing == 0.4
    words = dissociation.kept(one, dissociation.Form("mmlu"))
    assert words.guessing == 0.25 and words.known
    assert words.shares.shape == (501, len(BLOCKS)) and (words.shares[:, 0] == 1).all()


def loss_unit(late, seed=0) -> Unit:
    draw = np.random.default_rng(seed)
    at = {MIDDLE: 0.2, LATE: late, "": 2.0}
    costs = {cut: at[dissociation.place_of(cut.start, LAYERS)] if cut.size else 0.0 for cut in BLOCKS}
    each = draw.normal(3, 0.5, 32)
    by_sequence = {cut.name: (each + cost + draw.normal(0, 0.1, 32)).tolist() for cut, cost in costs.items()}
    key = key_of("tiny", BLOCKS) | {"text": "c4", "sequences": 32, "sequence_length": 256}
    rows = pd.DataFrame([
        {"task": "c4", "metric": "loss", "start": cut.start, "size": cut.size, "value": np.mean(by_sequence[cut.name]),
         "stderr": 0.1, "items": 32}
        for cut in BLOCKS
    ])  # fmt: skip
    return Unit("blocks", "c4", key, PROVENANCE, rows, OF_THE_MODEL | {"vocabulary": 10, "by_sequence": by_sequence})


@pytest.mark.parametrize(("late", "verdict"), [(0.8, "holds"), (0.05, "fails"), (0.2, OPEN)])
def test_whether_late_blocks_cost_words_more(late, verdict):
    (found,) = dissociation.words_half([loss_unit(late), *pair((0.6, 0.5, 0.5), (0.27, 0.26, 0.26))])
    assert found.verdict == verdict and [*found.statistics] == ["loss on C4"]  # cloze is not known
    assert found.statistics["loss on C4"][0] == pytest.approx(late - 0.2, abs=0.06)


def test_an_early_cliff_is_of_letters_or_of_knowledge(monkeypatch):
    draw = np.random.default_rng(0)

    def units(letters, words):
        forms = {"mmlu": (letters, "acc"), "mmlu_continuation": (words, "acc_norm")}
        return [
            unit(task, RULES, lambda cut, left=left: left if cut.start == 6 else 0.6, 12_000, draw, metric=metric)
            for task, (left, metric) in forms.items()
        ]

    def found(*chances):
        return {ruling.what: ruling.verdict for ruling in early_cliff.cliffs(units(*chances))}

    assert found(0.35, 0.55) == {"similarity": "letters", "simple": "knowledge"}
    assert found(0.35, 0.35) == found(0.55, 0.35) == {"similarity": "knowledge", "simple": "knowledge"}
    one = units(0.35, 0.55)
    # letters that only a sweep has, which kept no log-probabilities: the same, where it asked the same questions
    letters = dataclasses.replace(one[0], kind="sweep", details=one[0].details | {"outcomes": {
        cut: {task: {name: packed[name] for name in ("acc", "chosen")} for task, packed in tasks.items()}
        for cut, tasks in one[0].details["outcomes"].items()
    }})  # fmt: skip
    assert early_cliff.cliffs([letters, one[1]]) == early_cliff.cliffs(one)
    assert [ruling.why for ruling in early_cliff.cliffs([letters, one[1]], without_bias=True)] == [
        "the log-probabilities of its letters were not kept"
    ]
    table = scan_rows.forms_by_size({"mmlu": one[0], "mmlu_continuation": one[1]})
    assert table["n"].tolist() == [0, 1, 2, 3] * 2 and table["start"].isna().tolist() == [True, *[False] * 3] * 2
    whole, first = table.iloc[0], table.iloc[1]
    assert (whole["letters"], whole["kept"]) == (pytest.approx(0.6, abs=0.02), "") and first["kept"].startswith("-0.5")
    for key in ({"limit": 5}, {"num_fewshot": 5}, {"dtype": "bfloat16"}):
        other = dataclasses.replace(letters, key=letters.key | key)
        assert [ruling.why for ruling in early_cliff.cliffs([other, one[1]])] == ["not measured under both rules: mmlu"]
    shuffled = units(0.35, 0.55)[1]
    for tasks in shuffled.details["outcomes"].values():
        tasks["mmlu_continuation"]["target"] = pack(np.arange(12_000)[::-1] % 4)
    assert [ruling.why for ruling in early_cliff.cliffs([letters, shuffled])] == [
        "the two forms were asked of different items"
    ]
    assert dissociation.rulings(one) == []  # cuts of rules are no scan of blocks
    monkeypatch.setattr(early_cliff, "SIZES", range(1, 9))
    (short,) = early_cliff.cliffs(one)
    assert (short.verdict, short.why) == ("", "not every n from 1 to 8 is measured")


def test_letters_that_were_asked_twice_say_what_rounding_changes():
    draw = np.random.default_rng(0)
    letters, words = (unit(task, RULES, lambda cut: 0.6, 50, draw) for task in ("mmlu", "mmlu_continuation"))
    words.details["outcomes"] = {
        cut: {task: packed | {"acc_norm": packed["acc"]} for task, packed in tasks.items()}
        for cut, tasks in words.details["outcomes"].items()
    }
    assert early_cliff.asked_twice([letters, words]) == {}
    outcomes = {cut: {"mmlu": dict(tasks["mmlu"])} for cut, tasks in letters.details["outcomes"].items()}
    right = unpack(outcomes[Cut(6, 2).name]["mmlu"]["acc"]).astype(bool)
    target = unpack(letters.details["outcomes"][Cut(6, 2).name]["mmlu"]["target"])
    turned = np.where(np.arange(50) < 3, ~right, right)
    outcomes[Cut(6, 2).name]["mmlu"] |= {
        "acc": pack(turned),
        "chosen": pack(np.where(turned, target, (target + 1) % 4)),
    }
    again = dataclasses.replace(letters, kind="sweep", details=letters.details | {"outcomes": outcomes})
    found = early_cliff.asked_twice([letters, words, again])["tiny"]
    apart = abs(turned.mean() - right.mean())
    assert (found.fewest, found.most, found.items) == (0, 3, 50) and found.apart == pytest.approx(apart)
    assert 1.5 < found.near < 2.5  # of the answers that changed: all lie about two nats from a tie here
    assert early_cliff.asked_twice([again, words]) == {}, "asked once"


def test_an_early_cliff_that_is_a_favourite_letter_goes_with_calibration():
    """Pruned, the model still knows the answers but says D: by letter they are gone, and calibrated they are back."""
    draw = np.random.default_rng(0)
    letters, words = (
        unit(task, RULES, lambda cut: 0.6, 2_000, draw, metric=metric)
        for task, metric in (("mmlu", "acc"), ("mmlu_continuation", "acc_norm"))
    )
    target = np.arange(2_000) % 4
    for name, tasks in letters.details["outcomes"].items():
        if name != Cut(0, 0).name:
            packed = tasks["mmlu"]
            logprobs = unpack_halves(packed["logprobs"], 2_000) + np.array([0, 0, 0, 9.0])
            right = logprobs.argmax(axis=1) == target
            packed |= {"logprobs": pack_halves(logprobs), "acc": pack(right), "chosen": pack(logprobs.argmax(axis=1))}
    as_said = early_cliff.cliffs([letters, words])
    calibrated = early_cliff.cliffs([letters, words], without_bias=True)
    assert {ruling.verdict for ruling in as_said} == {"letters"}
    assert {ruling.verdict for ruling in calibrated} == {"knowledge"}
    assert all(ruling.statistics["C"][1] < 0 < ruling.statistics["C"][2] for ruling in calibrated)


def test_letters_of_a_swept_group_are_in_the_order_of_its_tasks(tmp_path):
    """A sweep names its tasks in the group's own order; the words stand in that of their names."""
    draw = np.random.default_rng(0)
    names, targets = ["mmlu_b", "mmlu_a"], [np.arange(50) % 4, np.arange(40)[::-1] % 4]
    parts = []
    for name, target in zip(names, targets, strict=True):
        one = unit(name, RULES, lambda cut: 0.6, len(target), draw, target=target, keep=False)
        paths = write_unit("sweep", one.name, one.key, one.provenance, one.rows, one.details, tmp_path)
        parts.append(paths.path.name)
    one = unit("mmlu", RULES, lambda cut: 0.6, 90, draw)
    whole = write_unit(
        "sweep", "mmlu", one.key, one.provenance, one.rows, OF_THE_MODEL | {"levels": {}, "units": parts}, tmp_path
    )
    words = unit(
        "mmlu_continuation", RULES, lambda cut: 0.6, 90, draw, metric="acc_norm", target=np.concatenate(targets[::-1])
    )
    letters, words = early_cliff.letters_and_words({"mmlu": whole, "mmlu_continuation": words})
    assert letters.target is words.target and letters.right.shape == (len(RULES), 90)


# --- what log-probabilities say ---------------------------------------------------------------------------


def test_a_model_with_a_favourite_letter_knows_more_than_it_says():
    """A bias on D that hides right answers is taken away: calibration finds them, and nothing where there is none."""
    draw, target = np.random.default_rng(1), np.arange(400) % 4
    knows = draw.normal(0, 0.3, (400, 4)) + 2.0 * (np.arange(4) == target[:, None])
    biased = knows + np.array([0, 0, 0, 5.0])
    assert (answers.chosen(biased) == target).mean() < 0.3
    assert (answers.chosen(answers.calibrated(biased)) == target).mean() > 0.95
    nothing = draw.normal(0, 0.3, (400, 4)) + np.array([0, 0, 0, 5.0])
    assert abs((answers.chosen(answers.calibrated(nothing)) == target).mean() - 0.25) < 0.07
    # shifting all letters of an item, as a model does that says letters less, changes nothing
    assert np.allclose(answers.calibrated(biased + draw.normal(-5, 1, (400, 1))), answers.calibrated(biased))


def test_entropy_information_and_margin_are_those_of_counts():
    assert answers.entropy(np.array([0.25] * 4)) == 2 and answers.entropy(np.array([1.0, 0, 0])) == 0
    target = np.arange(4000) % 4
    assert answers.information(target, target) == pytest.approx(2, abs=0.01)
    draw = np.random.default_rng(0)
    found = [answers.information(draw.integers(0, 4, 400), target[:400]) for _ in range(200)]
    assert abs(np.mean(found)) < 0.001 < np.std(found)  # of independent ones nothing, on average
    assert answers.information(np.zeros(400, dtype=int), target[:400]) == pytest.approx(0)
    logprobs = np.array([[-1.0, -3.0, np.nan], [-2.0, -1.5, -4.0]])
    assert answers.margins(logprobs, np.array([0, 2])).tolist() == [2.0, -2.5]
    assert answers.posterior(logprobs).sum(axis=-1) == pytest.approx(1) and answers.posterior(logprobs)[0, 2] == 0


def test_answers_of_a_group_are_in_the_order_of_its_tasks_and_described_cut_by_cut():
    one = unit("mmlu", BLOCKS, lambda cut: 0.9, 100, np.random.default_rng(0))
    found = answers.answers_of(one)
    assert found.logprobs.shape == (len(BLOCKS), 100, 4) and found.right.shape == (len(BLOCKS), 100)
    table = answers.described(found)
    assert table["accuracy"].tolist() == [row.mean() for row in found.right]
    assert table["entropy"].between(1.9, 2).all() and (table["margin"] > 0).all() and (table["information"] > 1).all()
    with pytest.raises(InputError, match="mmlu has no logprobs, target: measure it again"):
        answers.answers_of(unit("mmlu", BLOCKS, lambda cut: 0.9, 10, np.random.default_rng(0), keep=False))
    one.key["cuts"].append([1, 1])
    with pytest.raises(InputError, match="was measured for other cuts"):
        answers.answers_of(one)


# --- the chapter ------------------------------------------------------------------------------------------


def test_the_chapter_says_what_is_not_measured_and_loads_nothing_heavy(tmp_path):
    code = (
        "import sys; from tests import notebook; print(notebook.run('12-where', results=sys.argv[1])); "
        f"assert not {set(HEAVY)} & set(sys.modules)"
    )
    done = fresh(code, tmp_path, str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Not measured") == 15 and "<figure" not in done.stdout


def test_the_chapter_draws_what_results_hold(tmp_path):
    """Every figure, the verdict and both halves of it, from units on disk; a model that knows nothing can't show it."""
    draw = np.random.default_rng(0)
    early = [
        unit(task, RULES, lambda cut, left=left: left if cut.start == 6 else 0.6, 600, draw, metric=metric)
        for task, left, metric in (("mmlu", 0.35, "acc"), ("mmlu_continuation", 0.55, "acc_norm"))
    ]
    known = [*pair((0.6, 0.3, 0.5), (0.6, 0.5, 0.3)), loss_unit(0.8), *early]
    for one in [*known, *pair((0.26, 0.26, 0.26), (0.26, 0.26, 0.26), model="guesses")]:
        write_unit(one.kind, one.name, one.key, one.provenance, one.rows, one.details, tmp_path)
    page = notebook.run("12-where", results=str(tmp_path))
    figures = ["where-kept", "where-losses", "where-difference", "where-formats"]
    assert re.findall(r'<figure class="measured" id="([a-z-]+)"', page) == figures
    assert "- **tiny**: confirmed" in page and "- guesses: nothing to decide" in page
    assert r"MMLU, block by block\: the whole model is not surely 0\.05 above guessing on mmlu" in page
    assert "dropping middle blocks takes more of the letters" in page
    assert "dropping late blocks takes more of the words" in page
    assert '<div id="early-cliff">' in page and "the early fall is one of letters" in page
    assert "loss on C4" in page and "holds" in page and "0123456789ab" in page
    assert re.search(
        r"similarity-informed</td>\s*<td[^>]*>-0\.\d+ \(-0\.\d+ to -0\.\d+\)</td>\s*<td[^>]*>letters<", page
    )
