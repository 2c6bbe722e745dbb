"""Small networks without biases, as those of a hash-grid field, evaluated in one kernel.

One signature and several backends with the same results, as in ``nelf.kernels``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from nelf.kernels import implementation, multiplies_bfloat16

__all__ = ["in_16_bits", "mlp"]


def in_16_bits(low_precision: bool | None, device: torch.device) -> bool:
    """Whether a network runs in 16 bits: as it says, or, for None, where that is native."""
    return multiplies_bfloat16(device) if low_precision is None else low_precision


def mlp(inputs: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Run a small network without biases, with a ReLU after each layer but the last, in 16 bits.

    ``tcnn`` computes in float16, the others in bfloat16; sums are in float32.

    Args:
        inputs: (N, C).
        weights: (out, in) of each layer, in 32 bits.

    Returns:
        (N, out of the last layer), in 16 bits. Differentiable in everything.

    Raises:
        ValueError: the shapes do not fit together, or there is no hidden layer.

    Source:
        The fused networks of tiny-cuda-nn: Müller et al. 2021 (arXiv 2106.12372), section 4.
    """
    sides = [inputs.shape[-1], *(len(each) for each in weights)]
    shapes = [tuple(each.shape) for each in weights]
    if inputs.ndim != 2 or len(weights) < 2 or shapes != [(b, a) for a, b in pairwise(sides)]:
        raise ValueError(f"Expected `inputs` (N, C) and `weights` of two layers or more, got {inputs.shape}, {shapes}.")
    return implementation("mlp", inputs.device)(inputs, weights)  # type: ignore[no-any-return]
