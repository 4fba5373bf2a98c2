"""Products of 16 bits on processors without arithmetic of 16 bits, such as those of most laptops.

There PyTorch multiplies matrices of 16 bits several times as slowly as those of 32, and backwards a hundred times.
"""

import functools
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn.functional import linear
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

ROWS = 64  # from which widening pays; for fewer, as in generation, it would take longer than the product
ROWS_TRIED = 1024  # of a product whose speed is tried
WEIGHTS = 2**26  # widened at once: a quarter of a GB


def multiplies_sixteen_bits() -> bool:
    """Whether the processor multiplies matrices of 16 bits faster than those of 32: x86 without AVX-512 does not."""
    return torch.backends.cpu.get_cpu_capability() != "AVX2"


def widen(network: torch.nn.Module) -> None:
    """Have a network multiply in float32, in place: linear layers, those of 4 bits too, and attention that is trained.

    The weights stay as they are.
    """
    AttentionInterface.register("sdpa", attend)  # which serves all networks: elsewhere it is what it was
    for module in network.modules():
        if type(module) is torch.nn.Linear or hasattr(getattr(module, "weight", None), "quant_state"):
            module.__class__ = _kind(type(module))


def product(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Products of matrices [..., N, K] and [..., K, M] in one data type."""
    if one.element_size() != 2 or one.device.type != "cpu" or multiplies_sixteen_bits():
        return one @ other
    return (one.float() @ other.float()).to(one.dtype)


def product_speed(dtype: str, width: int = 1024, inner: int = 1024, device: str = "cpu") -> float:
    """Operations a second of products [ROWS_TRIED, width] x [width, inner]: the median of eight, or of as many as two
    seconds allow."""
    number_type = getattr(torch, dtype)
    one = torch.rand(ROWS_TRIED, width, device=device).to(number_type)
    other = torch.rand(width, inner, device=device).to(number_type)
    seconds: list[float] = []
    while len(seconds) < 9 and sum(seconds) < 2:
        begin = time.perf_counter()
        product(one, other)[0, 0].item()  # an accelerator is waited for
        seconds.append(time.perf_counter() - begin)
    return 2 * ROWS_TRIED * width * inner / statistics.median(seconds[1:] or seconds)  # the first warms up


class Widened:
    """Of a linear layer: its matrices of 16 bits are multiplied in float32, and the result is rounded.

    That is what processors with arithmetic of 16 bits do: they sum in float32.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        pays = input.requires_grad or input.numel() >= ROWS * input.shape[-1]
        if input.element_size() != 2 or not pays:
            return super().forward(input)
        bias = None if self.bias is None else self.bias.float()
        if torch.is_grad_enabled() and self.weight.requires_grad:
            return linear(input.float(), self.weight.float(), bias).to(input.dtype)
        return _Product.apply(input, self._parts, bias)

    def _parts(self) -> tuple[torch.Tensor, ...]:
        """The weights in 16 bits, some rows at a time."""
        weight = self.weight
        if hasattr(weight, "quant_state"):
            from bitsandbytes.functional import dequantize_4bit

            weight = dequantize_4bit(weight.data, weight.quant_state)
        return weight.split(max(1, WEIGHTS // weight.shape[1]))


@functools.cache
def _kind(kind: type) -> type:
    return type(f"Widened{kind.__name__}", (Widened, kind), {})


def attend(module, query, key, value, attention_mask, **options):
    """Attention of transformers ("sdpa"), in float32 where gradients of 16 bits go back through it on a processor."""
    dtype = query.dtype
    if query.device.type == "cpu" and dtype.itemsize == 2 and query.requires_grad:
        query, key, value = query.float(), key.float(), value.float()
        if attention_mask is not None and attention_mask.is_floating_point():
            attention_mask = attention_mask.float()
    attended, weights = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    return attended.to(dtype), weights


class _Product(torch.autograd.Function):
    """A product with weights that don't learn, a part of them widened at a time, and anew backwards: none is kept."""

    @staticmethod
    def forward(context, input: torch.Tensor, parts: Callable, bias: torch.Tensor | None) -> torch.Tensor:
        context.parts = parts
        wide, products, first = input.float(), [], 0
        for part in parts():
            own = None if bias is None else bias[first : first + len(part)]
            products.append(linear(wide, part.float(), own).to(input.dtype))
            first += len(part)
        return torch.cat(products, -1)

    @staticmethod
    def backward(context, gradient: torch.Tensor) -> tuple:
        parts = context.parts()
        pairs = zip(gradient.split(len(parts[0]), -1), parts, strict=True)
        return sum(own.float() @ part.float() for own, part in pairs).to(gradient.dtype), None, None
