"""What a teacher knows of a scene, for the volume of a student: where matter is, and what color it has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d, normalize

from nelf.kernels.lookup import ray_features
from nelf.lightfields.volume import around, corners_of

if TYPE_CHECKING:
    from nelf.cameras import Camera
    from nelf.kernels.lookup import RayFeatures
    from nelf.lightfields.volume import SparseVolume
    from nelf.rendering import Rendering

__all__ = [
    "Density",
    "Gaps",
    "Looks",
    "Reached",
    "bake",
    "cells_holding",
    "close_gaps",
    "dense_cells",
    "fill_gaps",
    "find_gaps",
    "light_on",
    "lit_cells",
]

DENSE = 0.03  # optical depth of a voxel, anywhere in it, from which on it is not empty
SAMPLES = 8  # in a cell, or around a corner
CHUNK = 2**18  # positions that a teacher is asked for together
LARGEST = 8.0  # of a density before its sigmoid; beyond it there is nothing to learn from
LIT = 1e-2  # light, summed over all rays, from which on a corner matters
VIEWS = 150
RAYS = 2**16  # that bring light together
LOOKS = 40  # pictures of the teacher that are compared with those of its volume
OPAQUE, GAP = 0.5, 0.2  # opacities: of a ray that ends somewhere, and by how much less the volume may have
FILLED = 0.0  # of a density before its sigmoid, where a ray has to end
NOTHING = 1e-2  # weight of a corner, as the opacity of its samples, below which its color means nothing


class Density(Protocol):
    """A teacher that can be asked for its density; one that has ``rgb(positions, viewdirs)`` gives its color, too."""

    def sigma(self, positions: Tensor) -> Tensor:
        """Density (N,), per scene unit, at positions (N, 3) of the scene."""


@torch.no_grad()
def dense_cells(teacher: Density, aabb: Tensor, shape: tuple[int, ...], among: Tensor | None = None) -> Tensor:
    """Find the cells of a grid in which a teacher has matter, at any of eight random places.

    A cell that has some is not asked again: in a capture, most have.

    Args:
        teacher: the field.
        aabb: (6,) the box that the grid divides.
        shape: cells along z, y, x.
        among: (D, H, W) bool, the cells to look into; None for all.

    Returns:
        (D, H, W) bool, on the CPU.
    """
    depth, height, width = shape
    sizes = (aabb[3:] - aabb[:3]) / aabb.new_tensor([width, height, depth])
    threshold = DENSE / float(sizes.prod()) ** (1 / 3)
    dense = torch.zeros(depth * height * width, dtype=torch.bool)
    asked = torch.arange(len(dense)) if among is None else among.flatten().nonzero()[:, 0]
    for _ in range(SAMPLES):
        for cells in asked.split(CHUNK):
            corner = torch.stack([cells % width, cells // width % height, cells // (width * height)], -1).to(aabb)
            positions = aabb[:3] + (corner + torch.rand_like(corner)) * sizes
            dense[cells] = (teacher.sigma(positions) > threshold).cpu()
        asked = asked[~dense[asked]]
        if not len(asked):
            break
    return dense.view(shape)


@torch.no_grad()
def bake(volume: SparseVolume, teacher: Density, aabb: Tensor, cameras: Camera, rows: Tensor | None = None) -> None:
    """Give each corner the mean density of the voxel around it, and its color as the first three features.

    Args:
        volume: gets them.
        teacher: the field. Without colors, the features stay random.
        aabb: (6,) the box that the volume fills.
        cameras: from where its colors are seen: each place from random ones of them, so that highlights fade.
        rows: (K,) bool, those that get them; None for all.
    """
    voxel = float((aabb[3] - aabb[0]) / (volume.shape[2] - 1))
    origins, color = cameras.c2w[:, :, 3].to(aabb), getattr(teacher, "rgb", None)
    # Color times weight, and weight, of each corner.
    weighted = torch.zeros(len(volume.density), 4, device=aabb.device)
    rows = torch.ones_like(weighted[:, 0], dtype=torch.bool) if rows is None else rows
    chosen, corners = rows.nonzero()[:, 0], volume.positions(aabb)[rows]
    for part, corner in zip(chosen.split(CHUNK // SAMPLES), corners.split(CHUNK // SAMPLES), strict=True):
        places = corner[:, None] + voxel * (torch.rand(len(corner), SAMPLES, 3, device=aabb.device) - 0.5)
        sigma = teacher.sigma(places.view(-1, 3)).view(-1, SAMPLES)
        volume.density[part] = torch.logit(-torch.expm1(-voxel * sigma.mean(-1))).clamp(-LARGEST, LARGEST)
        if color is None:
            continue
        seen = origins[torch.randint(len(origins), sigma.shape, device=aabb.device)]
        rgb, dense = torch.zeros_like(places), sigma > 0
        here = places if cameras.ndc is None else cameras.ndc.positions(places)  # as where the cameras stand
        rgb[dense] = color(places[dense], normalize(here - seen, dim=-1)[dense])
        weights = -torch.expm1(-voxel * sigma[..., None])
        weighted[part] = torch.cat([weights * rgb, weights], -1).sum(1)
    if color is not None:
        volume.features[rows, :3] = _spread(weighted, volume)[rows]


def _spread(weighted: Tensor, volume: SparseVolume) -> Tensor:
    """The color (K, 3) of each corner; where nothing is, that of its neighbors, since it is mixed with theirs."""
    grid = torch.zeros(4, *volume.shape.tolist())
    exists = volume.exists
    grid[:, exists] = weighted.T.cpu()
    around = avg_pool3d(grid, 3, stride=1, padding=1)[:, exists].T.to(weighted)
    mixed = torch.where(weighted[:, 3:] > NOTHING, weighted, around)
    return mixed[:, :3] / mixed[:, 3:].clamp(min=1e-6)


class Reached(NamedTuple):
    """Cells (D, H, W) of a coarse grid that light reaches, and the side of one, scene unit."""

    cells: Tensor
    voxel: float

    def finer(self, shape: tuple[int, ...], voxel: float) -> Tensor:
        """The cells (z, y, x) of a grid with the same first corner and such voxels whose centers lie in them."""
        place = [((torch.arange(side) + 0.5) * voxel / self.voxel).long() for side in shape]
        z, y, x = (each.clamp(max=most - 1) for each, most in zip(place, self.cells.shape, strict=True))
        return self.cells[z][:, y][:, :, x]


class Looks:
    """A teacher's pictures, which its volume is compared with; each is rendered when it is first asked for.

    Args:
        teacher: something with ``render(camera)``.
        cameras: at most 40 of them, evenly chosen, look, at half of their size.
    """

    def __init__(self, teacher: Any, cameras: Camera) -> None:
        self.teacher = teacher
        chosen = torch.linspace(0, len(cameras) - 1, min(LOOKS, len(cameras))).round().long().tolist()
        self._cameras = [cameras[index].resized(max(cameras.width // 2, 1)) for index in chosen]
        self._pictures: list[Rendering] = []

    def beside(
        self, volume: SparseVolume, aabb: Tensor, step: float, min_alpha: float
    ) -> Iterator[tuple[Camera, Rendering, RayFeatures]]:
        """Give each camera, the teacher's picture, and what lies along the picture's rays, flattened, in a volume.

        Args:
            volume: see ``nelf.kernels.lookup``, and so on.
            aabb: (6,) the box that it fills.
            step: see there.
            min_alpha: see there.
        """
        for index, camera in enumerate(self._cameras):
            camera = camera.to(aabb.device)
            if index == len(self._pictures):
                self._pictures.append(self.teacher.render(camera))
            rays = camera.rays().reshape(-1)
            middle = torch.full_like(rays.origins[:, 0], 0.5)
            rays_o, rays_d = rays.origins.contiguous(), rays.directions.contiguous()
            yield camera, self._pictures[index], volume.composite(rays_o, rays_d, aabb, middle, step, min_alpha)


class Gaps(NamedTuple):
    """Where rays end in the teacher's pictures, but go on in the volume: ``points`` (N, 3) and ``rgb`` (N, 3)."""

    points: Tensor
    rgb: Tensor


