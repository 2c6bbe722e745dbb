"""Transforms files: the JSON beside the images of a Blender scene, parsed and checked, no image opened."""

from __future__ import annotations

import json
import math
import os
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nelf.errors import UserError

__all__ = ["SPLITS", "Transforms", "read_path", "read_transforms"]

SPLITS = ("train", "val", "test")

_EXTENSIONS = ("", ".png", ".jpg", ".jpeg", ".webp", ".PNG", ".JPG", ".JPEG")
_INTRINSICS = ("fl_x", "fl_y", "cx", "cy", "w", "h", "camera_angle_x", "camera_angle_y")


@dataclass
class Transforms:
    """One transforms file.

    Attributes:
        path: the file.
        names: N file paths inside the scene, without extension.
        images: N image files, which exist.
        c2w: (N, 3, 4) float32.
        controls: names of what the cameras are set to beside their pose, the first of which is ``time``.
        values: (N, K) float32 in [0, 1], or None without controls.
        lenses: N dictionaries of the intrinsic keys that the file states, per frame or at its top.
        aabb: box, smallest xyz, largest xyz; None where the file states none. So for the next four.
        near: smallest z-depth.
        far: largest z-depth.
        background: the named background that the views are meant for.
        license: license of the images.
    """

    path: Path
    names: list[str]
    images: list[Path]
    c2w: np.ndarray
    controls: tuple[str, ...]
    values: np.ndarray | None
    lenses: list[dict[str, float]]
    aabb: list[float] | None
    near: float | None
    far: float | None
    background: str | None
    license: str | None

    def intrinsics(self, width: int, height: int) -> np.ndarray:
        """(N, 4) float32 ``fx, fy, cx, cy`` for images of the given size in pixels.

        Raises:
            UserError: a frame has neither ``fl_x`` nor ``camera_angle_x``.
        """
        rows = [_lens(lens, width, height, f"{self.path}: frame {index}") for index, lens in enumerate(self.lenses)]
        return np.array(rows, dtype=np.float32)


def read_transforms(root: Path, moving: bool = False) -> dict[str, Transforms]:
    """Parse the transforms files of a scene.

    Args:
        root: the scene's directory.
        moving: frames that state no time are in the order of time, and evenly spread over it.

    Returns:
        Split name to parsed file; a ``transforms.json`` without split counts as train. Train is always there.

    Raises:
        UserError: see ``nelf.data.blender.read_scene``.
    """
    if not root.is_dir():
        raise UserError(f"data.root: {root} is not a directory; allowed: a folder with transforms_train.json.")
    single = root / "transforms.json"
    paths = {name: root / f"transforms_{name}.json" for name in SPLITS}
    found = {name: path for name, path in paths.items() if path.is_file()}
    if single.is_file() and found:
        first = next(iter(found.values())).name
        raise UserError(f"data.root: {root} has both transforms.json and {first}; allowed: one of the two kinds.")
    if single.is_file():
        found = {"train": single}
    if "train" not in found:
        raise UserError(
            f"data.root: no transforms_train.json in {root}; a Blender scene has transforms_train.json "
            "(with transforms_val.json and transforms_test.json, or without) or one transforms.json."
        )
    files = {name: _parse(path) for name, path in found.items()}
    return {name: _in_order(each) if moving else each for name, each in files.items()}


def read_path(path: Path) -> Transforms:
    """Parse a camera path: a transforms file whose frames need no images.

    Args:
        path: the file.

    Returns:
        The same as of a scene, without names and images.

    Raises:
        UserError: it is missing, or damaged as of ``read_transforms``.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such camera path; allowed: a transforms file with transform_matrix of each frame.")
    return _parse(path, with_images=False)


def _in_order(file: Transforms) -> Transforms:
    """A file with the times 0 to 1 if it states none; as D-NeRF's reader has it, frame i of n is at i / (n - 1)."""
    if file.values is not None:
        return file
    words = "no frame states a time, so that of each follows from its place; data=blender reads a scene at rest."
    warnings.warn(f"{file.path}: {words}", stacklevel=2)
    times = np.linspace(0.0, 1.0, len(file.c2w), dtype=np.float32)
    return replace(file, controls=("time",), values=times[:, None])


