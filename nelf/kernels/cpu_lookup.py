"""``ray_features`` in Numba: one walk along each ray, which looks features up only at points of sufficient alpha.

The backward pass walks again and stores the gradient of each sample, parallel over rays; then each thread adds the
gradients in its own slice of the rows, so no two threads write the same entry and the order of the sums is fixed.

Rows are in the order of their corners, x fastest. The next corner along x therefore has the next row, and four entries
of the index give all eight corners of an occupied cell.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.weak import WeakTensorKeyDictionary

from nelf.kernels.lookup import MIN_TRANSMITTANCE, RayFeatures
from nelf.kernels.numba_tools import array, helper, in_turns, jit, njit, prange, threads

_F0, _F1 = np.float32(0), np.float32(1)
_U1 = np.uint64(1)
_MIN_TRANSMITTANCE = np.float32(MIN_TRANSMITTANCE)
MAX_CLEARANCE = 255  # cells; the longest leap through empty space
_clearances = WeakTensorKeyDictionary()


def clearance(index: Tensor) -> np.ndarray:
    """Distance of each cell from the nearest occupied one, in cells, uint8; computed again when the index changes."""
    known, clearance = _clearances.get(index, (None, None))
    version = 0 if index.is_inference() else index._version  # an inference tensor has no version
    if known != version:
        clearance = _clearance_kernel()(index.numpy())
        _clearances[index] = (version, clearance)
    return clearance  # type: ignore[no-any-return]


@lru_cache
def _clearance_kernel() -> Any:
    """The chessboard distance transform, in two passes over the neighbors before and after each cell."""

    @njit(cache=True, nogil=True)
    def clearance(index):  # type: ignore[no-untyped-def]
        depth, height, width = index.shape[0] - 1, index.shape[1] - 1, index.shape[2] - 1
        far = np.full((depth + 2, height + 2, width + 2), MAX_CLEARANCE, np.uint8)  # a margin saves bounds checks
        for z in range(depth):
            for y in range(height):
                for x in range(width):
                    least = MAX_CLEARANCE
                    for k in range(2):
                        for j in range(2):
                            if index[z + k, y + j, x] < 0 or index[z + k, y + j, x + 1] < 0:
                                least = -1
                    if least > 0:
                        far[z + 1, y + 1, x + 1] = 0
                        continue
                    least = far[z + 1, y + 1, x]
                    for i in range(x, x + 3):
                        least = min(least, far[z + 1, y, i], far[z, y, i], far[z, y + 1, i], far[z, y + 2, i])
                    far[z + 1, y + 1, x + 1] = min(least + 1, MAX_CLEARANCE)
        for z in range(depth, 0, -1):
            for y in range(height, 0, -1):
                for x in range(width, 0, -1):
                    least = far[z, y, x + 1]
                    for i in range(x - 1, x + 2):
                        least = min(
                            least, far[z, y + 1, i], far[z + 1, y + 1, i], far[z + 1, y, i], far[z + 1, y - 1, i]
                        )
                    far[z, y, x] = min(far[z, y, x], least + 1)
        return far[1:-1, 1:-1, 1:-1].copy()

    return clearance


@helper
def _walk(o, d, aabb, jitter, step, shape):  # type: ignore[no-untyped-def]
    """First ``t``, step in ``t``, number of points, and in voxels: start and step along x, y, z."""
    t_min, t_max = _F0, np.float32(np.inf)
    for k in range(3):
        inverse = _F1 / (d[k] if d[k] != 0 else np.float32(1e-12))
        low, high = (aabb[k] - o[k]) * inverse, (aabb[k + 3] - o[k]) * inverse
        t_min, t_max = max(t_min, min(low, high)), min(t_max, max(low, high))
    dt = step / math.sqrt(d[0] * d[0] + d[1] * d[1] + d[2] * d[2])
    t = t_min + jitter * dt
    points = np.int64(math.ceil((t_max - t) / dt)) if t < t_max else 0
    sx = np.float32(shape[2] - 1) / (aabb[3] - aabb[0])
    sy = np.float32(shape[1] - 1) / (aabb[4] - aabb[1])
    sz = np.float32(shape[0] - 1) / (aabb[5] - aabb[2])
    start = ((o[0] + t * d[0] - aabb[0]) * sx, (o[1] + t * d[1] - aabb[1]) * sy, (o[2] + t * d[2] - aabb[2]) * sz)
    return t, dt, points, start, (d[0] * dt * sx, d[1] * dt * sy, d[2] * dt * sz)


@helper
def _cell(value, side):  # type: ignore[no-untyped-def]
    """The cell of a coordinate, and how far into it the coordinate lies."""
    value = min(max(value, _F0), np.float32(side - 1) - np.float32(1e-3))
    # Unsigned, since Numba checks each signed index for being negative; converted by way of 32 bits, since processors
    # without AVX-512 have no instruction from float to unsigned 64-bit integers.
    index = np.uint32(value)
    return np.uint64(index), value - np.float32(np.int32(index))


@helper
def _rows(index, x, y, z):  # type: ignore[no-untyped-def]
    """The rows of a cell's corners at its smallest x: at (y, z), (y + 1, z), (y, z + 1), (y + 1, z + 1)."""
    return (
        np.uint64(index[z, y, x]),
        np.uint64(index[z, y + _U1, x]),
        np.uint64(index[z + _U1, y, x]),
        np.uint64(index[z + _U1, y + _U1, x]),
    )


