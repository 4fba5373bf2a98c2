"""Attention to a lent beginning, against attention over all keys at once."""

import types

import pytest
import torch

from deeper_layers.sweeping import lending
from deeper_layers.sweeping.lending import FEW, QUERIES, Lent, attend_apart


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("rows", "length"),
    [(1, 1), (5, 1), (3, 7), (20, FEW // 3), (QUERIES + 1, 1), (2, FEW + 1), (2, QUERIES), (2, QUERIES + 1)],
)
@pytest.mark.parametrize("few", [1, 2, 6])
def test_is_attention_over_all_keys(monkeypatch, rows, length, few, masked):
    heads, width, shared, scale, own = 6, 8, 11, 0.3, length + 4 if masked else length
    draw = torch.Generator().manual_seed(rows * length * few)
    of_heads = ((heads, length), (few, own), (few, own))
    query, key, value = (torch.randn(rows, *shape, width, generator=draw, dtype=torch.float64) for shape in of_heads)
    beginning = [torch.randn(1, few, shared, width, generator=draw, dtype=torch.float64) for _ in range(2)]
    mask = torch.rand(rows, 1, length, own, generator=draw) < 0.5 if masked else None
    monkeypatch.setattr(lending, "_lent", lent_of(*beginning))
    found, _ = attend_apart(types.SimpleNamespace(layer_idx=0), query, key, value, mask, scaling=scale)
    keys, values = (
        torch.cat([b.expand(rows, -1, -1, -1), o], dim=2) for b, o in zip(beginning, (key, value), strict=True)
    )
    seen = torch.ones(rows, 1, length, shared + own, dtype=torch.bool)
    seen[..., shared:] = torch.ones(length, own).tril() if mask is None else mask
    expected = torch.nn.functional.scaled_dot_product_attention(query, keys, values, seen, scale=scale, enable_gqa=True)
    assert found.shape == (rows, length, heads, width)
    torch.testing.assert_close(found.transpose(1, 2), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
@pytest.mark.parametrize("length", [3, FEW + 1])
def test_in_sixteen_bits_products_are_summed_in_float32(monkeypatch, capability, length):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    draw = torch.Generator().manual_seed(length)
    query, *others = (torch.randn(4, heads, length, 16, generator=draw).to(torch.bfloat16) for heads in (4, 2, 2))
    beginning = [torch.randn(1, 2, 300, 16, generator=draw).to(torch.bfloat16) for _ in range(2)]

    def attended(dtype):
        monkeypatch.setattr(lending, "_lent", lent_of(*(tensor.to(dtype) for tensor in beginning)))
        of_dtype = (tensor.to(dtype) for tensor in (query, *others))
        return attend_apart(types.SimpleNamespace(layer_idx=0), *of_dtype, None)[0]

    found, exact = attended(torch.bfloat16), attended(torch.float64)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), exact, atol=0.02, rtol=0)


def lent_of(keys, values) -> Lent:
    """A beginning at one node."""
    lent = Lent(keys.shape[2], apart=True)
    lent.nodes = [(keys, values)]
    return lent
