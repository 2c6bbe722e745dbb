"""Paths and random poses for forward-facing scenes, whose cameras are all on one side of the content.

Such scenes have no center to orbit; the reference is the average camera: the mean position, view axis and up direction.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from nelf.cameras import Camera
from nelf.paths.flights import look_at

__all__ = ["average_pose", "focus_distance", "llff_spiral", "random_forward"]

SPIRAL_POSES = 120
"""Poses of LLFF's paths."""

_ROTATIONS, _Z_RATE = 2, 0.5
_NEARNESS = 0.25  # weight of the near end in the disparity of the target
_FAR = 5.0  # factor on the farthest z-depth that stands for infinity
_ENLARGED = 1.1  # factor on the sides of the boxes of random poses


def average_pose(c2w: Tensor) -> Tensor:
    """The average of poses.

    Args:
        c2w: (N, 3, 4) poses.

    Returns:
        (3, 4): the mean position, and a rotation with the mean back (z axis) and an up axis as near to the mean as
        possible.

    Source:
        LLFF, ``poses_avg`` (Mildenhall et al. 2019, arXiv 1905.00889).
    """
    middle = c2w[:, :, 3].mean(0)
    return look_at(middle, middle - c2w[:, :, 2].mean(0), c2w[:, :, 1].mean(0))


def llff_spiral(cameras: Camera, near: float, far: float, n: int = SPIRAL_POSES) -> Camera:
    """The path of LLFF's and NeRF's videos of forward-facing scenes: a spiral in front of the average camera.

    Two turns, in which the camera moves once forward and back; along each axis, its amplitude is the 90th percentile of
    the given cameras' distances from the average one. All look at one point, between the near end and infinity in
    disparity.

    Args:
        cameras: a batch of cameras of a static scene.
        near: z-depth of the nearest content, scene unit; NeRF takes 0.9 times the smallest bound.
        far: z-depth of the farthest content, scene unit.
        n: number of poses.

    Returns:
        A batch of n pinholes with the intrinsics of the first given one. The last is one step before the first.

    Source:
        LLFF, ``render_path_spiral`` with the arguments of NeRF's ``load_llff_data``.
    """
    average = average_pose(cameras.c2w.double())
    up = torch.nn.functional.normalize(cameras.c2w.double()[:, :, 1].mean(0), dim=0)
    across = (cameras.c2w[:, :, 3].double() - average[:, 3]) @ average[:, :3]
    radius = torch.quantile(across.abs(), 0.9, dim=0)
    distance = focus_distance(near, far)
    angle = 2.0 * torch.pi * _ROTATIONS * torch.arange(n, dtype=torch.float64, device=up.device) / n
    way = torch.stack([angle.cos(), -angle.sin(), -(_Z_RATE * angle).sin()], dim=-1) * radius
    target = average[:, 3] - distance * average[:, 2]
    return _at(cameras, look_at(average[:, 3] + way @ average[:, :3].mT, target, up))


def focus_distance(near: float, far: float) -> float:
    """The z-depth of the target of LLFF's paths, between the near end and infinity in disparity.

    Args:
        near: z-depth of the nearest content, scene unit.
        far: z-depth of the farthest content, scene unit; may be infinite.
    """
    return 1.0 / (_NEARNESS / near + (1.0 - _NEARNESS) / (_FAR * far))


def random_forward(cameras: Camera, n: int, seed: int = 0) -> Camera:
    """Random cameras in front of a forward-facing scene.

    Positions are uniform in the bounding box of the given ones, backs (the cameras' z axes) in that of the given backs,
    both boxes enlarged by a tenth; up is the mean of the given up axes.

    Args:
        cameras: a batch of cameras of a static scene, such as ``scene.train.camera``.
        n: number of new cameras.
        seed: of the random draws; the first m of n cameras do not depend on n.

    Returns:
        A batch of n pinholes with the intrinsics of the first given one.

    Source:
        MobileR2L, ``rand_FF_poses`` (Cao et al. 2023, arXiv 2212.08057); R2L's are the same, except that its boxes are
        aligned with the average camera's axes.
    """
    c2w = cameras.c2w.double()
    origin = _within(c2w[:, :, 3], n, seed, 0)
    back = torch.nn.functional.normalize(_within(c2w[:, :, 2], n, seed, 3), dim=-1)
    return _at(cameras, look_at(origin, origin - back, c2w[:, :, 1].mean(0)))


def _at(cameras: Camera, c2w: Tensor) -> Camera:
    """Pinholes with the intrinsics of the first camera at poses (n, 3, 4)."""
    intrinsics = cameras.intrinsics[:1].expand(len(c2w), 4)
    return replace(cameras.pinhole(), c2w=c2w.to(cameras.c2w), intrinsics=intrinsics, controls=None, view=None)


def _within(points: Tensor, n: int, seed: int, stream: int) -> Tensor:
    """(n, 3) points, uniform in the enlarged bounding box of ``points`` (N, 3), each coordinate from its own stream."""
    low, high = points.aminmax(dim=0)
    streams = [np.random.default_rng((seed, stream + axis)).uniform(-1.0, 1.0, n) for axis in range(3)]
    unit = torch.from_numpy(np.stack(streams, axis=-1)).to(points)
    return (low + high) / 2 + _ENLARGED * (high - low) / 2 * unit
