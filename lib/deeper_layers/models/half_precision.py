"""Multiply 16-bit matrices on processors without 16-bit arithmetic, such as those of most laptops.

There PyTorch takes several times as long for 16-bit products as for 32-bit ones, in backward passes a hundred times.
"""

import functools

import torch
from torch.nn.functional import linear
from torch.utils.benchmark import Timer
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

ROWS = 64  # from which widening pays; for fewer rows, as in generation, it takes longer than the product
ROWS_TRIED = 1024  # of the product whose speed is measured


def multiplies_sixteen_bits() -> bool:
    """Whether the processor multiplies matrices of 16 bits faster than those of 32: x86 without AVX-512 does not."""
    return torch.backends.cpu.get_cpu_capability() != "AVX2"


def widen(network: torch.nn.Module) -> None:
    """Make a network multiply in float32, in place: its linear layers (4-bit ones too), and attention in training."""
    # which serves all networks: elsewhere it is what it was
    AttentionInterface.register("sdpa", attend)
    for module in network.modules():
        if type(module) is torch.nn.Linear or hasattr(
            getattr(module, "weight", None), "quant_state"
        ):
            module.__class__ = _widened_class(type(module))


def measure_product_speed(
    dtype: str, width: int = 1024, inner: int = 1024, device: str = "cpu"
) -> float:
    """Operations a second of products [ROWS_TRIED, width] x [width, inner]: the median in a tenth of a second."""
    layer = (
        torch.nn.Linear(width, inner, bias=False)
        .requires_grad_(False)
        .to(device, getattr(torch, dtype))
    )
    if device == "cpu" and not multiplies_sixteen_bits():
        widen(layer)
    variables = {"layer": layer, "rows": torch.rand(ROWS_TRIED, width).to(layer.weight)}
    timer = Timer("layer(rows)", globals=variables, num_threads=torch.get_num_threads())
    return 2 * ROWS_TRIED * width * inner / timer.blocked_autorange(min_run_time=0.1).median


class Float32Matmul:
    """Makes a linear layer multiply its 16-bit matrices in float32 and round the result. Processors with 16-bit
    arithmetic do the same: they sum in float32."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        pays = input.requires_grad or input.numel() >= ROWS * input.shape[-1]
        if input.element_size() != 2 or not pays:
            return super().forward(input)
        if torch.is_grad_enabled() and self.weight.requires_grad:
            product = linear(input.float(), self.widen_weight())
        else:
            product = _WidenedProduct.apply(input.float(), self)
        if self.bias is not None:
            product = product + self.bias.float()
        return product.to(input.dtype)

    def widen_weight(self) -> torch.Tensor:
        """The weights in float32, also those that are kept in four bits."""
        if not hasattr(self.weight, "quant_state"):
            return self.weight.float()
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(self.weight.data, self.weight.quant_state).float()


class _WidenedProduct(torch.autograd.Function):
    """A product with frozen weights. The backward pass widens them again, so that no wide copy is kept."""

    @staticmethod
    def forward(context, input: torch.Tensor, layer: Float32Matmul) -> torch.Tensor:
        context.layer = layer
        return linear(input, layer.widen_weight())

    @staticmethod
    def backward(context, gradient: torch.Tensor) -> tuple:
        return gradient @ context.layer.widen_weight(), None


@functools.cache
def _widened_class(module_class: type) -> type:
    return type(f"Float32Matmul{module_class.__name__}", (Float32Matmul, module_class), {})


def attend(module, query, key, value, attention_mask, **options):
    """The "sdpa" attention of transformers, in float32 where 16-bit gradients go back through it on a processor."""
    dtype = query.dtype
    if query.device.type == "cpu" and dtype.itemsize == 2 and query.requires_grad:
        query = query.float()
        key = key.float()
        value = value.float()
        if attention_mask is not None and attention_mask.is_floating_point():
            attention_mask = attention_mask.float()
    attended, weights = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    return attended.to(dtype), weights
