"""The paper's claims: one number each, its verdict, and what stands beside it."""

import functools

import numpy as np
import pandas as pd
import pytest

from deeper_layers import results
from deeper_layers.report import claims, paper
from deeper_layers.results.places import AROUND as ROOT
from tests.test_report import GEMMA, QWEN, SMOLLM, curve, distances_of, made


@functools.cache
def found() -> pd.DataFrame:
    return claims.claims_table(results.scores(), results.distances())


@pytest.mark.parametrize(
    ("task", "shares", "verdict", "reason"),
    [
        ("mmlu", [0.75, 0.75, 0.74, 0.25], "supported", ""),
        ("mmlu", [0.75, 0.3, 0.25, 0.25], "contradicted", ""),
        ("mmlu", [0.3] * 4, "at floor", ""),
        ("capitals", [0.75, 0.5], "not tested", "MMLU, letter chosen was not asked"),
    ],
)
def test_a_plateau_ends_no_earlier_than_the_papers(task, shares, verdict, reason):
    table = claims.claims_table(made(curve(shares, task=task)), distances_of(np.ones((4, 5)))).set_index("claim")
    assert table.loc["plateau", ["verdict", "reason"]].tolist() == [verdict, reason]


def test_one_number_decides_and_its_limits_stand_beside_it():
    table = found()
    assert set(table["verdict"]) <= {"supported", "contradicted", "inconclusive", "at floor", "not tested"}
    told = table[table["verdict"].isin(["supported", "contradicted"])]
    assert told["value"].notna().all() and (told["low"] <= told["value"]).all()
    inside = (told["floor"] <= told["low"]) & (told["high"] <= told["ceiling"])
    assert (inside == (told["verdict"] == "supported")).all()
    assert table.loc[table["value"].isna(), "verdict"].isin(["at floor", "not tested"]).all()
    of_healed = table[table["claim"].isin(["plateau-healed", "boolq-healing", "healed-loss", "simple-healed"])]
    assert set(of_healed["verdict"]) == {"not tested"}
    assert of_healed["reason"].str.startswith("healed at 17 times the paper's rate").all()


def test_verdicts_of_what_is_published():
    verdicts = found().set_index(["claim", "model"])["verdict"]
    for claim, of_qwen, of_smollm, of_gemma in (
        ("plateau", "contradicted", "at floor", "at floor"),
        ("boolq", "contradicted", "at floor", "at floor"),
        ("reasoning", "supported", "not tested", "not tested"),
        ("more-shots", "inconclusive", "at floor", "at floor"),
        ("simple-unhealed", "contradicted", "at floor", "at floor"),
        ("ranks", "not tested", "supported", "not tested"),
        ("deep-blocks", "contradicted", "contradicted", "inconclusive"),
    ):
        assert verdicts[claim].to_dict() == {QWEN: of_qwen, SMOLLM: of_smollm, GEMMA: of_gemma}, claim


def test_the_table_names_every_claim_and_model_once():
    text = claims.shown(found()).to_html()
    for claim in claims.CLAIMS:
        assert f'<a data-page="{claim["page"]}">{claim["title"]}</a>' in text.replace("&#x27;", "'")
        assert (ROOT / "notebooks" / f"{claim['page']}.ipynb").exists()
    assert "Qwen2.5-Coder-1.5B" in text and "contradicted: 11% (7 to 14%)" in text
    assert [claim["claim"] for claim in claims.CLAIMS] == list(claims.QUERIES)


def test_the_authors_starts_leave_the_last_layer():
    for layers, starts in paper.AUTHORS_STARTS.values():
        assert all(start + size < layers for size, start in enumerate(starts, start=1))
