"""The paper's claims: one number each, its verdict, and what stands beside it."""

import json
from pathlib import Path

import numpy as np
import pytest

from deeper_layers.presets import PRESETS
from deeper_layers_companion.report import claims
from tests.test_report import curve, distances_of, made, published

HEALING = PRESETS["small"].settings | {"text": "c4", "tokens": 61_440}
*SEEDS, OTHER = (json.dumps(HEALING | more) for more in ({"seed": 0}, {"seed": 1}, {"seed": 1, "rank": 2}))
JUDGED = Path(__file__).with_name("published_claims.csv")


def as_written(found):
    columns = ["claim", "model", "verdict", "value", "low", "high", "floor", "ceiling", "power", "reason", "beside"]
    return found[columns].to_csv(index=False, float_format="%.5g", lineterminator="\n")


@pytest.fixture(scope="module")
def found():
    return claims.claims_table(*published())


@pytest.mark.parametrize(
    ("task", "shares", "verdict", "reason"),
    [
        ("mmlu", [0.75, 0.75, 0.74, 0.25], "supported", ""),
        ("mmlu", [0.75, 0.3, 0.25, 0.25], "contradicted", ""),
        ("mmlu", [0.75, 0.74, 0.25, 0.25], "inconclusive", "it lies exactly on the limit"),
        ("mmlu", [0.3] * 4, "at floor", ""),
        ("capitals", [0.75, 0.5], "not tested", "MMLU by letter was not asked"),
    ],
)
def test_a_plateau_ends_no_earlier_than_the_papers(task, shares, verdict, reason):
    table = claims.claims_table(made(curve(shares, task=task)), distances_of(np.ones((4, 5)))).set_index("claim")
    assert table.loc["plateau", ["verdict", "reason"]].tolist() == [verdict, reason]


@pytest.mark.parametrize(
    ("shares", "verdict"),
    [
        ([0.75, 0.3, 0.75, 0.3, 0.25], "inconclusive"),  # one spike
        ([0.75, 0.3, 0.75, 0.74, 0.25], "contradicted"),
        ([0.75, 0.3, 0.3, 0.3, 0.25], "supported"),
    ],
)
def test_one_cut_alone_does_not_decide_whether_a_curve_collapses(shares, verdict):
    table = claims.claims_table(made(curve(shares, rule="simple")), distances_of(np.ones((4, 5)))).set_index("claim")
    found = table.loc["simple-unhealed"]
    assert found["verdict"] == verdict and ("n = 2 alone decides" in found["reason"]) == (verdict == "inconclusive")


def test_prompts_are_compared_on_pruned_models():
    """The whole model gives the same answers whatever the order, and a pruned one does not."""
    rows = [row | {"shots": 5, "order": order} for order in (0, 1) for row in curve([0.75, 0.6, 0.4])]
    rows[-2] |= {"outcome": rows[-2]["outcome"][::-1].copy()}
    table = claims.claims_table(made(rows), distances_of(np.ones((4, 5)))).set_index("claim")
    assert (
        table.loc["shot-order", "verdict"] == "inconclusive" and "2 pruned models" in table.loc["shot-order", "reason"]
    )


def test_two_seeds_of_one_healing_are_compared_and_of_two_healings_are_not():
    plain = curve([0.75, 0.4]) + curve([0.75, 0.6], healing=SEEDS[0])
    for healing, verdict in ((SEEDS[1], "supported"), (OTHER, "not tested")):
        rows = made(plain + curve([0.75, 0.6], healing=healing))
        table = claims.claims_table(rows, distances_of(np.ones((4, 5)))).set_index("claim")
        assert table.loc["seeds", "verdict"] == verdict
        assert table.loc["seeds", "beside"] == ("seed 0 less seed 1, 1 layers dropped" if healing == SEEDS[1] else "")
    assert table.loc["seeds", "reason"] == "MMLU was asked of one seed"


def test_two_ranks_of_several_seeds_are_compared_by_their_loss():
    losses = {"task": "c4", "metric": "loss", "chance": 2.0}
    runs = [(HEALING | {"rank": rank, "seed": seed}, rank / 20) for rank in (2, 8) for seed in (0, 1)]
    healed = [row for run, loss in runs for row in curve([0.1, loss], healing=json.dumps(run), **losses)]
    table = claims.claims_table(made(curve([0.1, 0.9], **losses) + healed), distances_of(np.ones((4, 5))))
    assert table.set_index("claim").loc["ranks", "value"] == pytest.approx((2 - 8) / 20)


def test_one_number_decides_within_its_limits_and_short_healings_test_nothing(found):
    told = found[found["verdict"].isin(["supported", "contradicted"])]
    inside = (told["floor"] <= told["low"]) & (told["low"] <= told["value"]) & (told["high"] <= told["ceiling"])
    assert (inside == (told["verdict"] == "supported")).all()
    assert set(found.loc[found["value"].isna(), "verdict"]) == {"at floor", "not tested"}
    of_healed = found[found["claim"].isin(["plateau-healed", "boolq-healing", "healed-loss", "simple-healed"])]
    assert set(of_healed["verdict"]) == {"not tested"}
    told = "healed at (17|1× to 17|3× to 17)× the paper's rate, on 0.(07%|04% to 0.31%) of its tokens"
    assert of_healed["reason"].str.fullmatch(told).all()


def test_published_claims_are_judged_as_written_down(found):
    # results that join change the file, by `python -m tests.test_claims`: the commit then shows which claims moved
    assert as_written(found) == JUDGED.read_text(encoding="utf-8")


def test_the_table_names_every_claim(found):
    text = claims.shown(found).to_html().replace("&#x27;", "'")
    assert all(f'<a data-page="{claim["page"]}">{claim["title"]}</a>' in text for claim in claims.CLAIMS)
    differs = found.loc[found["verdict"] == "contradicted", "differs"]
    assert "contradicted: 11% or 14% (7% to 14%)" in text and all(f"Differs: {of}." in text for of in differs)


if __name__ == "__main__":
    JUDGED.write_text(as_written(claims.claims_table(*published())), encoding="utf-8")
