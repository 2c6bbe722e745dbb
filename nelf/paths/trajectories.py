"""The arrangement of given cameras, and what they look at. Poses and angles as in ``nelf.paths``."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nelf.cameras import Camera
from nelf.paths.flights import look_at, spherical
from nelf.paths.forward import average_pose, focus_distance

Trajectory = Literal["orbit", "forward", "between"]
"""The arrangement of a scene's cameras, see ``trajectory``."""

AROUND = 120.0
"""The gap in azimuth, degrees, from which on cameras do not surround the target."""

_LEVEL = np.sin(np.deg2rad(5.0))  # largest RMS z of the right axes of level cameras
_UPRIGHT = 0.5  # smallest cosine between +z and the mean of up axes, since cameras that look along z are level, too
_PARALLEL = 0.17  # second singular value of N right axes, over sqrt(N), of parallel ones, as in nerfstudio
_ROLL = 30.0  # degrees; smaller rolls occur in hand-held captures
_AIMED, _EXACT = 0.25, 0.01  # distances of view axes from their common point, as fractions of its z-depth
_ALIKE = 30.0  # degrees between view axes and their mean


class Viewpoints(NamedTuple):
    """Spherical coordinates of N cameras around a target.

    Upright cameras that look at the target are at ``target + radius * back``, where ``back`` is their z axis.

    Attributes:
        target: (3,) float64, the point that they look at.
        up: (3,) float64 unit vector, the up direction in their images, see ``up_axis``.
        azimuth: (N,) degrees around ``up``, see ``frame``.
        elevation: (N,) degrees above the plane perpendicular to ``up``.
        radius: (N,) distance from ``target``, scene unit.
    """

    target: np.ndarray
    up: np.ndarray
    azimuth: np.ndarray
    elevation: np.ndarray
    radius: np.ndarray

    def poses(self, azimuth: np.ndarray, elevation: np.ndarray, radius: np.ndarray) -> Tensor:
        """(M, 3, 4) float32 poses at angles (M,) and distances (M,), looking toward the target, upright."""
        c2w = torch.from_numpy(frame(self.up)) @ spherical(azimuth, elevation, np.ones_like(radius)).double()
        c2w[:, :, 3] = torch.from_numpy(self.target + radius[:, None] * c2w[:, :, 2].numpy())
        return c2w.float()


def viewpoints(
    camera: Camera, trajectory: Trajectory = "orbit", depth: tuple[float, float] | None = None
) -> Viewpoints:
    """The viewpoints of cameras around their target.

    The target is the point nearest to all view axes in the least-squares sense. ``forward`` cameras have almost
    parallel axes, so their target is on the average camera's axis, at LLFF's focus distance. For ``between`` cameras
    whose axes do not meet in front of them, as inside a room, it is the mean of their positions.

    Args:
        camera: a batch of cameras.
        trajectory: their arrangement.
        depth: z-depths of the nearest and the farthest content, scene unit, for ``forward`` cameras.
    """
    c2w = camera.c2w.cpu().double().numpy()
    back, position = c2w[:, :, 2], c2w[:, :, 3]
    target, miss = focus(c2w)
    if trajectory == "forward" and depth is not None:
        middle = average_pose(camera.c2w.cpu().double()).numpy()
        target = middle[:, 3] - focus_distance(*depth) * middle[:, 2]
    pivots = trajectory == "between" and not np.median(miss) < _AIMED
    target = position.mean(0) if pivots else target
    offset, up = position - target, up_axis(camera)
    x, y, z = ((back if pivots else offset) @ frame(up)).T
    azimuth, elevation = np.rad2deg(np.arctan2(y, x)), np.rad2deg(np.arctan2(z, np.hypot(x, y)))
    radius = np.abs((offset * back).sum(-1)) if pivots else np.linalg.norm(offset, axis=-1)
    return Viewpoints(target, up, azimuth, elevation, radius)


