"""``ray_features`` in Triton: a warp of rays walks together, and reads features only where one of them is not empty.

The backward pass walks again and adds each point's gradient to its eight corners. A point's gradient depends on the
contributions of all later points. The forward pass stores these as one sum per ray, with the weight ``d weight /
d light`` times the light (transmittance), and the backward walk subtracts each point that it has passed.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from nelf.kernels.lookup import MIN_TRANSMITTANCE, RayFeatures
from nelf.kernels.triton_tools import WARP, blocks, columns, launch
from nelf.rays import intersect_aabb

_LEAST_ALPHA = 1e-12


@triton.jit
def _fade(value, least):  # type: ignore[no-untyped-def]
    """Rise linearly from 0 at ``least`` to 1 at twice as much."""
    return tl.minimum(tl.maximum(value / least - 1.0, 0.0), 1.0)


@triton.jit
def _cell(position, low, high, side):  # type: ignore[no-untyped-def]
    """The cell of a coordinate, and how far into it the coordinate lies."""
    cells = (side - 1).to(tl.float32)
    at = tl.minimum(tl.maximum((position - low) / (high - low) * cells, 0.0), cells - 1e-3)
    cell = tl.minimum(tl.maximum(at.to(tl.int32), 0), side - 2)  # also for NaN
    return cell.to(tl.int64), at - cell.to(tl.float32)


@triton.jit
def _corner(index, x, y, z, fx, fy, fz, height, width, walking, corner: tl.constexpr):  # type: ignore[no-untyped-def]
    """The row of a corner of cells, -1 where it does not exist, and its trilinear weight."""
    i, j, k = corner & 1, (corner >> 1) & 1, corner >> 2
    row = tl.load(index + ((z + k) * height + (y + j)) * width + (x + i), mask=walking, other=-1).to(tl.int64)
    return row, (fx if i else 1.0 - fx) * (fy if j else 1.0 - fy) * (fz if k else 1.0 - fz)


@triton.jit
def _point(  # type: ignore[no-untyped-def]
    density, index, ox, oy, oz, dx, dy, dz, aabb, t, depth, height, width, min_alpha, walking
):
    """For a point of each ray: its cell, the fractions within it, faded alpha, alpha, whether it is not skipped."""
    x, fx = _cell(ox + t * dx, tl.load(aabb), tl.load(aabb + 3), width)
    y, fy = _cell(oy + t * dy, tl.load(aabb + 1), tl.load(aabb + 4), height)
    z, fz = _cell(oz + t * dz, tl.load(aabb + 2), tl.load(aabb + 5), depth)
    raw = t * 0.0
    whole = walking
    for corner in tl.static_range(8):
        row, share = _corner(index, x, y, z, fx, fy, fz, height, width, walking, corner)
        whole = whole & (row >= 0)
        raw += share * tl.load(density + row, mask=row >= 0, other=0.0).to(tl.float32)
    full = 1.0 / (1.0 + tl.exp(-raw))
    alpha = tl.where(whole, full * _fade(full, min_alpha), 0.0)
    return x, y, z, fx, fy, fz, alpha, full, alpha > 0.0


@triton.jit
def _rays(rays_o, rays_d, spans, n, RAYS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Index, validity, origin, direction, first ``t``, last ``t`` and step of the rays of a block."""
    ray = tl.program_id(0).to(tl.int64) * RAYS + tl.arange(0, RAYS)
    valid = ray < n
    ox, dx = tl.load(rays_o + ray * 3, mask=valid, other=0.0), tl.load(rays_d + ray * 3, mask=valid, other=0.0)
    oy, dy = tl.load(rays_o + ray * 3 + 1, mask=valid, other=0.0), tl.load(rays_d + ray * 3 + 1, mask=valid, other=0.0)
    oz, dz = tl.load(rays_o + ray * 3 + 2, mask=valid, other=0.0), tl.load(rays_d + ray * 3 + 2, mask=valid, other=0.0)
    first, last = tl.load(spans + ray, mask=valid, other=0.0), tl.load(spans + n + ray, mask=valid, other=0.0)
    return ray, valid, ox, oy, oz, dx, dy, dz, first, last, tl.load(spans + 2 * n + ray, mask=valid, other=1.0)