@torch.no_grad()
def find_gaps(volume: SparseVolume, looks: Looks, aabb: Tensor, step: float, min_alpha: float) -> Gaps:
    """Find what a teacher shows and a volume with its density does not.

    A radiance field may draw an opaque mirror as fog that lies behind its surface, too thin anywhere to be found by its
    density.

    Args:
        volume: with the teacher's density.
        looks: the teacher's pictures; those without depth or opacity tell nothing.
        aabb: (6,) the box that the volume fills.
        step: see ``nelf.kernels.lookup``.
        min_alpha: likewise.
    """
    points, colors = [aabb.new_zeros(0, 3)], [aabb.new_zeros(0, 3)]
    for camera, picture, own in looks.beside(volume, aabb, step, min_alpha):
        if picture.opacity is None or picture.depth is None:
            break
        opacity, depth = picture.opacity.reshape(-1), picture.depth.reshape(-1)
        gap = ((opacity > OPAQUE) & (own.opacity < opacity - GAP)).nonzero()[:, 0]
        ends = camera.unproject((depth / opacity.clamp(min=OPAQUE)).view_as(picture.depth)).view(-1, 3)[gap]
        inside = ((ends >= aabb[:3]) & (ends <= aabb[3:])).all(-1)  # a teacher may see beyond the box
        points.append(ends[inside])
        colors.append(picture.rgb.reshape(-1, 3)[gap][inside])
    return Gaps(torch.cat(points), torch.cat(colors))


