"""nerfstudio's camera paths: the JSON that its viewer saves and ``ns-render camera-path`` reads.

``camera_path`` lists the frames: ``camera_to_world``, a 4x4 matrix row by row with OpenGL's axes, ``fov``, the vertical
field of view in degrees, and optionally ``render_time`` in [0, 1]; ``render_width`` and ``render_height`` are pixels,
``fps`` is frames per second. ``camera_type`` is ``perspective`` by default. The viewer's own keys (``keyframes``,
``seconds``, ``aspect`` and others) are ignored, as in nerfstudio.

Space: nerfstudio rotates, centers and scales the poses of a transforms file before training, and a path is in that
space. ``dataparser_transforms.json`` of its training run states how: a point ``p`` of the file becomes
``scale / applied_scale * (transform @ inverse(applied_transform) @ p)``, since ``transform`` and ``scale`` include
``applied_transform`` and ``applied_scale``, which the transforms file has already applied to itself. For a COLMAP
reconstruction, and for a transforms file that nerfstudio's tools made from one, they begin in COLMAP's coordinates.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from nelf.errors import UserError
from nelf.files import LARGEST, SMALLEST, array, number, quoted, read_object
from nelf.paths.rotations import moved

__all__ = ["TRANSFORMS", "CameraPath", "into_file_space", "is_camera_path", "read_camera_path"]

TRANSFORMS = "dataparser_transforms.json"
"""nerfstudio's name for the file of a training run that states how the poses were transformed."""

_ALLOWED = "a JSON object, a camera path or transforms file"
_MOST_PIXELS, _LONGEST = 2**14, 100  # limits of a frame's side, and of its aspect ratio
_NARROWEST, _SLOWEST = 0.01, 0.01  # smallest field of view, degrees; smallest frames per second
_RIGID = 1e-3  # tolerance of the orthonormality of a rotation


class CameraPath(NamedTuple):
    """A path of N cameras.

    Attributes:
        c2w: (N, 3, 4) float64, OpenGL axes.
        fov: (N,) vertical fields of view, degrees.
        width: of a frame, pixels.
        height: of a frame, pixels.
        fps: frames per second.
        times: (N,) in [0, 1], or None if not every frame has one.
    """

    c2w: np.ndarray
    fov: np.ndarray
    width: int
    height: int
    fps: float
    times: np.ndarray | None

    def intrinsics(self, width: int) -> tuple[np.ndarray, int]:
        """(N, 4) float32 ``fx, fy, cx, cy`` for frames of a width in pixels, and the height of these frames."""
        height = max(1, round(width * self.height / self.width))
        focal = height / 2 / np.tan(np.deg2rad(self.fov) / 2)
        middle = [np.full(len(focal), side / 2) for side in (width, height)]
        return np.stack([focal, focal, *middle], axis=-1).astype(np.float32), height


def is_camera_path(path: Path) -> bool:
    """Whether a JSON file is a camera path of nerfstudio.

    Raises:
        UserError: it is missing, or holds no JSON object.
    """
    return "camera_path" in read_object(path, _ALLOWED)


def read_camera_path(path: Path) -> CameraPath:
    """Read a camera path; poses stay in nerfstudio's space.

    Args:
        path: the file.

    Raises:
        UserError: it is damaged, or its cameras are not perspective cameras.
    """
    content = read_object(path, _ALLOWED)
    kind = content.get("camera_type", "perspective")
    if kind != "perspective":
        raise UserError(f"{path}: camera_type is {quoted(kind)}; allowed: perspective.")
    frames = content.get("camera_path")
    if not isinstance(frames, list) or not frames or not all(isinstance(frame, dict) for frame in frames):
        raise UserError(f"{path}: camera_path: allowed: a list of one or more frames, each a JSON object.")
    matrices, fovs, times = [], [], []
    for index, frame in enumerate(frames):
        where = f"{path}: camera_path: frame {index}"
        matrices.append(_matrix(where, "camera_to_world", frame.get("camera_to_world"))[:3])
        fovs.append(number(where, "fov", frame.get("fov"), _NARROWEST, 180 - _NARROWEST))
        if frame.get("render_time") is not None:
            times.append(number(where, "render_time", frame["render_time"], 0, 1))
    keys = ("render_width", "render_height")
    width, height = (round(number(path, key, content.get(key), 1, _MOST_PIXELS)) for key in keys)
    if max(width, height) > _LONGEST * min(width, height):
        raise UserError(f"{path}: frames are {width}x{height}; allowed: a side up to {_LONGEST} times the other.")
    fps = number(path, "fps", content.get("fps", 30), _SLOWEST, 1000)
    timed = np.array(times) if len(times) == len(frames) else None
    return CameraPath(np.stack(matrices), np.array(fovs), width, height, fps, timed)


def into_file_space(c2w: np.ndarray, changes: Path, transforms: Path | None = None) -> np.ndarray:
    """Undo nerfstudio's transform of poses.

    Args:
        c2w: (N, 3, 4) in nerfstudio's space.
        changes: the ``dataparser_transforms.json`` of its training run.
        transforms: the transforms file that it trained on; None for a reconstruction by COLMAP.

    Returns:
        (N, 3, 4) float64 in the space of the transforms file, or of the reconstruction.

    Raises:
        UserError: a file is damaged.
    """
    stated = read_object(changes, _ALLOWED)
    file = {} if transforms is None else read_object(transforms, _ALLOWED)
    change = _matrix(f"{changes}", "transform", stated.get("transform"))
    scale = number(changes, "scale", stated.get("scale"), SMALLEST, LARGEST)
    scale /= number(f"{transforms}", "applied_scale", file.get("applied_scale", 1.0), SMALLEST, LARGEST)
    if "applied_transform" in file:
        change = change @ np.linalg.inv(_matrix(f"{transforms}", "applied_transform", file["applied_transform"]))
    back = moved(c2w, np.linalg.inv(np.diag([scale, scale, scale, 1.0]) @ change))
    if not (np.abs(back) <= LARGEST).all():
        raise UserError(f"{changes}: takes a camera beyond {LARGEST:g}; allowed: the scale of this path.")
    return back


def _matrix(where: str, key: str, value: object) -> np.ndarray:
    """(4, 4) float64 rigid transform, given as 16 numbers, or as three or four rows."""
    matrix = array(where, key, value, ((4, 4), (3, 4), (16,)))
    matrix = matrix.reshape(4, 4) if matrix.shape == (16,) else matrix
    matrix = np.vstack([matrix, [0, 0, 0, 1]]) if len(matrix) == 3 else matrix
    if not np.allclose(matrix[3], [0, 0, 0, 1]):
        raise UserError(f"{where}: {key}: allowed: a 4x4 matrix, row by row, the last row 0 0 0 1.")
    rotation = matrix[:3, :3]
    if np.abs(rotation.T @ rotation - np.eye(3)).max() > _RIGID or np.linalg.det(rotation) < 0:
        raise UserError(f"{where}: {key} is no rotation and translation; allowed: one that neither scales nor mirrors.")
    return matrix
