"""The look-up in a grid of space and time in Triton: a block of points at a time."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from nelf.kernels.triton_tools import blocks, columns, launch

POINTS = 128  # of a block of four warps


@triton.jit
def _place(shares, rows, valid, nodes):  # type: ignore[no-untyped-def]
    """The node below coordinates in [0, 1], and the fractions of the way to the next node."""
    share = tl.minimum(tl.maximum(tl.load(shares + rows, mask=valid, other=0.0), 0.0), 1.0)
    at = share * (nodes - 1).to(tl.float32)
    low = tl.maximum(tl.minimum(at.to(tl.int32), nodes - 2), 0)
    return low.to(tl.int64), at - low.to(tl.float32)


@triton.jit(do_not_specialize=["n", "times", "depth", "height", "width"])
def _look_up(  # type: ignore[no-untyped-def]
    positions, moments, values, out, n, times, depth, height, width,
    CHANNELS: tl.constexpr, COLUMNS: tl.constexpr, POINTS: tl.constexpr, BACKWARD: tl.constexpr
):  # fmt: skip
    """Read ``values`` into ``out``, or backward: add the gradient of ``out`` to that of ``values``."""
    rows = tl.program_id(0).to(tl.int64) * POINTS + tl.arange(0, POINTS)
    valid = rows < n
    t, ft = _place(moments, rows, valid, times)
    x, fx = _place(positions, rows * 3, valid, width)
    y, fy = _place(positions, rows * 3 + 1, valid, height)
    z, fz = _place(positions, rows * 3 + 2, valid, depth)
    channel = tl.arange(0, COLUMNS)
    mask = valid[:, None] & (channel < CHANNELS)[None, :]
    place = out + rows[:, None] * CHANNELS + channel[None, :]
    total = tl.zeros([POINTS, COLUMNS], tl.float32)
    if BACKWARD:
        total = tl.load(place, mask=mask, other=0.0)
        mask = mask & (tl.max(tl.abs(total), 1) > 0.0)[:, None]  # samples behind a surface have none
    for corner in tl.static_range(16):
        i, j, k, m = corner & 1, (corner >> 1) & 1, (corner >> 2) & 1, corner >> 3
        weight = (fx if i else 1.0 - fx) * (fy if j else 1.0 - fy)
        weight *= (fz if k else 1.0 - fz) * (ft if m else 1.0 - ft)
        node = (((t + m) * depth + (z + k)) * height + (y + j)) * width + (x + i)
        entry = values + node[:, None] * CHANNELS + channel[None, :]
        there = mask & (weight != 0.0)[:, None]  # a side of one node has no next one
        if BACKWARD:
            tl.atomic_add(entry, weight[:, None] * total, mask=there, sem="relaxed")
        else:
            total += weight[:, None] * tl.load(entry, mask=there, other=0.0).to(tl.float32)
    if not BACKWARD:
        tl.store(place, total, mask=mask)


class _SpaceTimeLookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, positions: Tensor, times: Tensor, values: Tensor) -> Tensor:
        points, moments = positions.float().contiguous(), times.float().contiguous()
        channels = values.shape[-1]
        out = torch.empty(len(points), channels, device=values.device)
        ctx.numbers = (len(points), *values.shape[:4])
        ctx.constants = {"CHANNELS": channels, "COLUMNS": columns(channels), "POINTS": POINTS}
        arguments = (points, moments, values.contiguous(), out, *ctx.numbers)
        launch(_look_up, (blocks(len(points), POINTS),), out, *arguments, **ctx.constants, BACKWARD=False)
        ctx.save_for_backward(points, moments)
        ctx.values = (values.shape, values.dtype)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[None, None, Tensor]:
        points, moments = ctx.saved_tensors
        shape, dtype = ctx.values
        grad = torch.zeros(shape, device=grad_out.device)
        arguments = (points, moments, grad, grad_out.float().contiguous(), *ctx.numbers)
        launch(_look_up, (blocks(len(points), POINTS),), grad, *arguments, **ctx.constants, BACKWARD=True)
        return None, None, grad.to(dtype)


def space_time_lookup(positions: Tensor, times: Tensor, values: Tensor) -> Tensor:
    """See ``nelf.kernels.space_time_lookup``; float32, of values in 32 or 16 bits."""
    return _SpaceTimeLookup.apply(positions, times, values)  # type: ignore[no-any-return,no-untyped-call]