def _parse(path: Path, with_images: bool = True) -> Transforms:
    """Parse and check one file."""
    content = _read_json(path)
    frames = content.get("frames")
    if not isinstance(frames, list):
        raise UserError(f"{path}: missing key 'frames'; a list of views with file_path and transform_matrix.")
    if not frames:
        raise UserError(f"{path}: zero frames; allowed: one or more.")
    if not all(isinstance(frame, dict) for frame in frames):
        raise UserError(f"{path}: a frame is not a JSON object; each frame needs transform_matrix.")
    entries = [_image(path, index, frame) for index, frame in enumerate(frames)] if with_images else []
    _warn_of_distortion(path, content, frames)
    aabb = content.get("aabb")
    if aabb is None and content.get("aabb_scale", 1) != 1:
        words = f"{path}: aabb_scale {content['aabb_scale']} says nothing without the scene's center; pass data.aabb=."
        warnings.warn(words, stacklevel=2)
    controls, values = _controls(path, content, frames)
    return Transforms(
        path=path,
        names=[name for name, _ in entries],
        images=[image for _, image in entries],
        c2w=np.stack([_pose(path, index, frame) for index, frame in enumerate(frames)]),
        controls=controls,
        values=values,
        lenses=[_stated_lens(path, index, {**content, **frame}) for index, frame in enumerate(frames)],
        aabb=None if aabb is None else [_number(path, "aabb", value) for value in np.ravel(aabb).tolist()],
        near=None if content.get("near") is None else _number(path, "near", content["near"]),
        far=None if content.get("far") is None else _number(path, "far", content["far"]),
        background=content.get("background"),
        license=content.get("license"),
    )


def _read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not JSON ({error}); allowed: a JSON object with 'frames'.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}; allowed: a JSON object with 'frames'.")
    return content


def _image(path: Path, index: int, frame: dict[str, Any]) -> tuple[str, Path]:
    """Name and file of one frame; ``file_path`` may lack the extension, and may not leave the scene."""
    stated = frame.get("file_path")
    if not isinstance(stated, str) or not stated:
        raise UserError(f"{path}: frame {index} has no key 'file_path'; each frame needs file_path, transform_matrix.")
    root = path.parent.absolute()
    # Compared by text, not resolved: a link inside the scene may point to another disk.
    target = Path(os.path.normpath(root / stated.replace("\\", "/")))
    if not target.is_relative_to(Path(os.path.normpath(root))):
        raise UserError(f"{path}: frame {index} points outside {path.parent} ({stated}); allowed: files inside it.")
    for extension in _EXTENSIONS:
        image = target.with_name(target.name + extension)
        if image.is_file():
            relative = image.relative_to(os.path.normpath(root))
            return relative.with_suffix("").as_posix(), path.parent / relative
    raise UserError(f"{path}: frame {index}: no image {stated} (nor with .png or .jpg) in {path.parent}.")


def _pose(path: Path, index: int, frame: dict[str, Any]) -> np.ndarray:
    """(3, 4) float32 camera to world of one frame."""
    where = f"{path}: frame {index} ({frame.get('file_path', 'no image')})"
    if "transform_matrix" not in frame:
        raise UserError(f"{where} has no key 'transform_matrix'; allowed: a 4x4 camera-to-world matrix.")
    try:
        matrix = np.array(frame["transform_matrix"], dtype=np.float64)
    except (TypeError, ValueError):
        raise UserError(f"{where}: transform_matrix is not a matrix of numbers; allowed: 4x4 or 3x4.") from None
    if matrix.shape not in ((4, 4), (3, 4)):
        raise UserError(f"{where}: transform_matrix has shape {matrix.shape}; allowed: 4x4 or 3x4.")
    if not np.isfinite(matrix).all():
        raise UserError(f"{where}: transform_matrix holds NaN or infinity; allowed: finite numbers.")
    lengths = np.linalg.norm(matrix[:3, :3], axis=0)
    if lengths.min() < 1e-6:
        raise UserError(f"{where}: transform_matrix cannot be inverted; allowed: a rotation and a translation.")
    if np.abs(lengths - 1).max() > 1e-3:
        # Blender writes an object's scale into its matrix, but does not apply it to a camera's rays.
        matrix[:3, :3] /= lengths
    rotation = matrix[:3, :3]
    if np.abs(rotation.T @ rotation - np.eye(3)).max() > 1e-2 or np.linalg.det(rotation) < 0:
        kind = "cannot be inverted" if abs(np.linalg.det(rotation)) < 1e-6 else "is sheared or mirrored"
        raise UserError(f"{where}: transform_matrix {kind}; allowed: a rotation and a translation.")
    return matrix[:3].astype(np.float32)