@helper
def _density(density, a, b, c, d, fx, fy, fz):  # type: ignore[no-untyped-def]
    """The density of a point in the cell whose rows along x begin at ``a``, ``b`` (y + 1), ``c`` (z + 1), ``d``."""
    gx, gy, gz = _F1 - fx, _F1 - fy, _F1 - fz
    return gz * (
        gy * (gx * density[a] + fx * density[a + _U1]) + fy * (gx * density[b] + fx * density[b + _U1])
    ) + fz * (gy * (gx * density[c] + fx * density[c + _U1]) + fy * (gx * density[d] + fx * density[d + _U1]))


@helper
def _sigmoid(raw):  # type: ignore[no-untyped-def]
    return _F1 / (_F1 + math.exp(-raw))


@helper
def _fade(value, least):  # type: ignore[no-untyped-def]
    """Rise linearly from 0 at ``least`` to 1 at twice as much."""
    return min(max(value / least - _F1, _F0), _F1)


@helper
def _add_features(features, a, b, c, d, fx, fy, fz, weight, channels, out):  # type: ignore[no-untyped-def]
    """Add ``weight`` times the features of a point; one expression over all corners, which vectorizes."""
    gx, gy, gz = _F1 - fx, _F1 - fy, _F1 - fz
    w00, w01, w10, w11 = weight * gz * gy, weight * gz * fy, weight * fz * gy, weight * fz * fy
    for k in range(channels):
        out[k] += (
            w00 * (gx * features[a, k] + fx * features[a + _U1, k])
            + w01 * (gx * features[b, k] + fx * features[b + _U1, k])
            + w10 * (gx * features[c, k] + fx * features[c + _U1, k])
            + w11 * (gx * features[d, k] + fx * features[d + _U1, k])
        )


@helper
def _dot_features(features, a, b, c, d, fx, fy, fz, channels, vector):  # type: ignore[no-untyped-def]
    """The features of a point times a vector."""
    gx, gy, gz = _F1 - fx, _F1 - fy, _F1 - fz
    w00, w01, w10, w11 = gz * gy, gz * fy, fz * gy, fz * fy
    total = _F0
    for k in range(channels):
        total += vector[k] * (
            w00 * (gx * features[a, k] + fx * features[a + _U1, k])
            + w01 * (gx * features[b, k] + fx * features[b + _U1, k])
            + w10 * (gx * features[c, k] + fx * features[c + _U1, k])
            + w11 * (gx * features[d, k] + fx * features[d + _U1, k])
        )
    return total


