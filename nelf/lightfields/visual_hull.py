"""The visual hull of a split: where its silhouettes allow matter."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

if TYPE_CHECKING:
    from nelf.cameras import Camera
    from nelf.scene import Split

__all__ = ["tight_box", "visual_hull"]

OPAQUE = 255
THRESHOLD = 12  # of 255; below it lies what a teacher's fog leaves
MASK_WIDTH = 160
MAX_VIEWS = 100


@torch.no_grad()
def visual_hull(split: Split, aabb: Tensor, candidates: Tensor) -> Tensor:
    """Carve a box: a cell stays if no view sees past everything through all of it.

    Only alpha tells what a view sees past: in an opaque picture white may be an object. Cells outside a view's image
    stay as far as that view is concerned.

    Args:
        split: views; at most a hundred of them, evenly chosen, are looked at.
        aabb: (6,) smallest xyz, largest xyz of the box, scene unit.
        candidates: (D, H, W) bool, indexed z, y, x: the cells that divide the box; False where there is nothing anyway.

    Returns:
        The candidates that stay, (D, H, W) bool on the CPU.

    Source:
        Laurentini 1994, "The visual hull concept for silhouette-based image understanding".
    """
    low, high = aabb[:3].cpu(), aabb[3:].cpu()
    sizes = (high - low) / torch.tensor(candidates.shape[::-1])
    places = candidates.cpu().nonzero()
    centers = low + (places.flip(-1) + 0.5) * sizes
    radius = 0.5 * float(sizes.norm())
    left = torch.arange(len(centers))
    for index in torch.linspace(0, len(split) - 1, min(MAX_VIEWS, len(split))).round().long().tolist():
        image = split.images[index]
        if image.shape[-1] == 4 and image[..., 3].min() < OPAQUE:
            mask = torch.from_numpy(image[..., 3] > THRESHOLD)
            left = left[_sees_matter(mask, split.camera[index].to("cpu"), centers[left], radius)]
    hull = torch.zeros(candidates.shape, dtype=torch.bool)
    hull[tuple(places[left].unbind(-1))] = True
    return hull


def _sees_matter(mask: Tensor, camera: Camera, centers: Tensor, radius: float) -> Tensor:
    """Whether a view (H, W) bool sees matter within ``radius`` of each of (N, 3) points, or does not see the point."""
    shrink = max(1, camera.width // MASK_WIDTH)
    local = (centers - camera.c2w[:, 3]) @ camera.c2w[:, :3]
    t = -local[:, 2]
    fx, fy, cx, cy = (camera.intrinsics / shrink).tolist()
    column = (cx + fx * local[:, 0] / t).floor().long()
    row = (cy - fy * local[:, 1] / t).floor().long()
    # One width of the neighborhood for all points, that of the nearest.
    nearest = float(t[t > 0].min()) if (t > 0).any() else 1.0
    reach = min(math.ceil(radius * max(fx, fy) / nearest), max(mask.shape)) + 1
    small = max_pool2d(mask[None].float(), shrink, ceil_mode=True)
    small = max_pool2d(small, (1, 2 * reach + 1), 1, (0, reach))
    small = max_pool2d(small, (2 * reach + 1, 1), 1, (reach, 0))[0] > 0
    height, width = small.shape
    seen = (t > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    matter = ~seen
    matter[seen] = small[row[seen], column[seen]]
    return matter


def tight_box(hull: Tensor, aabb: Tensor) -> Tensor:
    """Shrink a box to the occupied cells in it, with one cell of margin.

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
