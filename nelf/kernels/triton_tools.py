"""Shared by the Triton kernels: launching, and the sizes of blocks.

Triton comes with PyTorch's CUDA wheels for Linux; only modules that need it import it. Sums are in float32 whatever the
dtype of the inputs. Gradients of shared entries are added atomically, so their last digits differ from run to run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["WARP", "blocks", "columns", "launch"]

WARP = 32
"""Rays of a block that walk together: one warp, which waits only for the longest of its own rays."""


def launch(kernel: Any, grid: tuple[int, ...], like: Tensor, *arguments: Any, **constants: Any) -> None:
    """Launch a kernel on the device of ``like``, unless the grid is empty, which CUDA would refuse."""
    constants.setdefault("enable_fp_fusion", True)  # its default differs between versions
    if 0 not in grid:
        with torch.cuda.device_of(like):
            kernel[grid](*arguments, **constants)


def blocks(items: int, block: int) -> int:
    """The number of blocks that hold ``items``."""
    return -(-items // block)


def columns(channels: int) -> int:
    """Channels, rounded up to a power of two, as the sides of blocks have to be."""
    return 1 << (channels - 1).bit_length()
