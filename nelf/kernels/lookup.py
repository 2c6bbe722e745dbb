"""Composite a sparse feature volume along rays: the lookup of ``GridR2L``.

One signature and several backends with the same results, as in ``nelf.kernels``. Notation::

    N  rays              rays_o, rays_d (N, 3), scene unit
    D, H, W              voxel corners along z, y, x; the outermost lie on the faces of the box
    K  rows              of the corners that exist, x fastest; ``index`` (D, H, W) has the row of each corner
    alpha = sigmoid(density)                 opacity of one point; points lie one step apart
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from nelf.kernels import implementation

__all__ = ["RayFeatures", "most_points", "occupied_cells", "ray_features"]

MIN_TRANSMITTANCE = 1e-2
"""A ray ends when its transmittance falls below this.

A point's weight fades out as the transmittance falls from twice this value to it, and as alpha falls from twice
``min_alpha`` to it: a hard threshold would turn rounding errors, which differ between backends and exported graphs,
into visible steps.
"""


class RayFeatures(NamedTuple):
    """What ``ray_features`` returns: ``features`` (N, C), ``opacity`` (N,), ``depth`` (N,)."""

    features: Tensor
    opacity: Tensor
    depth: Tensor


def occupied_cells(index: Tensor) -> Tensor:
    """Find the cells all of whose corners exist.

    Args:
        index: (D, H, W) int32, below zero where a corner does not exist.

    Returns:
        (D - 1, H - 1, W - 1) bool.
    """
    cells = index >= 0
    for axis in range(3):
        side = cells.shape[axis]
        cells = cells.narrow(axis, 0, side - 1) & cells.narrow(axis, 1, side - 1)
    return cells


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
    """Composite features along rays as volume rendering composites colors.

    ``alpha_i = sigmoid(density_i)`` and ``weights_i = alpha_i * prod(1 - alpha_j for j < i)``; density and features
    are interpolated trilinearly, the density before its sigmoid. (A sigmoid is ``1 - exp(-softplus)``: DVGO's density
    at steps of one unit of length.) The background has no features: they are composited on zeros.

    Args:
        density: (K,) learned, before the sigmoid.
        features: (K, C) learned.
        index: (D, H, W) int32, the row of each corner: ascending, x fastest, and -1 where a corner does not exist. A
            point in a cell that lacks a corner is skipped.
        rays_o: (N, 3) origins, scene unit.
        rays_d: (N, 3) directions, any length.
        aabb: (6,) smallest xyz, largest xyz of the box that the volume fills.
        jitter: (N,) in [0, 1): distance of each ray's first point from its entry into the box, in steps.
        step: distance between neighboring points, scene unit.
        min_alpha: points of lower alpha are skipped, which saves the look-up of their features; up to twice this alpha,
            they are faded in.

    Returns:
        ``features`` (N, C), ``opacity`` (N,) in [0, 1], and ``depth`` (N,): sum of weights * t. The first two are
        differentiable in ``density`` and ``features``, the depth is not.

    Raises:
        ValueError: the shapes do not fit together.

    Source:
        Weights: NeRF, eq. 3 (arXiv 2003.08934). Activation after the interpolation: DVGO, section 4 (arXiv
        2111.11215). Features summed before one network per ray: SNeRG, section 4 (arXiv 2103.14645).

    Example:
        Two points in a box, each with an alpha of one half.

        >>> density = torch.zeros(8)
        >>> out = ray_features(
        ...     density, torch.ones(8, 1), torch.arange(8, dtype=torch.int32).view(2, 2, 2),
        ...     rays_o=torch.tensor([[0.5, 0.5, -1.0]]), rays_d=torch.tensor([[0.0, 0.0, 1.0]]),
        ...     aabb=torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 1.0]), jitter=torch.tensor([0.5]),
        ...     step=0.5,
        ... )
        >>> out.opacity
        tensor([0.7500])
    """
    if density.ndim != 1 or features.ndim != 2 or len(features) != len(density):
        raise ValueError(
            f"Expected `density` (K,) and `features` (K, C), but got {tuple(density.shape)} and "
            f"{tuple(features.shape)}."
        )
    if index.ndim != 3 or index.dtype is not torch.int32:
        raise ValueError(f"Expected `index` (D, H, W) int32, but got {tuple(index.shape)} {index.dtype}.")
    if rays_o.shape != rays_d.shape or jitter.shape != rays_o.shape[:1]:
        raise ValueError(
            f"Expected `rays_o` and `rays_d` (N, 3) and `jitter` (N,), but got {tuple(rays_o.shape)}, "
            f"{tuple(rays_d.shape)} and {tuple(jitter.shape)}."
        )
    run = implementation("ray_features", density.device)
    return run(density, features, index, rays_o, rays_d, aabb, jitter, step, min_alpha)


def most_points(aabb: Tensor, step: float) -> int:
    """The largest number of points on a ray, one as long as the diagonal of the box."""
    return math.ceil(float((aabb[3:] - aabb[:3]).norm()) / step) + 1
