"""Marching and compositing in Triton.

A ray is marched by one thread, twice: once to count its samples, once to write them after those of the rays before it.
The total number of samples is the only value for which the host waits for the GPU, unless it is given.

A ray is composited by one warp, 32 samples at a time: few rays have more, and the samples of a ray are contiguous.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from nelf.kernels.triton_tools import WARP, blocks, launch

AHEAD = 4  # lattice points whose cells are looked up at once, as look-ups take most of the time

# ------------------------------------------------------------------------------------------------ marching


@triton.jit
def _cell(position, half, CELLS: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.floor((tl.div_rn(position, half) * 0.5 + 0.5) * CELLS).to(tl.int32)
    return tl.minimum(tl.maximum(at, 0), CELLS - 1)


@triton.jit(do_not_specialize=["n", "at_most"])
def _march(  # type: ignore[no-untyped-def]
    rays_o, rays_d, t_min, t_max, occupied, counts, first, starts, ends, rays, n, step, cone, max_step, extent, at_most,
    CASCADES: tl.constexpr, CELLS: tl.constexpr, WRITE: tl.constexpr, RAYS: tl.constexpr, AHEAD: tl.constexpr
):  # fmt: skip
    """Count the samples of each ray, or write them from ``first`` on."""
    ray = tl.program_id(0).to(tl.int64) * RAYS + tl.arange(0, RAYS)
    valid = ray < n
    ox, dx = tl.load(rays_o + ray * 3, mask=valid, other=0.0), tl.load(rays_d + ray * 3, mask=valid, other=0.0)
    oy, dy = tl.load(rays_o + ray * 3 + 1, mask=valid, other=0.0), tl.load(rays_d + ray * 3 + 1, mask=valid, other=0.0)
    oz, dz = tl.load(rays_o + ray * 3 + 2, mask=valid, other=0.0), tl.load(rays_d + ray * 3 + 2, mask=valid, other=0.0)
    t, end = tl.load(t_min + ray, mask=valid, other=0.0), tl.load(t_max + ray, mask=valid, other=0.0)
    kept = tl.zeros([RAYS], tl.int32)
    most = kept + at_most
    place = kept.to(tl.int64)
    if WRITE:
        place = tl.load(first + ray, mask=valid, other=0)
        most = tl.load(counts + ray, mask=valid, other=0).to(tl.int32)
    while tl.max(((t < end) & (kept < most)).to(tl.int32), 0) > 0:
        for _ in tl.static_range(AHEAD):
            dt = tl.minimum(tl.maximum(t * cone, step), max_step)
            middle = t + 0.5 * dt
            x, y, z = ox + middle * dx, oy + middle * dy, oz + middle * dz
            radius = tl.maximum(tl.maximum(tl.abs(x), tl.abs(y)), tl.abs(z))
            cascade = tl.zeros([RAYS], tl.int32)
            half = tl.full([RAYS], 0.5, tl.float32)
            for c in tl.static_range(CASCADES - 1):
                beyond = (radius > 0.5 * (1 << c)) | (dt * CELLS > 1.0 * (1 << c))
                cascade += beyond.to(tl.int32)
                half = tl.where(beyond, 1.0 * (1 << c), half)
            half = tl.minimum(half, extent)
            i, j, k = _cell(x, half, CELLS), _cell(y, half, CELLS), _cell(z, half, CELLS)
            inside = (radius <= extent) & (middle < end)
            cell = ((cascade * CELLS + i).to(tl.int64) * CELLS + j) * CELLS + k
            hit = (tl.load(occupied + cell, mask=inside, other=0) != 0) & (kept < most)
            if WRITE:
                at = place + kept
                tl.store(starts + at, t, mask=hit)
                tl.store(ends + at, t + dt, mask=hit)
                tl.store(rays + at, ray, mask=hit)
            kept += hit.to(tl.int32)
            t += dt
    if not WRITE:
        tl.store(counts + ray, kept.to(tl.int64), mask=valid)


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
    """See ``nelf.kernels.march``; float32. Waits for the GPU once, for the number of samples."""
    walk = _Walk((rays_o, rays_d, t_min, t_max), occupied, step, cone, max_step, extent, max_samples)
    counts = walk.count()
    last = counts.cumsum(0)
    return walk.write(counts, last - counts, int(last[-1]) if len(last) else 0)


def march_within(
    rays_o: Tensor,
    rays_d: Tensor,
    t_min: Tensor,
    t_max: Tensor,
    occupied: Tensor,
    total: int,
    **steps: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See ``nelf.kernels.march_within``; float32."""
    walk = _Walk((rays_o, rays_d, t_min, t_max), occupied, **steps)
    counts = walk.count()
    last = counts.cumsum(0)
    fits = last <= total
    return *walk.write(counts * fits, last - counts, total), fits.sum()


