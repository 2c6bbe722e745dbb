"""Hash-grid encoding in Numba: all cores, no temporary arrays, compiled on first use and cached on disk.

The hash grid is bound by cache misses, so both passes work level by level: a level's table is read or written as a
whole before the next one. The forward pass is parallel over points, the backward pass over levels, where no two
threads write the same entry.
"""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nelf.kernels import HashGrid
from nelf.kernels.numba_tools import array, inline, jit, prange, threads

_PRIME_Y = np.uint32(2654435761)
_PRIME_Z = np.uint32(805459861)


@inline
def _corner(x, y, z, resolution, size, hashed):  # type: ignore[no-untyped-def]
    """The entry of one integer grid corner within its level's table."""
    if hashed:
        mixed = np.uint32(x) ^ (np.uint32(y) * _PRIME_Y) ^ (np.uint32(z) * _PRIME_Z)
        return np.int64(mixed & np.uint32(size - 1))
    index = x + resolution * (y + resolution * z)
    return index - size if index >= size else index


@lru_cache
def _hash_kernels(features: int) -> tuple[Any, Any, Any]:
    """Forward, table gradient and position gradient, compiled for a fixed number of features per level."""

    @jit
    def forward(positions, table, offsets, scales, resolutions, hashed, out):  # type: ignore[no-untyped-def]
        for level in range(len(scales)):
            scale, resolution, start = scales[level], resolutions[level], offsets[level]
            size = offsets[level + 1] - start
            for n in prange(len(positions)):
                px = positions[n, 0] * scale + np.float32(0.5)
                py = positions[n, 1] * scale + np.float32(0.5)
                pz = positions[n, 2] * scale + np.float32(0.5)
                x, y, z = np.int64(px), np.int64(py), np.int64(pz)  # positions >= 0: truncation is floor
                fx, fy, fz = px - np.float32(x), py - np.float32(y), pz - np.float32(z)
                for f in range(features):
                    out[n, level * features + f] = 0.0
                for c in range(8):
                    dx, dy, dz = c & 1, (c >> 1) & 1, c >> 2
                    entry = start + _corner(x + dx, y + dy, z + dz, resolution, size, hashed[level])
                    weight = (
                        (fx if dx else np.float32(1) - fx)
                        * (fy if dy else np.float32(1) - fy)
                        * (fz if dz else np.float32(1) - fz)
                    )
                    for f in range(features):
                        out[n, level * features + f] += weight * table[entry, f]

    @jit
    def table_gradient(positions, grad_out, offsets, scales, resolutions, hashed, order, grad):  # type: ignore[no-untyped-def]
        for slot in prange(len(order)):
            level = order[slot]
            scale, resolution, start = scales[level], resolutions[level], offsets[level]
            size = offsets[level + 1] - start
            for entry in range(start, start + size):
                for f in range(features):
                    grad[entry, f] = 0.0
            for n in range(len(positions)):
                idle = True
                for f in range(features):
                    idle = idle and grad_out[n, level * features + f] == 0
                if idle:  # a sample behind a surface
                    continue
                px = positions[n, 0] * scale + np.float32(0.5)
                py = positions[n, 1] * scale + np.float32(0.5)
                pz = positions[n, 2] * scale + np.float32(0.5)
                x, y, z = np.int64(px), np.int64(py), np.int64(pz)
                fx, fy, fz = px - np.float32(x), py - np.float32(y), pz - np.float32(z)
                for c in range(8):
                    dx, dy, dz = c & 1, (c >> 1) & 1, c >> 2
                    entry = start + _corner(x + dx, y + dy, z + dz, resolution, size, hashed[level])
                    weight = (
                        (fx if dx else np.float32(1) - fx)
                        * (fy if dy else np.float32(1) - fy)
                        * (fz if dz else np.float32(1) - fz)
                    )
                    for f in range(features):
                        grad[entry, f] += weight * grad_out[n, level * features + f]

    @jit
    def position_gradient(positions, table, grad_out, offsets, scales, resolutions, hashed, grad):  # type: ignore[no-untyped-def]
        for n in prange(len(positions)):
            gx, gy, gz = np.float32(0), np.float32(0), np.float32(0)
            for level in range(len(scales)):
                scale, resolution, start = scales[level], resolutions[level], offsets[level]
                size = offsets[level + 1] - start
                px = positions[n, 0] * scale + np.float32(0.5)
                py = positions[n, 1] * scale + np.float32(0.5)
                pz = positions[n, 2] * scale + np.float32(0.5)
                x, y, z = np.int64(px), np.int64(py), np.int64(pz)
                fx, fy, fz = px - np.float32(x), py - np.float32(y), pz - np.float32(z)
                for c in range(8):
                    dx, dy, dz = c & 1, (c >> 1) & 1, c >> 2
                    entry = start + _corner(x + dx, y + dy, z + dz, resolution, size, hashed[level])
                    wx = fx if dx else np.float32(1) - fx
                    wy = fy if dy else np.float32(1) - fy
                    wz = fz if dz else np.float32(1) - fz
                    along = np.float32(0)
                    for f in range(features):
                        along += table[entry, f] * grad_out[n, level * features + f]
                    along *= scale
                    gx += along * wy * wz if dx else -along * wy * wz
                    gy += along * wx * wz if dy else -along * wx * wz
                    gz += along * wx * wy if dz else -along * wx * wy
            grad[n, 0], grad[n, 1], grad[n, 2] = gx, gy, gz

    return forward, table_gradient, position_gradient


@lru_cache
def _geometry(grid: HashGrid) -> tuple[np.ndarray, ...]:
    return (
        np.array(grid.offsets, np.int64),
        np.array(grid.scales, np.float32),
        np.array(grid.resolutions, np.int64),
        np.array(grid.hashed, np.bool_),
    )


class _HashEncode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, positions: Tensor, table: Tensor, grid: HashGrid) -> Tensor:
        threads()
        points, entries = array(positions), array(table)
        out = np.empty((len(points), grid.levels * grid.features), np.float32)
        _hash_kernels(grid.features)[0](points, entries, *_geometry(grid), out)
        ctx.save_for_backward(positions, table)
        ctx.grid = grid
        return torch.from_numpy(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        n_threads = threads()
        positions, table = ctx.saved_tensors
        grid = ctx.grid
        _, table_gradient, position_gradient = _hash_kernels(grid.features)
        points, grads = array(positions), array(grad_out)
        grad_positions = grad_table = None
        if ctx.needs_input_grad[1]:
            # Coarse levels are cheaper (their tables stay in the cache), so levels are dealt out to threads in turn.
            order = np.argsort(np.arange(grid.levels) % n_threads, kind="stable")
            grad = np.empty((grid.entries, grid.features), np.float32)
            table_gradient(points, grads, *_geometry(grid), order, grad)
            grad_table = torch.from_numpy(grad)
        if ctx.needs_input_grad[0]:
            grad = np.empty_like(points)
            position_gradient(points, array(table), grads, *_geometry(grid), grad)
            grad_positions = torch.from_numpy(grad)
        return grad_positions, grad_table, None


def hash_encode(positions: Tensor, table: Tensor, grid: HashGrid) -> Tensor:
    """See ``nelf.kernels.hash_encode``."""
    return _HashEncode.apply(positions, table, grid)  # type: ignore[no-any-return,no-untyped-call]
