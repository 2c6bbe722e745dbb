"""The bounds of a scene: its box, and the range of depths of its content.

Depths are z-depths, see ``nelf.cameras``; a box is six numbers, smallest xyz then largest xyz, in the scene's unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nelf.cameras import Camera
from nelf.data.ply import read_ply
from nelf.data.transforms import Transforms
from nelf.errors import UserError
from nelf.files import LARGEST, SMALLEST, is_file

__all__ = ["Bounds", "check_space", "find_bounds", "of_cube", "of_points", "of_shown"]

Bounds = tuple[float, float, list[float]]
"""Near, far and box."""

_SYNTHETIC: Bounds = (2.0, 6.0, [-1.5, -1.5, -1.5, 1.5, 1.5, 1.5])  # NeRF's Blender scenes
_OUTLIERS = 1.0  # percent of the points on each side
_MARGIN = 0.1  # share of the longest side of the box
_SMALLEST = 0.01  # minimum side of the box for the margin, as a share of the far depth
_SLACK = 0.75  # factor of near, and divisor of far
_MOST = 20_000  # maximum number of points that are used


def find_bounds(
    file: Transforms, camera: Camera, near: float | None, far: float | None, aabb: list[float] | None
) -> Bounds:
    """Near, far and box: the caller's, else those stated in the file, else derived ones.

    They are derived from the file's points, else from its ``aabb_scale``, else they are those of NeRF's Blender scenes.

    Args:
        file: the transforms file.
        camera: the cameras of its frames.
        near: smallest z-depth of the caller, or None.
        far: largest z-depth of the caller, or None.
        aabb: box of the caller, or None.

    Raises:
        UserError: a depth range or box is empty, or the points are needed and cannot be read, or no camera sees them.
    """
    near, far, aabb = _either(near, file.near), _either(far, file.far), _either(aabb, file.aabb)
    if near is None or far is None or aabb is None:
        told = _told(file, camera, aabb)
        near, far, aabb = _either(near, told[0]), _either(far, told[1]), _either(aabb, told[2])
    check_space(file.path, (near, far), aabb)
    return near, far, aabb


def _either(one: Any, other: Any) -> Any:
    return other if one is None else one


def _told(file: Transforms, camera: Camera, aabb: list[float] | None) -> Bounds:
    if file.cloud is not None:
        if not is_file(file.cloud):
            raise UserError(
                f"{file.path}: no file {file.cloud.name} (ply_file_path); allowed: the file, or data.near=, data.far= "
                "and data.aabb=."
            )
        return of_points(torch.from_numpy(read_ply(file.cloud) * file.cloud_scale).float(), camera, file.cloud)
    return _SYNTHETIC if file.cube is None else of_cube(aabb or file.cube, camera, file.cube_near)


def check_space(path: Path, depth: tuple[float, float], box: list[float]) -> None:
    """Refuse an empty depth range or an empty box.

    Args:
        path: the file to name in the message.
        depth: near and far.
        box: smallest xyz, largest xyz.

    Raises:
        UserError: one of them is empty.
    """
    near, far = _rounded(depth)
    if not SMALLEST < near < far < LARGEST:
        raise UserError(f"{path}: near {depth[0]} and far {depth[1]}; allowed: 0 < near < far.")
    corners = _rounded(box)
    good = len(box) == 6 and all(
        -LARGEST < low < high < LARGEST for low, high in zip(corners[:3], corners[3:], strict=True)
    )
    if not good:
        raise UserError(f"{path}: aabb {box}; allowed: six numbers, smallest x y z, then largest x y z.")


def _rounded(numbers: Sequence[float]) -> list[float]:
    """Numbers rounded to float32; those out of its range become infinite."""
    return torch.tensor(numbers, dtype=torch.float64).float().tolist()


def of_points(points: Tensor, camera: Camera, path: Path) -> Bounds:
    """Bounds of the points that project into the images of cameras, see ``of_shown``.

    Args:
        points: (N, 3) in scene units, such as those of a reconstruction.
        camera: a batch of cameras.
        path: the file of the points, for messages.

    Raises:
        UserError: no point projects into any image.
    """
    points = points[:: -(-len(points) // _MOST)]
    shown, depths = [], []
    for index in range(len(camera)):
        one = camera[index]
        x, y, t = one.project(points)
        here = (t > 0) & (x >= 0) & (x <= one.width) & (y >= 0) & (y <= one.height)
        shown.append(points[here])
        depths.append(t[here])
    if not sum(map(len, depths)):
        raise UserError(f"{path}: no camera has any of its points in the picture; allowed: points in the poses' space.")
    return of_shown(torch.cat(shown).numpy(), torch.cat(depths).numpy())


def of_shown(points: np.ndarray, depths: np.ndarray) -> Bounds:
    """Bounds of observed points, without 1 % outliers on each side, and with a margin.

    ``near`` is 3/4 of the first percentile of the depths, ``far`` 4/3 of the 99th; the box reaches from the first to
    the 99th percentile of the points along each axis, extended by a tenth of its longest side.

    Args:
        points: (P, 3) in scene units, each repeated for every image that shows it.
        depths: (P,) their z-depths in these images.
    """
    near, far = np.percentile(depths, [_OUTLIERS, 100 - _OUTLIERS])
    low, high = np.percentile(points.astype(np.float64), [_OUTLIERS, 100 - _OUTLIERS], axis=0)
    margin = _MARGIN * max((high - low).max(), _SMALLEST * far)
    return _SLACK * float(near), float(far) / _SLACK, [*(low - margin).tolist(), *(high + margin).tolist()]


def of_cube(box: list[float], camera: Camera, least: float) -> Bounds:
    """Bounds from the box of instant-ngp's ``aabb_scale``: the depths are those of its corners.

    Args:
        box: six numbers.
        camera: a batch of cameras.
        least: lower limit of near, which applies if a camera is inside the box.
    """
    corners = torch.cartesian_prod(*torch.tensor(box).view(2, 3).unbind(1))
    depths = ((camera.c2w[:, :, 3, None] - corners.T) * camera.c2w[:, :, 2, None]).sum(1)
    return max(depths.min().item(), least), depths.max().item(), box
