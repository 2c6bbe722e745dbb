"""The kernels in Numba: all cores, no temporary arrays, compiled on first use and cached on disk.

The hash grid is bound by cache misses, so both passes work level by level: a level's table is read or written as a
whole before the next one. The forward pass is parallel over points, the backward pass over levels, where no two
threads write the same entry. Marching and compositing are parallel over rays.
"""

import logging
import os
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from numba import njit, prange
from numba.core import event
from torch import Tensor
from torch.autograd.function import once_differentiable

from nelf.kernels import HashGrid

log = logging.getLogger(__name__)

_PRIME_Y = np.uint32(2654435761)
_PRIME_Z = np.uint32(805459861)


class _SayOnce(event.Listener):
    """Say that the first compilation is one: it takes some seconds that no later run takes."""

    def on_start(self, event: event.Event) -> None:
        log.warning("Compiling the CPU kernels, once for this machine; later runs read them from disk.")
        numba.core.event.unregister("numba:compile", self)

    def on_end(self, event: event.Event) -> None:
        """Nothing to say at the end."""


def _use_writable_cache() -> None:
    """Give Numba a cache directory where neither the package's nor the user's own can be written."""
    candidates = [Path(__file__).parent / "__pycache__", Path.home() / ".cache"]
    if "NUMBA_CACHE_DIR" not in os.environ and not any(
        os.access(path if path.exists() else path.parent, os.W_OK) for path in candidates
    ):
        directory = Path(tempfile.gettempdir()) / f"nelf-numba-{os.getuid()}"
        numba.config.CACHE_DIR = str(directory)  # type: ignore[attr-defined]


_use_writable_cache()
event.register("numba:compile", _SayOnce())
_jit = njit(parallel=True, fastmath={"contract", "nsz", "arcp", "reassoc"}, cache=True, nogil=True)
_inline = njit(inline="always")


def _threads() -> int:
    """Follow torch's thread count, so that one setting rules both."""
    threads: int = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
    numba.set_num_threads(threads)
    return threads


def _array(tensor: Tensor, dtype: torch.dtype = torch.float32) -> np.ndarray:
    return tensor.detach().to(dtype).contiguous().numpy()


# ------------------------------------------------------------------------------------------------ hash grid


