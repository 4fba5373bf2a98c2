"""Attention to a lent beginning, against attention over all keys at once."""

import pytest
import torch

from lib.lending import QUERIES, _one_softmax, _two_flashes


@pytest.mark.parametrize("way", [_one_softmax, _two_flashes])
@pytest.mark.parametrize(("rows", "length"), [(1, 1), (5, 1), (3, 7), (QUERIES // 10, 20), (2, QUERIES)])
@pytest.mark.parametrize("few", [1, 2, 6])
def test_is_attention_over_all_keys(way, rows, length, few):
    heads, width, shared, scale = 6, 8, 11, 0.3
    draw = torch.Generator().manual_seed(rows * length * few)
    query, key, value = (
        torch.randn(rows, number, length, width, generator=draw, dtype=torch.float64) for number in (heads, few, few)
    )
    before = [torch.randn(1, few, shared, width, generator=draw, dtype=torch.float64) for _ in range(2)]
    lent = [tensor.expand(rows, -1, -1, -1) for tensor in before]
    found = way(query, key, value, None, *lent, scale)
    keys, values = (torch.cat(pair, dim=2) for pair in zip(lent, (key, value), strict=True))
    seen = torch.ones(length, shared + length, dtype=torch.bool).tril(shared)
    expected = torch.nn.functional.scaled_dot_product_attention(query, keys, values, seen, scale=scale, enable_gqa=True)
    assert found.shape == (rows, heads, length, width)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
