"""Camera paths for videos. Poses and angles as in ``nelf.paths``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from nelf.cameras import Camera

BLENDER_RADIUS = 4.031128857175551
"""Distance of the cameras of the Blender synthetic scenes from the origin, scene unit."""

Motion = Literal["time", "camera", "both"]

MOTIONS: tuple[Motion, ...] = ("time", "camera", "both")
"""What may move in a video of a dynamic scene, see ``in_motion``."""

DNERF_RADIUS = 4.0  # of D-NeRF's videos and pseudo data; its training cameras are at BLENDER_RADIUS

Center = Sequence[float] | np.ndarray


def look_at(origin: Tensor, target: Tensor, up: Tensor | None = None) -> Tensor:
    """Poses at ``origin`` whose view axis goes through ``target``.

    Args:
        origin: (..., 3) camera positions.
        target: (3,) or (..., 3) points to look at.
        up: (3,) world direction that is up in the image; None for +z. If the view axis is parallel to it, +y is used
            instead (+z if ``up`` is near +-y).

    Returns:
        (..., 3, 4) camera to world, OpenGL axes, in the dtype of ``origin``.

    Raises:
        ValueError: a camera is at its target.

    Example:
        From +x toward the origin: right is +y, up is +z, back is +x.

        >>> look_at(torch.tensor([4.0, 0.0, 0.0]), torch.zeros(3)).tolist()
        [[0.0, 0.0, 1.0, 4.0], [1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]
    """
    back = origin - target
    if bool((back.norm(dim=-1) == 0).any()):
        raise ValueError("Expected `origin` to differ from `target`, but got a camera that stands on its target.")
    back = torch.nn.functional.normalize(back, dim=-1)
    up = back.new_tensor([0.0, 0.0, 1.0]) if up is None else up.to(back)
    spare = back.new_tensor([0.0, 1.0, 0.0] if float(up[1].abs()) < 0.9 else [0.0, 0.0, 1.0])
    parallel = torch.linalg.cross(up.expand_as(back), back).norm(dim=-1, keepdim=True) < 1e-6
    right = torch.linalg.cross(torch.where(parallel, spare, up), back)
    right = torch.nn.functional.normalize(right, dim=-1)
    return torch.stack([right, torch.linalg.cross(back, right), back, origin.expand_as(back)], dim=-1)


def orbit(n: int, radius: float, elevation: float = 30.0, center: Center = (0, 0, 0), turns: float = 1.0) -> Tensor:
    """A circle around the object at one height; the last pose is one step before the first.

    Args:
        n: number of poses.
        radius: distance from ``center``, scene unit.
        elevation: degrees above the horizontal plane.
        center: point to look at.
        turns: full circles; negative ones run clockwise.

    Returns:
        (n, 3, 4) poses.
    """
    azimuth = 360.0 * turns * np.arange(n) / n
    return spherical(azimuth, np.full(n, float(elevation)), np.full(n, float(radius)), center)


def spiral(
    n: int,
    radius: float,
    elevations: tuple[float, float] = (10.0, 80.0),
    turns: float = 2.0,
    center: Center = (0, 0, 0),
) -> Tensor:
    """A spiral on a sphere from one elevation to another.

    Args:
        n: number of poses.
        radius: distance from ``center``, scene unit.
        elevations: degrees of the first and of the last pose.
        turns: number of full circles.
        center: point to look at.

    Returns:
        (n, 3, 4) poses.
    """
    way = np.linspace(0.0, 1.0, n)
    elevation = elevations[0] + (elevations[1] - elevations[0]) * way
    return spherical(360.0 * turns * way, elevation, np.full(n, float(radius)), center)


def hemisphere(
    n: int, radius: float, elevations: tuple[float, float] = (0.0, 90.0), center: Center = (0, 0, 0)
) -> Tensor:
    """Poses spread evenly over a band of a sphere (a golden-angle lattice, uniform by area).

    Args:
        n: number of poses.
        radius: distance from ``center``, scene unit.
        elevations: lower and upper edge of the band, degrees.
        center: point to look at.

    Returns:
        (n, 3, 4) poses, from the lower edge to the upper.
    """
    low, high = np.sin(np.deg2rad(elevations))
    height = low + (high - low) * (np.arange(n) + 0.5) / n
    azimuth = np.arange(n) * 180.0 * (3.0 - 5.0**0.5)
    return spherical(azimuth, np.rad2deg(np.arcsin(height)), np.full(n, float(radius)), center)


def dnerf(n: int = 40) -> Tensor:
    """The path of D-NeRF's videos: a circle around the origin, clockwise from above, at elevation 30 and distance 4.

    Args:
        n: number of poses, 40 in the original, whose times are evenly spaced from 0 to 1, both included.

    Returns:
        (n, 3, 4) poses.

    Source:
        D-NeRF, ``load_blender.py``: ``posespherical(-180 + 9 k, -30, 4)`` (Pumarola et al. 2021, arXiv 2011.13961),
        where angle 0 is the direction +y.
    """
    azimuth = 270.0 - 360.0 * np.arange(n) / n
    return spherical(azimuth, np.full(n, 30.0), np.full(n, DNERF_RADIUS), (0, 0, 0))


def in_motion(path: Camera, motion: Motion, span: tuple[float, float], moment: float | None = None) -> Camera:
    """The cameras of a video in which time, camera or both move.

    Args:
        path: a batch of N cameras along a path, with controls.
        motion: ``time`` stays at the first pose while time passes, ``camera`` follows the path at a fixed time,
            ``both`` follows it while time passes. The other controls are those of the path.
        span: first and last time.
        moment: the fixed time for ``camera``; None for the first of ``span``.

    Returns:
        A batch of N cameras.

    Raises:
        ValueError: the cameras have no controls.
    """
    if path.controls is None:
        raise ValueError("Expected `path` to have controls, but got cameras of a static scene.")
    n, controls = len(path), path.controls.clone()
    if motion == "camera":
        controls[:, 0] = span[0] if moment is None else moment
        return replace(path, controls=controls)
    controls[:, 0] = torch.linspace(*span, n)
    if motion == "both":
        return replace(path, controls=controls)
    c2w, intrinsics = path.c2w[:1].repeat(n, 1, 1), path.intrinsics[:1].repeat(n, 1)
    return replace(path, c2w=c2w, intrinsics=intrinsics, controls=controls)


def spherical(azimuth: np.ndarray, elevation: np.ndarray, radius: np.ndarray, center: Center = (0, 0, 0)) -> Tensor:
    """Poses on spheres, looking at their center.

    Args:
        azimuth: (N,) degrees.
        elevation: (N,) degrees.
        radius: (N,) scene unit.
        center: (3,) of the spheres.

    Returns:
        (N, 3, 4) float32.
    """
    azimuth, elevation = np.deg2rad(azimuth), np.deg2rad(elevation)
    level = np.cos(elevation)
    direction = np.stack([level * np.cos(azimuth), level * np.sin(azimuth), np.sin(elevation)], axis=-1)
    target = torch.tensor(np.asarray(center, dtype=np.float64))
    return look_at(target + torch.from_numpy(radius[:, None] * direction), target).float()
