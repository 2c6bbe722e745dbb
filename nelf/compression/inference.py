"""Optimization of a trained light field for rendering with PyTorch on its device."""

from __future__ import annotations

from copy import deepcopy
from typing import NamedTuple

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from nelf.compression.fold import fold_batch_norm
from nelf.compression.quantization import restore_network
from nelf.kernels import multiplies_bfloat16
from nelf.lightfields import LightField

__all__ = ["Optimized", "optimize_for_inference"]


class Optimized(NamedTuple):
    """What ``optimize_for_inference`` returns: the ``network``, and a description of each change."""

    network: LightField
    changes: tuple[str, ...]


def optimize_for_inference(network: LightField) -> Optimized:
    """Fold batch norms, use the channels-last layout, and compute in bfloat16 if the device multiplies it natively.

    Args:
        network: a trained light field; not changed.

    Returns:
        A copy for rendering only, and the changes. Its images are the same up to rounding.

    Example:
        >>> from nelf.lightfields import MobileR2L
        >>> optimize_for_inference(MobileR2L(width=16, depth=4)).changes[0]
        'folded 14 batch norms'
    """
    fast = deepcopy(network)
    restore_network(fast)
    norms = sum(isinstance(module, _BatchNorm) for module in fast.modules())
    fast = fold_batch_norm(fast, inplace=True).eval().requires_grad_(False)
    changes = [f"folded {norms} batch norms"] if norms else []
    device = fast.near.device
    low = fast.low_precision and multiplies_bfloat16(device)
    for name, part in fast.named_children():
        part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if low and name not in fast.exact_parts:
            part.to(torch.bfloat16)
    changes.append("channels last")
    changes.append("bfloat16" if low else "float32")
    return Optimized(fast, tuple(changes))
