"""The public functions called with what they do not take: one line, and nothing of a library's."""

import dataclasses

import jaxtyping
import numpy as np
import pytest
import torch

from deeper_layers import (
    PRESETS,
    Cut,
    InputError,
    angular_distances,
    decoder_layers,
    drop_layers,
    heal,
    load_model,
    measure_distances,
    merge_adapters,
    plan,
    similarity_cut,
    simple_cut,
    slice_checkpoint,
    sweep,
)
from deeper_layers.data import corpora, embedded
from deeper_layers.data.tokens import sequences, text_batches
from deeper_layers.errors import LONGEST
from deeper_layers.experiments.parameter_texts import block_sizes, whole_numbers
from deeper_layers.sweeping import text_loss

pytestmark = pytest.mark.quick

SMALL = PRESETS["small"]
SQUARE = np.full((4, 4), 0.5)
IDS = torch.ones(1, 4, dtype=torch.long)


@pytest.fixture(autouse=True)
def as_users_run_it(monkeypatch):
    """Without the checks of annotations, which would come before ours."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(scope="module")
def opened(tiny_folder):
    return load_model(str(tiny_folder))


WITHOUT_A_MODEL = [
    *[lambda value=value: Cut(value, 1) for value in (-1, 1.0, "1", None, True, 10**18, 10**5000, [1], np.nan)],
    *[lambda value=value: Cut(1, value) for value in (-1, 1.0, "1", None, True, 10**18, 10**5000, [1], np.nan)],
    *[lambda value=value: Cut(1, 2).check(value) for value in (0, -1, 1.5, "4", None, 10**18, True)],
    *[lambda value=value: Cut(1, 2).kept(value) for value in (0, 2, 10**18, None)],
    *[lambda value=value: Cut(1, 2).describe(value) for value in (0, 2, 10**18, None)],
    *[lambda value=value: simple_cut(value, 1) for value in (0, -1, 1.5, "4", None, 10**18, True)],
    *[lambda value=value: simple_cut(4, value) for value in (-1, 4, 1.5, "1", None, 10**18, [1], np.nan)],
    *[lambda value=value: similarity_cut(value, 1)
      for value in (None, [], "x", SQUARE[0], SQUARE[:3], SQUARE * np.nan, {})],
    *[lambda value=value: similarity_cut(SQUARE, value) for value in (-1, 4, 1.5, "1", None)],
    *[lambda value=value: block_sizes(value, 30) for value in ("", "0-30", "0-99999999999", "²", "1-", "9" * 5000)],
    *[lambda value=value: whole_numbers("seeds", value) for value in ("", "²", "-1", "9" * 5000, "1.5")],
    *[lambda value=value: dataclasses.replace(SMALL, **value) for value in (
        {"rank": 0}, {"rank": 1.5}, {"rank": "8"}, {"rank": None}, {"rank": 10**9}, {"steps": 0}, {"steps": 10**9},
        {"warmup_steps": -1}, {"warmup_steps": 61}, {"warmup_steps": 1.5}, {"learning_rate": float("nan")},
        {"learning_rate": float("inf")}, {"learning_rate": 0}, {"learning_rate": "1"}, {"seed": -1}, {"seed": 2**32},
        {"dropout": 1}, {"dropout": -0.1}, {"dropout": None}, {"auxiliary": -1}, {"auxiliary": float("nan")},
        {"at_once": 3}, {"batch_sequences": 0}, {"sequence_length": 1}, {"sequence_length": 10**9}, {"adapters": None},
        {"quantization": "int4"}, {"save_every": 0},
    )],
    *[lambda value=value: corpora.texts(value) for value in ("bible", None, "", ["c4"])],
    *[lambda value=value: corpora.texts("wikipedia", split=value) for value in ("test", "", 1)],
    *[lambda value=value: corpora.texts("wikipedia", documents=value) for value in (0, -1, "9", None)],
    *[lambda value=value: embedded.sums(value) for value in (0, -1, 9, "1")],
]  # fmt: skip
WITH_A_MODEL = [
    *[lambda m, t, value=value: drop_layers(m, value) for value in (None, (1, 2), 3, "1", Cut(4, 2), Cut(0, 5))],
    *[lambda m, t, value=value: drop_layers(value, Cut(0, 1)) for value in (None, "model", torch.nn.Linear(2, 2))],
    *[lambda m, t, value=value: decoder_layers(value) for value in (None, "model", torch.nn.Linear(2, 2))],
    *[lambda m, t, value=value: angular_distances(m, value) for value in (
        [], [None], [{}], ["text"], [{"input_ids": IDS}], [{"input_ids": IDS, "attention_mask": IDS[0]}],
        [{"input_ids": IDS, "attention_mask": 0 * IDS}], [{"input_ids": IDS * 1.5, "attention_mask": IDS}],
        [{"input_ids": IDS, "attention_mask": IDS[:, :2]}],
    )],
    *[lambda m, t, value=value: measure_distances(value, [{"input_ids": IDS, "attention_mask": IDS}])
      for value in (None, "model")],
    *[lambda m, t, value=value, of=of: of(m, t, value, [Cut(0, 0)], limit=1) for of in (sweep, plan)
      for value in ([], "capitals", None, [1], [""], ["capitals", None])],
    *[lambda m, t, value=value, of=of: of(m, t, ["capitals"], value, limit=1) for of in (sweep, plan)
      for value in ([], [None], [(0, 0)], [Cut(0, 5)], [Cut(5, 1)])],
    *[lambda m, t, value=value, of=of: of(m, t, ["capitals"], [Cut(0, 0)], limit=value) for of in (sweep, plan)
      for value in (0, -1, 1.5, "1", True, 10**30)],
    *[lambda m, t, value=value: sweep(m, t, ["capitals"], [Cut(0, 0)], limit=1, **value) for value in (
        {"num_fewshot": -1}, {"num_fewshot": "1"}, {"num_fewshot": 10**9}, {"fewshot_order": -1}, {"memory": 0},
        {"memory": -1}, {"batch_tokens": 0}, {"datasets": "/no/such/folder"}, {"datasets": "/dev/null"},
        {"datasets": "n" * 300}, {"datasets": "nul\\0l"},
    )],
    *[lambda m, t, value=value: text_loss(m, [Cut(0, 0)], value) for value in ([], [torch.ones(1, dtype=torch.long)])],
    lambda m, t: text_loss(m, [], [torch.ones(3, dtype=torch.long)]),
    *[lambda m, t, value=value: text_batches(t, ["some text"] * 3, **{"samples": 2, "length": 9} | value) for value in (
        {"samples": 0}, {"samples": 4}, {"samples": "2"}, {"length": 1}, {"length": -1}, {"seed": -1},
        {"batch_tokens": 0},
    )],
    *[lambda m, t, value=value: sequences(t, ["some text"], length=9, **value)
      for value in ({"seed": -1}, {"seed": "a"})],
    *[lambda m, t, value=value: heal(m, t, value, SMALL) for value in ([], "text", [None], ["short"])],
    *[lambda m, t, value=value: heal(m, t, ["text " * 99], value) for value in (None, "small", {})],
    *[lambda m, t, value=value: merge_adapters(value) for value in (None, "healed")],
    lambda m, t: merge_adapters(m),
    *[lambda m, t, value=value: load_model(m.name_or_path, **value) for value in (
        {"dtype": "fp8"}, {"device": ""}, {"device": "cuda:99"}, {"device": "cpu:0:0"}, {"device": "tpu"},
        {"device": "meta"}, {"device": None}, {"device": 3}, {"quantization": "int4"},
    )],
    lambda m, t: slice_checkpoint(m.name_or_path, Cut(0, 9), "/dev/null/out"),
]  # fmt: skip


def refusal(action) -> str:
    with pytest.raises(InputError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message and 15 < len(message) <= LONGEST
    return message


@pytest.mark.parametrize("number", range(len(WITHOUT_A_MODEL)))
def test_without_a_model(number):
    refusal(WITHOUT_A_MODEL[number])


@pytest.mark.parametrize("number", range(len(WITH_A_MODEL)))
def test_with_a_model(number, opened):
    refusal(lambda: WITH_A_MODEL[number](*opened))
