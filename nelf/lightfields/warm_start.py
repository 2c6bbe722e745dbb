"""What a teacher knows of a scene, for the volume of a student: where matter is, and what color it has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d, normalize

from nelf.kernels.lookup import ray_features

if TYPE_CHECKING:
    from nelf.cameras import Camera
    from nelf.lightfields.volume import SparseVolume

__all__ = ["Density", "bake", "dense_cells", "lit_cells"]

DENSE = 0.03  # optical depth of a voxel, anywhere in it, from which on it is not empty
SAMPLES = 8  # in a cell, or around a corner
CHUNK = 2**18  # positions that a teacher is asked for together
LARGEST = 8.0  # of a density before its sigmoid; beyond it there is nothing to learn from
LIT = 1e-2  # light, summed over all rays, from which on a corner matters
VIEWS = 150
NOTHING = 1e-2  # weight of a corner, as the opacity of its samples, below which its color means nothing


class Density(Protocol):
    """A teacher that can be asked for its density; one that has ``rgb(positions, viewdirs)`` gives its color, too."""

    def sigma(self, positions: Tensor) -> Tensor:
        """Density (N,), per scene unit, at positions (N, 3) of the scene."""


@torch.no_grad()
def dense_cells(teacher: Density, aabb: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Find the cells of a grid in which a teacher has matter, at any of a few random places.

    Args:
        teacher: the field.
        aabb: (6,) the box that the grid divides.
        shape: cells along z, y, x.

    Returns:
        (D, H, W) bool, on the CPU.
    """
    depth, height, width = shape
    sizes = (aabb[3:] - aabb[:3]) / aabb.new_tensor([width, height, depth])
    threshold = DENSE / float(sizes.prod()) ** (1 / 3)
    dense = torch.zeros(depth * height * width, dtype=torch.bool)
    for cells in torch.arange(len(dense)).split(CHUNK // SAMPLES):
        corner = torch.stack([cells % width, cells // width % height, cells // (width * height)], -1).to(aabb)
        inside = torch.rand(len(cells), SAMPLES, 3, device=aabb.device)
        positions = aabb[:3] + (corner[:, None] + inside) * sizes
        dense[cells] = (teacher.sigma(positions.view(-1, 3)).view(-1, SAMPLES).amax(-1) > threshold).cpu()
    return dense.view(shape)


@torch.no_grad()
def bake(volume: SparseVolume, teacher: Density, aabb: Tensor, cameras: Camera) -> None:
    """Give each corner the mean density of the voxel around it, and its color as the first three features.

    Args:
        volume: a new one.
        teacher: the field. Without colors, the features stay random.
        aabb: (6,) the box that the volume fills.
        cameras: from where its colors are seen: each place from random ones of them, so that highlights fade.
    """
    voxel = float((aabb[3] - aabb[0]) / (volume.shape[2] - 1))
    origins, color = cameras.c2w[:, :, 3].to(aabb), getattr(teacher, "rgb", None)
    # Color times weight, and weight, of each corner.
    weighted = torch.zeros(len(volume.density), 4, device=aabb.device)
    rows = torch.arange(len(weighted), device=aabb.device)
    for part, corner in zip(rows.split(CHUNK // SAMPLES), volume.positions(aabb).split(CHUNK // SAMPLES), strict=True):
        places = corner[:, None] + voxel * (torch.rand(len(corner), SAMPLES, 3, device=aabb.device) - 0.5)
        sigma = teacher.sigma(places.view(-1, 3)).view(-1, SAMPLES)
        volume.density[part] = torch.logit(-torch.expm1(-voxel * sigma.mean(-1))).clamp(-LARGEST, LARGEST)
        if color is None:
            continue
        seen = origins[torch.randint(len(origins), sigma.shape, device=aabb.device)]
        rgb, dense = torch.zeros_like(places), sigma > 0
        rgb[dense] = color(places[dense], normalize(places - seen, dim=-1)[dense])
        weights = -torch.expm1(-voxel * sigma[..., None])
        weighted[part] = torch.cat([weights * rgb, weights], -1).sum(1)
    if color is not None:
        volume.features[:, :3] = _spread(weighted, volume)


def _spread(weighted: Tensor, volume: SparseVolume) -> Tensor:
    """The color (K, 3) of each corner; where nothing is, that of its neighbors, since it is mixed with theirs."""
    grid = torch.zeros(4, *volume.shape.tolist())
    exists = volume.exists
    grid[:, exists] = weighted.T.cpu()
    around = avg_pool3d(grid, 3, stride=1, padding=1)[:, exists].T.to(weighted)
    mixed = torch.where(weighted[:, 3:] > NOTHING, weighted, around)
    return mixed[:, :3] / mixed[:, 3:].clamp(min=1e-6)


def lit_cells(volume: SparseVolume, aabb: Tensor, cameras: Camera, step: float, min_alpha: float) -> Tensor:
    """Find the cells that light reaches from some of the cameras, and their neighbors.

    Args:
        volume: with the densities of the scene.
        aabb: (6,) the box that it fills.
        cameras: at most 150 of them, evenly chosen, look at it, a quarter of their pixels each.
        step: see ``nelf.kernels.lookup``.
        min_alpha: likewise.

    Returns:
        (D - 1, H - 1, W - 1) bool, on the CPU.
    """
    light = torch.zeros_like(volume.density)
    stride = 2 if cameras.width % 2 == cameras.height % 2 == 0 else 1
    for index in torch.linspace(0, len(cameras) - 1, min(VIEWS, len(cameras))).round().long().tolist():
        rays = cameras[index].to(aabb.device).rays(stride)
        rays_o, rays_d = rays.origins.reshape(-1, 3).contiguous(), rays.directions.reshape(-1, 3).contiguous()
        # A feature's gradient is the light that its corner gives to the rays.
        features = torch.ones_like(light[:, None], requires_grad=True)
        with torch.enable_grad():
            seen = ray_features(
                volume.density.detach(), features, volume.index, rays_o, rays_d, aabb, torch.rand_like(rays_o[:, 0]),
                step, min_alpha,
            )  # fmt: skip
            light += torch.autograd.grad(seen.features.sum(), features)[0][:, 0]
    return volume.cells_at(light > LIT)