@torch.no_grad()
def cells_holding(points: Tensor, aabb: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The cells (D, H, W) of a grid over a box in which points (N, 3) lie, bool, on the CPU."""
    cells = torch.zeros(shape, dtype=torch.bool)
    x, y, z = _cells_of(points, aabb, shape).unbind(-1)
    cells[z, y, x] = True
    return cells


@torch.no_grad()
def close_gaps(
    volume: SparseVolume, looks: Looks, aabb: Tensor, cameras: Camera, step: float, min_alpha: float
) -> None:
    """Put something where rays end in the teacher's pictures, but not in the volume with its density.

    Args:
        volume: see ``find_gaps``, and so on.
        looks: see there.
        aabb: see there.
        cameras: from where colors are seen, see ``bake``.
        step: see ``find_gaps``.
        min_alpha: see there.
    """
    gaps = find_gaps(volume, looks, aabb, step, min_alpha)
    if not len(gaps.points):
        return
    shape = tuple(side - 1 for side in volume.shape.tolist())
    new = volume.extend(corners_of(around(cells_holding(gaps.points, aabb, shape))))
    bake(volume, looks.teacher, aabb, cameras, new)
    fill_gaps(volume, gaps, aabb)


@torch.no_grad()
def fill_gaps(volume: SparseVolume, gaps: Gaps, aabb: Tensor) -> None:
    """Make the corners around the ends of rays half opaque, in the mean color of these rays."""
    depth, height, width = volume.shape.tolist()
    low = _cells_of(gaps.points, aabb, (depth - 1, height - 1, width - 1))
    sums = torch.zeros(len(volume.density), 4)
    colored = torch.cat([gaps.rgb, torch.ones_like(gaps.rgb[:, :1])], -1).cpu()
    index = volume.index.cpu()
    for corner in range(8):
        x, y, z = (low + torch.tensor([corner & 1, corner >> 1 & 1, corner >> 2])).unbind(-1)
        rows = index[z, y, x].long()
        here = rows >= 0
        sums.index_add_(0, rows[here], colored[here])
    filled = (sums[:, 3] > 0).to(volume.density.device)
    mean = (sums[:, :3] / sums[:, 3:].clamp(min=1.0)).to(volume.density)
    volume.density[filled] = volume.density[filled].clamp(min=FILLED)
    volume.features[filled, :3] = mean[filled]


def _cells_of(points: Tensor, aabb: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The cells (N, 3), x first, in which points (N, 3) lie; on the CPU."""
    sides = torch.tensor(shape[::-1])
    at = ((points - aabb[:3]) / (aabb[3:] - aabb[:3])).cpu() * sides
    return torch.minimum(at.long().clamp(min=0), sides - 1)


def lit_cells(volume: SparseVolume, aabb: Tensor, cameras: Camera, step: float, min_alpha: float) -> Tensor:
    """Find the cells that light reaches from some of the cameras, and their neighbors.

    Args:
        volume: with the densities of the scene.
        aabb: (6,) the box that it fills.
        cameras: at most 150 of them, evenly chosen, look at it.
        step: see ``nelf.kernels.lookup``.
        min_alpha: likewise.

    Returns:
        (D - 1, H - 1, W - 1) bool, on the CPU.
    """
    chosen = torch.linspace(0, len(cameras) - 1, min(VIEWS, len(cameras))).round().long()
    return volume.cells_at(light_on(volume.density, volume.index, aabb, cameras[chosen], step, min_alpha) > LIT)


def light_on(density: Tensor, index: Tensor, aabb: Tensor, cameras: Camera, step: float, min_alpha: float) -> Tensor:
    """The light that each corner of a volume gives to the rays of cameras, a quarter of their pixels each.

    Args:
        density: (K,) see ``nelf.kernels.lookup``, and so on.
        index: (D, H, W) int32.
        aabb: (6,).
        cameras: a batch.
        step: see there.
        min_alpha: see there.

    Returns:
        (K,) summed over all rays.
    """
    light = torch.zeros_like(density)
    stride = 2 if cameras.width % 2 == cameras.height % 2 == 0 else 1
    together = max(RAYS * stride**2 // (cameras.width * cameras.height), 1)
    for first in range(0, len(cameras), together):
        rays = cameras[first : first + together].to(aabb.device).rays(stride)
        rays_o, rays_d = rays.origins.reshape(-1, 3).contiguous(), rays.directions.reshape(-1, 3).contiguous()
        # A feature's gradient is the light that its corner gives to the rays.
        features = torch.ones_like(light[:, None], requires_grad=True)
        with torch.enable_grad():
            jitter = torch.rand_like(rays_o[:, 0])
            seen = ray_features(density.detach(), features, index, rays_o, rays_d, aabb, jitter, step, min_alpha)
            light += torch.autograd.grad(seen.features.sum(), features)[0][:, 0]
    return light
