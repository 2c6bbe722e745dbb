"""Parse and check transforms files, the JSON beside the images of a Blender scene; images are not opened.

They are read as by the programs of NeRF, D-NeRF, instant-ngp and nerfstudio. Where these differ:

- ``k3`` of OPENCV is OpenCV's, as in nerfstudio (instant-ngp has none). ``k4`` is the first coefficient of the
  denominator and allowed for FULL_OPENCV only; for OPENCV it is refused, since nerfstudio's rays and undistortion
  interpret it differently.
- ``aabb_scale`` is instant-ngp's: the side of the box around the unit cube into which ``scale`` (0.33) and ``offset``
  (0.5) map the file's poses.
- ``ply_file_path`` names points in the space of the file's poses, since nerfstudio's writers apply
  ``applied_transform`` to both; the key itself changes nothing here. Points are multiplied by ``applied_scale``, which
  these writers never write, because nerfstudio's reader does that, too.

Other keys, such as ``sharpness``, are ignored.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from nelf.data import frames as parts
from nelf.data.masks import MaskFile
from nelf.errors import UserError
from nelf.files import SMALLEST, is_dir, is_file, number, numbers, quoted, read_object, short

__all__ = ["SPLITS", "Transforms", "read_path", "read_transforms"]

SPLITS = ("train", "val", "test")

_NGP_SCALE, _NGP_OFFSET, _NGP_NEAR = 0.33, 0.5, 0.1
_NAMED = 3  # maximum number of files that a message names


@dataclass
class Transforms:
    """One transforms file.

    Attributes:
        path: the file.
        names: N file paths inside the scene, without extension.
        images: N image files, which exist.
        masks: N masks, None for a frame without mask.
        c2w: (N, 3, 4) float32.
        controls: names of the controls, the first of which is ``time``.
        values: (N, K) float32 in [0, 1], or None without controls.
        lenses: N dictionaries of camera keys, see ``nelf.data.frames.stated_lens``.
        aabb: box, smallest xyz, largest xyz; like the next four, None if the file does not state it.
        near: smallest z-depth.
        far: largest z-depth.
        background: name of the background of the views.
        license: license of the images.
        cube: the box of ``aabb_scale``, as ``aabb``; None if the file does not state it.
        cube_near: distance at which instant-ngp's rays begin, scene units.
        cloud: PLY file of points in the space of the poses, or None.
        cloud_scale: factor of its points.
        lists: indices of frames by split, if the file lists them.
    """

    path: Path
    names: list[str]
    images: list[Path]
    masks: list[MaskFile | None]
    c2w: np.ndarray
    controls: tuple[str, ...]
    values: np.ndarray | None
    lenses: list[dict[str, Any]]
    aabb: list[float] | None
    near: float | None
    far: float | None
    background: str | None
    license: str | None
    cube: list[float] | None = None
    cube_near: float = _NGP_NEAR / _NGP_SCALE
    cloud: Path | None = None
    cloud_scale: float = 1.0
    lists: dict[str, list[int]] = field(default_factory=dict)

    def intrinsics(self, width: int, height: int) -> np.ndarray:
        """(N, 4) float32 ``fx, fy, cx, cy`` for images of the given size in pixels.

        Raises:
            UserError: a frame has neither ``fl_x`` nor ``camera_angle_x``, or portrait and landscape differ between an
                image and its ``w`` and ``h``.
        """
        rows = [parts.focal(lens, width, height, self._where(index)) for index, lens in enumerate(self.lenses)]
        return np.array(rows, dtype=np.float32)

    def distortion(self) -> list[tuple[float, ...]]:
        """N times nine coefficients, see ``nelf.data.lenses.stack``.

        Raises:
            UserError: a frame's ``camera_model`` is not in ``nelf.data.lenses``, or lacks a stated coefficient.
        """
        return [parts.lens(lens, self._where(index)) for index, lens in enumerate(self.lenses)]

    def pick(self, indices: Sequence[int]) -> Transforms:
        """The frames with these indices."""
        chosen = list(indices)
        return replace(
            self,
            names=[self.names[index] for index in chosen],
            images=[self.images[index] for index in chosen],
            masks=[self.masks[index] for index in chosen],
            lenses=[self.lenses[index] for index in chosen],
            c2w=self.c2w[chosen],
            values=None if self.values is None else self.values[chosen],
            lists={},
        )

    def _where(self, index: int) -> str:
        return f"{self.path}: {self.names[index] if self.names else f'frame {index}'}"


def read_transforms(root: Path, moving: bool = False, skip_missing: bool = False) -> dict[str, Transforms]:
    """Parse the transforms files of a scene.

    Args:
        root: the scene's directory.
        moving: if no frame of a file states a time, frames are evenly spaced in time.
        skip_missing: leave out frames whose image is missing, instead of an error.

    Returns:
        Parsed files by split; ``transforms.json`` is train, unless it lists its files by split (``train_filenames`` and
        so on). Train is always present.

    Raises:
        UserError: see ``nelf.data.blender.read_scene``.
    """
    if not is_dir(root):
        raise UserError(f"data.root: {root} is not a directory; allowed: a folder with transforms_train.json.")
    single = root / "transforms.json"
    paths = {name: root / f"transforms_{name}.json" for name in SPLITS}
    found = {name: path for name, path in paths.items() if is_file(path)}
    if is_file(single) and found:
        first = next(iter(found.values())).name
        raise UserError(f"data.root: {root} has both transforms.json and {first}; allowed: one of the two kinds.")
    if is_file(single):
        found = {"train": single}
    if "train" not in found:
        raise UserError(
            f"data.root: no transforms_train.json in {root}; a Blender scene has transforms_train.json "
            "(with transforms_val.json and transforms_test.json, or without) or one transforms.json."
        )
    files = {name: _parse(path, skip_missing=skip_missing) for name, path in found.items()}
    files = {name: _in_order(each) if moving else each for name, each in files.items()}
    listed = files["train"].lists if is_file(single) else {}
    return {name: files["train"].pick(own) for name, own in listed.items()} if listed else files


def read_path(path: Path) -> Transforms:
    """Parse a camera path: a transforms file whose frames need no images.

    Args:
        path: the file.

    Returns:
        As for a scene, but without names and images.

    Raises:
        UserError: it is missing or damaged, see ``read_transforms``.
    """
    if not is_file(path):
        raise UserError(f"{path}: no such camera path; allowed: a transforms file with transform_matrix of each frame.")
    return _parse(path, with_images=False)


def _in_order(file: Transforms) -> Transforms:
    """If a file states no times, set that of frame i of n to i / (n - 1), as D-NeRF's reader does."""
    if file.values is not None:
        return file
    words = "no frame states a time, so times are evenly spaced in file order; data=blender reads a static scene."
    warnings.warn(f"{file.path}: {words}", stacklevel=2)
    times = np.linspace(0.0, 1.0, len(file.c2w), dtype=np.float32)
    return replace(file, controls=("time",), values=times[:, None])


