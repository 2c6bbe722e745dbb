"""Read scenes reconstructed by COLMAP: photographs with cameras, poses and points, in text or binary.

A scene is a folder with ``images/`` and a model (``cameras``, ``images`` and ``points3D``, ``.bin`` or ``.txt``) in
``sparse/0``, ``sparse`` or ``colmap/sparse/0``.

Conventions of the files: poses are world to camera with OpenCV's axes (y down, z forward), the unit is arbitrary, pixel
centers lie at +0.5. Pixels are as stored: neither COLMAP nor this reader applies the rotation in EXIF. For images of
another size than the cameras', such as ``images_4``, the intrinsics are scaled along each axis.

The scene's coordinates, in this order:

1. The mean of the cameras' up axes is turned to +z by the smallest rotation, and the mean of the cameras' positions
   becomes the origin: nerfstudio's ``orientation_method="up"``, ``center_method="poses"``.
2. The scale makes the median z-depth of the observed points 4, the distance of the cameras of the Blender scenes from
   their object. (nerfstudio scales the largest camera coordinate to 1.)

Depth range and box are derived from the observed points, see ``nelf.data.bounds.of_shown``.

Splits: of every ``holdout`` views, sorted by name, the first is held out, for val and test (LLFF's and mip-NeRF 360's
every eighth).
"""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nelf.cameras import Camera
from nelf.data import lenses
from nelf.data.bounds import check_space, of_shown
from nelf.data.colmap_model import PARTS, Image, Model, read_model
from nelf.data.images import MEMORY_LIMIT, check_width, image_headers
from nelf.data.splits import check_holdout, held_out, load_splits
from nelf.errors import UserError
from nelf.files import encoded, is_dir, is_file, quoted
from nelf.paths import trajectory
from nelf.paths.rotations import moved
from nelf.scene import Scene

__all__ = ["read_colmap"]

_MODELS = ("sparse/0", "sparse", "colmap/sparse/0")
_DEPTH = 4.0  # median z-depth of the observed points, scene units
_ASPECT = 0.02  # tolerance of the ratio of horizontal and vertical scale between cameras and images


class _Model(NamedTuple):
    """The used parts of a reconstruction: N images sorted by name, and the points that they observe.

    Attributes:
        names: N names, paths inside the folder of images.
        c2w: (N, 3, 4) float64, OpenGL axes, in the files' coordinates.
        intrinsics: (N, 4) ``fx, fy, cx, cy`` in pixels of ``sizes``.
        lens: (N, 6) or (N, 9), see ``Camera``; None for pinholes.
        sizes: (N, 2) width and height of the cameras.
        seen: (P, 3) the points of all images, each repeated for every image that shows it.
        depths: (P,) their z-depths.
    """

    names: list[str]
    c2w: np.ndarray
    intrinsics: np.ndarray
    lens: Tensor | None
    sizes: np.ndarray
    seen: np.ndarray
    depths: np.ndarray