@triton.jit(do_not_specialize=["n", "depth", "height", "width"])
def _forward(  # type: ignore[no-untyped-def]
    density, features, index, rays_o, rays_d, aabb, spans, out, opacity, depths, sloped, sloped_opacity,
    n, depth, height, width, min_alpha,
    CHANNELS: tl.constexpr, COLUMNS: tl.constexpr, RAYS: tl.constexpr, DARK: tl.constexpr
):  # fmt: skip
    ray, valid, ox, oy, oz, dx, dy, dz, first, last, dt = _rays(rays_o, rays_d, spans, n, RAYS)
    channel = tl.arange(0, COLUMNS)
    known = (channel < CHANNELS)[None, :]
    seen, sloped_seen = tl.zeros([RAYS, COLUMNS], tl.float32), tl.zeros([RAYS, COLUMNS], tl.float32)
    passed, sloped_passed = tl.zeros([RAYS], tl.float32), tl.zeros([RAYS], tl.float32)
    far, i = tl.zeros([RAYS], tl.float32), tl.zeros([RAYS], tl.float32)
    light = tl.full([RAYS], 1.0, tl.float32)
    t = first
    walking = t < last
    while tl.max(walking.to(tl.int32), 0) > 0:
        x, y, z, fx, fy, fz, alpha, _, hit = _point(
            density, index, ox, oy, oz, dx, dy, dz, aabb, t, depth, height, width, min_alpha, walking
        )
        if tl.max(hit.to(tl.int32), 0) > 0:
            reaches = _fade(light, DARK)
            slope = reaches + tl.where((reaches > 0.0) & (reaches < 1.0), light / DARK, 0.0)
            weight, sloped_weight = alpha * light * reaches, alpha * light * slope
            values = tl.zeros([RAYS, COLUMNS], tl.float32)
            for corner in tl.static_range(8):
                row, share = _corner(index, x, y, z, fx, fy, fz, height, width, hit, corner)
                place = features + row[:, None] * CHANNELS + channel[None, :]
                values += share[:, None] * tl.load(place, mask=hit[:, None] & known, other=0.0).to(tl.float32)
            seen += weight[:, None] * values
            sloped_seen += sloped_weight[:, None] * values
            passed += weight
            sloped_passed += sloped_weight
            far += weight * t
            light -= alpha * light
        i += 1.0
        t = first + i * dt
        walking = (t < last) & (light >= DARK)
    place = ray[:, None] * CHANNELS + channel[None, :]
    mask = valid[:, None] & known
    tl.store(out + place, seen, mask=mask)
    tl.store(sloped + place, sloped_seen, mask=mask)
    tl.store(opacity + ray, passed, mask=valid)
    tl.store(sloped_opacity + ray, sloped_passed, mask=valid)
    tl.store(depths + ray, far, mask=valid)


