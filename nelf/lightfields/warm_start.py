"""Initialize a student's volume from a teacher: occupied and visible cells, densities, colors."""

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
    "Reached",
    "TeacherImages",
    "bake",
    "cells_holding",
    "close_gaps",
    "dense_cells",
    "fill_gaps",
    "find_gaps",
    "light_on",
    "lit_cells",
]

DENSE = 0.03  # optical depth of a voxel, at the density of any sample in it, above which it is occupied
SAMPLES = 8  # in a cell, or around a corner
CHUNK = 2**18  # positions per query of the teacher
LARGEST = 8.0  # magnitude of a density before its sigmoid; gradients vanish beyond it
LIT = 1e-2  # rendering weight, summed over all rays, above which a corner is visible
VIEWS = 150  # cameras, at most, that are used to find the visible cells
RAYS = 2**16  # per batch of ``light_on``
IMAGES = 40  # images of the teacher that are compared with those of its volume
OPAQUE, GAP = 0.5, 0.2  # opacity of a ray that meets a surface, and by how much less the volume may have
FILLED = 0.0  # density before its sigmoid where a surface is missing
NOTHING = 1e-2  # weight of a corner, as the opacity of its samples, below which its color is undefined


class Density(Protocol):
    """A teacher with a density; one with ``rgb(positions, viewdirs)`` gives its color, too."""

    def sigma(self, positions: Tensor) -> Tensor:
        """Density (N,), per scene unit, at positions (N, 3) of the scene."""


@torch.no_grad()
def dense_cells(teacher: Density, aabb: Tensor, shape: tuple[int, ...], among: Tensor | None = None) -> Tensor:
    """Find the cells of a grid that a teacher's density occupies, at any of eight random samples.

    Cells found to be occupied are not sampled again; in a capture, these are most.

    Args:
        teacher: the field.
        aabb: (6,) the box that the grid divides.
        shape: cells along z, y, x.
        among: (D, H, W) bool, the cells to sample; None for all.

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
    """Set each corner's density to the mean of the voxel around it, and its first three features to the mean color.

    Args:
        volume: is changed in place.
        teacher: the field. Without colors, the features stay random.
        aabb: (6,) the box that the volume fills.
        cameras: give the viewing directions, one random camera for each sample, which averages highlights out.
        rows: (K,) bool, the rows to set; None for all.
    """
    voxel = float((aabb[3] - aabb[0]) / (volume.shape[2] - 1))
    origins, color = cameras.c2w[:, :, 3].to(aabb), getattr(teacher, "rgb", None)
    # Weighted color and weight of each corner.
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
        here = places if cameras.ndc is None else cameras.ndc.positions(places)  # as the cameras
        rgb[dense] = color(places[dense], normalize(here - seen, dim=-1)[dense])
        weights = -torch.expm1(-voxel * sigma[..., None])
        weighted[part] = torch.cat([weights * rgb, weights], -1).sum(1)
    if color is not None:
        volume.features[rows, :3] = _spread(weighted, volume)[rows]


def _spread(weighted: Tensor, volume: SparseVolume) -> Tensor:
    """The color (K, 3) of each corner; if empty, that of its neighbors, since interpolation mixes them."""
    grid = torch.zeros(4, *volume.shape.tolist())
    exists = volume.exists
    grid[:, exists] = weighted.T.cpu()
    around = avg_pool3d(grid, 3, stride=1, padding=1)[:, exists].T.to(weighted)
    mixed = torch.where(weighted[:, 3:] > NOTHING, weighted, around)
    return mixed[:, :3] / mixed[:, 3:].clamp(min=1e-6)


class Reached(NamedTuple):
    """The visible cells (D, H, W) bool of a coarse grid, and the side of a cell, scene unit."""

    cells: Tensor
    voxel: float

    def finer(self, shape: tuple[int, ...], voxel: float) -> Tensor:
        """Resample to a grid of ``shape`` (z, y, x) with the same first corner and cells of side ``voxel``."""
        place = [((torch.arange(side) + 0.5) * voxel / self.voxel).long() for side in shape]
        z, y, x = (each.clamp(max=most - 1) for each, most in zip(place, self.cells.shape, strict=True))
        return self.cells[z][:, y][:, :, x]


class TeacherImages:
    """A teacher's images, to compare its volume with; each is rendered at its first use.

    Args:
        teacher: anything with ``render(camera)``.
        cameras: at most 40 of them, evenly spaced, are rendered, at half of their width.
    """

    def __init__(self, teacher: Any, cameras: Camera) -> None:
        self.teacher = teacher
        chosen = torch.linspace(0, len(cameras) - 1, min(IMAGES, len(cameras))).round().long().tolist()
        self._cameras = [cameras[index].resized(max(cameras.width // 2, 1)) for index in chosen]
        self._pictures: list[Rendering] = []

    def with_volume(
        self, volume: SparseVolume, aabb: Tensor, step: float, min_alpha: float
    ) -> Iterator[tuple[Camera, Rendering, RayFeatures]]:
        """Yield each camera, the teacher's image, and a volume composited along the image's rays, flattened.

        Args:
            volume: to be compared.
            aabb: (6,) the box that it fills.
            step: see ``nelf.kernels.lookup``.
            min_alpha: see ``nelf.kernels.lookup``.
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
    """Surface points of the teacher's images that the volume lacks: ``points`` (N, 3), and their ``rgb`` (N, 3)."""

    points: Tensor
    rgb: Tensor


