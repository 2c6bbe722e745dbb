"""Blender scenes (NeRF synthetic, D-NeRF, instant-ngp's ``transforms.json``): read and write.

Conventions of the files: poses are 4x4 (or 3x4) OpenGL camera-to-world matrices, +z up; pixel centers at
+0.5; intrinsics are ``fl_x, fl_y, cx, cy, w, h`` per frame or at the top, or ``camera_angle_x`` (radians);
``time`` per frame in [0, 1]; PNG or JPEG, alpha not premultiplied. ``near`` and ``far`` are z-depths along
unnormalized rays: 2 and 6 unless the file says otherwise, which fits cameras about 4 units from the origin.
The box ``aabb`` is the cube +-1.5 unless the file says otherwise. nelf's writer states all three, with
``background`` (white unless the file says otherwise) and ``license``.

Splits: ``transforms_{train,val,test}.json`` are taken as they are. Where a split has no file (or all views
are in one ``transforms.json``), views are held out: of every ``holdout`` views in file order, the first is
for test and the second for val, each only if that split has no file of its own; what is held out is not
trained on.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from nelf.cameras import Camera
from nelf.data.images import MEMORY_LIMIT, ImageFiles, check_width, fingerprint, image_headers, load_images
from nelf.data.ray_cache import shuffled
from nelf.data.transforms import SPLITS, Transforms, read_transforms
from nelf.errors import UserError
from nelf.scene import BACKGROUNDS, ImageStack, Scene, Split, background_color

__all__ = ["check_space", "read_scene", "read_views", "with_pseudo_views"]

_NEAR, _FAR = 2.0, 6.0
_AABB = (-1.5, -1.5, -1.5, 1.5, 1.5, 1.5)


@dataclass
class _Views:
    """Views that are known but not yet decoded: N files with their cameras at the files' size."""

    names: list[str]
    paths: list[Path]
    camera: Camera
    alpha: bool

    def __len__(self) -> int:
        return len(self.names)

    def pick(self, indices: list[int]) -> _Views:
        """Some of the views."""
        names, paths = [self.names[i] for i in indices], [self.paths[i] for i in indices]
        return _Views(names, paths, self.camera[torch.tensor(indices, dtype=torch.long)], self.alpha)


def read_scene(
    root: str | Path,
    *,
    width: int | None = None,
    background: str | None = None,
    holdout: int = 8,
    near: float | None = None,
    far: float | None = None,
    aabb: list[float] | None = None,
    moving: bool = False,
    memory_limit: int = MEMORY_LIMIT,
) -> Scene:
    """Read a scene in the Blender format.

    Args:
        root: directory with ``transforms_train.json`` (and ``_val``, ``_test``) or ``transforms.json``.
        width: images are reduced to this width by area averaging; None keeps the size of the training images.
        background: named background of the evaluation, instead of the file's.
        holdout: of every so many views one is held out for each of val and test, where they have no file.
        near: instead of the file's smallest z-depth.
        far: instead of the file's largest z-depth.
        aabb: instead of the file's box: six numbers, smallest xyz then largest xyz.
        moving: where no frame of a file states a time, frame i of n is at i / (n - 1), as D-NeRF has it.
        memory_limit: bytes of images that one split may take in RAM before it is memory-mapped.

    Returns:
        The scene. All its views have one size.

    Raises:
        UserError: a file is missing, damaged or contradicts itself, or an argument is out of range.
    """
    if background is not None:
        background_color(background)
    if holdout < 3:
        raise UserError(f"data.holdout: is {holdout}; allowed: 3 or more (one test, one val, the rest train).")
    files = read_transforms(Path(root), moving)
    _check_controls(files)
    stated = files["train"]
    depth = (_first(near, stated.near, _NEAR), _first(far, stated.far, _FAR))
    box = _first(aabb, stated.aabb, list(_AABB))
    check_space(stated.path, depth, box)
    background = _background(stated) if background is None else background
    splits = _split(files, holdout)
    width = splits["train"].camera.width if width is None else width
    loaded = {name: _load(views, name, width, Path(root), memory_limit) for name, views in splits.items()}
    loaded["train"] = loaded["train"].numbered()
    return Scene(
        name=stated.path.parent.resolve().name,
        root=Path(root),
        **loaded,
        aabb=torch.tensor(box, dtype=torch.float32),
        near=depth[0],
        far=depth[1],
        background=background,
        digest=_digest(files),
        license=stated.license,
        controls=stated.controls,
        points=None,
    )


def read_views(root: str | Path, *, width: int | None = None, memory_limit: int = MEMORY_LIMIT) -> Split:
    """Read all views of ``transforms_train.json`` (or ``transforms.json``), such as those of a pseudo set.

    Args:
        root: the set's directory.
        width: as of ``read_scene``.
        memory_limit: as of ``read_scene``.

    Returns:
        The views; none is held out.

    Raises:
        UserError: as ``read_scene``.
    """
    views = _views(read_transforms(Path(root))["train"])
    return _load(views, "train", views.camera.width if width is None else width, Path(root), memory_limit)


