"""Hash-grid encoding in Triton.

One program encodes a block of points at one level, and all blocks of a level are scheduled before the next level, so a
level's table stays in the L2 cache while it is read, or added to.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from nelf.kernels import HashGrid
from nelf.kernels.triton_tools import blocks, columns, launch

POINTS = 256  # of a block of four warps: each thread gathers the corners of two points


@triton.jit
def _place(positions, rows, axis, scale, valid):  # type: ignore[no-untyped-def]
    """The grid corner below a coordinate, and the fraction of the way to the next one."""
    at = tl.load(positions + rows * 3 + axis, mask=valid, other=0.0).to(tl.float32) * scale + 0.5
    low = tl.floor(at)
    return low.to(tl.int32).to(tl.uint32), at - low


@triton.jit
def _entry(x, y, z, start, size, resolution, hashed):  # type: ignore[no-untyped-def]
    """The entry of integer grid corners, within the table whatever the corners are."""
    mixed = x ^ (y * 2654435761) ^ (z * 805459861)
    dense = x + resolution * (y + resolution * z)
    return start + (tl.where(hashed, mixed, dense) % size).to(tl.int64)


@triton.jit
def _level(geometry, scales, level):  # type: ignore[no-untyped-def]
    """First entry, size, resolution, whether it is hashed, scale."""
    numbers = geometry + level * 4
    size, resolution = tl.load(numbers + 1).to(tl.uint32), tl.load(numbers + 2).to(tl.uint32)
    return tl.load(numbers), size, resolution, tl.load(numbers + 3) != 0, tl.load(scales + level)


@triton.jit(do_not_specialize=["n"])
def _forward(  # type: ignore[no-untyped-def]
    positions, table, geometry, scales, out, n,
    LEVELS: tl.constexpr, FEATURES: tl.constexpr, COLUMNS: tl.constexpr, POINTS: tl.constexpr
):  # fmt: skip
    level = tl.program_id(1)
    start, size, resolution, hashed, scale = _level(geometry, scales, level)
    rows = tl.program_id(0).to(tl.int64) * POINTS + tl.arange(0, POINTS)
    valid = rows < n
    x, fx = _place(positions, rows, 0, scale, valid)
    y, fy = _place(positions, rows, 1, scale, valid)
    z, fz = _place(positions, rows, 2, scale, valid)
    features = tl.arange(0, COLUMNS)
    mask = valid[:, None] & (features < FEATURES)[None, :]
    total = tl.zeros([POINTS, COLUMNS], tl.float32)
    for corner in tl.static_range(8):
        dx, dy, dz = corner & 1, (corner >> 1) & 1, corner >> 2
        entry = _entry(x + dx, y + dy, z + dz, start, size, resolution, hashed)
        weight = (fx if dx else 1.0 - fx) * (fy if dy else 1.0 - fy) * (fz if dz else 1.0 - fz)
        values = tl.load(table + entry[:, None] * FEATURES + features[None, :], mask=mask, other=0.0)
        total += weight[:, None] * values.to(tl.float32)
    column = level * FEATURES + features
    tl.store(out + rows[:, None] * (LEVELS * FEATURES) + column[None, :], total, mask=mask)


@triton.jit(do_not_specialize=["n"])
def _table_gradient(  # type: ignore[no-untyped-def]
    positions, grad_out, geometry, scales, grad, n,
    LEVELS: tl.constexpr, FEATURES: tl.constexpr, COLUMNS: tl.constexpr, POINTS: tl.constexpr
):  # fmt: skip
    level = tl.program_id(1)
    start, size, resolution, hashed, scale = _level(geometry, scales, level)
    rows = tl.program_id(0).to(tl.int64) * POINTS + tl.arange(0, POINTS)
    valid = rows < n
    x, fx = _place(positions, rows, 0, scale, valid)
    y, fy = _place(positions, rows, 1, scale, valid)
    z, fz = _place(positions, rows, 2, scale, valid)
    features = tl.arange(0, COLUMNS)
    mask = valid[:, None] & (features < FEATURES)[None, :]
    column = level * FEATURES + features
    given = tl.load(grad_out + rows[:, None] * (LEVELS * FEATURES) + column[None, :], mask=mask, other=0.0)
    mask = mask & (tl.max(tl.abs(given), 1) > 0.0)[:, None]  # samples behind a surface have none
    for corner in tl.static_range(8):
        dx, dy, dz = corner & 1, (corner >> 1) & 1, corner >> 2
        entry = _entry(x + dx, y + dy, z + dz, start, size, resolution, hashed)
        weight = (fx if dx else 1.0 - fx) * (fy if dy else 1.0 - fy) * (fz if dz else 1.0 - fz)
        place = grad + entry[:, None] * FEATURES + features[None, :]
        tl.atomic_add(place, weight[:, None] * given, mask=mask, sem="relaxed")


@triton.jit(do_not_specialize=["n"])
def _position_gradient(  # type: ignore[no-untyped-def]
    positions, table, grad_out, geometry, scales, grad, n,
    LEVELS: tl.constexpr, FEATURES: tl.constexpr, COLUMNS: tl.constexpr, POINTS: tl.constexpr
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * POINTS + tl.arange(0, POINTS)
    valid = rows < n
    features = tl.arange(0, COLUMNS)
    mask = valid[:, None] & (features < FEATURES)[None, :]
    gx, gy, gz = tl.zeros([POINTS], tl.float32), tl.zeros([POINTS], tl.float32), tl.zeros([POINTS], tl.float32)
    for level in range(LEVELS):
        start, size, resolution, hashed, scale = _level(geometry, scales, level)
        x, fx = _place(positions, rows, 0, scale, valid)
        y, fy = _place(positions, rows, 1, scale, valid)
        z, fz = _place(positions, rows, 2, scale, valid)
        column = level * FEATURES + features
        given = tl.load(grad_out + rows[:, None] * (LEVELS * FEATURES) + column[None, :], mask=mask, other=0.0)
        for corner in tl.static_range(8):
            dx, dy, dz = corner & 1, (corner >> 1) & 1, corner >> 2
            entry = _entry(x + dx, y + dy, z + dz, start, size, resolution, hashed)
            values = tl.load(table + entry[:, None] * FEATURES + features[None, :], mask=mask, other=0.0)
            along = scale * tl.sum(values.to(tl.float32) * given, 1)
            wx, wy, wz = fx if dx else 1.0 - fx, fy if dy else 1.0 - fy, fz if dz else 1.0 - fz
            gx += (along if dx else -along) * wy * wz
            gy += (along if dy else -along) * wx * wz
            gz += (along if dz else -along) * wx * wy
    tl.store(grad + rows * 3, gx, mask=valid)
    tl.store(grad + rows * 3 + 1, gy, mask=valid)
    tl.store(grad + rows * 3 + 2, gz, mask=valid)


@lru_cache
def _geometry(grid: HashGrid, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each level: (levels, 4) first entry, size, resolution, whether it is hashed; and (levels,) scales."""
    rows = list(zip(grid.offsets, grid.sizes, grid.resolutions, grid.hashed, strict=False))  # offsets: one more
    return torch.tensor(rows, dtype=torch.int64, device=device), torch.tensor(grid.scales, device=device)


