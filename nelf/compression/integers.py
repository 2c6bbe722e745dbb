"""8-bit integers: symmetric for weights, asymmetric for activations."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["LARGEST", "LARGEST_MULTIPLIED", "asymmetric", "dequantize", "fake_quantize", "quantize"]

LARGEST = 127  # -128 is not used, so that a number and its negative round symmetrically
# For weights that are multiplied by unsigned activations: x86 without VNNI adds two products in 16 bits, saturating at
# 32,767, which holds 2 * 255 * 64, but not 2 * 255 * 65.
LARGEST_MULTIPLIED = 64
_TINY = 2.0**-24  # a tensor whose largest number is below it counts as zero


def quantize(values: Tensor, axis: int | None = None, limit: int = LARGEST) -> tuple[Tensor, Tensor]:
    """Round to 8-bit integers, symmetric about zero: ``clamp(round(v * scale), -127, 127)``, ``scale = 127 / max|v|``.

    Args:
        values: any shape.
        axis: the dimension whose slices have a scale each; None for one scale.
        limit: largest integer, instead of 127.

    Returns:
        The integers, int8, and the scale to divide them by, float32, which broadcasts to ``values``. A slice of zeros
        has scale 1.

    Source:
        NVIDIA's pytorch-quantization, ``fake_tensor_quant``, which R2L-quant calls: the same operations in the same
        order, halves rounded to even.
    """
    values = values.detach().float()
    others = [dimension for dimension in range(values.dim()) if axis is None or dimension != axis % values.dim()]
    largest = values.abs().amax(others, keepdim=axis is not None) if others else values.abs()
    zero = largest <= _TINY
    # A tensor over a tensor is a division; a number over one is a product with the reciprocal, at times one bit off.
    scale = torch.where(zero, 0.0, torch.full_like(largest, limit) / largest)
    integers = (values * scale).round().clamp(-limit, limit).to(torch.int8)
    return integers, torch.where(zero, 1.0, scale)


def dequantize(integers: Tensor, scale: Tensor) -> Tensor:
    """Divide 8-bit integers by their scale; float32."""
    return integers.float() / scale


def fake_quantize(values: Tensor, axis: int | None = None, limit: int = LARGEST) -> Tensor:
    """Quantize and dequantize, see ``quantize``; the gradient is that of the identity."""
    return values + (dequantize(*quantize(values, axis, limit)) - values).detach()


def asymmetric(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point of unsigned 8-bit integers for values from ``low`` to ``high``.

    ``v`` becomes ``clamp(round(v / scale) + zero_point, 0, 255)``; zero is represented exactly.

    Returns:
        scale, float32, and zero point, int32.
    """
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    scale = ((high - low) / 255).clamp(min=torch.finfo(torch.float32).tiny)
    return scale, (-low / scale).round().int()
