"""Marching and compositing in Numba, parallel over rays."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nelf.kernels.numba_tools import array, in_turns, inline, jit, njit, prange, threads

# ------------------------------------------------------------------------------------------------ marching


@inline
def _cascade(radius, dt, cascades, cells):  # type: ignore[no-untyped-def]
    cascade = 0
    size = np.float32(1)  # of the cascade's cube
    while cascade < cascades - 1 and (radius > np.float32(0.5) * size or dt * cells > size):
        cascade += 1
        size *= np.float32(2)
    return cascade


@jit
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


@inline
def _to_face(position, low, size, direction):  # type: ignore[no-untyped-def]
    """The distance along ``direction`` at which a coordinate leaves the interval [low, low + size]."""
    if direction == 0:
        return np.float32(np.inf)
    face = low + size if direction > 0 else low
    return (face - position) / direction


@jit
def _march(  # type: ignore[no-untyped-def]
    rays_o, rays_d, t_min, t_max, occupied, blocks, step, cone, max_step, extent, at_most, parts,
    counts, first, out, rays
):  # fmt: skip
    """Count the samples of each ray if ``rays`` is empty, else write them from ``first`` on."""
    cascades, cells = occupied.shape[0], occupied.shape[1]
    block = cells // blocks.shape[1]  # cells along its side
    writing = len(rays) > 0
    for part in prange(parts):
        for n in in_turns(part, parts, len(rays_o)):
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
                # Walk the lattice to the far side of the empty block without looking its cells up.
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
    parts = threads()
    cells = occupied.contiguous().numpy()
    if cells.shape[3] % 8 == 0:
        blocks = np.empty((len(cells), *(side // 8 for side in cells.shape[1:])), np.bool_)
        _any_in_blocks(cells.view(np.uint64), blocks)
    else:
        blocks = cells
    rays = (array(rays_o), array(rays_d), array(t_min), array(t_max), cells, blocks)
    steps = (np.float32(step), np.float32(cone), np.float32(max_step), np.float32(extent), max_samples, parts)
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
        if ray < last or ray > n_rays:
            return False
        last = ray
        if ray < n_rays:
            first[ray + 1] += 1
    for n in range(n_rays):
        first[n + 1] += first[n]
    return True


@jit
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


@jit
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
        threads()
        first = np.empty(n_rays + 1, np.int64)
        if not _ray_bounds(array(rays, torch.int64), first):
            raise ValueError(f"composite: `ray_indices` must be non-decreasing and within [0, {n_rays}].")
        out = np.empty((n_rays, 3), np.float32)
        opacity, depth = np.empty(n_rays, np.float32), np.empty(n_rays, np.float32)
        weights = np.empty(len(sigma), np.float32)
        weights[first[-1] :] = 0.0  # padding
        samples = (array(sigma), array(rgb), array(starts), array(ends))
        _composite_forward(*samples, first, np.float32(stop), out, opacity, depth, weights)
        ctx.save_for_backward(sigma, rgb, starts, ends)
        ctx.first, ctx.weights, ctx.stop = first, weights, np.float32(stop)
        return tuple(torch.from_numpy(array) for array in (out, opacity, depth, weights))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        threads()
        sigma, rgb, starts, ends = (array(tensor) for tensor in ctx.saved_tensors)
        grad_sigma, grad_rgb = np.empty_like(sigma), np.empty_like(rgb)
        grad_sigma[ctx.first[-1] :], grad_rgb[ctx.first[-1] :] = 0.0, 0.0
        incoming = [array(grad) for grad in grads]
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