def read_colmap(
    root: str | Path,
    *,
    images: str = "images",
    width: int | None = None,
    holdout: int = 8,
    skip_missing: bool = False,
    near: float | None = None,
    far: float | None = None,
    aabb: list[float] | None = None,
    memory_limit: int = MEMORY_LIMIT,
) -> Scene:
    """Read a COLMAP reconstruction with its photographs.

    Args:
        root: the scene's directory.
        images: the folder of the photographs in it, such as ``images_4``.
        width: images are downsampled to this width by area averaging; None keeps their size.
        holdout: of every ``holdout`` views, the first is held out, for val and test.
        skip_missing: leave out views whose image is missing, instead of an error.
        near: smallest z-depth, scene units; None to derive it from the points.
        far: largest z-depth; None to derive it from the points.
        aabb: box, smallest xyz then largest xyz; None to derive it from the points.
        memory_limit: bytes of images of one split above which they are memory-mapped.

    Returns:
        The scene, in the coordinates described in the module's docstring. ``view`` of a training camera is its index
        among the training views.

    Raises:
        UserError: the model or an image is missing or damaged, a camera model is unknown,
            images differ in size, or an argument is out of range.
    """
    root = Path(root)
    check_holdout(holdout)
    folder = _model_folder(root)
    model = _read(folder)
    there, paths = _pictures(root, images, model.names, skip_missing)
    if len(there) < 2:
        raise UserError(f"{folder}: has {len(there)} images; allowed: 2 or more, one to hold out and one for training.")
    world = _world(model)
    seen = model.seen @ world[:3, :3].T + world[:3, 3]
    told = of_shown(seen, model.depths * np.cbrt(np.linalg.det(world[:3, :3])))
    depth = told[0] if near is None else near, told[1] if far is None else far
    box = told[2] if aabb is None else aabb
    check_space(folder, depth, box)
    camera = _sized(model, moved(model.c2w, world), there, paths)
    if width is not None:
        check_width(width, paths[0], camera.width)
        camera = camera.resized(width)
    splits = load_splits(root, paths, camera, held_out(len(paths), holdout), memory_limit)
    return Scene(
        name=root.resolve().name,
        root=root,
        train=splits["train"],
        val=splits["val"],
        test=splits["test"],
        aabb=torch.tensor(box, dtype=torch.float32),
        near=depth[0],
        far=depth[1],
        background="black",
        digest=_digest(model),
        trajectory=trajectory(splits["train"].camera),
        from_colmap=world,
    )


# ------------------------------------------------------------------------------------------- the model


def _model_folder(root: Path) -> Path:
    """The folder of the model, which has all three parts."""
    if not is_dir(root):
        raise UserError(f"data.root: {root} is not a directory; allowed: a folder with images/ and sparse/0/.")
    found = [root / place for place in _MODELS if any(_parts(root / place, part) for part in PARTS)]
    if not found:
        raise UserError(
            f"data.root: {root} holds no COLMAP model; allowed: cameras, images and points3D (.bin or .txt) in "
            f"{', '.join(_MODELS)}. A folder of photographs alone: data=photos."
        )
    for part in PARTS:
        if not _parts(found[0], part):
            raise UserError(f"{found[0]}: has no {part}.bin or {part}.txt; allowed: a model with all three.")
    return found[0]


def _parts(folder: Path, part: str) -> bool:
    return any(is_file(folder / f"{part}.{kind}") for kind in ("bin", "txt"))


def _read(folder: Path) -> _Model:
    """Read a model, and extract what is needed."""
    model = read_model(folder)
    images = sorted(model.images, key=lambda image: image.name)
    cameras = {key: model.cameras[key] for key in {image.camera for image in images}}
    known = {
        key: lenses.from_parameters(camera.model, camera.parameters, f"{folder}: camera {key}")
        for key, camera in cameras.items()
    }
    c2w = np.stack([_pose(image.world_to_camera) for image in images])
    seen, depths = _observations(model, images, c2w)
    if not len(seen):
        raise UserError(f"{folder}: its images show none of its points in front of them; allowed: some.")
    return _Model(
        [image.name for image in images],
        c2w,
        np.array([known[image.camera].intrinsics for image in images]),
        lenses.stack([known[image.camera].coefficients for image in images]),
        np.array([(cameras[image.camera].width, cameras[image.camera].height) for image in images]),
        seen,
        depths,
    )


def _pose(world_to_camera: np.ndarray) -> np.ndarray:
    """(3, 4) camera to world, OpenGL axes: OpenCV's down and forward axes change sign."""
    turn, shift = world_to_camera[:, :3].T, world_to_camera[:, 3]
    return np.column_stack([turn, -turn @ shift]) * np.array([1.0, -1.0, -1.0, 1.0])


