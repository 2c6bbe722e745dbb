"""Parse the entries of a transforms file: image and mask files, pose, controls, intrinsics, lens."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from nelf.data.lenses import coefficients
from nelf.data.masks import MaskFile
from nelf.errors import UserError
from nelf.files import LARGEST, SMALLEST, array, is_file, number, numbers, quoted, short

__all__ = ["controls", "focal", "inside", "lens", "mask", "picture", "pose", "stated_lens"]

_EXTENSIONS = ("", ".png", ".jpg", ".jpeg", ".webp", ".PNG", ".JPG", ".JPEG")
_SIZE, _X, _Y = ("w", "h", "cx", "cy"), ("fl_x", "camera_angle_x"), ("fl_y", "camera_angle_y")
_RADIAL = ("k1", "k2", "k3", "k4", "p1", "p2")  # the order of nerfstudio's distortion_params
_COEFFICIENTS = (*_RADIAL, "k5", "k6")
_OTHERWISE = ("is_fisheye", "ftheta_p0", "latlong", "equirectangular", "orthographic")  # instant-ngp's other cameras


def inside(path: Path, where: str, stated: str) -> Path:
    """A file that a transforms file names, relative to its folder.

    Raises:
        UserError: it lies outside of the folder.
    """
    root = Path(os.path.normpath(path.parent.absolute()))
    # Links are not resolved: a link inside the scene may point to another disk.
    target = Path(os.path.normpath(root / stated.replace("\\", "/")))
    if not target.is_relative_to(root):
        raise UserError(f"{path}: {where} points outside {path.parent} ({short(stated)}); allowed: files inside it.")
    return target.relative_to(root)


def picture(path: Path, index: int, frame: dict[str, Any]) -> tuple[Path, Path | None]:
    """``file_path`` of a frame, which may lack the extension, and the image file, or None if it is missing.

    Both are relative to the folder of the transforms file.
    """
    stated = frame.get("file_path")
    if not isinstance(stated, str) or not stated:
        raise UserError(f"{path}: frame {index} has no key 'file_path'; each frame needs file_path, transform_matrix.")
    target = inside(path, f"frame {index}", stated)
    if not target.name:
        raise UserError(f"{path}: frame {index} has file_path {short(stated)}, which is a folder; allowed: an image.")
    for extension in _EXTENSIONS:
        image = target.with_name(target.name + extension)
        if is_file(path.parent / image):
            return target, image
    return target, None


def mask(path: Path, index: int, frame: dict[str, Any], image: Path) -> MaskFile | None:
    """The mask of a frame: ``mask_path``, or instant-ngp's file beside the image.

    Args:
        path: the transforms file.
        index: index of the frame.
        frame: its entry.
        image: its image, as named in the entry.

    Returns:
        The file; None if the frame has no mask.

    Raises:
        UserError: the named file does not exist, or is outside the scene's folder.
    """
    stated = frame.get("mask_path")
    if stated is None:
        dynamic = path.parent / image.with_name(f"dynamic_mask_{image.stem}.png")
        return MaskFile(dynamic, ignores=True) if is_file(dynamic) else None
    if not isinstance(stated, str) or not stated:
        raise UserError(f"{path}: frame {index}: mask_path is {quoted(stated)}; allowed: the name of a file.")
    file = path.parent / inside(path, f"frame {index}: mask_path", stated)
    if not is_file(file):
        raise UserError(f"{path}: frame {index}: no mask {short(stated)} in {path.parent}.")
    return MaskFile(file)


def pose(path: Path, index: int, frame: dict[str, Any]) -> np.ndarray:
    """(3, 4) float32 camera-to-world matrix of one frame."""
    where = f"{path}: frame {index} ({_name(frame)})"
    if "transform_matrix" not in frame:
        raise UserError(f"{where} has no key 'transform_matrix'; allowed: a 4x4 camera-to-world matrix.")
    matrix = array(where, "transform_matrix", frame["transform_matrix"], ((4, 4), (3, 4)))
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


def _name(frame: dict[str, Any]) -> str:
    """The image of a frame, for messages."""
    stated = frame.get("file_path")
    return short(stated) if isinstance(stated, str) else "no image"


def controls(
    path: Path, content: dict[str, Any], frames: dict[int, dict[str, Any]]
) -> tuple[tuple[str, ...], np.ndarray | None]:
    """Names and (N, K) float32 values: ``time`` of each frame, then its ``controls``, named by a top-level key."""
    untimed = [index for index, frame in frames.items() if "time" not in frame]
    if len(untimed) == len(frames):
        return (), None
    if untimed:
        raise UserError(f"{path}: frame {untimed[0]} has no key 'time', but others have; allowed: all or none.")
    further = content.get("controls", [])
    if not isinstance(further, list) or not all(isinstance(name, str) for name in further):
        raise UserError(f"{path}: controls are {quoted(further)}; allowed: a list of names.")
    rows = []
    for index, frame in frames.items():
        values = frame.get("controls", [])
        if not isinstance(values, list) or len(values) != len(further):
            raise UserError(f"{path}: frame {index}: controls are {quoted(values)}; allowed: {len(further)} numbers.")
        row = [number(path, "time", frame["time"]), *(number(path, "controls", value) for value in values)]
        for name, value in zip(("time", *further), row, strict=True):
            if not 0 <= value <= 1:
                raise UserError(f"{path}: frame {index}: {name} is {value}; allowed: 0 to 1.")
        rows.append(row)
    return ("time", *further), np.array(rows, dtype=np.float32)


def stated_lens(path: Path, index: int, content: dict[str, Any], frame: dict[str, Any]) -> dict[str, Any]:
    """The intrinsics and lens of one frame by key. Keys of the frame take precedence over those of the file.

    Args:
        path: the transforms file.
        index: index of the frame.
        content: the top-level keys of the file.
        frame: the keys of the frame.

    Raises:
        UserError: a value is not a finite number.
    """
    where = f"{path}: frame {index}"
    merged: dict[str, Any] = {"camera_model": "OPENCV"}
    for level in (content, frame):
        own = {key: number(where, key, level[key]) for key in (*_SIZE, *_COEFFICIENTS) if level.get(key) is not None}
        if level.get("distortion_params") is not None:
            own |= zip(_RADIAL, numbers(where, "distortion_params", level["distortion_params"], 6), strict=True)
        for (length, angle), degrees in ((_X, "x_fov"), (_Y, "y_fov")):
            axis = {key: number(where, key, level[key]) for key in (length, angle) if level.get(key) is not None}
            if level.get(degrees) is not None:  # takes precedence, as in instant-ngp
                axis = {angle: math.radians(number(where, degrees, level[degrees]))}
            if axis:
                merged = {key: value for key, value in merged.items() if key not in (length, angle)}
            own |= axis
        if level.get("camera_model") is not None:
            own["camera_model"] = level["camera_model"]
        merged |= own
        merged |= {key: level[key] for key in _OTHERWISE if level.get(key) is not None and level[key] is not False}
    return merged


def focal(stated: dict[str, Any], width: int, height: int, where: str) -> tuple[float, float, float, float]:
    """``fx, fy, cx, cy`` of a camera at the size of its image.

    Args:
        stated: its keys, see ``stated_lens``.
        width: width of the image, pixels.
        height: height of the image.
        where: the frame, for messages.

    Raises:
        UserError: there is no focal length, or portrait and landscape differ between image and keys.
    """
    w, h = stated.get("w", float(width)), stated.get("h", float(height))
    if (w - h) * (width - height) < 0:
        raise UserError(
            f"{where}: w {w:g} and h {h:g}, but its image is {width}x{height} as stored; allowed: the same orientation "
            "(rotation in EXIF is not applied, as in COLMAP; rotate the file)."
        )
    if "fl_x" in stated:
        fx = stated["fl_x"]
    elif "camera_angle_x" in stated and SMALLEST < stated["camera_angle_x"] < math.pi:
        fx = 0.5 * w / math.tan(0.5 * stated["camera_angle_x"])
    else:
        raise UserError(f"{where}: missing key 'camera_angle_x' (0 to pi) or 'fl_x' (pixels), per frame or at the top.")
    if "fl_y" in stated:
        fy = stated["fl_y"]
    elif "fl_x" not in stated and "camera_angle_y" in stated:
        if not SMALLEST < stated["camera_angle_y"] < math.pi:
            raise UserError(f"{where}: camera_angle_y is {stated['camera_angle_y']:g}; allowed: 0 to pi.")
        fy = 0.5 * h / math.tan(0.5 * stated["camera_angle_y"])
    else:
        fy = fx
    if not all(SMALLEST <= each <= LARGEST for each in (fx, fy, w, h)):
        found = f"fl_x {fx:g}, fl_y {fy:g}, w {w:g}, h {h:g}"
        raise UserError(f"{where}: {found}; allowed: above 0, up to {LARGEST:g}.")
    scale_x, scale_y = width / w, height / h
    return fx * scale_x, fy * scale_y, stated.get("cx", 0.5 * w) * scale_x, stated.get("cy", 0.5 * h) * scale_y


def lens(stated: dict[str, Any], where: str) -> tuple[float, ...]:
    """The distortion coefficients of the keys of ``stated_lens``, see ``nelf.data.lenses.coefficients``."""
    for key in _OTHERWISE:
        if key in stated:
            raise UserError(f"{where}: {key} is {quoted(stated[key])}; allowed: perspective cameras, see camera_model.")
    return coefficients(stated["camera_model"], stated, where)
