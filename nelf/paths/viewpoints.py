"""Where given cameras stand, and what they look at. Poses and angles as in ``nelf.paths``."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nelf.cameras import Camera
from nelf.paths.flights import look_at, spherical

Trajectory = Literal["orbit", "forward", "between"]
"""How the cameras of a scene stand, see ``trajectory``."""

AROUND = 120.0
"""Degrees without a camera that still count as all around."""

_LEVEL = np.sin(np.deg2rad(5.0))  # of the cameras' right axes above the horizon, on average: a steady hand
_PARALLEL = 0.17  # of right axes, as nerfstudio has it
_ROLL = 30.0  # degrees: less is a hand that is not steady
_AIMED, _EXACT = 0.25, 0.01  # how far view axes pass the point that they share, as a share of its distance
_ALIKE = 30.0  # degrees between view axes and their mean


class Viewpoints(NamedTuple):
    """Where N cameras stand around a point.

    Attributes:
        target: (3,) float64 point nearest to all view axes in the least-squares sense.
        up: (3,) float64 unit direction that appears upwards in their images, see ``up_axis``.
        azimuth: (N,) degrees around ``up``, see ``frame``.
        elevation: (N,) degrees above the plane through ``target`` that ``up`` is perpendicular to.
        radius: (N,) distance from ``target``, scene unit.
        miss: (N,) how far a view axis passes ``target``, as a share of its distance along the axis; infinite where
            ``target`` is behind the camera.
    """

    target: np.ndarray
    up: np.ndarray
    azimuth: np.ndarray
    elevation: np.ndarray
    radius: np.ndarray
    miss: np.ndarray

    def poses(self, azimuth: np.ndarray, elevation: np.ndarray, radius: np.ndarray) -> Tensor:
        """(M, 3, 4) float32 poses at angles (M,) and distances (M,), looking at the target, upright."""
        c2w = torch.from_numpy(frame(self.up)) @ spherical(azimuth, elevation, radius).double()
        c2w[:, :, 3] += torch.from_numpy(self.target)
        return c2w.float()


def viewpoints(camera: Camera) -> Viewpoints:
    """Find where cameras stand around what they look at.

    Args:
        camera: a batch of cameras.
    """
    c2w = camera.c2w.cpu().double().numpy()
    target, up = _focus(c2w), up_axis(camera)
    offset = c2w[:, :, 3] - target
    depth = (offset * c2w[:, :, 2]).sum(-1)
    beside = np.linalg.norm(offset - depth[:, None] * c2w[:, :, 2], axis=-1)
    miss = np.where(depth > 0, beside / np.maximum(depth, 1e-12), np.inf)
    x, y, z = (offset @ frame(up)).T
    azimuth, elevation = np.rad2deg(np.arctan2(y, x)), np.rad2deg(np.arctan2(z, np.hypot(x, y)))
    return Viewpoints(target, up, azimuth, elevation, np.linalg.norm(offset, axis=-1), miss)


def trajectory(camera: Camera) -> Trajectory:
    """How cameras stand, which says where new ones may.

    Args:
        camera: a batch of cameras, such as those of the training views.

    Returns:
        ``orbit``: around something and without roll, their view axes meet and they leave out no third of the circle,
        or they were aimed by a program; ``forward``: side by side, their view axes within 30 degrees of the mean;
        ``between``: neither, as of a hand-held capture, so only what lies between them has been seen.
    """
    stand = viewpoints(camera)
    meet = np.median(stand.miss) < _AIMED and covered_arc(stand.azimuth, AROUND)[1] == 360.0
    if (meet or stand.miss.max() < _EXACT) and rolled(camera) < _ROLL:
        return "orbit"
    back = camera.c2w[:, :, 2].double()
    cosine = back @ torch.nn.functional.normalize(back.mean(0), dim=0)
    return "forward" if float(cosine.min()) > np.cos(np.deg2rad(_ALIKE)) else "between"


def up_axis(camera: Camera) -> np.ndarray:
    """(3,) float64 unit direction that appears upwards in the images of cameras.

    It is +z where they stand level in it, to 5 degrees on average. Else it is the direction that is most nearly
    perpendicular to their right axes; and of cameras whose right axes are parallel, the mean of their up axes. Where
    that says nothing, it is +z.

    Args:
        camera: a batch of cameras.

    Source:
        nerfstudio, ``auto_orient_and_center_poses`` (method "vertical"), but for the first case.
    """
    c2w = camera.c2w.cpu().double().numpy()
    right, mean = c2w[:, :, 0], c2w[:, :, 1].mean(0)
    if mean[2] > 0 and np.sqrt((right[:, 2] ** 2).mean()) < _LEVEL:
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


def _focus(c2w: np.ndarray) -> np.ndarray:
    """(3,) point nearest to all view axes in the least-squares sense."""
    axis = c2w[:, :, 2]
    across = np.eye(3) - axis[:, :, None] * axis[:, None, :]
    return np.linalg.lstsq(across.sum(0), (across @ c2w[:, :, 3:]).sum(0)[:, 0], rcond=1e-6)[0]
