"""Products of 16 bits in float32: the same numbers, forwards and backwards."""

import copy

import bitsandbytes
import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from deeper_layers.models import half_precision

pytestmark = pytest.mark.quick


def product(rows, bias, dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(96, 40, bias=bias)
    for weight in layer.parameters():
        torch.nn.init.normal_(weight, generator=generator)
    layer.to(dtype).requires_grad_(False)
    half_precision.widen(layer)
    return layer, torch.randn(2, rows, 96, generator=generator).to(dtype)


def within_rounding(found, exact):
    # half a unit in the last of 8 binary places, and what float32 sums are off where the products cancel
    assert ((found.double() - exact).abs() <= 2**-8 * exact.abs() + 1e-5).all()


@pytest.mark.parametrize("weights", [2**26, 96 * 17, 10], ids=["whole", "parts", "a row each"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [4, 40], ids=["few", "many"])
def test_products_are_summed_in_float32_and_rounded_once(monkeypatch, rows, bias, weights):
    monkeypatch.setattr(half_precision, "WEIGHTS", weights)
    layer, row = product(rows, bias)
    exact = row.double() @ layer.weight.double().T + (layer.bias.double() if bias else 0)
    for needed in (False, True):
        found = layer(row.requires_grad_(needed))
        assert found.dtype == torch.bfloat16 and found.shape == (2, rows, 40)
        within_rounding(found, exact)
    gradient = torch.randn(found.shape, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    found.backward(gradient)
    assert row.grad.shape == row.shape
    within_rounding(row.grad, gradient.double() @ layer.weight.double())


def test_weights_that_learn_get_their_gradient():
    layer, row = product(40, bias=True)
    layer.requires_grad_()
    layer(row).sum().backward()
    within_rounding(layer.weight.grad, row.double().sum((0, 1)).expand(40, 96))
    within_rounding(layer.bias.grad, torch.full((40,), 80.0).double())


def test_in_more_bits_nothing_changes():
    layer, row = product(40, bias=True, dtype=torch.float64)
    assert torch.equal(layer(row), torch.nn.functional.linear(row, layer.weight, layer.bias))


@pytest.mark.parametrize("rows", [4, 40], ids=["few", "many"])
def test_weights_of_four_bits_are_multiplied_so_too(rows):
    layer = bitsandbytes.nn.Linear4bit(
        128, 64, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4", compress_statistics=False
    )
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    layer.weight = bitsandbytes.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=False)
    layer = layer.to("cpu")
    layer.support_avx512bf16_for_cpu = False  # as in load_model
    row = torch.randn(2, rows, 128, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    gradient = torch.randn(2, rows, 64, generator=torch.Generator().manual_seed(2)).to(torch.bfloat16)
    weights = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state).double()
    assert (weights - weight.double()).abs().max() > 0.01
    for way in ("bitsandbytes", "widened"):
        if way == "widened":
            half_precision.widen(layer)
            layer = copy.deepcopy(layer)
        within_rounding(layer(row), row.double() @ weights.T)
        needed = row.clone().requires_grad_()
        found = layer(needed)
        assert found.dtype == torch.bfloat16
        within_rounding(found, row.double() @ weights.T)
        found.backward(gradient)
        within_rounding(needed.grad, gradient.double() @ weights)


@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
def test_products_of_many_matrices_are_summed_in_float32(monkeypatch, capability):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(3, 2, 7, 96, generator=generator).to(torch.bfloat16)
    other = torch.randn(3, 2, 96, 5, generator=generator).to(torch.bfloat16)
    found = half_precision.product(one, other)
    assert found.dtype == torch.bfloat16 and found.shape == (3, 2, 7, 5)
    within_rounding(found, one.double() @ other.double())


@pytest.mark.parametrize("masked", [None, "bool", "float"])
def test_attention_that_is_trained_is_computed_in_float32_and_rounded(masked):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, heads, 24, 16, generator=generator).to(torch.bfloat16) for heads in (4, 2, 2))
    seen = torch.ones(24, 24, dtype=torch.bool).tril().triu(-6)[None, None]  # a sliding window
    mask = {None: None, "bool": seen, "float": torch.where(seen, 0.0, -1e9).to(torch.bfloat16)}[masked]
    module = torch.nn.Module()
    module.is_causal, module.num_key_value_groups = True, 2
    found, exact = [
        [tensor.to(dtype, copy=True).requires_grad_() for tensor in (query, key, value)]
        for dtype in (torch.bfloat16, torch.float64)
    ]
    attended, _ = half_precision.attend(module, *found, mask)
    wide, _ = sdpa_attention_forward(module, *exact, mask if mask is None or masked == "bool" else mask.double())
    assert attended.dtype == torch.bfloat16 and attended.shape == (2, 24, 4, 16)
    within_rounding(attended, wide)
    gradient = torch.randn(attended.shape, generator=generator).to(torch.bfloat16)
    attended.backward(gradient)
    wide.backward(gradient.double())
    for ours, theirs in zip(found, exact, strict=True):
        within_rounding(ours.grad, theirs.grad)