class _Walk:
    """Rays on their way through a grid: the arguments of ``_march``, once for counting and once for writing."""

    def __init__(
        self,
        rays: tuple[Tensor, ...],
        occupied: Tensor,
        step: float,
        cone: float,
        max_step: float,
        extent: float,
        max_samples: int,
    ) -> None:
        self.rays = [tensor.detach().float().contiguous() for tensor in rays]
        self.cells = occupied.contiguous().view(torch.uint8)
        self.numbers = (len(rays[0]), *map(float, (step, cone, max_step, extent)), min(max_samples, 2**31 - 1))
        # Fused multiply-add would round differently from the reference, and put samples into other cells.
        self.constants = {"CASCADES": len(occupied), "CELLS": occupied.shape[1], "RAYS": WARP, "AHEAD": AHEAD}
        self.constants |= {"num_warps": 1, "enable_fp_fusion": False}

    def count(self) -> Tensor:
        """The number of samples of each ray, (N,) int64."""
        like = self.rays[0]
        counts = torch.empty(len(like), dtype=torch.int64, device=like.device)
        self._launch(counts, counts, like, like, counts, WRITE=False)
        return counts

    def write(self, counts: Tensor, first: Tensor, total: int) -> tuple[Tensor, Tensor, Tensor]:
        """Write ``counts`` (N,) samples of the rays from ``first`` (N,) on; the rest of ``total`` becomes padding."""
        device, n_rays = counts.device, len(counts)
        t_starts, t_ends = torch.zeros(total, device=device), torch.zeros(total, device=device)
        indices = torch.full((total,), n_rays, dtype=torch.int64, device=device)
        if total:
            self._launch(counts, first, t_starts, t_ends, indices, WRITE=True)
        return t_starts, t_ends, indices

    def _launch(self, *arrays: Tensor, WRITE: bool) -> None:
        like = self.rays[0]
        grid = (blocks(len(like), WARP),)
        launch(_march, grid, like, *self.rays, self.cells, *arrays, *self.numbers, WRITE=WRITE, **self.constants)


# ------------------------------------------------------------------------------------------------ compositing


@triton.jit
def _composite_forward(  # type: ignore[no-untyped-def]
    sigma, rgb, starts, ends, first, out, opacities, depths, weights, arriving, early_stop, SAMPLES: tl.constexpr
):
    ray = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(first + ray), tl.load(first + ray + 1)
    passed = 0.0  # optical depth in front of the current samples
    r, g, b = tl.zeros([SAMPLES], tl.float32), tl.zeros([SAMPLES], tl.float32), tl.zeros([SAMPLES], tl.float32)
    opacity, depth = tl.zeros([SAMPLES], tl.float32), tl.zeros([SAMPLES], tl.float32)
    for at in range(begin, end, SAMPLES):
        s = at + tl.arange(0, SAMPLES)
        valid, follows = s < end, (s > begin) & (s <= end)
        start, stop = tl.load(starts + s, mask=valid, other=0.0), tl.load(ends + s, mask=valid, other=0.0)
        through = tl.exp(-tl.load(sigma + s, mask=valid, other=0.0) * (stop - start))
        # An exclusive sum: subtracting a sample's own depth from an inclusive one would lose the digits of the others.
        length = tl.load(ends + s - 1, mask=follows, other=0.0) - tl.load(starts + s - 1, mask=follows, other=0.0)
        before = tl.load(sigma + s - 1, mask=follows, other=0.0) * length
        light = tl.exp(-(passed + tl.cumsum(before, 0)))
        passed += tl.sum(before, 0)
        weight = tl.where(light > early_stop, light * (1.0 - through), 0.0)
        tl.store(weights + s, weight, mask=valid)
        tl.store(arriving + s, light, mask=valid)
        r += weight * tl.load(rgb + s * 3, mask=valid, other=0.0)
        g += weight * tl.load(rgb + s * 3 + 1, mask=valid, other=0.0)
        b += weight * tl.load(rgb + s * 3 + 2, mask=valid, other=0.0)
        opacity += weight
        depth += weight * 0.5 * (start + stop)
    tl.store(out + ray * 3, tl.sum(r, 0))
    tl.store(out + ray * 3 + 1, tl.sum(g, 0))
    tl.store(out + ray * 3 + 2, tl.sum(b, 0))
    tl.store(opacities + ray, tl.sum(opacity, 0))
    tl.store(depths + ray, tl.sum(depth, 0))


@triton.jit
def _value(rgb, starts, ends, grad_weights, s, valid, gr, gg, gb, grad_opacity, grad_depth):  # type: ignore[no-untyped-def]
    """The derivative of the loss with respect to the weights of samples."""
    value = tl.load(grad_weights + s, mask=valid, other=0.0) + grad_opacity
    middle = 0.5 * (tl.load(starts + s, mask=valid, other=0.0) + tl.load(ends + s, mask=valid, other=0.0))
    value += grad_depth * middle
    value += gr * tl.load(rgb + s * 3, mask=valid, other=0.0)
    value += gg * tl.load(rgb + s * 3 + 1, mask=valid, other=0.0)
    return value + gb * tl.load(rgb + s * 3 + 2, mask=valid, other=0.0)