@torch.no_grad()
def find_gaps(volume: SparseVolume, images: TeacherImages, aabb: Tensor, step: float, min_alpha: float) -> Gaps:
    """Find surfaces that the teacher's images show and a volume with its density lacks.

    A radiance field may represent an opaque mirror by a low density behind its surface, which stays below the threshold
    of ``dense_cells`` everywhere.

    Args:
        volume: with the teacher's density.
        images: the teacher's images; without depth or opacity, no gaps are found.
        aabb: (6,) the box that the volume fills.
        step: see ``nelf.kernels.lookup``.
        min_alpha: see ``nelf.kernels.lookup``.
    """
    points, colors = [aabb.new_zeros(0, 3)], [aabb.new_zeros(0, 3)]
    for camera, picture, own in images.with_volume(volume, aabb, step, min_alpha):
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
    """The cells (D, H, W) of a grid over a box that contain points (N, 3), bool, on the CPU."""
    cells = torch.zeros(shape, dtype=torch.bool)
    x, y, z = _cells_of(points, aabb, shape).unbind(-1)
    cells[z, y, x] = True
    return cells


@torch.no_grad()
def close_gaps(
    volume: SparseVolume, images: TeacherImages, aabb: Tensor, cameras: Camera, step: float, min_alpha: float
) -> None:
    """Add the surfaces that ``find_gaps`` finds to a volume.

    Args:
        volume: with the teacher's density; is changed in place.
        images: the teacher's images.
        aabb: (6,) the box that the volume fills.
        cameras: give the viewing directions, see ``bake``.
        step: see ``nelf.kernels.lookup``.
        min_alpha: see ``nelf.kernels.lookup``.
    """
    gaps = find_gaps(volume, images, aabb, step, min_alpha)
    if not len(gaps.points):
        return
    shape = tuple(side - 1 for side in volume.shape.tolist())
    new = volume.extend(corners_of(around(cells_holding(gaps.points, aabb, shape))))
    bake(volume, images.teacher, aabb, cameras, new)
    fill_gaps(volume, gaps, aabb)


@torch.no_grad()
def fill_gaps(volume: SparseVolume, gaps: Gaps, aabb: Tensor) -> None:
    """Give the corners around the points of gaps an alpha of at least a half, and the points' mean color."""
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
    """The indices (N, 3), x first, of the cells that contain points (N, 3); on the CPU."""
    sides = torch.tensor(shape[::-1])
    at = ((points - aabb[:3]) / (aabb[3:] - aabb[:3])).cpu() * sides
    return torch.minimum(at.long().clamp(min=0), sides - 1)


def lit_cells(volume: SparseVolume, aabb: Tensor, cameras: Camera, step: float, min_alpha: float) -> Tensor:
    """Find the cells with a corner that is visible from some of the cameras.

    Args:
        volume: with the densities of the scene.
        aabb: (6,) the box that it fills.
        cameras: at most 150 of them, evenly spaced, are used.
        step: see ``nelf.kernels.lookup``.
        min_alpha: see ``nelf.kernels.lookup``.

    Returns:
        (D - 1, H - 1, W - 1) bool, on the CPU.
    """
    chosen = torch.linspace(0, len(cameras) - 1, min(VIEWS, len(cameras))).round().long()
    return volume.cells_at(light_on(volume.density, volume.index, aabb, cameras[chosen], step, min_alpha) > LIT)


def light_on(density: Tensor, index: Tensor, aabb: Tensor, cameras: Camera, step: float, min_alpha: float) -> Tensor:
    """Sum the rendering weights of each corner of a volume over the rays of cameras.

    Images with even sides have one ray for each 2x2 block of pixels, others one for each pixel.

    Args:
        density: (K,) before the sigmoid, see ``nelf.kernels.lookup``.
        index: (D, H, W) int32, the row of each corner, -1 where it has none.
        aabb: (6,) the box that the volume fills.
        cameras: a batch.
        step: see ``nelf.kernels.lookup``.
        min_alpha: see ``nelf.kernels.lookup``.

    Returns:
        (K,), summed over all rays.
    """
    light = torch.zeros_like(density)
    stride = 2 if cameras.width % 2 == cameras.height % 2 == 0 else 1
    together = max(RAYS * stride**2 // (cameras.width * cameras.height), 1)
    for first in range(0, len(cameras), together):
        rays = cameras[first : first + together].to(aabb.device).rays(stride)
        rays_o, rays_d = rays.origins.reshape(-1, 3).contiguous(), rays.directions.reshape(-1, 3).contiguous()
        # The gradient of a corner's feature is the sum of its rendering weights.
        features = torch.ones_like(light[:, None], requires_grad=True)
        with torch.enable_grad():
            jitter = torch.rand_like(rays_o[:, 0])
            seen = ray_features(density.detach(), features, index, rays_o, rays_d, aabb, jitter, step, min_alpha)
            light += torch.autograd.grad(seen.features.sum(), features)[0][:, 0]
    return light