@lru_cache
def _kernels(channels: int) -> tuple[Any, Any, Any]:
    """The two walks and the scatter, compiled for a fixed number of channels.

    Their closures may hold numbers only: Numba's cache on disk is keyed by the closure, and a helper function defined
    in here would be a different object in each process.
    """

    @jit
    def forward(  # type: ignore[no-untyped-def]
        density, features, index, clearance, rays_o, rays_d, aabb, jitter, step, min_alpha,
        out, opacity, depth, counts, parts
    ):  # fmt: skip
        empty = math.log(min_alpha / (_F1 - min_alpha))  # the inverse of the sigmoid
        for part in prange(parts):
            for n in in_turns(part, parts, len(rays_o)):
                out[n, :] = 0
                far, seen, kept, light = _F0, _F0, 0, _F1
                t, dt, points, start, move = _walk(rays_o[n], rays_d[n], aabb, jitter[n], step, index.shape)
                fastest = max(abs(move[0]), abs(move[1]), abs(move[2]), np.float32(1e-6))  # cells from point to point
                i = -1
                while i + 1 < points:
                    i += 1
                    x, fx = _cell(start[0] + np.float32(i) * move[0], index.shape[2])
                    y, fy = _cell(start[1] + np.float32(i) * move[1], index.shape[1])
                    z, fz = _cell(start[2] + np.float32(i) * move[2], index.shape[0])
                    if clearance[z, y, x]:
                        i += int(np.float32(clearance[z, y, x] - 1) / fastest)
                        continue
                    a, b, c, d = _rows(index, x, y, z)
                    raw = _density(density, a, b, c, d, fx, fy, fz)
                    if raw < empty:
                        continue
                    alpha = _sigmoid(raw)
                    kept += 1
                    reaches = _fade(light, _MIN_TRANSMITTANCE)
                    weight = light * alpha * _fade(alpha, min_alpha)
                    light -= weight
                    weight *= reaches
                    seen += weight
                    far += weight * (t + np.float32(i) * dt)
                    _add_features(features, a, b, c, d, fx, fy, fz, weight, channels, out[n])
                    if light < _MIN_TRANSMITTANCE:
                        break
                opacity[n], depth[n], counts[n] = seen, far, kept

    @jit
    def sample_gradients(  # type: ignore[no-untyped-def]
        density, features, index, clearance, rays_o, rays_d, aabb, jitter, step, min_alpha,
        grad_out, grad_opacity, first, rows, inside, weights, grads, terms, rays, parts
    ):  # fmt: skip
        empty = math.log(min_alpha / (_F1 - min_alpha))  # the inverse of the sigmoid
        for part in prange(parts):
            for n in in_turns(part, parts, len(rays_o)):
                at, end = first[n], first[n + 1]
                light = _F1
                _, _, points, start, move = _walk(rays_o[n], rays_d[n], aabb, jitter[n], step, index.shape)
                fastest = max(abs(move[0]), abs(move[1]), abs(move[2]), np.float32(1e-6))
                i = -1
                while i + 1 < points and at < end:
                    i += 1
                    x, fx = _cell(start[0] + np.float32(i) * move[0], index.shape[2])
                    y, fy = _cell(start[1] + np.float32(i) * move[1], index.shape[1])
                    z, fz = _cell(start[2] + np.float32(i) * move[2], index.shape[0])
                    if clearance[z, y, x]:
                        i += int(np.float32(clearance[z, y, x] - 1) / fastest)
                        continue
                    a, b, c, d = _rows(index, x, y, z)
                    raw = _density(density, a, b, c, d, fx, fy, fz)
                    if raw < empty:
                        continue
                    alpha = _sigmoid(raw)
                    dense, reaches = _fade(alpha, min_alpha), _fade(light, _MIN_TRANSMITTANCE)
                    weight = light * alpha * dense
                    rows[at, 0], rows[at, 1], rows[at, 2], rows[at, 3] = a, b, c, d
                    inside[at, 0], inside[at, 1], inside[at, 2] = fx, fy, fz
                    weights[at] = weight * reaches
                    along = _dot_features(features, a, b, c, d, fx, fy, fz, channels, grad_out[n])
                    grads[at] = grad_opacity[n] + along
                    # Transmittance and its fade factor; the derivative of their product by the transmittance; the
                    # faded alpha, and its derivative by the density.
                    terms[at, 0], terms[at, 1] = light, reaches
                    terms[at, 2] = reaches + (light / _MIN_TRANSMITTANCE if _F0 < reaches < _F1 else _F0)
                    terms[at, 3] = alpha * dense
                    terms[at, 4] = (dense + (alpha / min_alpha if _F0 < dense < _F1 else _F0)) * alpha * (_F1 - alpha)
                    light -= weight
                    rays[at] = n
                    at += 1
                # The derivative of the loss, by the points behind this one, per unit of transmittance.
                behind = _F0
                for k in range(at - 1, first[n] - 1, -1):
                    along = grads[k]
                    grads[k] = terms[k, 0] * (terms[k, 1] * along - behind) * terms[k, 4]
                    behind = terms[k, 3] * terms[k, 2] * along + (_F1 - terms[k, 3]) * behind
                while at < end:  # only if rounding dropped a point that the forward walk kept
                    weights[at], grads[at], rays[at] = _F0, _F0, n
                    rows[at, :] = 0
                    inside[at, :] = 0
                    at += 1

    @jit
    def scatter(bounds, rows, inside, weights, grads, rays, grad_out, to_density, to_features):  # type: ignore[no-untyped-def]
        for part in prange(len(bounds) - 1):
            low, high = bounds[part], bounds[part + 1]
            to_density[low:high] = 0
            to_features[low:high] = 0
            for k in range(len(rows)):
                if rows[k, 0] >= high or rows[k, 3] + 1 < low:
                    continue
                fx, fy, fz, n = inside[k, 0], inside[k, 1], inside[k, 2], rays[k]
                for corner in range(8):
                    entry = rows[k, corner >> 1] + (corner & 1)
                    if low <= entry < high:
                        share = (
                            (fx if corner & 1 else _F1 - fx)
                            * (fy if corner & 2 else _F1 - fy)
                            * (fz if corner & 4 else _F1 - fz)
                        )
                        to_density[entry] += share * grads[k]
                        share *= weights[k]
                        for c in range(channels):
                            to_features[entry, c] += share * grad_out[n, c]

    return forward, sample_gradients, scatter