@triton.jit
def _composite_backward(  # type: ignore[no-untyped-def]
    sigma, rgb, starts, ends, first, weights, arriving, grad_out, grad_opacity, grad_depth, grad_weights,
    grad_sigma, grad_rgb, early_stop, SAMPLES: tl.constexpr
):  # fmt: skip
    # With v_i = d loss / d weights_i: d loss / d sigma_i = dt_i (T_{i+1} v_i - sum of w_j v_j over j > i).
    ray = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(first + ray), tl.load(first + ray + 1)
    gr, gg, gb = tl.load(grad_out + ray * 3), tl.load(grad_out + ray * 3 + 1), tl.load(grad_out + ray * 3 + 2)
    go, gd = tl.load(grad_opacity + ray), tl.load(grad_depth + ray)
    behind = 0.0
    for done in range(0, end - begin, SAMPLES):  # from the last sample to the first
        s = end - SAMPLES - done + tl.arange(0, SAMPLES)
        valid, follows = s >= begin, (s + 1 >= begin) & (s + 1 < end)
        value = _value(rgb, starts, ends, grad_weights, s, valid, gr, gg, gb, go, gd)
        weight = tl.load(weights + s, mask=valid, other=0.0)
        tl.store(grad_rgb + s * 3, weight * gr, mask=valid)
        tl.store(grad_rgb + s * 3 + 1, weight * gg, mask=valid)
        tl.store(grad_rgb + s * 3 + 2, weight * gb, mask=valid)
        next_value = _value(rgb, starts, ends, grad_weights, s + 1, follows, gr, gg, gb, go, gd)
        after = tl.where(follows, next_value, 0.0) * tl.load(weights + s + 1, mask=follows, other=0.0)
        light = tl.load(arriving + s, mask=valid, other=0.0)
        dt = tl.load(ends + s, mask=valid, other=0.0) - tl.load(starts + s, mask=valid, other=0.0)
        left = light * tl.exp(-tl.load(sigma + s, mask=valid, other=0.0) * dt)
        slope = dt * (left * value - (behind + tl.cumsum(after, 0, reverse=True)))
        tl.store(grad_sigma + s, tl.where(light > early_stop, slope, 0.0), mask=valid)
        behind += tl.sum(after, 0)


class _Composite(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, sigma: Tensor, rgb: Tensor, starts: Tensor, ends: Tensor, rays: Tensor, n_rays: int, stop: float
    ) -> tuple[Tensor, ...]:
        samples = [tensor.float().contiguous() for tensor in (sigma, rgb, starts, ends)]
        first = torch.searchsorted(rays.contiguous(), torch.arange(n_rays + 1, device=rays.device))
        out = torch.empty(n_rays, 3, device=sigma.device)
        opacity, depth = torch.empty(n_rays, device=sigma.device), torch.empty(n_rays, device=sigma.device)
        # Samples of no ray, if the indices are invalid, have weight 0.
        weights, arriving = torch.zeros_like(samples[0]), torch.zeros_like(samples[0])
        results = (out, opacity, depth, weights, arriving)
        constants = {"SAMPLES": WARP, "num_warps": 1}
        launch(_composite_forward, (n_rays,), out, *samples, first, *results, float(stop), **constants)
        ctx.save_for_backward(*samples, first, weights, arriving)
        ctx.stop, ctx.constants, ctx.dtypes = float(stop), constants, (sigma.dtype, rgb.dtype)
        return out, opacity, depth, weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        sigma, rgb, *_, first, _, _ = ctx.saved_tensors
        grad_sigma, grad_rgb = torch.zeros_like(sigma), torch.zeros_like(rgb)
        given = [grad.float().contiguous() for grad in grads]
        arguments = (*ctx.saved_tensors, *given, grad_sigma, grad_rgb, ctx.stop)
        launch(_composite_backward, (len(first) - 1,), sigma, *arguments, **ctx.constants)
        return grad_sigma.to(ctx.dtypes[0]), grad_rgb.to(ctx.dtypes[1]), None, None, None, None, None


def composite(
    sigma: Tensor,
    rgb: Tensor,
    t_starts: Tensor,
    t_ends: Tensor,
    ray_indices: Tensor,
    n_rays: int,
    early_stop: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See ``nelf.kernels.composite``; float32. Does not check ``ray_indices``."""
    return _Composite.apply(sigma, rgb, t_starts, t_ends, ray_indices, n_rays, early_stop)  # type: ignore[no-any-return,no-untyped-call]
