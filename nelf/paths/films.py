"""Camera paths among given cameras: where these stand all around, a turn; else a loop that stays among them."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from nelf.paths.viewpoints import AROUND, Viewpoints, covered_arc

_TURNS = 2.0  # of a winding path
_CLIMB = (10.0, 80.0)  # degrees of elevation that a winding path climbs through, as far as cameras stand there


def around(stand: Viewpoints, n: int) -> Tensor:
    """A closed path at one distance from the target: the last pose is one step before the first.

    Where cameras stand all around, it is a circle at their mean elevation and distance. Else it is the ellipse of
    azimuth and elevation that has the same mean and covariance as the cameras, but leaves neither's range.

    Args:
        stand: where the given cameras stand.
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

    Where cameras stand all around, it climbs from 10 to 80 degrees, as far as they do. Else it winds from their middle
    to the ellipse of ``around``.

    Args:
        stand: where the given cameras stand.
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
    """Poses at angles (n,), degrees, and sizes (n,) in [0, 1] of the ellipse that cameras fill."""
    start, _ = covered_arc(stand.azimuth, 0.0)
    angles = np.stack([start + (stand.azimuth - start) % 360.0, stand.elevation])
    middle = angles.mean(1, keepdims=True)
    variances, axes = np.linalg.eigh(np.cov(angles, bias=True))
    root = axes * np.sqrt(np.maximum(variances, 0.0)) @ axes.T
    # Of cameras that stand on an ellipse, the covariance is half the square of its semi-axes.
    way = np.sqrt(2.0) * root @ np.stack([np.cos(np.deg2rad(turn)), np.sin(np.deg2rad(turn))]) * size
    azimuth, elevation = np.clip(middle + way, angles.min(1, keepdims=True), angles.max(1, keepdims=True))
    return stand.poses(azimuth, elevation, np.full(len(turn), np.median(stand.radius)))