def with_pseudo_views(
    scene: Scene,
    root: str | Path,
    real_views: bool = True,
    memory_limit: int = MEMORY_LIMIT,
    for_rays: bool = False,
) -> Scene:
    """A scene whose training views are those that a teacher has drawn of it.

    Args:
        scene: the real one; all but the training views stays.
        root: the pseudo set, see ``read_views``.
        real_views: keep the scene's own training views beside them.
        memory_limit: as of ``read_scene``.
        for_rays: leave the pseudo set on disk, with a file of all pixels that ray batches are read from. See
            ``nelf.data.ray_cache``.

    Raises:
        UserError: as ``read_views``; the views have another shape than the scene's own.
    """
    camera = scene.train.camera
    views = _views(read_transforms(Path(root))["train"])
    pseudo = _load(views, "train", camera.width, Path(root), None if for_rays else memory_limit)
    if pseudo.camera.height != camera.height:
        raise UserError(
            f"{root}: has views of {pseudo.camera.width}x{pseudo.camera.height} pixels at the width of {scene.name}, "
            f"whose own are {camera.width}x{camera.height}; allowed: views of the same scene."
        )
    train = Split.cat([pseudo, scene.train] if real_views else [pseudo])
    if for_rays:
        mark = f"{fingerprint(views.paths)} {scene.digest} {scene.train.names}"
        train = shuffled(train, Path(root), mark)
    return replace(scene, train=train)


def _first(*values: Any) -> Any:
    """The first value that is not None."""
    return next(value for value in values if value is not None)


def _background(stated: Transforms) -> str:
    """The background that a file states, white if it states none."""
    name: object = "white" if stated.background is None else stated.background
    for known in BACKGROUNDS:
        if name == known:
            return known
    raise UserError(
        f"{stated.path}: background is {name!r}; allowed: {', '.join(BACKGROUNDS)}. Or pass data.background=."
    )


def check_space(path: Path, depth: tuple[float, float], box: list[float]) -> None:
    """Refuse a depth range or a box that is empty.

    Args:
        path: the file to name.
        depth: near and far.
        box: smallest xyz, largest xyz.

    Raises:
        UserError: either is.
    """
    if not 0 < depth[0] < depth[1] < float("inf"):
        raise UserError(f"{path}: near {depth[0]} and far {depth[1]}; allowed: 0 < near < far.")
    if len(box) != 6 or not all(low < high for low, high in zip(box[:3], box[3:], strict=True)):
        raise UserError(f"{path}: aabb {box}; allowed: six numbers, smallest x y z, then largest x y z.")


def _check_controls(files: dict[str, Transforms]) -> None:
    """Refuse splits of which only some have a time, or that name other controls."""
    train = files["train"]
    for file in files.values():
        if file.controls != train.controls:
            names = [", ".join(each.controls) or "no time" for each in (file, train)]
            raise UserError(
                f"{file.path}: its frames have {names[0]}, those of {train.path.name} have {names[1]}; "
                "allowed: the same in all files of a scene."
            )


def _split(files: dict[str, Transforms], holdout: int) -> dict[str, _Views]:
    """Views of all three splits; those without a file are held out from the training file."""
    views = {name: _views(transforms) for name, transforms in files.items()}
    absent = [name for name in ("test", "val") if name not in views]
    if not absent:
        return views
    train, places = views["train"], {"test": 0, "val": 1}
    held = {name: [i for i in range(len(train)) if i % holdout == places[name]] for name in absent}
    taken = {places[name] for name in absent}
    rest = [i for i in range(len(train)) if i % holdout not in taken]
    if not rest or not all(held.values()):
        path = files["train"].path
        raise UserError(
            f"{path}: {len(train)} views are too few to hold out {' and '.join(absent)} views; "
            f"allowed: {len(absent) + 1} or more, or a transforms file for each of {', '.join(SPLITS)}."
        )
    return {**views, **{name: train.pick(held[name]) for name in absent}, "train": train.pick(rest)}


def _views(transforms: Transforms) -> _Views:
    """Open the headers of a file's images and make their cameras.

    Intrinsics that are given for another image size (``w``, ``h``) are scaled to the size of the files.
    """
    headers = image_headers(transforms.images, "scene")
    width, height = headers[0][0]
    camera = Camera(
        torch.from_numpy(transforms.c2w),
        torch.from_numpy(transforms.intrinsics(width, height)),
        width,
        height,
        None if transforms.values is None else torch.from_numpy(transforms.values),
    )
    return _Views(transforms.names, transforms.images, camera, any(alpha for _, alpha in headers))


def _load(views: _Views, split: str, width: int, root: Path, memory_limit: int | None) -> Split:
    """Decode the images of a split at the wanted width; None for a limit leaves them on disk."""
    check_width(width, views.paths[0], views.camera.width)
    camera = views.camera.resized(width)
    channels = 4 if views.alpha else 3
    text = f"reading {split} views of {root.resolve().name}"
    if memory_limit is None:
        files = ImageFiles(views.paths, width, camera.height, channels)
        return Split(camera, ImageStack([files]), views.names)
    images = load_images(views.paths, width, camera.height, channels, root, text, memory_limit)
    return Split(camera, images, views.names)


def _digest(files: dict[str, Transforms]) -> str:
    """Hash of the transforms files and of each image's name and size, independent of where the scene lies."""
    state = hashlib.sha256()
    for name, transforms in sorted(files.items()):
        state.update(f"{name} {transforms.path.name}\n".encode())
        state.update(transforms.path.read_bytes())
        for image, path in zip(transforms.names, transforms.images, strict=True):
            state.update(f"{image} {path.stat().st_size}\n".encode())
    return state.hexdigest()[:16]