def _controls(
    path: Path, content: dict[str, Any], frames: list[dict[str, Any]]
) -> tuple[tuple[str, ...], np.ndarray | None]:
    """Names and (N, K) float32 values: ``time`` of each frame, then its ``controls``, whose names stand at the top."""
    timed = ["time" in frame for frame in frames]
    if not any(timed):
        return (), None
    if not all(timed):
        raise UserError(f"{path}: frame {timed.index(False)} has no key 'time', but others have; allowed: all or none.")
    further = content.get("controls", [])
    if not isinstance(further, list) or not all(isinstance(name, str) for name in further):
        raise UserError(f"{path}: controls are {further!r}; allowed: a list of names.")
    rows = []
    for index, frame in enumerate(frames):
        values = frame.get("controls", [])
        if not isinstance(values, list) or len(values) != len(further):
            raise UserError(f"{path}: frame {index}: controls are {values!r}; allowed: {len(further)} numbers.")
        row = [_number(path, "time", frame["time"]), *(_number(path, "controls", value) for value in values)]
        for name, value in zip(("time", *further), row, strict=True):
            if not 0 <= value <= 1:
                raise UserError(f"{path}: frame {index}: {name} is {value}; allowed: 0 to 1.")
        rows.append(row)
    return ("time", *further), np.array(rows, dtype=np.float32)


def _stated_lens(path: Path, index: int, content: dict[str, Any]) -> dict[str, float]:
    """The intrinsic keys that apply to one frame."""
    where = Path(f"{path}: frame {index}")
    return {key: _number(where, key, content[key]) for key in _INTRINSICS if content.get(key) is not None}


def _lens(lens: dict[str, float], width: int, height: int, where: str) -> tuple[float, float, float, float]:
    """``fx, fy, cx, cy`` at the size of the image."""
    w, h = lens.get("w", float(width)), lens.get("h", float(height))
    if "fl_x" in lens:
        fx = lens["fl_x"]
    elif "camera_angle_x" in lens and 0 < lens["camera_angle_x"] < math.pi:
        fx = 0.5 * w / math.tan(0.5 * lens["camera_angle_x"])
    else:
        raise UserError(f"{where}: missing key 'camera_angle_x' (0 to pi) or 'fl_x' (pixels), per frame or at the top.")
    if "fl_y" in lens:
        fy = lens["fl_y"]
    elif "fl_x" not in lens and "camera_angle_y" in lens:
        fy = 0.5 * h / math.tan(0.5 * lens["camera_angle_y"])
    else:
        fy = fx
    if min(fx, fy, w, h) <= 0:
        raise UserError(f"{where}: fl_x {fx}, fl_y {fy}, w {w}, h {h}; allowed: above 0.")
    scale_x, scale_y = width / w, height / h
    return fx * scale_x, fy * scale_y, lens.get("cx", 0.5 * w) * scale_x, lens.get("cy", 0.5 * h) * scale_y


def _warn_of_distortion(path: Path, content: dict[str, Any], frames: list[dict[str, Any]]) -> None:
    """Say it where the file states a lens distortion, which is not applied."""
    keys = [key for key in ("k1", "k2", "k3", "k4", "p1", "p2") if any(f.get(key) for f in (content, *frames))]
    if keys:
        warnings.warn(f"{path}: lens distortion ({', '.join(keys)}) is ignored; undistort the images.", stacklevel=2)


def _number(path: Path, key: str, value: Any) -> float:
    """A finite number of the file."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{path}: {key} is {value!r}; allowed: a finite number.")
    return float(value)
