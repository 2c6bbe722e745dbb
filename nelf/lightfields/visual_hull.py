"""The visual hull of a split: where its silhouettes allow matter."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from nelf.data.scene import background_color

if TYPE_CHECKING:
    from nelf.cameras import Camera
    from nelf.data.scene import Split

__all__ = ["tight_box", "visual_hull"]

THRESHOLD = 12  # of 255; below it lies what a teacher's fog leaves
MASK_WIDTH = 160
MAX_VIEWS = 100


@torch.no_grad()
def visual_hull(split: Split, aabb: Tensor, cells: int | tuple[int, int, int], background: str) -> Tensor:
    """Carve a box: a cell stays if no view looks at the bare background through all of it.

    Matter is where a view has alpha or, where all of it is opaque, another colour than the background. Cells
    outside a view's image stay as far as that view is concerned.

    Args:
        split: views; at most a hundred of them, evenly chosen, are looked at.
        aabb: (6,) smallest xyz, largest xyz of the box, scene unit.
        cells: G, cells along each side of the box.
        background: named background of opaque views.

    Returns:
        (G, G, G) bool, indexed z, y, x.

    Source:
        Laurentini 1994, "The visual hull concept for silhouette-based image understanding".
    """
    low, high = aabb[:3].cpu(), aabb[3:].cpu()
    shape = (cells, cells, cells) if isinstance(cells, int) else cells
    z, y, x = torch.meshgrid(*((torch.arange(side) + 0.5) / side for side in shape), indexing="ij")
    centres = low + torch.stack([x, y, z], -1).reshape(-1, 3) * (high - low)
    radius = 0.5 * float(((high - low) / torch.tensor(shape[::-1])).norm())
    left = torch.arange(len(centres))
    for index in torch.linspace(0, len(split) - 1, min(MAX_VIEWS, len(split))).round().long().tolist():
        mask = _silhouette(split.images[index], background)
        left = left[_sees_matter(mask, split.camera[index].to("cpu"), centres[left], radius)]
    hull = torch.zeros(len(centres), dtype=torch.bool)
    hull[left] = True
    return hull.view(shape)


def _silhouette(image: np.ndarray, background: str) -> Tensor:
    """Where one view (H, W, 3|4) uint8 shows matter, (H, W) bool."""
    if image.shape[-1] == 4 and image[..., 3].min() < 255:
        return torch.from_numpy(image[..., 3] > THRESHOLD)
    color = (background_color(background) * 255).short()
    return ((torch.from_numpy(image[..., :3].astype(np.int16)) - color).abs() > THRESHOLD).any(-1)


def _sees_matter(mask: Tensor, camera: Camera, centres: Tensor, radius: float) -> Tensor:
    """Whether a view (H, W) bool sees matter within ``radius`` of each of (N, 3) points, or does not see the point."""
    shrink = max(1, camera.width // MASK_WIDTH)
    local = (centres - camera.c2w[:, 3]) @ camera.c2w[:, :3]
    t = -local[:, 2]
    fx, fy, cx, cy = (camera.intrinsics / shrink).tolist()
    column = (cx + fx * local[:, 0] / t).floor().long()
    row = (cy - fy * local[:, 1] / t).floor().long()
    # One width of the neighbourhood for all points, that of the nearest.
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
        hull: (G, G, G) bool, indexed z, y, x.
        aabb: (6,) the box that the cells divide.

    Returns:
        (6,) the smaller box; ``aabb`` itself where no cell is occupied.
    """
    if not hull.any():
        return aabb
    cells = hull.shape[0]
    corners = hull.nonzero().flip(-1)  # x, y, z
    first = (corners.amin(0) - 1).clamp(min=0).to(aabb)
    last = (corners.amax(0) + 2).clamp(max=cells).to(aabb)
    size = (aabb[3:] - aabb[:3]) / cells
    return torch.cat([aabb[:3] + first * size, aabb[:3] + last * size])