class _RayFeatures(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        density: Tensor,
        features: Tensor,
        index: Tensor,
        rays: tuple[Tensor, ...],
        step: float,
        min_alpha: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        n_threads = threads()
        arguments = (
            array(density),
            array(features),
            index.numpy(),
            clearance(index),
            *(array(ray) for ray in rays),
            np.float32(step),
            np.float32(max(min_alpha, 1e-12)),  # fast math has no infinity
        )
        n_rays, channels = len(rays[0]), features.shape[-1]
        out = np.empty((n_rays, channels), np.float32)
        opacity, depth = np.empty(n_rays, np.float32), np.empty(n_rays, np.float32)
        counts = np.empty(n_rays, np.int64)
        _kernels(channels)[0](*arguments, out, opacity, depth, counts, n_threads)
        ctx.walk = (arguments, counts)
        results = torch.from_numpy(out), torch.from_numpy(opacity), torch.from_numpy(depth)
        ctx.mark_non_differentiable(results[2])
        return results

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor, grad_opacity: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        n_threads = threads()
        arguments, counts = ctx.walk
        entries, channels = len(arguments[0]), grad_out.shape[1]
        first = np.concatenate([[0], np.cumsum(counts)])
        total = int(first[-1])
        rows, rays = np.empty((total, 4), np.int32), np.empty(total, np.int64)
        inside = np.empty((total, 3), np.float32)
        weights, grads = np.empty(total, np.float32), np.empty(total, np.float32)
        to_density, to_features = np.empty(entries, np.float32), np.empty((entries, channels), np.float32)
        grad_features = array(grad_out)
        _, sample_gradients, scatter = _kernels(channels)
        terms = np.empty((total, 5), np.float32)
        sample_gradients(
            *arguments, grad_features, array(grad_opacity), first, rows, inside, weights, grads, terms, rays, n_threads
        )
        # Slices of equal work, not of equal size: most samples are on the first surfaces.
        shares = np.arange(1, n_threads) / n_threads
        middle = np.quantile(rows[::31, 0], shares).astype(np.int64) if total else np.zeros(n_threads - 1, np.int64)
        bounds = np.concatenate([[0], middle, [entries]])
        scatter(bounds, rows, inside, weights, grads, rays, grad_features, to_density, to_features)
        return torch.from_numpy(to_density), torch.from_numpy(to_features), None, None, None, None


def ray_features(
    density: Tensor,
    features: Tensor,
    index: Tensor,
    rays_o: Tensor,
    rays_d: Tensor,
    aabb: Tensor,
    jitter: Tensor,
    step: float,
    min_alpha: float = 0.0,
) -> RayFeatures:
    """See ``nelf.kernels.ray_features``; float32."""
    rays = (rays_o, rays_d, aabb, jitter)
    return RayFeatures(*_RayFeatures.apply(density, features, index, rays, step, min_alpha))  # type: ignore[no-untyped-call]
