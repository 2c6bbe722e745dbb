"""``ray_features`` in Numba: one walk along each ray, which looks features up only where there is matter.

The backward pass walks again and writes down what each point owes, parallel over rays; then each thread adds the
debts that fall into its own slice of the volume, so no two threads write one entry and sums keep their order.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import max_pool3d
from torch.utils.weak import WeakTensorKeyDictionary

from nelf.kernels.cpu import _array, _jit, _threads
from nelf.kernels.ray_features import MIN_TRANSMITTANCE, RayFeatures

_F0, _F1 = np.float32(0), np.float32(1)
_MIN_TRANSMITTANCE = np.float32(MIN_TRANSMITTANCE)
MAX_CLEARANCE = 12  # cells; a walk through empty space leaps no further
_helper = njit(fastmath=True, nogil=True)
_clearances = WeakTensorKeyDictionary()


def clearance(occupied: Tensor) -> np.ndarray:
    """How many cells each cell is from the nearest occupied one (0 there), uint8; worked out when cells change."""
    version, clearance = _clearances.get(occupied, (None, None))
    if version != occupied._version:
        near = occupied.float()[None]
        cells = torch.zeros(occupied.shape, dtype=torch.uint8)
        for _ in range(MAX_CLEARANCE):
            cells += (near[0] == 0).to(torch.uint8)
            for axis in range(3):
                kernel, padding = [1, 1, 1], [0, 0, 0]
                kernel[axis], padding[axis] = 3, 1
                near = max_pool3d(near, kernel, stride=1, padding=padding)
        clearance = cells.numpy()
        _clearances[occupied] = (occupied._version, clearance)
    return clearance  # type: ignore[no-any-return]


@_helper
def _walk(o, d, aabb, jitter, points, shape):  # type: ignore[no-untyped-def]
    """First ``t``, step in ``t``, and the same in voxels: start and step along x, y, z."""
    t_min, t_max = _F0, np.float32(np.inf)
    for k in range(3):
        inverse = _F1 / (d[k] if d[k] != 0 else np.float32(1e-12))
        low, high = (aabb[k] - o[k]) * inverse, (aabb[k + 3] - o[k]) * inverse
        t_min, t_max = max(t_min, min(low, high)), min(t_max, max(low, high))
    step = max(t_max - t_min, _F0) / np.float32(points)
    t = t_min + jitter * step
    sx = np.float32(shape[2] - 1) / (aabb[3] - aabb[0])
    sy = np.float32(shape[1] - 1) / (aabb[4] - aabb[1])
    sz = np.float32(shape[0] - 1) / (aabb[5] - aabb[2])
    start = ((o[0] + t * d[0] - aabb[0]) * sx, (o[1] + t * d[1] - aabb[1]) * sy, (o[2] + t * d[2] - aabb[2]) * sz)
    return t, step, start, (d[0] * step * sx, d[1] * step * sy, d[2] * step * sz)


@_helper
def _cell(value, side):  # type: ignore[no-untyped-def]
    """The cell of a coordinate, and how far into it the coordinate lies."""
    value = min(max(value, _F0), np.float32(side - 1) - np.float32(1e-3))
    index = np.int64(value)
    return index, value - np.float32(index)


@_helper
def _density(density, x, y, z, fx, fy, fz):  # type: ignore[no-untyped-def]
    gx, gy, gz = _F1 - fx, _F1 - fy, _F1 - fz
    return gz * (
        gy * (gx * density[z, y, x] + fx * density[z, y, x + 1])
        + fy * (gx * density[z, y + 1, x] + fx * density[z, y + 1, x + 1])
    ) + fz * (
        gy * (gx * density[z + 1, y, x] + fx * density[z + 1, y, x + 1])
        + fy * (gx * density[z + 1, y + 1, x] + fx * density[z + 1, y + 1, x + 1])
    )


@_helper
def _softplus(raw):  # type: ignore[no-untyped-def]
    return raw if raw > np.float32(15) else math.log(_F1 + math.exp(raw))


@_helper
def _fade(value, least):  # type: ignore[no-untyped-def]
    """From 0 at ``least`` to 1 at twice as much."""
    return min(max(value / least - _F1, _F0), _F1)


@_helper
def _raw_of(density):  # type: ignore[no-untyped-def]
    """The inverse of ``_softplus``."""
    return density if density > np.float32(15) else math.log(math.expm1(density))


@_helper
def _add_features(features, x, y, z, fx, fy, fz, weight, channels, out):  # type: ignore[no-untyped-def]
    """Add ``weight`` times the features of a point; one expression over all corners, which compiles to vectors."""
    gx, gy, gz = _F1 - fx, _F1 - fy, _F1 - fz
    w00, w01, w10, w11 = weight * gz * gy, weight * gz * fy, weight * fz * gy, weight * fz * fy
    for c in range(channels):
        out[c] += (
            w00 * (gx * features[z, y, x, c] + fx * features[z, y, x + 1, c])
            + w01 * (gx * features[z, y + 1, x, c] + fx * features[z, y + 1, x + 1, c])
            + w10 * (gx * features[z + 1, y, x, c] + fx * features[z + 1, y, x + 1, c])
            + w11 * (gx * features[z + 1, y + 1, x, c] + fx * features[z + 1, y + 1, x + 1, c])
        )


@_helper
def _dot_features(features, x, y, z, fx, fy, fz, channels, vector):  # type: ignore[no-untyped-def]
    """The features of a point times a vector."""
    total = _F0
    for corner in range(8):
        i, j, k = corner & 1, (corner >> 1) & 1, corner >> 2
        share = (fx if i else _F1 - fx) * (fy if j else _F1 - fy) * (fz if k else _F1 - fz)
        inner = _F0
        for c in range(channels):
            inner += vector[c] * features[z + k, y + j, x + i, c]
        total += share * inner
    return total


@lru_cache
def _kernels(channels: int) -> tuple[Any, Any, Any]:
    """The two walks and the scatter, compiled for a fixed number of channels.

    They may enclose numbers only: Numba finds a kernel on disk again by what it encloses, and a helper defined in
    here would be another one in each process.
    """

    @_jit
    def forward(  # type: ignore[no-untyped-def]
        density,
        features,
        clearance,
        rays_o,
        rays_d,
        aabb,
        jitter,
        points,
        density_scale,
        min_tau,
        out,
        opacity,
        depth,
        counts,
    ):
        for n in prange(len(rays_o)):
            out[n, :] = 0
            far, seen, kept, light = _F0, _F0, 0, _F1
            t, dt, start, move = _walk(rays_o[n], rays_d[n], aabb, jitter[n], points, density.shape)
            length = dt * density_scale * math.sqrt(rays_d[n, 0] ** 2 + rays_d[n, 1] ** 2 + rays_d[n, 2] ** 2)
            empty = _raw_of(min_tau / length) if dt > 0 else _F0
            fastest = max(abs(move[0]), abs(move[1]), abs(move[2]), np.float32(1e-6))  # cells from point to point
            i = -1 if dt > 0 else points
            while i + 1 < points:
                i += 1
                x, fx = _cell(start[0] + np.float32(i) * move[0], density.shape[2])
                y, fy = _cell(start[1] + np.float32(i) * move[1], density.shape[1])
                z, fz = _cell(start[2] + np.float32(i) * move[2], density.shape[0])
                if clearance[z, y, x]:
                    i += int(np.float32(clearance[z, y, x] - 1) / fastest)
                    continue
                raw = _density(density, x, y, z, fx, fy, fz)
                if raw < empty:
                    continue
                tau = _softplus(raw) * length
                tau *= _fade(tau, min_tau)
                kept += 1
                reaches = _fade(light, _MIN_TRANSMITTANCE)
                weight = light * (_F1 - math.exp(-tau))
                light -= weight
                weight *= reaches
                seen += weight
                far += weight * (t + np.float32(i) * dt)
                _add_features(features, x, y, z, fx, fy, fz, weight, channels, out[n])
                if light < _MIN_TRANSMITTANCE:
                    break
            opacity[n], depth[n], counts[n] = seen, far, kept

    @_jit
    def debts(  # type: ignore[no-untyped-def]
        density, features, clearance, rays_o, rays_d, aabb, jitter, points, density_scale, min_tau,
        grad_out, grad_opacity, first, cells, inside, weights, grads, terms, rays
    ):  # fmt: skip
        height, width = density.shape[1], density.shape[2]
        for n in prange(len(rays_o)):
            at, end = first[n], first[n + 1]
            light = _F1
            _, dt, start, move = _walk(rays_o[n], rays_d[n], aabb, jitter[n], points, density.shape)
            length = dt * density_scale * math.sqrt(rays_d[n, 0] ** 2 + rays_d[n, 1] ** 2 + rays_d[n, 2] ** 2)
            empty = _raw_of(min_tau / length) if dt > 0 else _F0
            fastest = max(abs(move[0]), abs(move[1]), abs(move[2]), np.float32(1e-6))
            i = -1
            while i + 1 < points and at < end:
                i += 1
                x, fx = _cell(start[0] + np.float32(i) * move[0], width)
                y, fy = _cell(start[1] + np.float32(i) * move[1], height)
                z, fz = _cell(start[2] + np.float32(i) * move[2], density.shape[0])
                if clearance[z, y, x]:
                    i += int(np.float32(clearance[z, y, x] - 1) / fastest)
                    continue
                raw = _density(density, x, y, z, fx, fy, fz)
                if raw < empty:
                    continue
                tau = _softplus(raw) * length
                dense, reaches = _fade(tau, min_tau), _fade(light, _MIN_TRANSMITTANCE)
                weight = light * (_F1 - math.exp(-tau * dense))
                cells[at] = (z * height + y) * width + x
                inside[at, 0], inside[at, 1], inside[at, 2] = fx, fy, fz
                weights[at] = weight * reaches
                grads[at] = grad_opacity[n] + _dot_features(features, x, y, z, fx, fy, fz, channels, grad_out[n])
                # Of the loss in this point's tau: what it adds itself, what it takes from a point behind it (where
                # light fades, twice), and the derivative of tau in the density.
                terms[at, 0] = (light - weight) * reaches
                terms[at, 1] = weight * (reaches + (light / _MIN_TRANSMITTANCE if _F0 < reaches < _F1 else _F0))
                terms[at, 2] = (dense + (tau / min_tau if _F0 < dense < _F1 else _F0)) * length / (_F1 + math.exp(-raw))
                light -= weight
                rays[at] = n
                at += 1
            behind = _F0  # what all points after this one give to the loss
            for k in range(at - 1, first[n] - 1, -1):
                along = grads[k]
                grads[k] = (terms[k, 0] * along - behind) * terms[k, 2]
                behind += terms[k, 1] * along
            while at < end:  # only if rounding kept one point less than the forward walk
                cells[at], weights[at], grads[at], rays[at] = 0, _F0, _F0, n
                inside[at, :] = 0
                at += 1

    @_jit
    def scatter(bounds, cells, inside, weights, grads, rays, grad_out, height, width, to_density, to_features):  # type: ignore[no-untyped-def]
        for part in prange(len(bounds) - 1):
            low, high = bounds[part], bounds[part + 1]
            to_density[low:high] = 0
            to_features[low:high] = 0
            for k in range(len(cells)):
                cell = cells[k]
                if cell >= high or cell + (height + 1) * width + 1 < low:
                    continue
                fx, fy, fz, n = inside[k, 0], inside[k, 1], inside[k, 2], rays[k]
                for corner in range(8):
                    entry = cell + (corner & 1) + ((corner >> 1) & 1) * width + (corner >> 2) * height * width
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

    return forward, debts, scatter


class _RayFeatures(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        density: Tensor,
        features: Tensor,
        occupied: Tensor,
        rays: tuple[Tensor, ...],
        points: int,
        density_scale: float,
        min_tau: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        _threads()
        arguments = (
            _array(density),
            _array(features),
            clearance(occupied),
            *(_array(ray) for ray in rays),
            points,
            np.float32(density_scale),
            np.float32(max(min_tau, 1e-12)),  # fast maths knows no infinity
        )
        n_rays, channels = len(rays[0]), features.shape[-1]
        out = np.empty((n_rays, channels), np.float32)
        opacity, depth = np.empty(n_rays, np.float32), np.empty(n_rays, np.float32)
        counts = np.empty(n_rays, np.int64)
        _kernels(channels)[0](*arguments, out, opacity, depth, counts)
        ctx.walk = (arguments, counts)
        results = torch.from_numpy(out), torch.from_numpy(opacity), torch.from_numpy(depth)
        ctx.mark_non_differentiable(results[2])
        return results

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor, grad_opacity: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        threads = _threads()
        arguments, counts = ctx.walk
        depth, height, width = arguments[0].shape
        entries, channels = depth * height * width, grad_out.shape[1]
        first = np.concatenate([[0], np.cumsum(counts)])
        total = int(first[-1])
        cells, rays = np.empty(total, np.int64), np.empty(total, np.int64)
        inside = np.empty((total, 3), np.float32)
        weights, grads = np.empty(total, np.float32), np.empty(total, np.float32)
        to_density, to_features = np.empty(entries, np.float32), np.empty((entries, channels), np.float32)
        grad_features = _array(grad_out)
        _, debts, scatter = _kernels(channels)
        terms = np.empty((total, 3), np.float32)
        opaque = _array(grad_opacity)
        debts(*arguments, grad_features, opaque, first, cells, inside, weights, grads, terms, rays)
        # Slices of equal work, not of equal size: most of a volume is empty.
        shares = np.arange(1, threads) / threads
        middle = np.quantile(cells[::31], shares).astype(np.int64) if total else np.zeros(threads - 1, np.int64)
        bounds = np.concatenate([[0], middle, [entries]])
        scatter(bounds, cells, inside, weights, grads, rays, grad_features, height, width, to_density, to_features)
        volume = torch.from_numpy(to_features).view(depth, height, width, channels)
        return torch.from_numpy(to_density).view(depth, height, width), volume, None, None, None, None, None


def ray_features_cpu(
    density: Tensor,
    features: Tensor,
    occupied: Tensor,
    rays_o: Tensor,
    rays_d: Tensor,
    aabb: Tensor,
    jitter: Tensor,
    points: int,
    density_scale: float | Tensor,
    min_tau: float = 0.0,
) -> RayFeatures:
    """See ``nelf.kernels.ray_features.ray_features``; float32."""
    rays = (rays_o, rays_d, aabb, jitter)
    return RayFeatures(*_RayFeatures.apply(density, features, occupied, rays, points, float(density_scale), min_tau))  # type: ignore[no-untyped-call]