def _parse(path: Path, with_images: bool = True, skip_missing: bool = False) -> Transforms:
    """Parse and check one file."""
    content = read_object(path, "a JSON object with 'frames'")
    entries = content.get("frames")
    if not isinstance(entries, list):
        raise UserError(f"{path}: missing key 'frames'; a list of views with file_path and transform_matrix.")
    if not entries:
        raise UserError(f"{path}: zero frames; allowed: one or more.")
    if not all(isinstance(frame, dict) for frame in entries):
        raise UserError(f"{path}: a frame is not a JSON object; each frame needs transform_matrix.")
    frames: dict[int, dict[str, Any]] = dict(enumerate(entries))
    images: dict[int, Path] = {}
    lists: dict[str, list[int]] = {}
    if with_images:
        found = {index: parts.picture(path, index, frame) for index, frame in frames.items()}
        images = {index: image for index, (_, image) in found.items() if image is not None}
        _check_missing(path, frames, images, skip_missing)
        frames = {index: frames[index] for index in images}
        lists = _lists(path, content, {index: target for index, (target, _) in found.items()}, images)
    names, values = parts.controls(path, content, frames)
    return Transforms(
        path=path,
        names=[image.with_suffix("").as_posix() for image in images.values()],
        images=[path.parent / image for image in images.values()],
        masks=[parts.mask(path, index, frames[index], image) for index, image in images.items()],
        c2w=np.stack([parts.pose(path, index, frame) for index, frame in frames.items()]),
        controls=names,
        values=values,
        lenses=[parts.stated_lens(path, index, content, frame) for index, frame in frames.items()],
        aabb=_box(path, content),
        near=None if content.get("near") is None else number(path, "near", content["near"]),
        far=None if content.get("far") is None else number(path, "far", content["far"]),
        background=content.get("background"),
        license=_license(path, content),
        cube=_cube(path, content),
        cube_near=_NGP_NEAR / _positive(path, content, "scale", _NGP_SCALE),
        cloud=_cloud(path, content) if with_images else None,
        cloud_scale=_positive(path, content, "applied_scale", 1.0),
        lists=lists,
    )


