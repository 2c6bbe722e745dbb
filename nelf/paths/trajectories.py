"""Where given cameras stand, and what they look at. Poses and angles as in ``nelf.paths``."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nelf.cameras import Camera
from nelf.paths.flights import look_at, spherical
from nelf.paths.forward import average_pose, focus_distance

Trajectory = Literal["orbit", "forward", "between"]
"""How the cameras of a scene stand, see ``trajectory``."""

AROUND = 120.0
"""Degrees without a camera that still count as all around."""

_LEVEL = np.sin(np.deg2rad(5.0))  # of the cameras' right axes above the horizon, on average: a steady hand
_UPRIGHT = 0.5  # cosine between +z and the mean of up axes: level alone are those, too, that look along z
_PARALLEL = 0.17  # of right axes, as nerfstudio has it
_ROLL = 30.0  # degrees: less is a hand that is not steady
_AIMED, _EXACT = 0.25, 0.01  # how far view axes pass the point that they share, as a share of its distance
_ALIKE = 30.0  # degrees between view axes and their mean


class Viewpoints(NamedTuple):
    """Where N cameras stand around a point: upright ones that look toward it stand at ``target + radius * back``.

    Attributes:
        target: (3,) float64 the point.
        up: (3,) float64 unit direction that appears upwards in their images, see ``up_axis``.
        azimuth: (N,) degrees around ``up``, of the backs; see ``frame``.
        elevation: (N,) degrees above the plane that ``up`` is perpendicular to.
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
    """Where cameras stand around what they look at.

    The target is the point nearest to all view axes in the least-squares sense. ``forward`` cameras have next to
    parallel axes, so theirs is on the average camera's axis, at LLFF's distance. ``between`` cameras whose axes do not
    meet in front of them, as of a room seen from within, turn around the middle of where they stand.

    Args:
        camera: a batch of cameras.
        trajectory: how they stand.
        depth: z-depths of the nearest and the farthest content, scene unit, of ``forward`` cameras.
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
    """How cameras stand, which says where new ones may.

    Args:
        camera: a batch of cameras, such as those of the training views.

    Returns:
        ``orbit``: around something and without roll, their view axes meet and they leave out no third of the circle,
        or they were aimed by a program; ``forward``: side by side, their view axes within 30 degrees of the mean;
        ``between``: neither, as of a hand-held capture, so only what lies between them has been seen.
    """
    miss = focus(camera.c2w.cpu().double().numpy())[1]
    meet = np.median(miss) < _AIMED and covered_arc(viewpoints(camera).azimuth, AROUND)[1] == 360.0
    if (meet or miss.max() < _EXACT) and rolled(camera) < _ROLL:
        return "orbit"
    back = camera.c2w[:, :, 2].double()
    cosine = back @ torch.nn.functional.normalize(back.mean(0), dim=0)
    return "forward" if float(cosine.min()) > np.cos(np.deg2rad(_ALIKE)) else "between"


def up_axis(camera: Camera) -> np.ndarray:
    """(3,) float64 unit direction that appears upwards in the images of cameras.

    It is +z where they stand level in it, to 5 degrees, and upright, to 60 degrees, on average. Else it is the
    direction that is most nearly perpendicular to their right axes; and of cameras whose right axes are parallel, the
    mean of their up axes. Where that says nothing, it is +z.

    Args:
        camera: a batch of cameras.

    Source:
        nerfstudio, ``auto_orient_and_center_poses`` (method "vertical"), but for the first case.
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
    """(3, 3) axes as columns that angles are counted in: azimuth 0, azimuth 90 degrees, and ``up`` (3,).

    Azimuth 0 is +x, made perpendicular to ``up``; where ``up`` is nearer than 26 degrees to +-x, it is +y.
    """
    first = np.array([0.0, 1.0, 0.0] if abs(up[0]) > 0.9 else [1.0, 0.0, 0.0])
    first = first - (first @ up) * up
    first /= np.linalg.norm(first)
    return np.column_stack([first, np.cross(up, first), up])


def rolled(camera: Camera) -> float:
    """How far cameras are turned about their view axes, on average, from standing upright (``up_axis``), degrees.

    Args:
        camera: a batch of cameras.
    """
    position, back = camera.c2w[:, :, 3], camera.c2w[:, :, 2]
    upright = look_at(position, position - back, torch.from_numpy(up_axis(camera)))
    cosine = (upright[:, :, 0] * camera.c2w[:, :, 0]).sum(-1).clamp(-1.0, 1.0)
    return float(torch.rad2deg(torch.acos(cosine)).mean())


def covered_arc(azimuth: np.ndarray, gap: float) -> tuple[float, float]:
    """Start and width, degrees, of the arc that cameras stand on: all around unless ``gap`` or more is left out."""
    ordered = np.sort(azimuth)
    gaps = np.diff(np.append(ordered, ordered[0] + 360.0))
    widest = int(gaps.argmax())
    if gaps[widest] < gap:
        return 0.0, 360.0
    return float(ordered[(widest + 1) % len(ordered)]), float(360.0 - gaps[widest])


def focus(c2w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the view axes of cameras meet.

    Args:
        c2w: (N, 3, 4) float64 poses.

    Returns:
        (3,) point nearest to all axes in the least-squares sense, and how far each passes it (N,): a share of its
        z-depth, infinite where it is behind the camera.
    """
    back = c2w[:, :, 2]
    across = np.eye(3) - back[:, :, None] * back[:, None, :]
    point = np.linalg.lstsq(across.sum(0), (across @ c2w[:, :, 3:]).sum(0)[:, 0], rcond=1e-6)[0]
    offset = c2w[:, :, 3] - point
    depth = (offset * back).sum(-1)
    beside = np.linalg.norm(offset - depth[:, None] * back, axis=-1)
    return point, np.where(depth > 0, beside / np.maximum(depth, 1e-12), np.inf)
