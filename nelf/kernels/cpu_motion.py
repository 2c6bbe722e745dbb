"""The look-up in a grid of space and time in Numba: all cores, no temporary arrays, compiled on first use."""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nelf.kernels.numba_tools import array, inline, jit, prange, threads


@inline
def _place(share, nodes):  # type: ignore[no-untyped-def]
    """The node below a coordinate in [0, 1], and the fraction of the way to the next node."""
    at = min(max(share, np.float32(0)), np.float32(1)) * np.float32(nodes - 1)
    low = min(np.int64(at), max(nodes - 2, 0))
    return low, at - np.float32(low)


@lru_cache
def _kernels(channels: int) -> tuple[Any, Any]:
    """Forward and gradient of the values, compiled for a fixed number of channels."""

    @jit
    def forward(positions, moments, values, out):  # type: ignore[no-untyped-def]
        times, depth, height, width = values.shape[:4]
        for n in prange(len(positions)):
            t, ft = _place(moments[n], times)
            x, fx = _place(positions[n, 0], width)
            y, fy = _place(positions[n, 1], height)
            z, fz = _place(positions[n, 2], depth)
            for c in range(channels):
                out[n, c] = 0.0
            for corner in range(16):
                dx, dy, dz, dt = corner & 1, (corner >> 1) & 1, (corner >> 2) & 1, corner >> 3
                weight = (
                    (fx if dx else np.float32(1) - fx)
                    * (fy if dy else np.float32(1) - fy)
                    * (fz if dz else np.float32(1) - fz)
                    * (ft if dt else np.float32(1) - ft)
                )
                if weight != 0:  # also where a side has one node
                    for c in range(channels):
                        out[n, c] += weight * values[t + dt, z + dz, y + dy, x + dx, c]

    @jit
    def gradient(positions, moments, grad_out, parts):  # type: ignore[no-untyped-def]
        slots, times, depth, height, width = parts.shape[:5]
        for slot in prange(slots):
            grad = parts[slot]
            for n in range(len(positions) * slot // slots, len(positions) * (slot + 1) // slots):
                idle = True
                for c in range(channels):
                    idle = idle and grad_out[n, c] == 0
                if idle:  # a sample behind a surface
                    continue
                t, ft = _place(moments[n], times)
                x, fx = _place(positions[n, 0], width)
                y, fy = _place(positions[n, 1], height)
                z, fz = _place(positions[n, 2], depth)
                for corner in range(16):
                    dx, dy, dz, dt = corner & 1, (corner >> 1) & 1, (corner >> 2) & 1, corner >> 3
                    weight = (
                        (fx if dx else np.float32(1) - fx)
                        * (fy if dy else np.float32(1) - fy)
                        * (fz if dz else np.float32(1) - fz)
                        * (ft if dt else np.float32(1) - ft)
                    )
                    if weight != 0:
                        for c in range(channels):
                            grad[t + dt, z + dz, y + dy, x + dx, c] += weight * grad_out[n, c]

    return forward, gradient


class _SpaceTimeLookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, positions: Tensor, times: Tensor, values: Tensor) -> Tensor:
        threads()
        points, moments, grid = array(positions), array(times), array(values)
        out = np.empty((len(points), grid.shape[-1]), np.float32)
        _kernels(grid.shape[-1])[0](points, moments, grid, out)
        ctx.save_for_backward(positions, times)
        ctx.shape = values.shape
        return torch.from_numpy(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[None, None, Tensor]:
        positions, times = ctx.saved_tensors
        parts = np.zeros((threads(), *ctx.shape), np.float32)  # each thread sums up its share of the points
        _kernels(ctx.shape[-1])[1](array(positions), array(times), array(grad_out), parts)
        return None, None, torch.from_numpy(parts.sum(0))


def space_time_lookup(positions: Tensor, times: Tensor, values: Tensor) -> Tensor:
    """See ``nelf.kernels.space_time_lookup``."""
    return _SpaceTimeLookup.apply(positions, times, values)  # type: ignore[no-any-return,no-untyped-call]
