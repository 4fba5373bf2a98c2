"""What healing gives back, by tokens: shares against plain sums, of the same items, where something was lost."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from deeper_layers.cuts import Cut
from deeper_layers.report.questions import given_back, one_cut
from deeper_layers.report.statistics.evidence import Evidence
from deeper_layers.results.packing import pack
from deeper_layers.results.units import Unit
from tests.test_choices import STATE, healed_unit, scores_unit

CUT = Cut(1, 2)
MANY = 10**6  # tokens that guessing chooses among
LOSSES = np.random.default_rng(0).normal(3, 0.3, 40)


def before(taken: float) -> dict[str, given_back.Losses]:
    whole = LOSSES.tolist()
    return {"0,0": given_back.Losses(whole, whole), CUT.name: given_back.Losses(whole, (LOSSES + taken).tolist())}


def test_the_share_given_back_is_that_of_plain_sums():
    whole, pruned = np.ones(200), (np.arange(200) < 80).astype(float)
    healed = (np.arange(200) < 140).astype(float)
    share, low, high = given_back.back((whole, pruned, healed), 0.0, shares=True)
    assert share == pytest.approx(0.5) and low < 0.5 < high and 0.4 < low and high < 0.6
    share, low, high = given_back.back((LOSSES, LOSSES + 2, LOSSES + 0.5), np.log(MANY), shares=False)
    assert (share, low, high) == pytest.approx((0.75,) * 3)
    # more than was lost can come back: of a text that the whole model was not used to
    assert given_back.back((LOSSES, LOSSES + 1, LOSSES - 0.5), np.log(MANY), shares=False)[0] == pytest.approx(1.5)


def test_what_lies_below_guessing_counts_as_guessing():
    """From naming one letter to naming another is no way back."""
    items = np.arange(400)
    whole, pruned, healed = ((items < right).astype(float) for right in (320, 40, 100))
    share, *_ = given_back.back((whole, pruned, healed), 0.0, shares=True)
    assert share == pytest.approx(60 / 280)
    assert given_back.back((whole, pruned, healed), 0.3, shares=True) == (0, 0, 0)
    share, low, high = given_back.back((whole, pruned, (items < 220).astype(float)), 0.3, shares=True)
    assert share == pytest.approx(0.5) and low < 0.5 < high


def test_what_opening_in_fewer_bits_took_is_no_loss_of_a_cut():
    right = {"0,0": {"capitals": np.ones(40)}, CUT.name: {"capitals": np.zeros(40)}}
    rounded = {"0,0": {"capitals": (np.arange(40) < 25).astype(float)}, CUT.name: {"capitals": np.zeros(40)}}
    how = {"kind": "sweep", "rule": "similarity", "cuts": [[0, 0], [1, 2]]}
    plain, opened = scores_unit("capitals", right, **how), scores_unit("capitals", rounded, **how, quantization="nf4")
    healed = healed_unit(CUT, LOSSES)
    in_nf4 = dataclasses.replace(healed, key=healed.key | {"quantization": "nf4"})
    assert given_back.rounded_away([plain, opened], in_nf4) == (
        "Opened in nf4 the whole model had lost before it was healed: Capitals from 1.00 to 0.62 (40 items)"
    )
    assert given_back.rounded_away([plain, opened], healed) == given_back.rounded_away([opened], in_nf4) == ""
    other = dataclasses.replace(plain, key=plain.key | {"num_fewshot": 2})
    assert given_back.rounded_away([other, opened], in_nf4) == "", "not asked alike"


def test_that_nothing_came_back_of_few_items_is_not_sure():
    """None of 50 written answers is right before and after: another of them may be."""
    whole, none = (np.arange(50) < 24).astype(float), np.zeros(50)
    share, low, high = given_back.back((whole, none, none), 0.0, shares=True)
    assert share == 0 == low and 0.03 < high < 0.25
    more = [np.tile(one, 100) for one in (whole, none, none)]
    assert given_back.back(more, 0.0, shares=True)[2] < high / 20


def test_where_nothing_was_surely_lost_nothing_is_given_back():
    draw = np.random.default_rng(0)
    right = (draw.random(100) < 0.5).astype(float)
    for pruned in (right, np.maximum(right, np.arange(100) < 3), np.where(np.arange(100) < 1, 0, right)):
        assert np.isnan(given_back.back((right, pruned, right), 0.0, shares=True)).all()
    assert np.isnan(given_back.back((LOSSES, LOSSES - 0.1, LOSSES), np.log(MANY), shares=False)).all()


def test_rows_are_of_the_same_items_and_of_every_budget():
    """Loss and tasks of one cut healed twice, with as many updates and with ten times as many."""
    right = {"0,0": {"capitals": np.ones(8)}, CUT.name: {"capitals": (np.arange(8) < 1).astype(float)}}
    unasked = scores_unit("sums", {cut: {"sums": one["capitals"]} for cut, one in right.items()}, "sweep")
    swept = [scores_unit("capitals", right, "sweep"), unasked]
    short = healed_unit(CUT, LOSSES + 0.5, acc=(1,) * 5 + (0,) * 3)
    settings = short.key["healing"]
    long = dataclasses.replace(
        healed_unit(CUT, LOSSES + 0.1, acc=(1,) * 8),
        key=short.key | {"healing": settings | {"steps": 10, "warmup_steps": 1}},
        details=short.details | {
            "healing": short.details["healing"] | {"tokens": 10}, "by_sequence": (LOSSES + 0.1).tolist(),
            "outcomes": {"capitals": {"acc": pack(np.ones(8, dtype=np.uint8))}},
        },
    )  # fmt: skip
    other = dataclasses.replace(short, key=short.key | {"healing": settings | {"rank": 9}})
    budgets = given_back.by_tokens([long, short, other, swept[0]], short)
    assert {tokens: list(of_cuts) for tokens, of_cuts in budgets.items()} == {1: [CUT], 10: [CUT]}
    table = given_back.table(before(1.0), swept, budgets, MANY)
    assert table["what"].tolist() == ["Capitals"] * 2 + ["loss on text"] * 2 and list(table) == given_back.COLUMNS
    assert table["value"].tolist()[:2] == pytest.approx([4 / 7, 1]) and table["value"].isna().tolist()[2:] == [True] * 2
    assert table["high"].tolist()[2:] == pytest.approx([0.5, 0.9]), "at most: the whole model was not healed"
    assert table["items"].tolist() == [8, 8, 40, 40] and table["tokens"].tolist() == [1, 10] * 2
    assert table[["whole", "pruned", "healed"]].iloc[0].tolist() == [1, 1 / 8, 5 / 8]
    drawn = given_back.courses(before(1.0), swept, budgets).set_index(["what", "size", "tokens"])
    assert drawn.loc["Capitals", "value"].to_dict() == {(0, 0): 1, (2, 0): 1 / 8, (2, 1): 5 / 8, (2, 10): 1}
    assert drawn.loc["loss on text", "value"].to_dict() == pytest.approx(
        {place: LOSSES.mean() + more for place, more in {(0, 0): 0, (2, 0): 1, (2, 1): 0.5, (2, 10): 0.1}.items()}
    )
    assert (drawn["low"] < drawn["value"]).all() and (drawn["value"] <= drawn["high"]).all()
    # more tokens of the same, on the same items
    more = given_back.of_more_tokens(before(1.0), swept, budgets).set_index("what")
    assert (more[["size", "start", "fewest", "tokens"]] == [2, 1, 1, 10]).all(axis=None)
    assert more.loc["Capitals", ["items", "before", "after", "change"]].tolist() == [8, 5 / 8, 1, 3 / 8]
    assert more.loc["loss on text", ["change", "low", "high"]].tolist() == pytest.approx([-0.4] * 3)
    assert given_back.more_in_words(more.reset_index()) == [
        f"n = 2, 10 tokens instead of 1: loss on text from {LOSSES.mean() + 0.5:.3f} to {LOSSES.mean() + 0.1:.3f} "
        "(-0.400, -0.400 to -0.400); no change is shown in Capitals"
    ]
    assert given_back.of_more_tokens(before(1.0), swept, {1: budgets[1]}).empty
    assert given_back.more_in_words(given_back.of_more_tokens(before(1.0), swept, {1: budgets[1]})) == []
    # the whole model, healed alike, stands beside its own answers and is a point of the curve
    whole = healed_unit(Cut(0, 0), LOSSES - 0.2, acc=(1,) * 2 + (0,) * 6)
    beside = {1: budgets[1] | {Cut(0, 0): whole}}
    loss, capitals = sorted(
        given_back.of_the_whole(before(1.0), swept, beside).to_dict("records"),
        key=lambda row: row["what"] == "Capitals",
    )
    assert (capitals["before"], capitals["after"], capitals["change"], capitals["tokens"]) == (1, 0.25, -0.75, 1)
    assert loss["change"] == pytest.approx(-0.2) and loss["high"] < 0 and capitals["high"] < 0
    drawn = given_back.courses(before(1.0), swept, beside).set_index(["what", "size", "tokens"])["value"]
    assert drawn["Capitals", 0, 1] == 0.25 and drawn["loss on text", 0, 1] == pytest.approx(LOSSES.mean() - 0.2)
    assert given_back.of_the_whole(before(1.0), swept, budgets).empty
    # more items before healing than after: the first of them
    more = {cut: {"capitals": np.concatenate([one["capitals"], np.zeros(4)])} for cut, one in right.items()}
    more = scores_unit("capitals", more, "sweep")
    assert given_back.table(before(1.0), [more], budgets, MANY).equals(table)
    # what the whole model does not know no healing gives back
    level = dataclasses.replace(swept[0], details=swept[0].details | {"levels": {"capitals": {"chance": 0.9}}})
    assert not given_back.before_and_after(before(1.0), [level], CUT, short)["Capitals"].known
    assert given_back.table(before(1.0), [level], budgets, MANY)["what"].tolist() == ["loss on text"] * 2
    # other items, or a cut that was not scored: no row, and no number
    fewer = scores_unit("capitals", {cut: {"capitals": one["capitals"][:5]} for cut, one in right.items()}, "sweep")
    elsewhere = scores_unit("capitals", {"0,0": right["0,0"]}, "sweep")
    assert given_back.table(before(0.0), [fewer, elsewhere], budgets, MANY)["what"].tolist() == ["loss on text"] * 2
    assert given_back.table(before(0.0), [fewer], budgets, MANY)["value"].isna().all()


def test_what_comes_back_is_said_in_words():
    def row(what, size, tokens, value, low, high):
        found = {"what": what, "size": size, "tokens": tokens, "items": 50, "value": value, "low": low, "high": high}
        return dict.fromkeys(given_back.COLUMNS) | found

    rows = [
        row("GSM8K", 2, 2048, 0.1, -0.2, 0.4), row("GSM8K", 4, 2048, 0.0, 0.0, 0.0),
        row("MMLU", 2, 2048, np.nan, np.nan, np.nan),
        row(given_back.LOSS, 2, 2048, 0.5, 0.4, 0.6), row(given_back.LOSS, 4, 2048, 0.04, -0.02, 0.1),
        row(given_back.LOSS, 2, 4096, 0.7, 0.6, 0.8),
    ]  # fmt: skip
    assert given_back.in_words(pd.DataFrame(rows)) == [
        "loss on text (50 sequences), 2,048 tokens: 50% (40% to 60%) at n = 2, 4% (-2% to 10%) at n = 4",
        "loss on text (50 sequences), 4,096 tokens: 70% (60% to 80%) at n = 2",
        "GSM8K (50 items), 2,048 tokens: no gain is shown, at n = 2, 4",
    ]
    assert given_back.in_words(pd.DataFrame(rows[2:3])) == []
    guesses = row("Sums", 4, 2048, 0.0, 0.0, 0.0) | {"guessing": 0.25, "pruned": 0.2, "healed": 0.25}
    better = guesses | {"value": 0.001, "low": -0.001, "healed": 0.26}
    said = list(map(given_back.share_in_words, pd.DataFrame([guesses, better]).itertuples()))
    assert said == ["0%, both guess", "0% (0% to 0%)"]


def test_what_healing_does_to_the_unpruned_model_is_said():
    columns = ["what", "tokens", "items", "before", "after", "change", "low", "high"]
    rows = [
        ("GSM8K", 2048, 50, 0.48, 0.28, -0.2, -0.34, -0.06), ("MMLU, 5-shot", 2048, 50, 0.5, 0.49, -0.01, -0.04, 0.02),
        ("BoolQ", 2048, 50, 0.5, 0.5, 0.0, -0.03, 0.03),
    ]  # fmt: skip
    assert given_back.whole_in_words(pd.DataFrame(rows, columns=columns)) == [
        "the unpruned model itself, healed alike on 2,048 tokens: GSM8K from 0.480 to 0.280 (-0.200, -0.340 to "
        "-0.060); no change is shown in MMLU (5-shot), BoolQ"
    ]
    assert given_back.whole_in_words(pd.DataFrame(rows[1:], columns=columns)) == [
        "the unpruned model itself, healed alike on 2,048 tokens: no change is shown in MMLU (5-shot), BoolQ"
    ]


def test_what_a_healed_model_was_asked_in_several_units_is_of_one():
    """Its tasks stand together, and its loss beside that of the whole model healed alike, whatever that was asked."""
    first, whole = healed_unit(CUT, LOSSES + 0.5, acc=(1,) * 8), healed_unit(Cut(0, 0), LOSSES - 0.5)
    more = dataclasses.replace(
        first, key=first.key | {"tasks": {"gsm8k": 5}, "limits": {"gsm8k": 8}, "limit": 120},
        details=first.details | {"outcomes": {"gsm8k": {"acc": pack(np.array([1, 0, 1, 1] * 2))}}},
    )  # fmt: skip
    right = {"0,0": {"gsm8k": np.ones(8)}, CUT.name: {"gsm8k": np.zeros(8)}}
    swept = [scores_unit("gsm8k", right, "sweep")]
    for units in ([first, more, whole], [more, whole, first]):
        budgets = given_back.by_tokens(units, first)
        ((one, unhurt),) = ([of_cuts[CUT], of_cuts[Cut(0, 0)]] for of_cuts in budgets.values())
        assert unhurt is whole and set(one.details["outcomes"]) == {"capitals", "gsm8k"}
        assert one.key["limits"]["gsm8k"] == 8 and one.key["tasks"]["gsm8k"] == 5
        of_card = one_cut.healing_of(units, CUT, first.key["healing"], "c4")
        assert set(of_card.details["outcomes"]) == {"capitals", "gsm8k"}
        table = given_back.table(before(1.0), swept, budgets, MANY).set_index("what")
        assert table["value"].to_dict() == {"GSM8K, 5-shot": 0.75, "loss on text": pytest.approx(0)}
        assert list(map(len, Evidence(units).ways.values())) == [2]


def test_answers_from_before_healing_are_those_to_prompts_with_as_many_examples():
    """Named by a task's own number or in so many words; those to other prompts are not held against them."""
    rule = {"kind": "sweep", "rule": "similarity", "cuts": [[0, 0], [1, 2]]}
    right = {"0,0": {"gsm8k": np.ones(8)}, CUT.name: {"gsm8k": np.zeros(8)}}
    healed = []
    for cut in (Cut(0, 0), CUT):
        one = healed_unit(cut, LOSSES)
        outcomes = {"outcomes": {"gsm8k": {"acc": pack(np.ones(8, dtype=np.uint8))}}}
        healed.append(dataclasses.replace(one, key=one.key | {"tasks": {"gsm8k": 5}}, details=one.details | outcomes))
    for number in (None, 5):
        sweep = scores_unit("gsm8k", right, **rule, num_fewshot=number)
        pruned, back = Evidence([*healed, sweep]).healed("GSM8K", "similarity")
        assert (pruned.right.sum(axis=1).tolist(), back.right.sum(axis=1).tolist()) == ([8, 0], [8, 8])
        assert Evidence([*healed, sweep]).measured("GSM8K", CUT, healed[1])[0] == "similarity"
    sweep = scores_unit("gsm8k", right, **rule, num_fewshot=3)
    evidence = Evidence([*healed, sweep])
    assert evidence.healed("GSM8K", "similarity") is None and evidence.measured("GSM8K", CUT, healed[1]) is None
    assert evidence.measured("GSM8K", CUT)[0] == "similarity"


