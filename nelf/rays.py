"""Rays: what every model takes. Axes, pixels and units as in ``nelf.cameras``.

A point of a ray is ``origins + t * directions``. Directions have camera z = -1, so ``t`` is z-depth; kernels know them
as ``rays_o`` and ``rays_d``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Rays", "intersect_aabb"]


@dataclass(frozen=True, eq=False)
class Rays:
    """Rays of any leading shape.

    Attributes:
        origins: (..., 3), scene unit.
        directions: (..., 3), camera z = -1.
        controls: (..., K) in [0, 1], the first of which is the time; or None for a static scene.
        view: (...,) int64, the training view that a ray belongs to, for what is learned per image; or None.
        world_directions: (..., 3) directions in the scene, where ``directions`` are those of a warped space; or None.
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
        """Pick rays along the first dimension; None adds one in front."""
        return self.map(lambda values: values[index])

    def map(self, change: Callable[[Tensor], Tensor]) -> Rays:
        """Apply a function of the leading dimensions to all parts; ``view`` has no last one of its own."""
        parts = (self.origins, self.directions, self.controls, self.view, self.world_directions)
        return Rays(*(None if part is None else change(part) for part in parts))  # type: ignore[arg-type]

    def reshape(self, *shape: int) -> Rays:
        """Rays of another leading shape, one of whose sides may be -1."""
        known = len(self.shape)
        return self.map(lambda values: values.reshape(*shape, *values.shape[known:]))

    def to(self, device: torch.device | str) -> Rays:
        """Move all parts to a device."""
        return self.map(lambda values: values.to(device))

    def chunks(self, size: int) -> Iterator[Rays]:
        """The rays one after the other, at most ``size`` of them together: leading shape (<= size,)."""
        flat = self.reshape(-1)
        for first in range(0, len(flat), size):
            yield flat[first : first + size]


def intersect_aabb(rays_o: Tensor, rays_d: Tensor, aabb: Tensor) -> tuple[Tensor, Tensor]:
    """Find where rays enter and leave a box.

    Args:
        rays_o: (N, 3) origins.
        rays_d: (N, 3) directions, any length.
        aabb: (6,) smallest xyz, largest xyz.

    Returns:
        ``t_min`` and ``t_max`` (N,) in multiples of ``rays_d``, not before the origin; equal where a ray misses.

    Example:
        >>> box = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 1.0])
        >>> intersect_aabb(torch.tensor([[0.5, 0.5, -1.0]]), torch.tensor([[0.0, 0.0, 2.0]]), box)
        (tensor([0.5000]), tensor([1.]))
    """
    inverse = 1.0 / torch.where(rays_d == 0, 1e-12, rays_d)
    low, high = (aabb[:3] - rays_o) * inverse, (aabb[3:] - rays_o) * inverse
    t_min = torch.minimum(low, high).amax(-1).clamp_min(0.0)
    return t_min, torch.maximum(torch.maximum(low, high).amin(-1), t_min)
