"""The kernels in plain PyTorch: the definition of each, on any device, differentiated by autograd.

The hash grid gathers with ``F.embedding``, whose dense scatter is PyTorch's fastest backward pass without a custom
kernel.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nelf.kernels import HashGrid, implementation
from nelf.kernels.lookup import MIN_TRANSMITTANCE, RayFeatures, most_points
from nelf.rays import intersect_aabb

_PRIMES = (1, 2654435761, 805459861)
_CORNERS = tuple((x, y, z) for z in (0, 1) for y in (0, 1) for x in (0, 1))


def hash_encode(positions: Tensor, table: Tensor, grid: HashGrid) -> Tensor:
    """See ``nelf.kernels.hash_encode``."""
    encoded = []
    corners = torch.tensor(_CORNERS, device=positions.device)  # (8, 3)
    # Split once: slices level by level would each get a gradient of the size of the whole table.
    tables = table.split(grid.sizes)
    for level, scale in enumerate(grid.scales):
        in_grid = positions * scale + 0.5
        lower = in_grid.detach().floor()
        fraction = (in_grid - lower)[:, None]  # (N, 1, 3)
        index = _table_index(lower.long()[:, None] + corners, grid, level)  # (N, 8)
        weights = torch.where(corners.bool(), fraction, 1.0 - fraction).prod(-1)  # (N, 8)
        features = F.embedding(index, tables[level])  # (N, 8, F)
        encoded.append((weights[..., None] * features).sum(1))
    return torch.cat(encoded, dim=1)


def _table_index(corner: Tensor, grid: HashGrid, level: int) -> Tensor:
    """The entry of integer grid corners (..., 3) within their level's table."""
    x, y, z = corner.unbind(-1)
    if grid.hashed[level]:
        # tiny-cuda-nn multiplies in uint32; only the low bits matter, so int64 gives the same.
        return (x * _PRIMES[0] ^ y * _PRIMES[1] ^ z * _PRIMES[2]) % grid.sizes[level]
    resolution = grid.resolutions[level]
    return (x + resolution * (y + resolution * z)) % grid.sizes[level]


