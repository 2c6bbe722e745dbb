"""What a teacher knows of a scene, for the volume of a student: where matter is, and what color it has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import max_pool3d

from nelf.kernels.ray_features import ray_features

if TYPE_CHECKING:
    from nelf.cameras import Camera
    from nelf.lightfields.volume import SparseVolume

DENSE = 0.03  # optical depth of a voxel, anywhere in it, from which on it is not empty
SAMPLES = 4
BAKE_SAMPLES = 8
CHUNK = 2**18
RAW = 8.0  # of the density, before its softplus: largest size that is taken from a teacher
SEEN = 1e-2  # light, summed over all views, from which on a corner matters
VIEWS = 150


@torch.no_grad()
def dense_cells(teacher: Any, aabb: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Find the cells in which a teacher has matter."""
    d, h, w = shape
    sizes = (aabb[3:] - aabb[:3]) / aabb.new_tensor([w, h, d])
    voxel = float(sizes.prod()) ** (1 / 3)
    out = torch.zeros(d * h * w, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    for cells in torch.arange(d * h * w).split(CHUNK // SAMPLES):
        corner = torch.stack([cells % w, cells // w % h, cells // (w * h)], -1)
        inside = torch.rand(len(cells), SAMPLES, 3, generator=generator)
        positions = aabb[:3] + (corner[:, None] + inside) * sizes
        sigma = teacher.sigma(positions.view(-1, 3)).view(-1, SAMPLES)
        out[cells] = sigma.amax(-1) * voxel > DENSE
    return out.view(d, h, w)


@torch.no_grad()
def bake(volume: SparseVolume, teacher: Any, aabb: Tensor, cameras: Camera) -> None:
    """Start a volume from a teacher: density and, in the first three features, color."""
    positions = volume.positions(aabb)
    voxel = float((aabb[3] - aabb[0]) / (volume.shape[2] - 1))
    origins = cameras.c2w[:, :, 3]
    generator = torch.Generator().manual_seed(0)
    at = 0
    for chunk in positions.split(CHUNK // BAKE_SAMPLES):
        inside = torch.rand(len(chunk), BAKE_SAMPLES, 3, generator=generator) - 0.5
        points = (chunk[:, None] + voxel * inside).view(-1, 3)
        sigma = teacher.sigma(points)
        from_ = origins[torch.randint(len(origins), (len(points),), generator=generator)]
        viewdirs = torch.nn.functional.normalize(points - from_, dim=-1)
        dense = sigma > 0
        rgb = torch.zeros(len(points), 3)
        if dense.any():
            rgb[dense] = teacher.rgb(points[dense], viewdirs[dense])
        weight = -torch.expm1(-sigma * voxel).view(-1, BAKE_SAMPLES, 1) + 1e-6
        color = (weight * rgb.view(-1, BAKE_SAMPLES, 3)).sum(1) / weight.sum(1)
        tau = sigma.view(-1, BAKE_SAMPLES).mean(-1) * voxel
        raw = torch.logit(-torch.expm1(-tau)).clamp(-RAW, RAW)
        volume.density[at : at + len(chunk)] = raw
        volume.features[at : at + len(chunk), :3] = color
        at += len(chunk)


def visible_cells(network: Any, cameras: Camera) -> Tensor:
    """Find the cells that light reaches from some of the cameras, and their neighbors."""
    volume = network.volume
    light = torch.zeros(len(volume.density), 1)
    for index in torch.linspace(0, len(cameras) - 1, min(VIEWS, len(cameras))).round().long().tolist():
        rays = cameras[index].rays(stride=2)
        one = torch.ones_like(light, requires_grad=True)
        with torch.enable_grad():
            out = ray_features(
                volume.density.detach(), one, volume.index, rays.rays_o.reshape(-1, 3).contiguous(), rays.rays_d.reshape(-1, 3).contiguous(),
                network.aabb, torch.rand(rays.rays_d.shape[:2]).flatten(), network.voxel, 3e-3,
            ).features.sum()
        light += torch.autograd.grad(out, one)[0]
    seen = torch.zeros(volume.exists.shape)
    seen[volume.exists] = (light[:, 0] > SEEN).float()
    cells = max_pool3d(seen[None], 2, stride=1)[0]  # cells with a seen corner
    return volume.cells & (cells > 0)
