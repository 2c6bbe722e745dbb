"""What the Triton kernels share: how they are launched, and the sizes of blocks.

Triton comes with PyTorch's CUDA wheels for Linux; only modules that need it import it. Sums are in 32 bits whatever the
numbers read are in. Gradients of shared entries are sums of atomic additions, so their last digits differ from run to
run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["WARP", "blocks", "columns", "launch"]

WARP = 32
"""Rays of a block that walk together: one warp, so that it waits for none but its own longest ray."""


def launch(kernel: Any, grid: tuple[int, ...], like: Tensor, *arguments: Any, **constants: Any) -> None:
    """Start a kernel on the device of ``like``; nothing where there is nothing to do, which CUDA would refuse."""
    constants.setdefault("enable_fp_fusion", True)  # its default differs between versions
    if 0 not in grid:
        with torch.cuda.device_of(like):
            kernel[grid](*arguments, **constants)


def blocks(items: int, block: int) -> int:
    """How many blocks hold so many items."""
    return -(-items // block)


def columns(channels: int) -> int:
    """Channels, filled up to a power of two, as blocks have to be."""
    return 1 << (channels - 1).bit_length()
