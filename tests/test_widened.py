"""Products of 16 bits in float32: the same numbers, forwards and backwards."""

import copy

import bitsandbytes
import pytest
import torch
from torch.func import functional_call
from torch.nn.functional import linear
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from deeper_layers.models import half_precision

pytestmark = pytest.mark.quick
FEW_OR_MANY = pytest.mark.parametrize("rows", [4, 40], ids=["few", "many"])


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)


def within_rounding(found, exact):
    # half a unit in the last of 8 binary places, and what float32 sums are off where the products cancel
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), exact.double(), rtol=2**-8, atol=1e-5)


def check(ours, exact, *given):
    """A function of tensors of 16 bits, and its gradients, are those of another in float64, rounded once."""
    given, wide = ([t.to(dtype, copy=True).requires_grad_() for t in given] for dtype in (torch.bfloat16, torch.double))
    with torch.no_grad():
        within_rounding(ours(*given), exact(*wide))
    found, expected = ours(*given), exact(*wide)
    within_rounding(found, expected)
    found.backward(gradient := drawn(*found.shape, seed=9))
    expected.backward(gradient.double())
    for one, other in zip(given, wide, strict=True):
        within_rounding(one.grad, other.grad)


@pytest.mark.parametrize("bias", [False, True])
@FEW_OR_MANY
def test_products_are_summed_in_float32_and_rounded_once(rows, bias):
    layer, row = torch.nn.Linear(96, 40, bias=bias).bfloat16().requires_grad_(False), drawn(2, rows, 96)
    half_precision.widen(layer)
    own = dict(layer.named_parameters())
    check(layer, lambda row: linear(row, *(weight.double() for weight in own.values())), row)
    # and where they learn
    check(lambda row, *own_: functional_call(layer, dict(zip(own, own_)), row), linear, row, *own.values())


@FEW_OR_MANY
def test_weights_of_four_bits_are_multiplied_so_too(rows):
    how = {"quant_type": "nf4", "compress_statistics": False}
    layer = bitsandbytes.nn.Linear4bit(128, 64, bias=False, compute_dtype=torch.bfloat16, **how)
    layer.weight = bitsandbytes.nn.Params4bit(drawn(64, 128), requires_grad=False, **how)
    layer = layer.to("cpu")
    layer.support_avx512bf16_for_cpu = False  # as in load_model
    weights = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state).double()
    assert (weights - drawn(64, 128)).abs().max() > 0.01
    check(layer, lambda row: linear(row, weights), drawn(2, rows, 128, seed=1))
    half_precision.widen(layer)
    check(copy.deepcopy(layer), lambda row: linear(row, weights), drawn(2, rows, 128, seed=1))


@pytest.mark.parametrize("masked", [None, "bool", "float"])
def test_attention_that_is_trained_is_computed_in_float32_and_rounded(masked):
    seen = torch.ones(24, 24, dtype=torch.bool).tril().triu(-6)[None, None]  # a sliding window
    mask = {None: None, "bool": seen, "float": torch.where(seen, 0.0, -1e9).to(torch.bfloat16)}[masked]
    wide = mask.double() if masked == "float" else mask
    module = torch.nn.Module()
    module.is_causal, module.num_key_value_groups = True, 2
    given = [drawn(2, heads, 24, 16, seed=seed) for seed, heads in enumerate((4, 2, 2))]
    attend = [
        lambda *g: half_precision.attend(module, *g, mask)[0],
        lambda *g: sdpa_attention_forward(module, *g, wide)[0],
    ]
    check(*attend, *given)
