"""Read forward-facing (and inward-facing) captures in the format of LLFF, as NeRF does.

A capture is a folder with ``poses_bounds.npy``, (N, 17) numbers, and the images: ``images``, and downsampled ones in
``images_4``, ``images_8`` and so on. Rows belong to the images in the order of their names. A row is a 3 x 5 matrix and
two bounds: camera to world with axes down, right and back, the position, and height, width and focal length (pixels) of
the full images; then the z-depths of the nearest and the farthest point. The format does not define pixel centers and
principal point; here they follow nelf's conventions, so NeRF's own rays are half a pixel up and to the left.

As in NeRF's ``load_llff.py``, but in float64, positions and bounds are divided by ``bd_factor`` (0.75) times the
smallest bound, and the axes of the average camera become the world's, so that the scene lies along -z. Then rays are
mapped to normalized device coordinates (NDC), whose near plane is one unit in front of the average camera; or
(``spherify``) the point that all cameras look at becomes the origin, their mean direction from it +z, and their
root-mean-square distance the unit. ``near`` is 0.9 times the smallest bound, ``far`` the largest.

Box: it contains the training rays from near to far, or over the whole NDC range.

Splits: of every ``holdout`` views, the first is held out, for val and test, as in NeRF.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nelf.cameras import Camera
from nelf.data.bounds import check_space
from nelf.data.images import MEMORY_LIMIT, check_width, image_headers
from nelf.data.lenses import check_cameras
from nelf.data.splits import check_holdout, held_out, load_splits
from nelf.errors import UserError
from nelf.files import LARGEST, SMALLEST, is_dir, open_array, widened
from nelf.paths import average_pose, focus, look_at
from nelf.rays import NDC
from nelf.scene import Scene

__all__ = ["read_llff"]

_BOUND = 0.75  # NeRF's ``bd_factor``: the smallest bound becomes 1 / 0.75
_NEAR = 0.9  # share of the smallest bound
_PLANE = 1.0  # near plane of NDC, scene units: between the average camera and the smallest bound, 1.33
_SUFFIXES = (".jpg", ".jpeg", ".png")
_MOST_ROWS = 100_000


def read_llff(
    root: str | Path,
    *,
    factor: int = 8,
    width: int | None = None,
    ndc: bool = True,
    spherify: bool = False,
    holdout: int = 8,
    near: float | None = None,
    far: float | None = None,
    aabb: list[float] | None = None,
    memory_limit: int = MEMORY_LIMIT,
) -> Scene:
    """Read a capture.

    Args:
        root: directory with ``poses_bounds.npy``.
        factor: downsampling factor: 8 for the images in ``images_8``, or, if there is no such folder, those in
            ``images``, downsampled by area averaging.
        width: images are downsampled further, to this width; None keeps their size.
        ndc: rays are in normalized device coordinates, for forward-facing scenes; else in scene coordinates.
        spherify: the cameras surround an object; not with ``ndc``.
        holdout: of every ``holdout`` views, the first is held out, for val and test.
        near: smallest z-depth, scene units; None for 0.9 times the smallest bound.
        far: largest z-depth; None for the largest bound.
        aabb: box, smallest xyz then largest xyz, in the space of the rays; None for the box of the training rays.
        memory_limit: bytes of images of one split above which they are memory-mapped.

    Returns:
        The scene. Its images are opaque, its background is black.

    Raises:
        UserError: a file is missing, damaged or contradicts itself, or an argument is out of range.

    Source:
        Mildenhall et al. 2019, "Local Light Field Fusion" (arXiv 1905.00889); NeRF (arXiv 2003.08934) and its
        ``load_llff.py``.
    """
    root = Path(root)
    if ndc and spherify:
        raise UserError("data.spherify: is true, and so is data.ndc; allowed: one of them.")
    check_holdout(holdout)
    if not is_dir(root):
        raise UserError(f"data.root: {root} is not a directory; allowed: a folder with poses_bounds.npy.")
    path = root / "poses_bounds.npy"
    table = _read_table(path)
    paths, reduced = _images(root, factor, len(table))
    c2w, bounds = _recentered(table)
    if spherify:
        c2w, bounds = _spherified(c2w, bounds)
    full = _cameras(path, table, c2w, paths, 1 if reduced else factor)
    check_cameras(full, [each.name for each in paths], path)
    camera = full.resized(max(round(full.width / factor), 1)) if reduced else full
    if width is not None:
        check_width(width, paths[0], camera.width)
        camera = camera.resized(width)
    if ndc:
        fx, fy = camera.intrinsics[0, :2].tolist()
        camera = _in_ndc(path, camera, NDC(_PLANE, camera.width / (2 * fx), camera.height / (2 * fy)))
    depth = _NEAR * float(bounds.min()) if near is None else near, float(bounds.max()) if far is None else far
    rows = held_out(len(table), holdout)
    if not rows["train"]:
        raise UserError(f"{path}: has {len(table)} row; allowed: 2 or more, one to hold out and one for training.")
    splits = load_splits(root, paths, camera, rows, memory_limit)
    box = _reach(splits["train"].camera, depth) if aabb is None else aabb
    check_space(path, depth, box)
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
        digest=hashlib.sha256(path.read_bytes()).hexdigest()[:16],
        trajectory="orbit" if spherify else "forward",
    )


# ------------------------------------------------------------------------------------------- files


def _read_table(path: Path) -> np.ndarray:
    """(N, 17) float64 rows of ``poses_bounds.npy``."""
    table = open_array(path, (None, 17))
    if len(table) > _MOST_ROWS:
        raise UserError(f"{path}: has {len(table)} rows; allowed: up to {_MOST_ROWS}.")
    table = widened(table)
    bad = ~(np.abs(table) <= LARGEST).all(1)
    if bad.any():
        words = f"row {int(bad.argmax())} holds NaN, infinity or numbers beyond {LARGEST:g}"
        raise UserError(f"{path}: {words}; allowed: finite numbers.")
    matrix, bounds = table[:, :15].reshape(-1, 3, 5), table[:, 15:]
    turned = np.abs(matrix[:, :, :3].transpose(0, 2, 1) @ matrix[:, :, :3] - np.eye(3)).max((1, 2)) > 1e-3
    if turned.any():
        raise UserError(
            f"{path}: row {int(turned.argmax())} has a pose whose axes are not orthonormal; allowed: rotations."
        )
    if np.linalg.norm(matrix[:, :, 2].mean(0)) < 1e-6:
        raise UserError(f"{path}: its cameras look all ways, so none is their average; allowed: a common direction.")
    empty = ~((bounds[:, 0] > SMALLEST) & (bounds[:, 0] < bounds[:, 1]))
    if empty.any():
        row = int(empty.argmax())
        near, far = bounds[row]
        raise UserError(f"{path}: row {row} has bounds {near:g} and {far:g}; allowed: 0 < near < far.")
    if (matrix[:, :, 4] != matrix[:1, :, 4]).any() or (matrix[0, :, 4] <= 0).any():
        raise UserError(f"{path}: has no height, width and focal length above 0 that are the same in all rows.")
    return table


def _images(root: Path, factor: int, rows: int) -> tuple[list[Path], bool]:
    """The images sorted by name, and whether they are those of ``images``, which have to be downsampled."""
    if factor < 1:
        raise UserError(f"data.factor: is {factor}; allowed: 1 or more.")
    folder, reduced = (root / f"images_{factor}" if factor > 1 else root / "images"), False
    if not folder.is_dir() and (root / "images").is_dir():
        folder, reduced = root / "images", True
    if not folder.is_dir():
        there = sorted(int(each.name[7:]) for each in root.glob("images_*") if each.name[7:].isdecimal())
        allowed = f"data.factor={'|'.join(map(str, there))}" if there else "a folder images"
        raise UserError(f"{root}: has no folder {folder.name}, and no images; allowed: {allowed}.")
    paths = sorted(each for each in folder.iterdir() if each.suffix.lower() in _SUFFIXES)
    if len(paths) != rows:
        raise UserError(
            f"{folder}: has {len(paths)} images, but poses_bounds.npy has {rows} rows; allowed: a row for each image."
        )
    return paths, reduced


def _cameras(path: Path, table: np.ndarray, c2w: np.ndarray, paths: list[Path], factor: int) -> Camera:
    """The cameras of images that are smaller than stated in the file by ``factor``."""
    height, width, focal = table[0, :15].reshape(3, 5)[:, 4] / factor
    size = image_headers(paths, "capture")[0][0]
    if abs(size[0] - width) > 1 or abs(size[1] - height) > 1:
        raise UserError(
            f"{paths[0]}: is {size[0]}x{size[1]}, but by {path.name} it should be {width:g}x{height:g} here; allowed: "
            "images of the folder's factor."
        )
    intrinsics = torch.tensor([focal, focal, size[0] / 2, size[1] / 2], dtype=torch.float32)
    return Camera(torch.from_numpy(c2w).float(), intrinsics.expand(len(c2w), 4), *size)


def _in_ndc(path: Path, camera: Camera, ndc: NDC) -> Camera:
    """The cameras with rays in NDC."""
    behind = camera.c2w[:, 2, 2] <= 0
    if behind.any():
        raise UserError(
            f"{path}: camera {int(behind.int().argmax())} looks away from where the average camera looks; allowed: "
            "data.ndc=false, with data.spherify=true where the cameras stand around something."
        )
    return Camera(camera.c2w, camera.intrinsics, camera.width, camera.height, ndc=ndc)


# ------------------------------------------------------------------------------------------- space


def _recentered(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Poses (N, 3, 4), OpenGL axes, relative to the average camera, and bounds (N, 2), in scene units."""
    matrix, bounds = table[:, :15].reshape(-1, 3, 5), table[:, 15:]
    down, right, back, position = (matrix[:, :, column] for column in range(4))
    scale = 1.0 / (_BOUND * bounds.min())
    c2w = np.stack([right, -down, back, position * scale], axis=-1)
    return _seen_from(average_pose(torch.from_numpy(c2w)), c2w), bounds * scale