def mlp(inputs: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """See ``nelf.kernels.mlp.mlp``."""
    x = inputs
    with torch.autocast(inputs.device.type, torch.bfloat16):
        for layer, weight in enumerate(weights):
            x = F.linear(x.relu() if layer else x, weight)
    return x


def space_time_lookup(positions: Tensor, times: Tensor, values: Tensor) -> Tensor:
    """See ``nelf.kernels.space_time_lookup``."""
    sides = torch.tensor(values.shape[:4], device=values.device)  # T, D, H, W
    at = torch.cat([times[:, None], positions.flip(-1)], 1).clamp(0.0, 1.0) * (sides - 1)
    low = torch.minimum(at.long(), (sides - 2).clamp(min=0))
    fraction = at - low
    out = values.new_zeros(len(positions), values.shape[-1])
    for corner in product((0, 1), repeat=4):
        step = torch.tensor(corner, device=values.device)
        weight = torch.where(step.bool(), fraction, 1.0 - fraction).prod(-1)
        t, z, y, x = torch.minimum(low + step, sides - 1).unbind(-1)
        out = out + weight[:, None] * values[t, z, y, x]
    return out


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
    """See ``nelf.kernels.march``. Walks the lattices of all rays together, one lattice point at a time."""
    cascades, cells = occupied.shape[0], occupied.shape[1]
    t = t_min.clone()
    kept = torch.zeros(len(t), dtype=torch.long, device=t.device)
    starts, ends, masks = [], [], []
    while bool((alive := (t < t_max) & (kept < max_samples)).any()):
        dt = (t * cone).clamp(step, max_step)
        middle = t + 0.5 * dt
        position = rays_o + middle[:, None] * rays_d
        radius = position.abs().amax(-1)
        cascade = _cascade(radius, dt, cascades, cells)
        half_size = torch.minimum(2.0 ** (cascade - 1).float(), torch.tensor(extent, device=t.device))
        cell = ((position / half_size[:, None] * 0.5 + 0.5) * cells).floor().long()
        inside = (radius <= extent) & (middle < t_max) & alive
        cell = cell.clamp(0, cells - 1)
        hit = inside & occupied[cascade, cell[:, 0], cell[:, 1], cell[:, 2]]
        starts.append(t)
        ends.append(t + dt)
        masks.append(hit)
        kept = kept + hit
        t = t + dt
    if not masks:
        empty = t_min.new_zeros(0)
        return empty, empty.clone(), torch.zeros(0, dtype=torch.long, device=t_min.device)
    mask = torch.stack(masks, dim=1)  # (N, lattice)
    ray_indices = mask.nonzero()[:, 0]
    return torch.stack(starts, dim=1)[mask], torch.stack(ends, dim=1)[mask], ray_indices


def march_within(
    rays_o: Tensor,
    rays_d: Tensor,
    t_min: Tensor,
    t_max: Tensor,
    occupied: Tensor,
    total: int,
    **steps: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See ``nelf.kernels.march_within``, by the device's ``march``."""
    run = implementation("march", rays_o.device)
    t_starts, t_ends, ray_indices = run(rays_o, rays_d, t_min, t_max, occupied, **steps)
    n_rays = len(rays_o)
    last = ray_indices.bincount(minlength=n_rays).cumsum(0)
    marched = (last <= total).sum()
    samples = [values[ray_indices < marched] for values in (t_starts, t_ends, ray_indices)]
    padding = (0, total - len(samples[0]))
    t_starts, t_ends = (F.pad(values, padding) for values in samples[:2])
    return t_starts, t_ends, F.pad(samples[2], padding, value=n_rays), marched


def _cascade(radius: Tensor, dt: Tensor, cascades: int, cells: int) -> Tensor:
    """The smallest cascade that holds a point at ``radius`` and whose cells are not smaller than ``dt``."""
    cascade = torch.zeros_like(radius, dtype=torch.long)
    for c in range(cascades - 1):
        cascade += (radius > 2.0 ** (c - 1)) | (dt * cells > 2.0**c)
    return cascade


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
    if len(ray_indices) and (
        bool((ray_indices.diff() < 0).any()) or int(ray_indices[0]) < 0 or int(ray_indices[-1]) > n_rays
    ):
        raise ValueError(f"composite: `ray_indices` must be non-decreasing and within [0, {n_rays}].")
    optical = sigma * (t_ends - t_starts)
    # One cumulative sum over all rays, minus its value at the start of each; float64, since it grows with every ray.
    running = F.pad(optical.double().cumsum(0), (1, 0))
    first = torch.searchsorted(ray_indices, ray_indices)
    transmittance = torch.exp(running[first] - running[:-1]).to(sigma.dtype)
    weights = transmittance * -torch.expm1(-optical)
    weights = torch.where(transmittance > early_stop, weights, 0.0)
    middle = 0.5 * (t_starts + t_ends)
    per_sample = torch.cat([rgb, torch.ones_like(middle)[:, None], middle[:, None]], dim=1) * weights[:, None]
    per_ray = per_sample.new_zeros(n_rays + 1, 5).index_add(0, ray_indices, per_sample)[:n_rays]
    return per_ray[:, :3], per_ray[:, 3], per_ray[:, 4], weights


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
    points: int | None = None,
) -> RayFeatures:
    """See ``nelf.kernels.lookup.ray_features``; the definition, in PyTorch operations that every exporter supports.

    For an exporter, ``points`` has to be given (``most_points``), since it cannot depend on a tensor, the box.
    """
    t_min, t_max = intersect_aabb(rays_o, rays_d, aabb)
    dt = step / rays_d.norm(dim=-1)
    points = points or most_points(aabb, step)
    t = t_min[:, None] + (torch.arange(points, device=dt.device) + jitter[:, None]) * dt[:, None]  # (N, P)
    positions = rays_o[:, None] + rays_d[:, None] * t[..., None]
    cells = density.new_tensor([side - 1 for side in index.shape[::-1]])
    at = (positions - aabb[:3]) / (aabb[3:] - aabb[:3]) * cells
    at = torch.minimum(at.clamp(min=0.0), cells - 1e-3)
    low = at.long()
    rows, shares = _corner_rows(index, low, at - low)  # (N, P, 8)
    kept = (rows >= 0).all(-1) & (t < t_max[:, None])
    rows = rows.clamp(min=0)

    alpha = torch.sigmoid((density[rows] * shares).sum(-1))
    alpha = torch.where(kept, alpha * _fade(alpha, max(min_alpha, 1e-12)), 0.0)
    # The transmittance at each point, as a sum of logarithms, since exporters support no cumulative product.
    passed = (1 - alpha).clamp(min=1e-20).log().cumsum(-1).exp()
    transmittance = torch.cat([torch.ones_like(alpha[:, :1]), passed[:, :-1]], -1)
    weights = alpha * transmittance * _fade(transmittance, MIN_TRANSMITTANCE)
    values = (features[rows] * shares[..., None]).sum(-2)  # (N, P, C)
    depth = (weights * t).sum(-1).detach()
    return RayFeatures((values * weights[..., None]).sum(1), weights.sum(-1), depth)


def trilinear(values: Tensor, index: Tensor, positions: Tensor, aabb: Tensor, missing: Tensor) -> Tensor:
    """See ``nelf.kernels.trilinear.trilinear``."""
    cells = positions.new_tensor([side - 1 for side in index.shape[::-1]])
    at = (positions - aabb[:3]) / (aabb[3:] - aabb[:3]) * cells
    at = torch.minimum(at.clamp(min=0.0), cells)
    low = torch.minimum(at.long(), cells.long() - 1)
    rows, shares = _corner_rows(index, low, at - low)  # (N, 8)
    read = torch.where((rows >= 0)[..., None], values[rows.clamp(min=0)], missing)
    return (read * shares[..., None]).sum(-2)


def _corner_rows(index: Tensor, low: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """The rows (..., 8) of the corners of cells ``low`` (..., 3) xyz, and their trilinear weights (..., 8)."""
    _, height, width = index.shape
    corners = torch.stack([low.new_tensor([i, j, k]) for k in (0, 1) for j in (0, 1) for i in (0, 1)])  # x, y, z
    shares = torch.where(corners.bool(), inside[..., None, :], 1 - inside[..., None, :]).prod(-1)
    x, y, z = (low[..., None, :] + corners).unbind(-1)
    return index.flatten()[(z * height + y) * width + x].long(), shares


def _fade(values: Tensor, least: float) -> Tensor:
    """Rise linearly from 0 at ``least`` to 1 at twice as much."""
    return (values / least - 1.0).clamp(0.0, 1.0)
