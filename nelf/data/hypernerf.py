"""Read captures in the format of Nerfies and HyperNeRF: a moving scene, filmed by hand from the front.

A capture is a folder with ``dataset.json`` (ids and splits), ``metadata.json`` (times), ``scene.json`` (the scene's
scale, center and depth range), ``camera/ID.json``, ``rgb/SCALEx/ID.png``, and optionally ``points.npy`` (background
points) and ``camera-paths/NAME/*.json``. Conventions of the cameras: see ``nelf.data.capture``. Images are opaque. Some
released captures contain images without an id, which are ignored.

Depth: the files state ``near`` and ``far`` as distances along unit rays; nelf's are z-depths. A distance s along a ray
at an angle a to the optical axis is the z-depth s cos a, so ``near`` is multiplied by the smallest cosine of the
training rays, and ``far`` by that of the axis, 1: no ray's range is cut.

Box: it contains the training rays from ``near`` to ``far``. If there are background points, it is cut to the box of
these points, without 0.1 % outliers on each side, and of the cameras, extended by a tenth of its longest side for
surfaces without points, such as a bare wall.

Trajectory: ``between``, since a hand-held camera sees only one side.

Splits: the format has two, so validation during training uses a few evenly spaced test views.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from nelf.cameras import Camera
from nelf.data.bounds import check_space
from nelf.data.capture import Moments, Space, read_cameras, read_dataset, read_moments, read_points, read_space
from nelf.data.images import MEMORY_LIMIT, check_width, image_headers, load_images
from nelf.errors import UserError
from nelf.files import encoded, is_dir, is_file
from nelf.rays import Rays
from nelf.scene import Scene, Split

__all__ = ["read_capture"]

_VALIDATED = 8  # validation views
_GRID = 17  # rays along each side of an image from which the box is computed
_OUTLIERS, _MARGIN = 0.1, 0.1  # percent of the background points on each side; share of the longest side


def read_capture(
    root: str | Path,
    *,
    image_scale: int = 4,
    split: Literal["auto", "vrig", "interp"] = "auto",
    width: int | None = None,
    near: float | None = None,
    far: float | None = None,
    aabb: list[float] | None = None,
    memory_limit: int = MEMORY_LIMIT,
) -> Scene:
    """Read a capture.

    Args:
        root: directory with ``dataset.json``.
        image_scale: selects the images: 4 for those in ``rgb/4x``, a quarter of the cameras' ``image_size``.
        split: ``vrig`` trains on ``train_ids`` and tests on ``val_ids``; ``interp`` trains on every fourth id and tests
            on those in the middle between two; ``auto`` is ``interp`` if there are no ``val_ids``.
        width: images are downsampled further, to this width, by area averaging; None keeps their size.
        near: smallest z-depth; replaces the files'.
        far: largest z-depth; replaces the files'.
        aabb: box, smallest xyz then largest xyz, scene units; None for the box of what the cameras see.
        memory_limit: bytes of images of one split above which they are memory-mapped.

    Returns:
        The scene. The cameras' only control is the time, see ``nelf.data.capture.read_moments``; ``view`` of a
        training camera is the index of its appearance id among the sorted appearance ids of the training views.

    Raises:
        UserError: a file is missing, damaged or contradicts itself, or an argument is out of range.
    """
    root = Path(root)
    if not is_dir(root):
        raise UserError(f"data.root: {root} is not a directory; allowed: a folder with dataset.json.")
    ids, splits, interpolated = read_dataset(root, split)
    space, moments = read_space(root), read_moments(root, ids, interpolated)
    points = read_points(root, space)
    folder = _images(root, image_scale)
    loaded = {
        name: _load(root, folder, some, space, moments, image_scale, width, memory_limit)
        for name, some in splits.items()
    }
    train, test = loaded["train"], loaded["test"]
    appearance = np.unique([moments.appearance[each] for each in splits["train"]], return_inverse=True)[1]
    train.camera = replace(train.camera, view=torch.from_numpy(appearance).long())
    rays = _grid_rays(train.camera)
    distant = float(rays.directions.norm(dim=-1).max())  # largest ratio of distance to z-depth
    depth = space.near / distant if near is None else near, space.far if far is None else far
    box = _box(rays, space, points) if aabb is None else aabb
    check_space(root / "scene.json", depth, box)
    return Scene(
        name=root.resolve().name,
        root=root,
        train=train,
        val=_few(test),
        test=test,
        aabb=torch.tensor(box, dtype=torch.float32),
        near=depth[0],
        far=depth[1],
        background="black",
        digest=_digest(root, ids),
        controls=("time",),
        points=points,
        trajectory="between",
    )


def _images(root: Path, image_scale: int) -> Path:
    """The folder of the images at a scale."""
    folder = root / "rgb" / f"{image_scale}x"
    if is_dir(folder):
        return folder
    there = sorted(int(each.name[:-1]) for each in root.glob("rgb/*x") if re.fullmatch(r"[1-9]\d*x", each.name))
    if not there:
        raise UserError(f"{root}: has no images in rgb/; allowed: folders such as rgb/4x.")
    raise UserError(
        f"{root}: has no images in rgb/{image_scale}x; allowed: data.image_scale={'|'.join(map(str, there))}."
    )


def _load(
    root: Path,
    folder: Path,
    ids: list[str],
    space: Space,
    moments: Moments,
    image_scale: int,
    width: int | None,
    memory_limit: int,
) -> Split:
    """The views of some ids."""
    camera = read_cameras(root, ids, space, image_scale)
    paths = [folder / f"{each}.png" for each in ids]
    camera = _sized(camera, paths)
    if width is not None:
        check_width(width, paths[0], camera.width)
        camera = camera.resized(width)
    times = torch.tensor([moments.times[each] for each in ids], dtype=torch.float32)
    text = f"reading {len(ids)} views of {root.resolve().name}"
    images = load_images(paths, camera.width, camera.height, 3, root, text, memory_limit)
    names = [path.relative_to(root).with_suffix("").as_posix() for path in paths]
    return Split(replace(camera, controls=times[:, None]), images, names)


def _sized(camera: Camera, paths: list[Path]) -> Camera:
    """The cameras with the size of the images, which may differ by a pixel of rounding."""
    width, height = image_headers(paths, "capture")[0][0]
    if abs(width - camera.width) > 1 or abs(height - camera.height) > 1:
        raise UserError(
            f"{paths[0]}: is {width}x{height}, but its camera's image_size is {camera.width}x{camera.height} at this "
            "scale; allowed: the same size."
        )
    return replace(camera, width=width, height=height)


def _few(split: Split) -> Split:
    """A few evenly spaced views."""
    chosen = np.unique(np.linspace(0, len(split) - 1, min(_VALIDATED, len(split))).round().astype(int))
    names = [split.names[index] for index in chosen]
    return Split(split.camera[torch.from_numpy(chosen)], split.images[chosen], names)


def _grid_rays(camera: Camera) -> Rays:
    """Rays (R,) through a grid of pixels of all cameras, corners included."""
    x, y = (torch.linspace(0, side - 1, _GRID).round() for side in (camera.width, camera.height))
    pixels = torch.cartesian_prod(x, y).repeat(len(camera), 1)
    which = torch.arange(len(camera)).repeat_interleave(_GRID**2)
    return camera[which].pixel_rays(pixels[:, 0], pixels[:, 1])


def _box(rays: Rays, space: Space, points: Tensor | None) -> list[float]:
    """The box of what the cameras see, smallest xyz then largest xyz."""
    ends = torch.cat([rays.origins + distance * rays.viewdirs for distance in (space.near, space.far)])
    low, high = ends.amin(0), ends.amax(0)
    if points is not None:
        known = np.percentile(points.double().numpy(), [_OUTLIERS, 100 - _OUTLIERS], axis=0)
        first, last = (torch.from_numpy(corner).float() for corner in known)
        first, last = torch.minimum(first, rays.origins.amin(0)), torch.maximum(last, rays.origins.amax(0))
        margin = _MARGIN * (last - first).max()
        low, high = torch.maximum(low, first - margin), torch.minimum(high, last + margin)
    return [*low.tolist(), *high.tolist()]


def _digest(root: Path, ids: list[str]) -> str:
    """Hash of the JSON files; the same for all scales and splits."""
    state = hashlib.sha256()
    cameras = [f"camera/{each}.json" for each in ids]  # an id that is in no split may lack one
    for name in ("dataset.json", "metadata.json", "scene.json", *cameras):
        if is_file(root / name):
            state.update(encoded(f"{name}\n"))
            state.update((root / name).read_bytes())
    return state.hexdigest()[:16]
