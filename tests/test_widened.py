"""Products of 16 bits in float32: the same numbers, forwards and backwards."""

import copy

import bitsandbytes
import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from deeper_layers.models import half_precision

pytestmark = pytest.mark.quick
ROWS = pytest.mark.parametrize("rows", [4, 40], ids=["few", "many"])


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)


def linear(bias):
    layer = torch.nn.Linear(96, 40, bias=bias)
    for seed, weight in enumerate(layer.parameters()):
        weight.data = drawn(*weight.shape, seed=seed)
    half_precision.widen(layer.requires_grad_(False))
    return layer


def within_rounding(found, exact):
    # half a unit in the last of 8 binary places, and what float32 sums are off where the products cancel
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=1e-5)


def check_both_ways(layer, weights, row, bias=0):
    """Without gradients, then with them and backwards."""
    row = row.clone()
    for needed in (False, True):
        found = layer(row.requires_grad_(needed))
        within_rounding(found, row.detach().double() @ weights.double().T + bias)
    gradient = drawn(*found.shape, seed=9)
    found.backward(gradient)
    within_rounding(row.grad, gradient.double() @ weights.double())


@pytest.mark.parametrize("weights", [2**26, 96 * 17, 10], ids=["whole", "parts", "a row each"])
@pytest.mark.parametrize("bias", [False, True])
@ROWS
def test_products_are_summed_in_float32_and_rounded_once(monkeypatch, rows, bias, weights):
    monkeypatch.setattr(half_precision, "WEIGHTS", weights)
    layer = linear(bias)
    check_both_ways(layer, layer.weight, drawn(2, rows, 96, seed=5), layer.bias.double() if bias else 0)


def test_weights_that_learn_get_their_gradient():
    layer, row = linear(bias=True).requires_grad_(), drawn(2, 40, 96, seed=5)
    layer(row).sum().backward()
    within_rounding(layer.weight.grad, row.double().sum((0, 1)).expand(40, 96))
    within_rounding(layer.bias.grad, torch.full((40,), 80.0).double())


@ROWS
def test_weights_of_four_bits_are_multiplied_so_too(rows):
    how = {"quant_type": "nf4", "compress_statistics": False}
    layer = bitsandbytes.nn.Linear4bit(128, 64, bias=False, compute_dtype=torch.bfloat16, **how)
    layer.weight = bitsandbytes.nn.Params4bit(drawn(64, 128), requires_grad=False, **how)
    layer = layer.to("cpu")
    layer.support_avx512bf16_for_cpu = False  # as in load_model
    weights = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    assert (weights - drawn(64, 128)).abs().max() > 0.01
    check_both_ways(layer, weights, drawn(2, rows, 128, seed=1))
    half_precision.widen(layer)
    check_both_ways(copy.deepcopy(layer), weights, drawn(2, rows, 128, seed=1))


@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
def test_products_of_many_matrices_are_summed_in_float32(monkeypatch, capability):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    one, other = drawn(3, 2, 7, 96), drawn(3, 2, 96, 5, seed=1)
    within_rounding(half_precision.product(one, other), one.double() @ other.double())


@pytest.mark.parametrize("masked", [None, "bool", "float"])
def test_attention_that_is_trained_is_computed_in_float32_and_rounded(masked):
    given = [drawn(2, heads, 24, 16, seed=seed) for seed, heads in enumerate((4, 2, 2))]
    seen = torch.ones(24, 24, dtype=torch.bool).tril().triu(-6)[None, None]  # a sliding window
    mask = {None: None, "bool": seen, "float": torch.where(seen, 0.0, -1e9).to(torch.bfloat16)}[masked]
    module = torch.nn.Module()
    module.is_causal, module.num_key_value_groups = True, 2
    found, exact = (
        [tensor.to(dtype, copy=True).requires_grad_() for tensor in given] for dtype in (torch.bfloat16, torch.float64)
    )
    attended, _ = half_precision.attend(module, *found, mask)
    wide, _ = sdpa_attention_forward(module, *exact, mask.double() if masked == "float" else mask)
    within_rounding(attended, wide)
    gradient = drawn(*attended.shape, seed=9)
    attended.backward(gradient)
    wide.backward(gradient.double())
    for ours, theirs in zip(found, exact, strict=True):
        within_rounding(ours.grad, theirs.grad)
