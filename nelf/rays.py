"""Rays, the input of every model. Axes, pixels and units as in ``nelf.cameras``.

A point on a ray is ``origins + t * directions``. Directions have camera z = -1, so ``t`` is z-depth; in kernels they
are ``rays_o`` and ``rays_d``. Rays of forward-facing scenes may be in normalized device coordinates instead, see
``NDC``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["NDC", "Rays", "intersect_aabb", "moved"]

_INFINITY = 1e-6  # smallest 1 - z in NDC, half a millionth of near's disparity: points beyond are clamped to it
_SIDEWAYS = 1e-6  # smallest -z of a direction; rays that run less forward, or backward, are clamped to it


def moved(values: Tensor, device: torch.device | str) -> Tensor:
    """Move a tensor to a device, asynchronously if that is a GPU, else synchronously."""
    return values.to(device, non_blocking=torch.device(device).type == "cuda")


@dataclass(frozen=True, eq=False)
class Rays:
    """Rays of any leading shape.

    Attributes:
        origins: (..., 3), scene unit; or in NDC.
        directions: (..., 3), camera z = -1; or in NDC.
        controls: (..., K) in [0, 1], the first of which is the time; or None for a static scene.
        view: (...,) int64, the training view that a ray belongs to, for parameters that are learned per image; or None.
        world_directions: (..., 3) directions in the scene, if ``directions`` are in a warped space; or None.
    """

    origins: Tensor
    directions: Tensor
    controls: Tensor | None = None
    view: Tensor | None = None
    world_directions: Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        """The leading shape."""
        return self.origins.shape[:-1]

    @property
    def viewdirs(self) -> Tensor:
        """(..., 3) directions in the scene, of unit length."""
        directions = self.directions if self.world_directions is None else self.world_directions
        return torch.nn.functional.normalize(directions, dim=-1)

    @property
    def time(self) -> Tensor | None:
        """(...,) in [0, 1]: the first control."""
        return None if self.controls is None else self.controls[..., 0]

    def __len__(self) -> int:
        """Number of rays along the first dimension."""
        return len(self.origins)

    def __getitem__(self, index: int | slice | Tensor | None) -> Rays:
        """Index rays along the first dimension; None adds a dimension in front."""
        return self.map(lambda values: values[index])

    def map(self, change: Callable[[Tensor], Tensor]) -> Rays:
        """Apply a function to all parts, which may change their leading dimensions only: ``view`` has no others."""
        parts = (self.origins, self.directions, self.controls, self.view, self.world_directions)
        return Rays(*(None if part is None else change(part) for part in parts))  # type: ignore[arg-type]

    def reshape(self, *shape: int) -> Rays:
        """The same rays with another leading shape, one side of which may be -1."""
        known = len(self.shape)
        return self.map(lambda values: values.reshape(*shape, *values.shape[known:]))

    def to(self, device: torch.device | str) -> Rays:
        """Move all parts to a device, see ``moved``."""
        return self.map(lambda values: moved(values, device))

    def chunks(self, size: int) -> Iterator[Rays]:
        """Yield the flattened rays in chunks of at most ``size``: leading shape (<= size,)."""
        flat = self.reshape(-1)
        for first in range(0, len(flat), size):
            yield flat[first : first + size]


@dataclass(frozen=True)
class NDC:
    """Normalized device coordinates: a frustum from a near plane to infinity, mapped to the cube [-1, 1]^3.

    The apex of the frustum is the scene's origin, its axis the scene's -z. A point ``x, y, z`` of the scene maps to
    ``-x / (half_width * z), -y / (half_height * z), 1 + 2 near / z``: z runs from -1 on the near plane to 1 at
    infinity, linear in disparity. Lines stay lines, so a ray stays a ray: it starts on the near plane, and its ``t``
    runs from 0 there to 1 at infinity.

    Attributes:
        near: distance of the near plane from the origin, scene unit.
        half_width: of the average camera's image, on the plane at unit distance: W / (2 fx).
        half_height: of the average camera's image, on the plane at unit distance: H / (2 fy).

    Source:
        Mildenhall et al. 2020, "NeRF", appendix C (arXiv 2003.08934).

    Example:
        >>> NDC(1.0, 0.5, 0.5).points(torch.tensor([[0.0, 0.0, -1.0], [2.0, 0.0, -4.0]]))
        tensor([[ 0.0000,  0.0000, -1.0000],
                [ 1.0000,  0.0000,  0.5000]])
    """

    near: float
    half_width: float
    half_height: float

    def points(self, positions: Tensor) -> Tensor:
        """Map positions (..., 3) of the scene, with z < 0, to NDC."""
        x, y, z = positions.unbind(-1)
        return torch.stack([-x / (self.half_width * z), -y / (self.half_height * z), 1 + 2 * self.near / z], dim=-1)

    def positions(self, points: Tensor) -> Tensor:
        """Map points (..., 3) of NDC to the scene; points at infinity to very distant ones."""
        x, y, z = points.unbind(-1)
        beyond = z - 1
        z = 2 * self.near / torch.where(beyond.abs() < _INFINITY, -_INFINITY, beyond)
        return torch.stack([-self.half_width * x * z, -self.half_height * y * z, z], dim=-1)

    def rays(self, rays: Rays) -> Rays:
        """Map rays of the scene to NDC; ``world_directions`` are those of the scene.

        The result is undefined for rays that do not run forward, along -z, since these never meet the near plane.
        """
        forward = -rays.directions[..., 2:].clamp(max=-_SIDEWAYS)
        slope = rays.directions[..., :2] / forward
        start = (rays.origins[..., :2] + (self.near + rays.origins[..., 2:]) * slope) / self.near
        one = torch.ones_like(forward)
        origins = torch.cat([self._spread(start), -one], dim=-1)
        directions = torch.cat([self._spread(slope - start), 2 * one], dim=-1)
        return Rays(origins, directions, rays.controls, rays.view, rays.directions)

    def _spread(self, slopes: Tensor) -> Tensor:
        """Divide slopes (..., 2) of x and y by those at the edges of the image."""
        return torch.cat([slopes[..., :1] / self.half_width, slopes[..., 1:] / self.half_height], dim=-1)


def intersect_aabb(rays_o: Tensor, rays_d: Tensor, aabb: Tensor) -> tuple[Tensor, Tensor]:
    """Find where rays enter and leave a box.

    Args:
        rays_o: (N, 3) origins.
        rays_d: (N, 3) directions, any length.
        aabb: (6,) smallest xyz, largest xyz.

    Returns:
        ``t_min`` and ``t_max`` (N,) in multiples of ``rays_d``, at least 0; equal if a ray misses the box.

    Example:
        >>> box = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 1.0])
        >>> intersect_aabb(torch.tensor([[0.5, 0.5, -1.0]]), torch.tensor([[0.0, 0.0, 2.0]]), box)
        (tensor([0.5000]), tensor([1.]))
    """
    inverse = 1.0 / torch.where(rays_d == 0, 1e-12, rays_d)
    low, high = (aabb[:3] - rays_o) * inverse, (aabb[3:] - rays_o) * inverse
    t_min = torch.minimum(low, high).amax(-1).clamp_min(0.0)
    return t_min, torch.maximum(torch.maximum(low, high).amin(-1), t_min)
