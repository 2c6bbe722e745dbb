"""Composite a dense feature volume along rays: the lookup of ``GridR2L``.

One signature and two backends with the same results, as in ``nelf.kernels``: the reference here, plain PyTorch
(``grid_sample`` and one gather, so it exports), and ``ray_features_cpu`` (Numba). Notation::

    N  rays              rays_o, rays_d (N, 3), scene unit
    P  points            per ray, evenly spaced between where it enters the box and where it leaves
    D, H, W              voxel corners along z, y, x; the outermost lie on the faces of the box
    tau = softplus(density) * density_scale * length of the step      optical depth of one point
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, softplus

from nelf.kernels import backend_for

__all__ = ["RayFeatures", "intersect_aabb", "ray_features", "ray_features_reference"]

MIN_TRANSMITTANCE = 1e-2
"""A ray ends once less light is left. Against 1e-3 that costs 0.002 dB on lego and saves an eighth of the lookup.

What reaches a point fades out between twice this and this, and so does optical depth above ``min_tau``: a hard end
would turn the last digit of a sum, which differs between backends and exported graphs, into a visible step.
"""


class RayFeatures(NamedTuple):
    """What ``ray_features`` returns: ``features`` (N, C), ``opacity`` (N,), ``depth`` (N,)."""

    features: Tensor
    opacity: Tensor
    depth: Tensor


def intersect_aabb(rays_o: Tensor, rays_d: Tensor, aabb: Tensor) -> tuple[Tensor, Tensor]:
    """Find where rays enter and leave a box.

    Args:
        rays_o: (N, 3) origins.
        rays_d: (N, 3) directions, any length.
        aabb: (6,) smallest xyz, largest xyz.

    Returns:
        ``t_min`` and ``t_max`` (N,) in multiples of ``rays_d``, not before the origin; equal where a ray misses.
    """
    inverse = 1.0 / torch.where(rays_d == 0, 1e-12, rays_d)
    low, high = (aabb[:3] - rays_o) * inverse, (aabb[3:] - rays_o) * inverse
    t_min = torch.minimum(low, high).amax(-1).clamp_min(0.0)
    return t_min, torch.maximum(torch.maximum(low, high).amin(-1), t_min)


def ray_features(
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
    """Look features up at points along rays and sum them, weighted as volume rendering weights colours.

    ``alpha_i = 1 - exp(-tau_i)`` and ``weights_i = alpha_i * prod(1 - alpha_j for j < i)``; density and features
    are interpolated trilinearly, the density before its softplus. Nothing stands behind the volume: features are
    those of the background times zero.

    Args:
        density: (D, H, W) learned, before the softplus.
        features: (D, H, W, C) learned.
        occupied: (D - 1, H - 1, W - 1) bool; a point in a cell that is not occupied is skipped.
        rays_o: (N, 3) origins, scene unit.
        rays_d: (N, 3) directions, any length.
        aabb: (6,) smallest xyz, largest xyz of the box that the volume fills.
        jitter: (N,) in [0, 1), where in its step the points of each ray lie; 0.5 is the middle.
        points: P, points per ray.
        density_scale: density per scene unit that a softplus of one stands for.
        min_tau: a point of smaller optical depth is empty, which saves the lookup of its features; from there to
            twice as much it fades in.

    Returns:
        ``features`` (N, C), ``opacity`` (N,) in [0, 1], and ``depth`` (N,): sum of weights * t. The first two are
        differentiable in ``density`` and ``features``, the depth is not.

    Raises:
        ValueError: the shapes do not fit together.

    Source:
        Weights: NeRF, eq. 3 (arXiv 2003.08934). Softplus after the interpolation: DVGO, section 4 (arXiv
        2111.11215). Features summed before one network per ray: SNeRG, section 4 (arXiv 2103.14645).

    Example:
        A box one unit thick, half a unit of optical depth at each of two points.

        >>> density = torch.full((2, 2, 2), 0.5413248546)  # softplus of it is 1
        >>> out = ray_features(
        ...     density, torch.ones(2, 2, 2, 1), torch.ones(1, 1, 1, dtype=torch.bool),
        ...     rays_o=torch.tensor([[0.5, 0.5, -1.0]]), rays_d=torch.tensor([[0.0, 0.0, 1.0]]),
        ...     aabb=torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 1.0]), jitter=torch.tensor([0.5]),
        ...     points=2, density_scale=1.0,
        ... )
        >>> out.opacity  # 1 - exp(-1)
        tensor([0.6321])
    """
    shape = tuple(density.shape)
    if density.ndim != 3 or tuple(features.shape[:-1]) != shape:
        raise ValueError(
            f"Expected `density` (D, H, W) and `features` (D, H, W, C), but got {shape} and {tuple(features.shape)}."
        )
    if tuple(occupied.shape) != tuple(side - 1 for side in shape):
        raise ValueError(f"Expected `occupied` one smaller than {shape} a side, but got {tuple(occupied.shape)}.")
    if rays_o.shape != rays_d.shape or jitter.shape != rays_o.shape[:1]:
        raise ValueError(
            f"Expected `rays_o` and `rays_d` (N, 3) and `jitter` (N,), but got {tuple(rays_o.shape)}, "
            f"{tuple(rays_d.shape)} and {tuple(jitter.shape)}."
        )
    # Tracing for an export must see PyTorch operations.
    numba = backend_for(density.device).__name__.endswith("cpu") and not torch.compiler.is_compiling()
    if numba and not torch.jit.is_tracing() and not torch.onnx.is_in_onnx_export():
        from nelf.kernels.ray_features_cpu import ray_features_cpu as run
    else:
        run = ray_features_reference
    return run(density, features, occupied, rays_o, rays_d, aabb, jitter, points, density_scale, min_tau)


def ray_features_reference(
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
    """See ``ray_features``; the definition, in PyTorch operations that every exporter knows."""
    t_min, t_max = intersect_aabb(rays_o, rays_d, aabb)
    step = (t_max - t_min) / points
    t = t_min[:, None] + (torch.arange(points, device=step.device) + jitter[:, None]) * step[:, None]  # (N, P)
    positions = rays_o[:, None] + rays_d[:, None] * t[..., None]
    unit = ((positions - aabb[:3]) / (aabb[3:] - aabb[:3])).clamp(0.0, 1.0)

    at = (unit * 2 - 1)[None, :, :, None]  # (1, N, P, 1, 3): a volume of points for grid_sample
    raw = grid_sample(density[None, None], at, align_corners=True)[0, 0, ..., 0]
    tau = softplus(raw) * (density_scale * step * rays_d.norm(dim=-1))[:, None]
    cells = density.new_tensor([side - 1 for side in density.shape[::-1]])
    x, y, z = torch.minimum(unit * cells, cells - 1e-3).long().unbind(-1)
    _, height, width = occupied.shape
    kept = occupied.flatten()[(z * height + y) * width + x]
    tau = torch.where(kept, tau * _fade(tau, max(min_tau, 1e-12)), 0.0)

    transmittance = torch.exp(tau - tau.cumsum(-1))  # of the light that reaches each point
    weights = -torch.expm1(-tau) * transmittance * _fade(transmittance, MIN_TRANSMITTANCE)
    values = grid_sample(features.permute(3, 0, 1, 2)[None], at, align_corners=True)[0, ..., 0]  # (C, N, P)
    depth = (weights * t).sum(-1).detach()
    return RayFeatures((values * weights).sum(-1).T, weights.sum(-1), depth)


def _fade(values: Tensor, least: float) -> Tensor:
    """From 0 at ``least`` to 1 at twice as much."""
    return (values / least - 1.0).clamp(0.0, 1.0)