class _HashEncode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, positions: Tensor, table: Tensor, grid: HashGrid) -> Tensor:
        points, entries = positions.contiguous(), table.contiguous()
        out = torch.empty(len(points), grid.levels * grid.features, device=points.device)
        sizes = {"LEVELS": grid.levels, "FEATURES": grid.features, "COLUMNS": columns(grid.features), "POINTS": POINTS}
        ctx.geometry, ctx.sizes = _geometry(grid, points.device), sizes
        per_level = (blocks(len(points), POINTS), grid.levels)
        launch(_forward, per_level, out, points, entries, *ctx.geometry, out, len(points), **sizes)
        ctx.save_for_backward(points, entries)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        points, table = ctx.saved_tensors
        given, n, all_blocks = grad_out.float().contiguous(), len(points), blocks(len(points), POINTS)
        grad_positions = grad_table = None
        if ctx.needs_input_grad[1]:
            grad_table = torch.zeros_like(table, dtype=torch.float32)
            per_level = (all_blocks, ctx.sizes["LEVELS"])
            launch(_table_gradient, per_level, given, points, given, *ctx.geometry, grad_table, n, **ctx.sizes)
            grad_table = grad_table.to(table.dtype)
        if ctx.needs_input_grad[0]:
            grad_positions = torch.empty_like(points, dtype=torch.float32)
            arguments = (points, table, given, *ctx.geometry, grad_positions, n)
            launch(_position_gradient, (all_blocks,), given, *arguments, **ctx.sizes)
            grad_positions = grad_positions.to(points.dtype)
        return grad_positions, grad_table, None


def hash_encode(positions: Tensor, table: Tensor, grid: HashGrid) -> Tensor:
    """See ``nelf.kernels.hash_encode``; float32, of a table in 32 or 16 bits."""
    return _HashEncode.apply(positions, table, grid)  # type: ignore[no-any-return,no-untyped-call]


def probe(device: torch.device) -> None:
    """Encode one point; raises if Triton does not run on a device."""
    grid = HashGrid(levels=1, features=1, log2_table=3, base_resolution=2, per_level_scale=1.0)
    hash_encode(torch.zeros(1, 3, device=device), torch.zeros(8, 1, device=device), grid).cpu()
