"""The paper's claims: one number each, its verdict, and what stands beside it."""

import functools

import numpy as np
import pandas as pd
import pytest

from deeper_layers import results
from deeper_layers.report import claims, paper
from deeper_layers.results.places import AROUND as ROOT
from tests.test_report import QWEN, SMOLLM, curve, distances_of, made


@functools.cache
def found() -> pd.DataFrame:
    return claims.claims_table(results.scores(), results.distances()).set_index(["claim", "model"])


@pytest.mark.parametrize(
    ("shares", "verdict"),
    [([0.75, 0.75, 0.74, 0.25], "supported"), ([0.75, 0.3, 0.25, 0.25], "contradicted"), ([0.3] * 4, "at floor")],
)
def test_a_plateau_ends_no_earlier_than_the_papers(shares, verdict):
    table = claims.claims_table(made(curve(shares)), distances_of(np.ones((4, 5)))).set_index("claim")
    assert table.loc["plateau", "verdict"] == verdict


def test_one_number_decides_and_its_limits_stand_beside_it():
    table = found().reset_index()
    assert set(table["verdict"]) <= {"supported", "contradicted", "inconclusive", "at floor", "not tested"}
    told = table[table["verdict"].isin(["supported", "contradicted"])]
    assert told["value"].notna().all() and (told["low"] <= told["value"]).all()
    for row in told.itertuples():
        inside = row.floor <= row.low and row.high <= row.ceiling
        assert (row.verdict == "supported") is inside, row.claim
    assert table.loc[table["value"].isna(), "verdict"].isin(["at floor", "not tested"]).all()


@pytest.mark.parametrize(
    ("claim", "model", "verdict"),
    [
        ("plateau", QWEN, "contradicted"),
        ("boolq", QWEN, "contradicted"),
        ("reasoning", QWEN, "supported"),
        ("more-shots", QWEN, "inconclusive"),
        ("simple-unhealed", QWEN, "contradicted"),
        ("plateau", SMOLLM, "at floor"),
        ("more-shots", SMOLLM, "at floor"),
        ("ranks", SMOLLM, "supported"),
        ("deep-blocks", "Gemma-3-270m", "inconclusive"),
    ],
)
def test_verdicts_of_what_is_published(claim, model, verdict):
    assert found().loc[(claim, model), "verdict"] == verdict


def test_healings_at_another_rate_test_nothing_of_the_papers():
    table = found().reset_index()
    of_healed = table[table["claim"].isin(["plateau-healed", "boolq-healing", "healed-loss", "simple-healed"])]
    assert set(of_healed["verdict"]) == {"not tested"}
    assert of_healed["reason"].str.startswith("healed at 17 times the paper's rate").all()


def test_a_model_of_which_nothing_is_held_is_not_tested():
    table = claims.claims_table(made(curve([0.75, 0.5], task="capitals")), distances_of(np.ones((4, 5))))
    assert table.set_index("claim").loc["plateau", ["verdict", "reason"]].tolist() == [
        "not tested", "MMLU, letter chosen was not asked",
    ]  # fmt: skip


def test_the_table_names_every_claim_and_model_once():
    text = claims.shown(found().reset_index()).to_html()
    for claim in claims.CLAIMS:
        assert f'<a data-page="{claim["page"]}">{claim["title"]}</a>' in text.replace("&#x27;", "'")
        assert (ROOT / "notebooks" / f"{claim['page']}.ipynb").exists()
    assert [claim["claim"] for claim in claims.CLAIMS] == list(claims.QUERIES)
    assert "Qwen2.5-Coder-1.5B" in text and "contradicted: 11% (7 to 14%)" in text


def test_the_authors_starts_leave_the_last_layer():
    for layers, starts in paper.AUTHORS_STARTS.values():
        assert all(start + size < layers for size, start in enumerate(starts, start=1))
