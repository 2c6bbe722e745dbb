"""Camera paths in the region of given cameras: a full circle if these surround the target, else a loop among them."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from nelf.paths.trajectories import AROUND, Viewpoints, covered_arc

_TURNS = 2.0  # of a winding path
_CLIMB = (10.0, 80.0)  # first and last elevation of a winding path, degrees, clamped to the cameras' range


def around(stand: Viewpoints, n: int) -> Tensor:
    """A closed path at one distance from the target: the last pose is one step before the first.

    If the cameras surround the target, it is a circle at their mean elevation and distance. Else it is the ellipse of
    azimuth and elevation with the cameras' mean and covariance, clamped to the ranges of both.

    Args:
        stand: viewpoints of the given cameras.
        n: number of poses.

    Returns:
        (n, 3, 4) poses.
    """
    turn = 360.0 * np.arange(n) / n
    if covered_arc(stand.azimuth, AROUND)[1] == 360.0:
        return stand.poses(turn, np.full(n, stand.elevation.mean()), np.full(n, stand.radius.mean()))
    return _ellipse(stand, turn, np.ones(n))


def winding(stand: Viewpoints, n: int) -> Tensor:
    """A path of two turns at one distance from the target.

    If the cameras surround the target, it climbs from 10 to 80 degrees of elevation, clamped to their range. Else it
    winds from their mean to the ellipse of ``around``.

    Args:
        stand: viewpoints of the given cameras.
        n: number of poses.

    Returns:
        (n, 3, 4) poses.
    """
    way = np.linspace(0.0, 1.0, n)
    turn = 360.0 * _TURNS * way
    if covered_arc(stand.azimuth, AROUND)[1] == 360.0:
        low, high = np.clip(_CLIMB, stand.elevation.min(), stand.elevation.max())
        return stand.poses(turn, low + (high - low) * way, np.full(n, stand.radius.mean()))
    return _ellipse(stand, turn, way)


def _ellipse(stand: Viewpoints, turn: np.ndarray, size: np.ndarray) -> Tensor:
    """Poses at angles (n,), degrees, and relative sizes (n,) in [0, 1] of the ellipse of the cameras."""
    start, _ = covered_arc(stand.azimuth, 0.0)
    angles = np.stack([start + (stand.azimuth - start) % 360.0, stand.elevation])
    middle = angles.mean(1, keepdims=True)
    variances, axes = np.linalg.eigh(np.cov(angles, bias=True))
    root = axes * np.sqrt(np.maximum(variances, 0.0)) @ axes.T
    # The variances of points spread evenly on an ellipse are half the squares of its semi-axes.
    circle = np.stack([np.sin(np.deg2rad(turn)), np.cos(np.deg2rad(turn))])  # starts near the mean azimuth
    way = np.sqrt(2.0) * root @ circle * size
    azimuth, elevation = np.clip(middle + way, angles.min(1, keepdims=True), angles.max(1, keepdims=True))
    return stand.poses(azimuth, elevation, np.full(len(turn), np.median(stand.radius)))