def test_what_the_whole_model_gets_by_the_same_healing_is_no_repair_and_none_is_told_beyond_guessing():
    """The gap between the two is 1 before healing and 0.25 after it, whatever both gain from getting used to the text;
    where the whole model was not healed alike, what comes back is at most what the loss falls by."""
    whole, healed = healed_unit(Cut(0, 0), LOSSES - 0.5), healed_unit(CUT, LOSSES - 0.25)
    alone = given_back.table(before(1.0), [], {1: {CUT: healed}}, MANY)
    (row,) = alone.to_dict("records")
    assert np.isnan([row["value"], row["low"], row["whole, healed"]]).all() and row["high"] == pytest.approx(1.25)
    assert given_back.share_in_words(alone.iloc[0]) == "at most 125%"
    told = "loss on text (40 sequences), 1 tokens: no share is told, as the unpruned model was not healed on so many"
    assert given_back.in_words(alone) == [told]
    (row,) = given_back.table(before(1.0), [], {1: {Cut(0, 0): whole, CUT: healed}}, MANY).to_dict("records")
    assert [row["value"], row["low"], row["high"]] == pytest.approx([0.75] * 3)
    assert (row["whole"], row["whole, healed"]) == pytest.approx((LOSSES.mean(), LOSSES.mean() - 0.5))
    drawn = given_back.courses(before(1.0), [], {1: {Cut(0, 0): whole, CUT: healed}})
    assert drawn.loc[(drawn["size"] == 0) & (drawn["tokens"] == 1), "value"].item() == row["whole, healed"]
    # both get used to the text and nothing else: nothing comes back of what the cut took
    used_to_it = {1: {Cut(0, 0): whole, CUT: healed_unit(CUT, LOSSES + 0.5)}}
    assert given_back.table(before(1.0), [], used_to_it, MANY)["value"].item() == pytest.approx(0)
    # a rule that ruins more does not get back more: beyond ln V nothing is told, as of 18 nats where guessing has 10.8
    for of_cuts in ({Cut(0, 0): whole, CUT: healed}, {CUT: healed}):
        (row,) = given_back.table(before(15.0), [], {1: of_cuts}, 49_152).to_dict("records")
        assert np.isnan([row["value"], row["high"]]).all() and row["pruned"] > np.log(49_152)


