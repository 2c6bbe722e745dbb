"""``trilinear`` in Numba, parallel over positions; the gradient of the rows is parallel over slices of them.

So no two threads write the same entry, and the order of the sums is fixed. The backward pass skips positions whose
gradient is zero, such as those that no ray has read.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nelf.kernels.numba_tools import array, helper, jit, prange, threads

_F0, _F1 = np.float32(0), np.float32(1)


@helper
def _place(position, low, high, side):  # type: ignore[no-untyped-def]
    """The cell of a coordinate, the fraction within it, and cells per unit of length, 0 outside the box."""
    scale = np.float32(side - 1) / (high - low)
    at = (position - low) * scale
    if at < _F0:
        return 0, _F0, _F0
    if at > np.float32(side - 1):
        return side - 2, _F1, _F0
    cell = min(np.int64(at), side - 2)
    return cell, at - np.float32(cell), scale


@lru_cache
def _kernels(channels: int) -> tuple[Any, Any, Any]:
    """The interpolation, the gradient of positions, and that of rows, compiled for a fixed number of channels."""

    @jit
    def forward(values, index, positions, aabb, missing, out):  # type: ignore[no-untyped-def]
        depth, height, width = index.shape
        for n in prange(len(positions)):
            x, fx, _ = _place(positions[n, 0], aabb[0], aabb[3], width)
            y, fy, _ = _place(positions[n, 1], aabb[1], aabb[4], height)
            z, fz, _ = _place(positions[n, 2], aabb[2], aabb[5], depth)
            absent = _F0
            out[n, :] = _F0
            for corner in range(8):
                i, j, k = corner & 1, (corner >> 1) & 1, corner >> 2
                share = (fx if i else _F1 - fx) * (fy if j else _F1 - fy) * (fz if k else _F1 - fz)
                row = index[z + k, y + j, x + i]
                if row < 0:
                    absent += share
                else:
                    for c in range(channels):
                        out[n, c] += share * values[row, c]
            if absent > _F0:
                for c in range(channels):
                    out[n, c] += absent * missing[c]

    @jit
    def place(values, index, positions, aabb, missing, grad_out, rows, inside, grad):  # type: ignore[no-untyped-def]
        depth, height, width = index.shape
        for n in prange(len(positions)):
            gx, gy, gz = _F0, _F0, _F0
            idle = True
            for c in range(channels):
                idle = idle and grad_out[n, c] == _F0
            rows[n, 0] = -2 if idle else 0  # skipped below
            if not idle:
                x, fx, sx = _place(positions[n, 0], aabb[0], aabb[3], width)
                y, fy, sy = _place(positions[n, 1], aabb[1], aabb[4], height)
                z, fz, sz = _place(positions[n, 2], aabb[2], aabb[5], depth)
                inside[n, 0], inside[n, 1], inside[n, 2] = fx, fy, fz
                for corner in range(8):
                    i, j, k = corner & 1, (corner >> 1) & 1, corner >> 2
                    row = index[z + k, y + j, x + i]
                    rows[n, corner] = row
                    along = _F0
                    if row < 0:
                        for c in range(channels):
                            along += grad_out[n, c] * missing[c]
                    else:
                        for c in range(channels):
                            along += grad_out[n, c] * values[row, c]
                    wx, wy, wz = fx if i else _F1 - fx, fy if j else _F1 - fy, fz if k else _F1 - fz
                    gx += along * wy * wz if i else -along * wy * wz
                    gy += along * wx * wz if j else -along * wx * wz
                    gz += along * wx * wy if k else -along * wx * wy
                gx, gy, gz = gx * sx, gy * sy, gz * sz
            grad[n, 0], grad[n, 1], grad[n, 2] = gx, gy, gz

    @jit
    def scatter(bounds, rows, inside, grad_out, grad):  # type: ignore[no-untyped-def]
        for part in prange(len(bounds) - 1):
            low, high = bounds[part], bounds[part + 1]
            grad[low:high] = _F0
            for n in range(len(rows)):
                if rows[n, 0] == -2:
                    continue
                fx, fy, fz = inside[n, 0], inside[n, 1], inside[n, 2]
                for corner in range(8):
                    row = rows[n, corner]
                    if low <= row < high:
                        share = (
                            (fx if corner & 1 else _F1 - fx)
                            * (fy if corner & 2 else _F1 - fy)
                            * (fz if corner & 4 else _F1 - fz)
                        )
                        for c in range(channels):
                            grad[row, c] += share * grad_out[n, c]

    return forward, place, scatter


class _Trilinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, index: Tensor, positions: Tensor, aabb: Tensor, missing: Tensor) -> Tensor:
        threads()
        arguments = (array(values), index.numpy(), array(positions), array(aabb), array(missing))
        out = np.empty((len(positions), values.shape[1]), np.float32)
        _kernels(values.shape[1])[0](*arguments, out)
        ctx.arguments = arguments
        return torch.from_numpy(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        n_threads = threads()
        values, grads = ctx.arguments[0], array(grad_out)
        points = len(grads)
        rows, inside = np.empty((points, 8), np.int32), np.empty((points, 3), np.float32)
        to_positions = np.empty((points, 3), np.float32)
        _, place, scatter = _kernels(values.shape[1])
        place(*ctx.arguments, grads, rows, inside, to_positions)
        to_values = None
        if ctx.needs_input_grad[0]:
            # Slices of equal work, not of equal size.
            known = rows[::31][rows[::31, 0] >= 0, 0]
            shares = np.arange(1, n_threads) / n_threads
            middle = np.quantile(known, shares) if len(known) else np.zeros(n_threads - 1)
            bounds = np.concatenate([[0], middle.astype(np.int64), [len(values)]])
            to_values = np.empty_like(values)
            scatter(bounds, rows, inside, grads, to_values)
        return (
            None if to_values is None else torch.from_numpy(to_values),
            None,
            torch.from_numpy(to_positions) if ctx.needs_input_grad[2] else None,
            None,
            None,
        )


def trilinear(values: Tensor, index: Tensor, positions: Tensor, aabb: Tensor, missing: Tensor) -> Tensor:
    """See ``nelf.kernels.trilinear``; float32."""
    return _Trilinear.apply(values, index, positions, aabb, missing)  # type: ignore[no-any-return,no-untyped-call]
