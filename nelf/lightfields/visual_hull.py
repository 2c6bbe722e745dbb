"""The visual hull of silhouettes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

if TYPE_CHECKING:
    from nelf.cameras import Camera
    from nelf.scene import Silhouettes

__all__ = ["tight_box", "visual_hull"]


@torch.no_grad()
def visual_hull(silhouettes: Silhouettes, aabb: Tensor, candidates: Tensor) -> Tensor:
    """Carve the cells of a box: drop each cell that projects to background alone in any view.

    A view does not carve cells outside its image.

    Args:
        silhouettes: masks and cameras of the views.
        aabb: (6,) smallest xyz, largest xyz of the box, scene unit.
        candidates: (D, H, W) bool, indexed z, y, x: the cells that divide the box; False where known to be empty.

    Returns:
        The candidates that are left, (D, H, W) bool on the CPU.

    Source:
        Laurentini 1994, "The visual hull concept for silhouette-based image understanding".
    """
    low, high = aabb[:3].cpu(), aabb[3:].cpu()
    sizes = (high - low) / torch.tensor(candidates.shape[::-1])
    places = candidates.cpu().nonzero()
    centers = low + (places.flip(-1) + 0.5) * sizes
    radius = 0.5 * float(sizes.norm())
    left = torch.arange(len(centers))
    for index, mask in enumerate(silhouettes.masks):
        left = left[_sees_matter(mask, silhouettes.camera[index].to("cpu"), centers[left], radius)]
    hull = torch.zeros(candidates.shape, dtype=torch.bool)
    hull[tuple(places[left].unbind(-1))] = True
    return hull


def _sees_matter(mask: Tensor, camera: Camera, centers: Tensor, radius: float) -> Tensor:
    """Whether a mask (h, w) bool has matter within ``radius`` of each point (N, 3), or the point is out of view."""
    height, width = mask.shape
    shrink = -(-camera.width // width)
    x, y, t = camera.project(centers)
    column, row = (x / shrink).floor().long(), (y / shrink).floor().long()
    # One neighborhood size for all points, that of the nearest.
    nearest = float(t[t > 0].min()) if (t > 0).any() else 1.0
    focal = float(camera.intrinsics[:2].max()) / shrink
    reach = min(math.ceil(radius * focal / nearest), max(camera.width, camera.height)) + 1
    near = max_pool2d(mask[None].float(), (1, 2 * reach + 1), 1, (0, reach))
    near = max_pool2d(near, (2 * reach + 1, 1), 1, (reach, 0))[0] > 0
    seen = (t > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    matter = ~seen
    matter[seen] = near[row[seen], column[seen]]
    return matter


def tight_box(hull: Tensor, aabb: Tensor) -> Tensor:
    """Shrink a box to its occupied cells, with a margin of one cell.

    Args:
        hull: (D, H, W) bool, indexed z, y, x.
        aabb: (6,) the box that the cells divide.

    Returns:
        (6,) the smaller box; ``aabb`` itself where no cell is occupied.
    """
    if not hull.any():
        return aabb
    cells = torch.tensor(hull.shape[::-1])
    corners = hull.nonzero().flip(-1)  # x, y, z
    first = (corners.amin(0) - 1).clamp(min=0).to(aabb)
    last = torch.minimum(corners.amax(0) + 2, cells).to(aabb)
    size = (aabb[3:] - aabb[:3]) / cells.to(aabb)
    return torch.cat([aabb[:3] + first * size, aabb[:3] + last * size])