@_inline
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

    @_jit
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

    @_jit
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

    @_jit
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
        _threads()
        points, entries = _array(positions), _array(table)
        out = np.empty((len(points), grid.levels * grid.features), np.float32)
        _hash_kernels(grid.features)[0](points, entries, *_geometry(grid), out)
        ctx.save_for_backward(positions, table)
        ctx.grid = grid
        return torch.from_numpy(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        threads = _threads()
        positions, table = ctx.saved_tensors
        grid = ctx.grid
        _, table_gradient, position_gradient = _hash_kernels(grid.features)
        points, grads = _array(positions), _array(grad_out)
        grad_positions = grad_table = None
        if ctx.needs_input_grad[1]:
            # Coarse levels are cheaper (their tables stay in the cache): deal the levels out to the threads in turn.
            order = np.argsort(np.arange(grid.levels) % threads, kind="stable")
            grad = np.empty((grid.entries, grid.features), np.float32)
            table_gradient(points, grads, *_geometry(grid), order, grad)
            grad_table = torch.from_numpy(grad)
        if ctx.needs_input_grad[0]:
            grad = np.empty_like(points)
            position_gradient(points, _array(table), grads, *_geometry(grid), grad)
            grad_positions = torch.from_numpy(grad)
        return grad_positions, grad_table, None


def hash_encode(positions: Tensor, table: Tensor, grid: HashGrid) -> Tensor:
    """See ``nelf.kernels.hash_encode``."""
    return _HashEncode.apply(positions, table, grid)  # type: ignore[no-any-return,no-untyped-call]


# ------------------------------------------------------------------------------------------------ marching


@_inline
def _cascade(radius, dt, cascades, cells):  # type: ignore[no-untyped-def]
    cascade = 0
    size = np.float32(1)  # of the cascade's cube
    while cascade < cascades - 1 and (radius > np.float32(0.5) * size or dt * cells > size):
        cascade += 1
        size *= np.float32(2)
    return cascade


@_jit
def _any_in_blocks(words, blocks):  # type: ignore[no-untyped-def]
    """Mark the blocks of 8 x 8 x 8 cells that hold an occupied one; ``words`` are runs of 8 cells along z."""
    cascades, side = blocks.shape[0], blocks.shape[1]
    for i in prange(side):
        for c in range(cascades):
            for j in range(side):
                for k in range(side):
                    found = False
                    for x in range(8 * i, 8 * i + 8):
                        for y in range(8 * j, 8 * j + 8):
                            found = found or words[c, x, y, k] != 0
                    blocks[c, i, j, k] = found


@_inline
def _to_face(position, low, size, direction):  # type: ignore[no-untyped-def]
    """How far along ``direction`` a coordinate is from leaving the interval [low, low + size]."""
    if direction == 0:
        return np.float32(np.inf)
    face = low + size if direction > 0 else low
    return (face - position) / direction


@_jit
def _march(  # type: ignore[no-untyped-def]
    rays_o, rays_d, t_min, t_max, occupied, blocks, step, cone, max_step, extent, at_most, counts, first, out, rays
):
    """Count the samples of each ray where ``rays`` is empty, else write them from ``first`` on."""
    cascades, cells = occupied.shape[0], occupied.shape[1]
    block = cells // blocks.shape[1]  # cells along its side
    writing = len(rays) > 0
    for n in prange(len(rays_o)):
        ox, oy, oz = rays_o[n, 0], rays_o[n, 1], rays_o[n, 2]
        dx, dy, dz = rays_d[n, 0], rays_d[n, 1], rays_d[n, 2]
        t, end = t_min[n], t_max[n]
        kept = 0
        while t < end and kept < at_most:
            dt = min(max(t * cone, step), max_step)
            middle = t + np.float32(0.5) * dt
            x, y, z = ox + middle * dx, oy + middle * dy, oz + middle * dz
            radius = max(abs(x), abs(y), abs(z))
            if middle >= end:
                break
            if radius > extent:
                t += dt
                continue
            cascade = _cascade(radius, dt, cascades, cells)
            half = min(np.float32(0.5) * np.float32(1 << cascade), extent)
            to_cell = np.float32(0.5) * cells / half
            i = min(max(int((x + half) * to_cell), 0), cells - 1)
            j = min(max(int((y + half) * to_cell), 0), cells - 1)
            k = min(max(int((z + half) * to_cell), 0), cells - 1)
            i_block, j_block, k_block = i // block, j // block, k // block
            if blocks[cascade, i_block, j_block, k_block]:
                if occupied[cascade, i, j, k]:
                    if writing:
                        at = first[n] + kept
                        out[0, at], out[1, at], rays[at] = t, t + dt, n
                    kept += 1
                t += dt
                continue
            # Walk the lattice to the far side of the empty block without looking at its cells.
            size = np.float32(block) / to_cell
            ahead = _to_face(x, i_block * size - half, size, dx)
            ahead = min(ahead, _to_face(y, j_block * size - half, size, dy))
            ahead = min(ahead, _to_face(z, k_block * size - half, size, dz))
            leave = min(middle + ahead * np.float32(0.9999), end)
            t += dt
            if cone == 0:
                t += dt * np.float32(int(max(leave - middle, np.float32(0)) / dt))
                continue
            while t < end:
                dt = min(max(t * cone, step), max_step)
                if t + np.float32(0.5) * dt >= leave:
                    break
                t += dt
        counts[n] = kept


def march(
    rays_o: Tensor,
    rays_d: Tensor,
    t_min: Tensor,
    t_max: Tensor,
    occupied: Tensor,
    step: float,
    cone: float,
    max_step: float,
    extent: float,
    max_samples: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``nelf.kernels.march``."""
    _threads()
    cells = occupied.contiguous().numpy()
    if cells.shape[3] % 8 == 0:
        blocks = np.empty((len(cells), *(side // 8 for side in cells.shape[1:])), np.bool_)
        _any_in_blocks(cells.view(np.uint64), blocks)
    else:
        blocks = cells
    rays = (_array(rays_o), _array(rays_d), _array(t_min), _array(t_max), cells, blocks)
    steps = (np.float32(step), np.float32(cone), np.float32(max_step), np.float32(extent), max_samples)
    counts = np.empty(len(rays[0]), np.int64)
    no_index = np.empty(0, np.int64)
    _march(*rays, *steps, counts, no_index, np.empty((2, 0), np.float32), no_index)
    last = np.cumsum(counts)
    total = int(last[-1]) if len(last) else 0
    bounds, indices = np.empty((2, total), np.float32), np.empty(total, np.int64)
    if total:
        _march(*rays, *steps, counts, last - counts, bounds, indices)
    return torch.from_numpy(bounds[0]), torch.from_numpy(bounds[1]), torch.from_numpy(indices)


# ------------------------------------------------------------------------------------------------ compositing


@njit(cache=True, nogil=True)
def _ray_bounds(ray_indices, first):  # type: ignore[no-untyped-def]
    """Fill ``first`` (N + 1,) with the first sample of each ray; False if the indices are not in order."""
    n_rays = len(first) - 1
    first[:] = 0
    last = 0
    for s in range(len(ray_indices)):
        ray = ray_indices[s]
        if ray < last or ray >= n_rays:
            return False
        last = ray
        first[ray + 1] += 1
    for n in range(n_rays):
        first[n + 1] += first[n]
    return True


@_jit
def _composite_forward(  # type: ignore[no-untyped-def]
    sigma, rgb, starts, ends, first, early_stop, out, opacities, depths, weights
):
    for n in prange(len(first) - 1):
        transmittance = np.float32(1)
        r, g, b = np.float32(0), np.float32(0), np.float32(0)
        opacity, depth = np.float32(0), np.float32(0)
        for s in range(first[n], first[n + 1]):
            if transmittance <= early_stop:
                weights[s] = 0.0
                continue
            through = np.exp(-sigma[s] * (ends[s] - starts[s]))
            weight = transmittance * (np.float32(1) - through)
            weights[s] = weight
            r += weight * rgb[s, 0]
            g += weight * rgb[s, 1]
            b += weight * rgb[s, 2]
            opacity += weight
            depth += weight * np.float32(0.5) * (starts[s] + ends[s])
            transmittance *= through
        out[n, 0], out[n, 1], out[n, 2] = r, g, b
        opacities[n], depths[n] = opacity, depth


@_jit
def _composite_backward(  # type: ignore[no-untyped-def]
    sigma, rgb, starts, ends, first, weights, early_stop,
    grad_out, grad_opacity, grad_depth, grad_weights, grad_sigma, grad_rgb,
):  # fmt: skip
    for n in prange(len(first) - 1):
        # With v_i = d loss / d weights_i: d loss / d sigma_i = dt_i (T_{i+1} v_i - sum of w_j v_j over j > i).
        behind = np.float32(0)
        for s in range(first[n], first[n + 1]):
            value = grad_weights[s] + grad_opacity[n] + grad_depth[n] * np.float32(0.5) * (starts[s] + ends[s])
            for c in range(3):
                value += grad_out[n, c] * rgb[s, c]
                grad_rgb[s, c] = weights[s] * grad_out[n, c]
            grad_sigma[s] = value
            behind += weights[s] * value
        transmittance = np.float32(1)
        for s in range(first[n], first[n + 1]):
            if transmittance <= early_stop:
                grad_sigma[s] = 0.0
                continue
            dt = ends[s] - starts[s]
            transmittance *= np.exp(-sigma[s] * dt)
            behind -= weights[s] * grad_sigma[s]
            grad_sigma[s] = dt * (transmittance * grad_sigma[s] - behind)


class _Composite(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, sigma: Tensor, rgb: Tensor, starts: Tensor, ends: Tensor, rays: Tensor, n_rays: int, stop: float
    ) -> tuple[Tensor, ...]:
        _threads()
        first = np.empty(n_rays + 1, np.int64)
        if not _ray_bounds(_array(rays, torch.int64), first):
            raise ValueError(f"composite: `ray_indices` must be non-decreasing and within [0, {n_rays}).")
        out = np.empty((n_rays, 3), np.float32)
        opacity, depth = np.empty(n_rays, np.float32), np.empty(n_rays, np.float32)
        weights = np.empty(len(sigma), np.float32)
        samples = (_array(sigma), _array(rgb), _array(starts), _array(ends))
        _composite_forward(*samples, first, np.float32(stop), out, opacity, depth, weights)
        ctx.save_for_backward(sigma, rgb, starts, ends)
        ctx.first, ctx.weights, ctx.stop = first, weights, np.float32(stop)
        return tuple(torch.from_numpy(array) for array in (out, opacity, depth, weights))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        _threads()
        sigma, rgb, starts, ends = (_array(tensor) for tensor in ctx.saved_tensors)
        grad_sigma, grad_rgb = np.empty_like(sigma), np.empty_like(rgb)
        incoming = [_array(grad) for grad in grads]
        _composite_backward(sigma, rgb, starts, ends, ctx.first, ctx.weights, ctx.stop, *incoming, grad_sigma, grad_rgb)  # type: ignore[call-arg]
        return torch.from_numpy(grad_sigma), torch.from_numpy(grad_rgb), None, None, None, None, None


def composite(
    sigma: Tensor,
    rgb: Tensor,
    t_starts: Tensor,
    t_ends: Tensor,
    ray_indices: Tensor,
    n_rays: int,
    early_stop: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See ``nelf.kernels.composite``."""
    return _Composite.apply(sigma, rgb, t_starts, t_ends, ray_indices, n_rays, early_stop)  # type: ignore[no-any-return,no-untyped-call]
