"""Parse and check the JSON files of a Nerfies or HyperNeRF capture; images are not opened.

Conventions of the files: ``camera/ID.json`` holds ``orientation``, world to camera (rows are the camera's right, down
and forward axes in the world: OpenCV), and ``position`` in the world; ``focal_length`` (of x; times
``pixel_aspect_ratio`` that of y), ``principal_point`` and ``skew`` in pixels of ``image_size`` [width, height], pixel
centers at +0.5; ``radial_distortion`` [k1, k2, k3] and ``tangential_distortion`` [p1, p2] (``tangential`` in older
files) of OpenCV's model. ``scene.json`` moves positions and points, not orientations: ``(position - center) * scale``.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from nelf.cameras import Camera
from nelf.data.lenses import check_cameras
from nelf.errors import UserError
from nelf.files import LARGEST, SMALLEST, array, is_file, number, open_array, quoted, read_object, short, widened

__all__ = ["Moments", "Space", "read_cameras", "read_dataset", "read_moments", "read_path", "read_points", "read_space"]

_MOST_IDS, _MOST_PIXELS = 2**31, 2**14  # limits of time and appearance ids; of an image's side
_INTERVAL = 4  # of interpolation captures: every fourth frame is for training, the middle between two for test


@dataclass(frozen=True)
class Space:
    """``scene.json``: the transform from the files' coordinates to the scene's.

    Attributes:
        scale: scene units per unit of the files.
        center: (3,) the scene's origin, in units of the files.
        near: smallest distance of content along a unit ray, scene units.
        far: largest distance.
    """

    scale: float
    center: np.ndarray
    near: float
    far: float

    def points(self, points: np.ndarray) -> np.ndarray:
        """(..., 3) points, transformed from the files' coordinates to the scene's."""
        return (points - self.center) * self.scale


@dataclass(frozen=True)
class Moments:
    """``metadata.json``: times and appearance ids of the images.

    Attributes:
        times: time in [0, 1] by image id.
        appearance: appearance id by image id.
    """

    times: Mapping[str, float]
    appearance: Mapping[str, int]


# ------------------------------------------------------------------------------------------- dataset.json


def read_dataset(
    root: Path, split: Literal["auto", "vrig", "interp"]
) -> tuple[list[str], dict[Literal["train", "test"], list[str]], bool]:
    """All image ids of a capture, the ids of its two splits, and whether these were made by interpolation.

    Args:
        root: the capture.
        split: see ``nelf.data.hypernerf.read_capture``.

    Raises:
        UserError: the file is missing or damaged, or names too few images.
    """
    path = root / "dataset.json"
    content = read_object(path, "a JSON object with ids, train_ids, val_ids")
    ids = _ids(path, content, "ids")
    if split == "interp" or (split == "auto" and not content.get("val_ids")):
        train = ids[::_INTERVAL]
        test = ids[_INTERVAL // 2 : _INTERVAL * (len(train) - 1) : _INTERVAL]
        if not test:
            raise UserError(f"{path}: ids are {len(ids)}; allowed: {_INTERVAL + 1} or more, to hold out every fourth.")
        return ids, {"train": train, "test": test}, True
    train, test = (_ids(path, content, key) for key in ("train_ids", "val_ids"))
    for key, some in (("train_ids", train), ("val_ids", test)):
        unknown = sorted(set(some) - set(ids))
        if unknown:
            raise UserError(f"{path}: {key} names {quoted(unknown[0])}, which is not among ids.")
    shared = sorted(set(train) & set(test))
    if shared:
        words = (
            f"{path}: {len(shared)} of val_ids are in train_ids, too ({short(shared[0])}); figures will be too good."
        )
        warnings.warn(words, stacklevel=2)
    return ids, {"train": train, "test": test}, False


def _ids(path: Path, content: dict[str, Any], key: str) -> list[str]:
    """A list of ids; each is used in file names, so it must not be a path."""
    ids = content.get(key)
    if not isinstance(ids, list) or not ids:
        raise UserError(f"{path}: {key}: is {quoted(ids)}; allowed: a list of one or more ids.")
    for each in ids:
        if not isinstance(each, str) or each in ("", ".", "..") or any(letter in each for letter in "/\\\0"):
            raise UserError(f"{path}: {key}: {quoted(each)} is no id; allowed: names of files without folder.")
    if len(set(ids)) < len(ids):
        twice = next(each for each in ids if ids.count(each) > 1)
        raise UserError(f"{path}: {key}: names {quoted(twice)} twice; allowed: each id once.")
    return ids


# ------------------------------------------------------------------------------------------- metadata.json


def read_moments(root: Path, ids: Sequence[str], interpolated: bool) -> Moments:
    """Times and appearance ids of a capture's images.

    A time is the image's time id divided by the largest one. The time id is ``time_id`` if the file states it; else the
    index in ``ids`` for interpolation captures, and ``warp_id`` for others.

    Args:
        root: the capture.
        ids: all of its ids.
        interpolated: whether its splits come from every fourth frame.

    Raises:
        UserError: the file is missing or damaged, or lacks an id.
    """
    path = root / "metadata.json"
    content = read_object(path, "a JSON object with warp_id and appearance_id of each id")
    missing = [each for each in ids if not isinstance(content.get(each), dict)]
    if missing:
        raise UserError(f"{path}: says nothing of {quoted(missing[0])}; allowed: warp_id and appearance_id of each id.")
    unknown = sorted(set(content) - set(ids))
    if unknown:
        words = f"{path}: {len(unknown)} entries are of ids that dataset.json does not name ({short(unknown[0])})."
        warnings.warn(words, stacklevel=2)
    timed = ["time_id" in content[each] for each in ids]
    if any(timed) and not all(timed):
        raise UserError(
            f"{path}: {short(ids[timed.index(False)])} has no time_id, but others have; allowed: all or none."
        )
    if interpolated and not any(timed):
        moments = dict(zip(ids, range(len(ids)), strict=True))
    else:
        key = "time_id" if any(timed) else "warp_id"
        moments = {each: _whole(path, each, content[each], key) for each in ids}
    last = max(moments.values())
    return Moments(
        {each: moment / max(last, 1) for each, moment in moments.items()},
        {each: _whole(path, each, content[each], "appearance_id") for each in ids},
    )


def _whole(path: Path, each: str, entry: dict[str, Any], key: str) -> int:
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _MOST_IDS:
        raise UserError(f"{path}: {short(each)}: {key} is {quoted(value)}; allowed: a whole number from 0.")
    return value


# ------------------------------------------------------------------------------------------- scene.json, points.npy


def read_space(root: Path) -> Space:
    """Parse ``scene.json``.

    Raises:
        UserError: it is missing or damaged, its scale is not above zero, or its depth range is empty.
    """
    path = root / "scene.json"
    content = read_object(path, "a JSON object with scale, center, near, far")
    scale, near, far = (number(path, key, _stated(path, content, key)) for key in ("scale", "near", "far"))
    if scale < SMALLEST:
        raise UserError(f"{path}: scale is {scale:g}; allowed: above 0.")
    if not 0 < near < far:
        raise UserError(f"{path}: near {near:g} and far {far:g}; allowed: 0 < near < far.")
    return Space(scale, _numbers(path, content, "center", (3,)), near, far)


def read_points(root: Path, space: Space) -> Tensor | None:
    """(N, 3) float32 background points in scene coordinates, or None if there is no ``points.npy``.

    Raises:
        UserError: the file is damaged, or holds something else.
    """
    path = root / "points.npy"
    if not is_file(path):
        return None
    points = space.points(widened(open_array(path, (None, 3))))
    if not (np.abs(points) <= LARGEST).all():
        raise UserError(f"{path}: holds NaN, infinity or numbers beyond {LARGEST:g}; allowed: finite numbers.")
    return torch.from_numpy(points.astype(np.float32))


# ------------------------------------------------------------------------------------------- cameras


def read_cameras(root: Path, ids: Sequence[str], space: Space, image_scale: int) -> Camera:
    """The cameras of some images, in scene coordinates, at one of the capture's image sizes.

    Args:
        root: the capture.
        ids: N of its ids.
        space: see ``read_space``.
        image_scale: the factor by which the images are smaller than ``image_size``.

    Returns:
        A batch of N cameras; with lenses if any of them has distortion.

    Raises:
        UserError: a file is missing or damaged, or they differ in size.
    """
    return _cameras([root / "camera" / f"{each}.json" for each in ids], space, image_scale)


def read_path(folder: Path) -> Camera:
    """The cameras of a camera path for novel views, in the order of the file names.

    Args:
        folder: ``CAPTURE/camera-paths/NAME``.

    Returns:
        A batch of pinhole cameras.

    Raises:
        UserError: there are no cameras in it, a file is missing or damaged, or they differ in size.
    """
    files = sorted(folder.glob("*.json"))
    if not files:
        raise UserError(f"{folder}: holds no cameras (.json); allowed: a folder of a capture's camera-paths.")
    return _cameras(files, read_space(folder.absolute().parents[1]), 1).pinhole()


def _cameras(paths: Sequence[Path], space: Space, image_scale: int) -> Camera:
    poses, intrinsics, lenses, sizes = zip(*(_camera(path, space) for path in paths), strict=True)
    for path, size in zip(paths, sizes, strict=True):
        if size != sizes[0]:
            raise UserError(f"{path}: image_size is {size}, but {paths[0].name} has {sizes[0]}; allowed: one size.")
    width, height = (max(1, round(side / image_scale)) for side in sizes[0])
    lens = np.stack(lenses) / [1, 1, 1, 1, 1, image_scale]
    camera = Camera(
        torch.from_numpy(np.stack(poses)).float(),
        torch.from_numpy(np.stack(intrinsics) / image_scale).float(),
        width,
        height,
        lens=torch.from_numpy(lens).float() if lens.any() else None,
    )
    check_cameras(camera, [path.name for path in paths], paths[0].parent)
    return camera


def _camera(path: Path, space: Space) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[float, float]]:
    """Pose (3, 4), ``fx, fy, cx, cy``, lens (6,) as in ``Camera``, and ``image_size``, from one file.

    OpenCV's axes become OpenGL's: the down and forward axes change sign.
    """
    content = read_object(path, "a JSON object with orientation, position, focal_length and others")
    if "tangential" in content:
        content["tangential_distortion"] = content["tangential"]
    orientation, position = _numbers(path, content, "orientation", (3, 3)), _numbers(path, content, "position", (3,))
    if np.abs(orientation @ orientation.T - np.eye(3)).max() > 1e-2 or np.linalg.det(orientation) < 0:
        raise UserError(f"{path}: orientation is no rotation; allowed: world to camera, determinant 1.")
    keys = ("focal_length", "pixel_aspect_ratio", "skew")
    focal, ratio, skew = (number(path, key, _stated(path, content, key)) for key in keys)
    center, size = (_numbers(path, content, key, (2,)) for key in ("principal_point", "image_size"))
    if min(focal, ratio, *size) <= 0 or max(size) > _MOST_PIXELS:
        raise UserError(
            f"{path}: focal_length {focal:g}, pixel_aspect_ratio {ratio:g}, image_size {size.tolist()}; "
            f"allowed: above 0, and sides up to {_MOST_PIXELS}."
        )
    radial = _numbers(path, content, "radial_distortion", (3,))
    tangential = _numbers(path, content, "tangential_distortion", (2,))
    pose = np.column_stack([orientation.T * [1, -1, -1], space.points(position)])
    return pose, np.array([focal, focal * ratio, *center]), np.array([*radial, *tangential, skew]), tuple(size.tolist())


def _stated(path: Path, content: dict[str, Any], key: str) -> Any:
    """The value of a required key."""
    if key not in content:
        raise UserError(f"{path}: missing key {key!r}; allowed: a number, or as many as the format has.")
    return content[key]


def _numbers(path: Path, content: dict[str, Any], key: str, shape: tuple[int, ...]) -> np.ndarray:
    """An array of finite numbers of a given shape."""
    return array(path, key, _stated(path, content, key), (shape,))
