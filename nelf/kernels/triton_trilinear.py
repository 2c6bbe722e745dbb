"""``trilinear`` in Triton: a block of positions at a time; gradients of rows are added atomically."""

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
def _place(positions, rows, valid, aabb, axis, side):  # type: ignore[no-untyped-def]
    """The cells of coordinates, the fractions within them, and cells per unit of length, 0 outside the box."""
    low, high = tl.load(aabb + axis), tl.load(aabb + 3 + axis)
    cells = (side - 1).to(tl.float32)
    at = (tl.load(positions + rows * 3 + axis, mask=valid, other=0.0) - low) / (high - low) * cells
    scale = tl.where((at >= 0.0) & (at <= cells), cells / (high - low), 0.0)
    at = tl.minimum(tl.maximum(at, 0.0), cells)
    cell = tl.minimum(tl.maximum(at.to(tl.int32), 0), side - 2)  # also for NaN
    return cell.to(tl.int64), at - cell.to(tl.float32), scale


@triton.jit(do_not_specialize=["n", "depth", "height", "width"])
def _forward(  # type: ignore[no-untyped-def]
    values, index, positions, aabb, missing, out, n, depth, height, width,
    CHANNELS: tl.constexpr, COLUMNS: tl.constexpr, POINTS: tl.constexpr
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * POINTS + tl.arange(0, POINTS)
    valid = rows < n
    x, fx, _ = _place(positions, rows, valid, aabb, 0, width)
    y, fy, _ = _place(positions, rows, valid, aabb, 1, height)
    z, fz, _ = _place(positions, rows, valid, aabb, 2, depth)
    channel = tl.arange(0, COLUMNS)
    known = (channel < CHANNELS)[None, :]
    nothing = tl.load(missing + channel, mask=channel < CHANNELS, other=0.0)[None, :]
    total = tl.zeros([POINTS, COLUMNS], tl.float32)
    for corner in tl.static_range(8):
        i, j, k = corner & 1, (corner >> 1) & 1, corner >> 2
        share = (fx if i else 1.0 - fx) * (fy if j else 1.0 - fy) * (fz if k else 1.0 - fz)
        row = tl.load(index + ((z + k) * height + (y + j)) * width + (x + i), mask=valid, other=-1).to(tl.int64)
        there = (row >= 0)[:, None]
        place = values + row[:, None] * CHANNELS + channel[None, :]
        read = tl.load(place, mask=there & known, other=0.0).to(tl.float32)
        total += share[:, None] * tl.where(there, read, nothing)
    tl.store(out + rows[:, None] * CHANNELS + channel[None, :], total, mask=valid[:, None] & known)


@triton.jit(do_not_specialize=["n", "depth", "height", "width"])
def _backward(  # type: ignore[no-untyped-def]
    values, index, positions, aabb, missing, grad_out, to_values, to_positions, n, depth, height, width,
    CHANNELS: tl.constexpr, COLUMNS: tl.constexpr, POINTS: tl.constexpr
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * POINTS + tl.arange(0, POINTS)
    valid = rows < n
    x, fx, sx = _place(positions, rows, valid, aabb, 0, width)
    y, fy, sy = _place(positions, rows, valid, aabb, 1, height)
    z, fz, sz = _place(positions, rows, valid, aabb, 2, depth)
    channel = tl.arange(0, COLUMNS)
    known = (channel < CHANNELS)[None, :]
    nothing = tl.load(missing + channel, mask=channel < CHANNELS, other=0.0)[None, :]
    place = rows[:, None] * CHANNELS + channel[None, :]
    given = tl.load(grad_out + place, mask=valid[:, None] & known, other=0.0)
    wanted = tl.max(tl.abs(given), 1) > 0.0  # false, for example, behind a surface
    gx, gy, gz = tl.zeros([POINTS], tl.float32), tl.zeros([POINTS], tl.float32), tl.zeros([POINTS], tl.float32)
    for corner in tl.static_range(8):
        i, j, k = corner & 1, (corner >> 1) & 1, corner >> 2
        wx, wy, wz = fx if i else 1.0 - fx, fy if j else 1.0 - fy, fz if k else 1.0 - fz
        row = tl.load(index + ((z + k) * height + (y + j)) * width + (x + i), mask=valid, other=-1).to(tl.int64)
        there = (row >= 0)[:, None]
        entry = row[:, None] * CHANNELS + channel[None, :]
        read = tl.load(values + entry, mask=there & known, other=0.0).to(tl.float32)
        along = tl.sum(tl.where(there, read, nothing) * given, 1)
        gx += (along if i else -along) * wy * wz
        gy += (along if j else -along) * wx * wz
        gz += (along if k else -along) * wx * wy
        amount = (wx * wy * wz)[:, None] * given
        tl.atomic_add(to_values + entry, amount, mask=there & known & wanted[:, None], sem="relaxed")
    tl.store(to_positions + rows * 3, gx * sx, mask=valid)
    tl.store(to_positions + rows * 3 + 1, gy * sy, mask=valid)
    tl.store(to_positions + rows * 3 + 2, gz * sz, mask=valid)


class _Trilinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, index: Tensor, positions: Tensor, aabb: Tensor, missing: Tensor) -> Tensor:
        plain = (tensor.float().contiguous() for tensor in (positions, aabb, missing))
        arguments = (values.contiguous(), index.contiguous(), *plain)
        n, channels = len(positions), values.shape[1]
        out = torch.empty(n, channels, device=values.device)
        ctx.numbers = (n, *index.shape)
        ctx.constants = {"CHANNELS": channels, "COLUMNS": columns(channels), "POINTS": POINTS}
        launch(_forward, (blocks(n, POINTS),), out, *arguments, out, *ctx.numbers, **ctx.constants)
        ctx.save_for_backward(*arguments)
        ctx.dtype = positions.dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        values, _, positions, *_ = ctx.saved_tensors
        to_values = torch.zeros_like(values, dtype=torch.float32)
        to_positions = torch.empty_like(positions)
        arguments = (*ctx.saved_tensors, grad_out.float().contiguous(), to_values, to_positions)
        launch(_backward, (blocks(len(positions), POINTS),), values, *arguments, *ctx.numbers, **ctx.constants)
        return to_values.to(values.dtype), None, to_positions.to(ctx.dtype), None, None


def trilinear(values: Tensor, index: Tensor, positions: Tensor, aabb: Tensor, missing: Tensor) -> Tensor:
    """See ``nelf.kernels.trilinear``; float32, of rows in 32 or 16 bits."""
    return _Trilinear.apply(values, index, positions, aabb, missing)  # type: ignore[no-any-return,no-untyped-call]