def trajectory(camera: Camera) -> Trajectory:
    """Classify the arrangement of cameras, which decides where new ones may be.

    Args:
        camera: a batch of cameras, such as those of the training views.

    Returns:
        ``orbit``: without roll, and either their view axes meet and no third of the circle is left out, or the axes
        meet as exactly as generated ones; ``forward``: view axes within 30 degrees of their mean; ``between``: neither,
        as in a hand-held capture, so that only the region between the cameras has been seen.
    """
    miss = focus(camera.c2w.cpu().double().numpy())[1]
    meet = np.median(miss) < _AIMED and covered_arc(viewpoints(camera).azimuth, AROUND)[1] == 360.0
    if (meet or miss.max() < _EXACT) and rolled(camera) < _ROLL:
        return "orbit"
    back = camera.c2w[:, :, 2].double()
    cosine = back @ torch.nn.functional.normalize(back.mean(0), dim=0)
    return "forward" if float(cosine.min()) > np.cos(np.deg2rad(_ALIKE)) else "between"


def up_axis(camera: Camera) -> np.ndarray:
    """The up direction in the images of cameras: (3,) float64, unit length.

    It is +z if the cameras are, on average, level to 5 degrees and upright to 60 degrees. Else it is the direction most
    nearly perpendicular to their right axes, or, if these are parallel, the mean of their up axes. If that is
    undefined, it is +z.

    Args:
        camera: a batch of cameras.

    Source:
        nerfstudio, ``auto_orient_and_center_poses`` (method "vertical"), except for the first case.
    """
    c2w = camera.c2w.cpu().double().numpy()
    right, mean = c2w[:, :, 0], c2w[:, :, 1].mean(0)
    if mean[2] > _UPRIGHT * np.linalg.norm(mean) and np.sqrt((right[:, 2] ** 2).mean()) < _LEVEL:
        return np.array([0.0, 0.0, 1.0])
    _, lengths, axes = np.linalg.svd(right, full_matrices=False) if len(right) > 2 else (None, [0, 0], right[:1])
    up = np.copysign(1.0, axes[2] @ mean) * axes[2] if lengths[1] > _PARALLEL * len(right) ** 0.5 else mean
    up = up - (up @ axes[0]) * axes[0]
    length = np.linalg.norm(up)
    return up / length if length > 1e-6 else np.array([0.0, 0.0, 1.0])


def frame(up: np.ndarray) -> np.ndarray:
    """(3, 3) axes, as columns, in which angles are measured: azimuth 0, azimuth 90 degrees, and ``up`` (3,).

    Azimuth 0 is +x, made perpendicular to ``up``; it is +y if ``up`` is within 26 degrees of +-x.
    """
    first = np.array([0.0, 1.0, 0.0] if abs(up[0]) > 0.9 else [1.0, 0.0, 0.0])
    first = first - (first @ up) * up
    first /= np.linalg.norm(first)
    return np.column_stack([first, np.cross(up, first), up])


def rolled(camera: Camera) -> float:
    """The mean roll of cameras about their view axes, relative to ``up_axis``, degrees, without sign.

    Args:
        camera: a batch of cameras.
    """
    position, back = camera.c2w[:, :, 3], camera.c2w[:, :, 2]
    upright = look_at(position, position - back, torch.from_numpy(up_axis(camera)))
    cosine = (upright[:, :, 0] * camera.c2w[:, :, 0]).sum(-1).clamp(-1.0, 1.0)
    return float(torch.rad2deg(torch.acos(cosine)).mean())


def covered_arc(azimuth: np.ndarray, gap: float) -> tuple[float, float]:
    """Start and width, degrees, of the arc of azimuths: the full circle unless a gap of ``gap`` or more is left out."""
    ordered = np.sort(azimuth)
    gaps = np.diff(np.append(ordered, ordered[0] + 360.0))
    widest = int(gaps.argmax())
    if gaps[widest] < gap:
        return 0.0, 360.0
    return float(ordered[(widest + 1) % len(ordered)]), float(360.0 - gaps[widest])


def focus(c2w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The point at which the view axes of cameras meet.

    Args:
        c2w: (N, 3, 4) float64 poses.

    Returns:
        (3,) point nearest to all axes in the least-squares sense, and each axis's distance from it (N,) as a fraction
        of the point's z-depth, infinite if it is behind the camera.
    """
    back = c2w[:, :, 2]
    across = np.eye(3) - back[:, :, None] * back[:, None, :]
    point = np.linalg.lstsq(across.sum(0), (across @ c2w[:, :, 3:]).sum(0)[:, 0], rcond=1e-6)[0]
    offset = c2w[:, :, 3] - point
    depth = (offset * back).sum(-1)
    beside = np.linalg.norm(offset - depth[:, None] * back, axis=-1)
    return point, np.where(depth > 0, beside / np.maximum(depth, 1e-12), np.inf)