def _check_missing(path: Path, frames: dict[int, dict[str, Any]], images: dict[int, Path], skip: bool) -> None:
    """Refuse frames without image, or warn how many are left out."""
    missing = [index for index in frames if index not in images]
    if not missing:
        return
    first = short(frames[missing[0]]["file_path"])
    if not skip:
        more = f" ({len(missing)} of {len(frames)} are missing)" if len(missing) > 1 else ""
        raise UserError(
            f"{path}: frame {missing[0]}: no image {first} (nor with .png or .jpg) in {path.parent}{more}; allowed: "
            "all of them, or data.skip_missing=true."
        )
    if not images:
        raise UserError(f"{path}: none of its {len(frames)} images is in {path.parent}, the first is {first}.")
    words = f"{len(missing)} of {len(frames)} frames have no image and are left out, the first is {first}"
    warnings.warn(f"{path}: {words}.", stacklevel=2)


def _lists(
    path: Path, content: dict[str, Any], targets: dict[int, Path], images: dict[int, Path]
) -> dict[str, list[int]]:
    """Indices, among frames with an image, that ``train_filenames`` and so on list; empty without these keys."""
    places = {index: place for place, index in enumerate(images)}
    known = {image.as_posix(): index for index, image in images.items()}
    known |= {target.as_posix(): index for index, target in targets.items()}
    found: dict[str, list[int]] = {}
    for split in SPLITS:
        key = f"{split}_filenames"
        names = content.get(key)
        if not names:
            continue
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f"{path}: {key} is {quoted(names)}; allowed: a list of file names.")
        listed = [parts.inside(path, key, name).as_posix() for name in names]
        unknown = [name for name in listed if name not in known]
        if unknown:
            raise UserError(
                f"{path}: {key} has {', '.join(map(short, unknown[:_NAMED]))}; allowed: file_path of its frames."
            )
        wanted = {known[name] for name in listed}
        found[split] = [place for index, place in places.items() if index in wanted]
    found = {split: own for split, own in found.items() if own}
    if found and "train" not in found:
        raise UserError(
            f"{path}: has {next(iter(found))}_filenames, but no train_filenames; allowed: with train, or none."
        )
    for split in ("val", "test"):
        both = set(found.get("train", ())) & set(found.get(split, ()))
        if both:
            words = f"{len(both)} files of train_filenames are in {split}_filenames, too: figures of them say little"
            warnings.warn(f"{path}: {words}.", stacklevel=2)
    return found


def _box(path: Path, content: dict[str, Any]) -> list[float] | None:
    """The box, six numbers in one list or in two."""
    box = content.get("aabb")
    if isinstance(box, list) and all(isinstance(corner, list) for corner in box):
        box = [value for corner in box for value in corner]
    return None if box is None else numbers(path, "aabb", box, 6)


def _license(path: Path, content: dict[str, Any]) -> str | None:
    """The license, if the file states one."""
    text = content.get("license")
    if not isinstance(text, str | None):
        raise UserError(f"{path}: license is {quoted(text)}; allowed: a text.")
    return text


def _cube(path: Path, content: dict[str, Any]) -> list[float] | None:
    """The box of instant-ngp, in the file's unit; None where it states no ``aabb_scale``."""
    if content.get("aabb_scale") is None:
        return None
    side, scale = (
        _positive(path, content, key, default) for key, default in (("aabb_scale", 1.0), ("scale", _NGP_SCALE))
    )
    offset = content.get("offset", _NGP_OFFSET)
    offsets = numbers(path, "offset", offset if isinstance(offset, list) else [offset] * 3, 3)
    return [(0.5 + sign * side / 2 - each) / scale for sign in (-1, 1) for each in offsets]


def _cloud(path: Path, content: dict[str, Any]) -> Path | None:
    """The file of points."""
    stated = content.get("ply_file_path")
    if stated is None:
        return None
    if not isinstance(stated, str) or not stated:
        raise UserError(f"{path}: ply_file_path is {quoted(stated)}; allowed: the name of a file.")
    return path.parent / parts.inside(path, "ply_file_path", stated)


def _positive(path: Path, content: dict[str, Any], key: str, default: float) -> float:
    """A number above zero."""
    value = number(path, key, content.get(key, default))
    if value < SMALLEST:
        raise UserError(f"{path}: {key} is {value:g}; allowed: above 0.")
    return value