def _observations(model: Model, images: list[Image], c2w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The observed points (P, 3), image by image, and their z-depths (P,); points behind their camera are left out."""
    each = [model.points[np.searchsorted(model.keys, image.points)] for image in images]
    depths = np.concatenate([(pose[:, 3] - some) @ pose[:, 2] for pose, some in zip(c2w, each, strict=True)])
    good = depths > 0
    return np.concatenate(each)[good], depths[good]


# ------------------------------------------------------------------------------------------- the scene's world


def _world(model: _Model) -> np.ndarray:
    """(4, 4) transform from the files' coordinates to the scene's."""
    turn = _between(model.c2w[:, :, 1].mean(0), np.array([0.0, 0.0, 1.0]))
    scale = _DEPTH / float(np.median(model.depths))
    world = np.eye(4)
    world[:3, :3] = scale * turn
    world[:3, 3] = -scale * turn @ model.c2w[:, :, 3].mean(0)
    return world


def _between(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """The smallest rotation (3, 3) that takes the direction of one vector to that of a unit vector (Rodrigues)."""
    length = np.linalg.norm(start)
    if length < 1e-6:  # the cameras have no common up direction
        return np.eye(3)
    start = start / length
    axis, cosine = np.cross(start, end), float(start @ end)
    if cosine < -1 + 1e-9:  # opposite directions: rotate by 180 degrees about any perpendicular axis
        across = np.cross(start, np.eye(3)[np.abs(start).argmin()])
        across /= np.linalg.norm(across)
        return 2 * np.outer(across, across) - np.eye(3)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.eye(3) + cross + cross @ cross / (1 + cosine)


# ------------------------------------------------------------------------------------------- the pictures


def _pictures(root: Path, images: str, names: list[str], skip_missing: bool) -> tuple[list[int], list[Path]]:
    """The indices of the views whose image exists, and their files."""
    folder = root / images
    if not is_dir(folder):
        there = sorted(path.name for path in root.glob("images*") if path.is_dir())
        raise UserError(
            f"data.images: {folder} is not a directory; allowed: a folder with the photographs of the model"
            + (f": {', '.join(there)}." if there else ".")
        )
    for name in names:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\0" in name:
            raise UserError(f"{root}: its model names the image {quoted(name)}; allowed: a path inside {images}.")
    paths = [folder / name for name in names]
    places = [place for place, path in enumerate(paths) if is_file(path)]
    missing = [path for path in paths if not is_file(path)]
    if missing and not skip_missing:
        raise UserError(
            f"{missing[0]}: no such image file, {len(missing)} of {len(names)} are missing; allowed: all images, or "
            "data.skip_missing=true."
        )
    if missing:
        print(f"{folder}: {len(missing)} of {len(names)} images are missing, and left out", flush=True)
    return places, [paths[place] for place in places]


def _sized(model: _Model, c2w: np.ndarray, there: list[int], paths: list[Path]) -> Camera:
    """The cameras of the views ``there``, at the size of their image files."""
    width, height = image_headers(paths, "scene")[0][0]
    scales = np.array([width, height]) / model.sizes[there]
    for path, scale, size in zip(paths, scales, model.sizes[there].tolist(), strict=True):
        if abs(scale[0] / scale[1] - 1) > max(_ASPECT, 1 / min(width, height)):
            raise UserError(
                f"{path}: is {width}x{height}, but its camera is {size[0]}x{size[1]}; allowed: the same shape. "
                "Rotation in EXIF is not applied."
            )
    lens = None if model.lens is None else model.lens[there].clone()
    camera = Camera(
        torch.from_numpy(c2w[there]).float(),
        torch.from_numpy(model.intrinsics[there] * np.concatenate([scales, scales], 1)).float(),
        width,
        height,
        lens=lens,
    )
    lenses.check_cameras(camera, [path.name for path in paths], paths[0].parent)
    return camera


def _digest(model: _Model) -> str:
    """Hash of names, poses and cameras; independent of the folder of images, and of text or binary."""
    state = hashlib.sha256(encoded("\n".join(model.names)))
    for numbers in (
        model.c2w,
        model.intrinsics,
        model.sizes,
        np.zeros(0) if model.lens is None else model.lens.numpy(),
    ):
        state.update(np.ascontiguousarray(numbers, np.float32).tobytes())
    return state.hexdigest()[:16]