@triton.jit(do_not_specialize=["n", "depth", "height", "width"])
def _backward(  # type: ignore[no-untyped-def]
    density, features, index, rays_o, rays_d, aabb, spans, sloped, sloped_opacity, grad_out, grad_opacity,
    to_density, to_features, n, depth, height, width, min_alpha,
    CHANNELS: tl.constexpr, COLUMNS: tl.constexpr, RAYS: tl.constexpr, DARK: tl.constexpr
):  # fmt: skip
    ray, valid, ox, oy, oz, dx, dy, dz, first, last, dt = _rays(rays_o, rays_d, spans, n, RAYS)
    channel = tl.arange(0, COLUMNS)
    known = (channel < CHANNELS)[None, :]
    place = ray[:, None] * CHANNELS + channel[None, :]
    given = tl.load(grad_out + place, mask=valid[:, None] & known, other=0.0)
    given_opacity = tl.load(grad_opacity + ray, mask=valid, other=0.0)
    # The contributions of the points ahead to the derivative of the loss, times the light.
    ahead = tl.sum(given * tl.load(sloped + place, mask=valid[:, None] & known, other=0.0), 1)
    ahead += given_opacity * tl.load(sloped_opacity + ray, mask=valid, other=0.0)
    i = tl.zeros([RAYS], tl.float32)
    light = tl.full([RAYS], 1.0, tl.float32)
    t = first
    walking = t < last
    while tl.max(walking.to(tl.int32), 0) > 0:
        x, y, z, fx, fy, fz, alpha, full, hit = _point(
            density, index, ox, oy, oz, dx, dy, dz, aabb, t, depth, height, width, min_alpha, walking
        )
        if tl.max(hit.to(tl.int32), 0) > 0:
            reaches = _fade(light, DARK)
            slope = reaches + tl.where((reaches > 0.0) & (reaches < 1.0), light / DARK, 0.0)
            values = tl.zeros([RAYS, COLUMNS], tl.float32)
            for corner in tl.static_range(8):
                row, share = _corner(index, x, y, z, fx, fy, fz, height, width, hit, corner)
                entry = features + row[:, None] * CHANNELS + channel[None, :]
                values += share[:, None] * tl.load(entry, mask=hit[:, None] & known, other=0.0).to(tl.float32)
            value = given_opacity + tl.sum(values * given, 1)
            ahead -= alpha * light * slope * value
            left = light * (1.0 - alpha)
            # Where the ray ends here, there are no points ahead; elsewhere 1 - alpha is not small.
            change = light * reaches * value - tl.where(left >= DARK, ahead / tl.maximum(1.0 - alpha, DARK), 0.0)
            dense = _fade(full, min_alpha)
            steep = dense + tl.where((dense > 0.0) & (dense < 1.0), full / min_alpha, 0.0)
            to_raw = change * steep * full * (1.0 - full)
            weight = alpha * light * reaches
            for corner in tl.static_range(8):
                row, share = _corner(index, x, y, z, fx, fy, fz, height, width, hit, corner)
                tl.atomic_add(to_density + row, share * to_raw, mask=hit, sem="relaxed")
                entry = to_features + row[:, None] * CHANNELS + channel[None, :]
                tl.atomic_add(entry, (share * weight)[:, None] * given, mask=hit[:, None] & known, sem="relaxed")
            light = left
        i += 1.0
        t = first + i * dt
        walking = (t < last) & (light >= DARK)


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
        rays_o, rays_d, aabb, jitter = (tensor.detach().float().contiguous() for tensor in rays)
        t_min, t_max = intersect_aabb(rays_o, rays_d, aabb)
        dt = step / rays_d.norm(dim=-1)
        volume = (density.contiguous(), features.contiguous(), index.contiguous())
        walk = (*volume, rays_o, rays_d, aabb, torch.stack([t_min + jitter * dt, t_max, dt]))
        n, channels = len(rays_o), features.shape[1]
        out, sloped = (rays_o.new_empty(n, channels) for _ in range(2))
        opacity, depth, sloped_opacity = (rays_o.new_empty(n) for _ in range(3))
        ctx.numbers = (n, *index.shape, max(float(min_alpha), _LEAST_ALPHA))
        ctx.constants = {"CHANNELS": channels, "COLUMNS": columns(channels), "RAYS": WARP, "num_warps": 1}
        ctx.constants |= {"DARK": MIN_TRANSMITTANCE}
        results = (out, opacity, depth, sloped, sloped_opacity)
        launch(_forward, (blocks(n, WARP),), out, *walk, *results, *ctx.numbers, **ctx.constants)
        ctx.save_for_backward(*walk, sloped, sloped_opacity)
        ctx.mark_non_differentiable(depth)
        return out, opacity, depth

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor, grad_opacity: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        density, features = ctx.saved_tensors[:2]
        sums = [torch.zeros_like(tensor, dtype=torch.float32) for tensor in (density, features)]
        given = (grad_out.float().contiguous(), grad_opacity.float().contiguous())
        grid = (blocks(len(grad_out), WARP),)
        launch(_backward, grid, density, *ctx.saved_tensors, *given, *sums, *ctx.numbers, **ctx.constants)
        return sums[0].to(density.dtype), sums[1].to(features.dtype), None, None, None, None


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
    """See ``nelf.kernels.ray_features``; float32, of a volume in 32 or 16 bits."""
    rays = (rays_o, rays_d, aabb, jitter)
    return RayFeatures(*_RayFeatures.apply(density, features, index, rays, step, min_alpha))  # type: ignore[no-untyped-call]