def test_losses_before_are_of_all_units_alike_but_for_the_cuts():
    def unit(cuts: dict, **key) -> Unit:
        named = {"cuts": sorted(cuts), "text": "c4", "sequences": 40} | key
        return Unit("loss", "c4", named, STATE, pd.DataFrame(), {"by_sequence": cuts})

    like = unit({"0,0": [1.0], "1,2": [2.0]})
    others = [unit({"0,0": [1.1], "3,2": [3.0]}), unit({"0,0": [0.0], "4,1": [4.0]}, sequences=41), like]
    elsewhere = dataclasses.replace(others[0], kind="blocks", details={"by_sequence": {"9,9": [1.0]}})
    found = given_back.losses_before([*others, elsewhere], like)
    # each beside the whole model of its own unit
    assert found == {"0,0": ([1.0], [1.0]), "1,2": ([1.0], [2.0]), "3,2": ([1.1], [3.0])}


def test_only_sweeps_that_asked_as_much_in_the_same_way_stand_beside():
    unit = scores_unit("capitals", {"0,0": {"capitals": np.ones(8)}, CUT.name: {"capitals": np.ones(8)}}, kind="sweep")
    healed = healed_unit(CUT, LOSSES)
    asked = healed.key | {"tasks": {"capitals": None, "gsm8k": 5}, "limit": 120, "limits": {"gsm8k": 50}}
    healed = dataclasses.replace(healed, key=asked)

    def alike(**key) -> bool:
        other = dataclasses.replace(unit, key=unit.key | key)
        return bool(given_back.swept_alike([other], [healed]))

    assert alike() and alike(limit=120) and alike(limit=200) and not alike(limit=100)
    assert not alike(num_fewshot=3) and not alike(quantization="nf4") and not alike(dtype="bfloat16")
    assert alike(task="gsm8k", limit=50) and alike(task="gsm8k", limit=50, num_fewshot=5), "its own number is 5"
    assert not alike(task="gsm8k", limit=20) and not alike(task="sums")
    assert not alike(model={"name": "m", "weights": "others"})


def test_subjects_of_mmlu_that_were_swept_one_by_one_are_one_topic():
    names = ["mmlu_anatomy", "mmlu_virology"]
    swept = [scores_unit(name, {"0,0": {name: np.ones(8)}, CUT.name: {name: np.zeros(8)}}, "sweep") for name in names]
    healed = healed_unit(CUT, LOSSES)
    outcomes = {name: {"acc": pack(np.full(8, right))} for name, right in zip(names, (1, 0))}
    key = healed.key | {"tasks": dict.fromkeys(names)}
    healed = dataclasses.replace(healed, key=key, details=healed.details | {"outcomes": outcomes})
    found = given_back.before_and_after(before(1.0), swept, CUT, healed)["MMLU"]
    assert [values.tolist() for values in found[:3]] == [[1] * 16, [0] * 16, [1] * 8 + [0] * 8] and found.known