def _spherified(c2w: np.ndarray, bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Poses relative to the point that the cameras look at, and bounds, in units of their mean distance."""
    center = focus(c2w)[0]
    up = c2w[:, :, 3].mean(0) - center
    right = np.cross((0.1, 0.2, 0.3), up)
    at, above, top = map(torch.from_numpy, (center, up, np.cross(up, right)))
    c2w = _seen_from(look_at(at, at - above, top), c2w)
    scale = 1.0 / np.sqrt((c2w[:, :, 3] ** 2).sum(-1).mean())
    c2w[:, :, 3] *= scale
    return c2w, bounds * scale


def _seen_from(pose: Tensor, c2w: np.ndarray) -> np.ndarray:
    """Poses (N, 3, 4) relative to a pose (3, 4)."""
    axes, position = pose[:, :3].numpy(), pose[:, 3].numpy()
    turned = axes.T @ c2w
    turned[:, :, 3] -= axes.T @ position
    return turned


def _reach(camera: Camera, depth: tuple[float, float]) -> list[float]:
    """The box of the rays of all cameras: smallest xyz, largest xyz."""
    span = depth if camera.ndc is None else (0.0, 1.0)
    corners = torch.tensor([(x, y) for x in (0, camera.width) for y in (0, camera.height)]) - 0.5
    which = torch.arange(len(camera)).repeat_interleave(4)
    rays = camera[which].pixel_rays(*corners.repeat(len(camera), 1).unbind(1))
    ends = torch.cat([rays.origins + t * rays.directions for t in span])
    return [*ends.amin(0).tolist(), *ends.amax(0).tolist()]
