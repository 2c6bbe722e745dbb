"""Read scenes in the Blender format (NeRF synthetic, D-NeRF, instant-ngp's ``transforms.json``).

Conventions of the files: poses are 4x4 (or 3x4) OpenGL camera-to-world matrices, +z up; pixel centers at
+0.5; intrinsics are ``fl_x, fl_y, cx, cy, w, h`` per frame or at the top, or ``camera_angle_x`` (radians), and the
lens is ``camera_model`` of ``nelf.data.lenses`` with ``k1, k2, p1, p2`` and so on; ``time`` per frame in [0, 1]; PNG or
JPEG, alpha not premultiplied, pixels as stored: rotation in EXIF is not applied, as in COLMAP. ``near`` and ``far`` are
z-depths along unnormalized rays, ``aabb`` is the scene's box. If a file does not state them, they are derived from its
points or its ``aabb_scale``; else they are 2, 6 and the cube +-1.5, which fits NeRF's scenes, whose cameras are about 4
units from the origin. nelf's writer states all three, and ``background`` (white by default) and ``license``.
``mask_path`` of a frame excludes parts of its image, see ``nelf.data.masks``. Further keys: ``nelf.data.transforms``.

Splits: ``transforms_{train,val,test}.json`` are taken as they are, and so are the lists ``train_filenames``,
``val_filenames`` and ``test_filenames`` of one ``transforms.json``. If val or test has neither a file nor a list, it
has the views of the other; if neither has, both have views held out from training: of every ``holdout`` views in file
order, the first.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from nelf.cameras import Camera
from nelf.data.bounds import find_bounds
from nelf.data.images import MEMORY_LIMIT, ImageFiles, check_width, fingerprint, image_headers, load_images
from nelf.data.lenses import check_cameras, check_rays, stack
from nelf.data.masks import MaskFile, load_masks, tell_scaled
from nelf.data.ray_cache import shuffled
from nelf.data.splits import check_holdout, held_out
from nelf.data.transforms import SPLITS, Transforms, read_transforms
from nelf.errors import UserError
from nelf.files import encoded, is_file, quoted
from nelf.paths import trajectory
from nelf.scene import BACKGROUNDS, ImageStack, Scene, Split, background_color

__all__ = ["read_cameras", "read_scene", "read_views", "with_pseudo_views"]


@dataclass
class _Views:
    """N views whose images are not yet decoded: files, and cameras at the size of the files."""

    names: list[str]
    paths: list[Path]
    masks: list[MaskFile | None]
    camera: Camera
    alpha: bool

    def __len__(self) -> int:
        return len(self.names)

    def pick(self, indices: list[int]) -> _Views:
        """The views with these indices."""
        names, paths = [self.names[i] for i in indices], [self.paths[i] for i in indices]
        masks, camera = [self.masks[i] for i in indices], self.camera[torch.tensor(indices, dtype=torch.long)]
        return _Views(names, paths, masks, camera, self.alpha)


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
    skip_missing: bool = False,
    memory_limit: int = MEMORY_LIMIT,
) -> Scene:
    """Read a scene in the Blender format.

    Args:
        root: directory with ``transforms_train.json`` (and ``_val``, ``_test``) or ``transforms.json``.
        width: images are downsampled to this width by area averaging; None keeps the size of the training images.
        background: name of the background in evaluation; replaces the file's.
        holdout: of every ``holdout`` views, the first is held out for val and test if neither has a file.
        near: smallest z-depth; replaces the file's.
        far: largest z-depth; replaces the file's.
        aabb: six numbers, smallest xyz then largest xyz; replaces the file's box.
        moving: if no frame of a file states a time, frame i of n has time i / (n - 1), as in D-NeRF.
        skip_missing: leave out frames whose image is missing, and print how many, instead of an error.
        memory_limit: bytes of images of one split above which they are memory-mapped.

    Returns:
        The scene. All its views have one size.

    Raises:
        UserError: a file is missing, damaged or contradicts itself, or an argument is out of range.
    """
    if background is not None:
        background_color(background)
    check_holdout(holdout)
    files = read_transforms(Path(root), moving, skip_missing)
    _check_controls(files)
    stated = files["train"]
    views = {name: _views(file) for name, file in files.items()}
    near, far, box = find_bounds(stated, views["train"].camera, near, far, aabb)
    tell_scaled((mask, (each.camera.width, each.camera.height)) for each in views.values() for mask in each.masks)
    background = _background(stated) if background is None else background
    splits = _split(stated.path, views, holdout)
    width = splits["train"].camera.width if width is None else width
    loaded = {name: _load(each, name, width, Path(root), memory_limit) for name, each in splits.items()}
    loaded["train"] = loaded["train"].numbered()
    test = loaded["test"] if "test" in loaded else loaded["val"]
    return Scene(
        name=stated.path.parent.resolve().name,
        root=Path(root),
        train=loaded["train"],
        val=loaded.get("val", test),
        test=test,
        aabb=torch.tensor(box, dtype=torch.float32),
        near=near,
        far=far,
        background=background,
        digest=_digest(files),
        license=stated.license,
        controls=stated.controls,
        points=None,
        trajectory=trajectory(loaded["train"].camera),
    )


def read_views(root: str | Path, *, width: int | None = None, memory_limit: int = MEMORY_LIMIT) -> Split:
    """Read all views of ``transforms_train.json`` (or ``transforms.json``), such as those of a pseudo set.

    Args:
        root: the set's directory.
        width: as in ``read_scene``.
        memory_limit: as in ``read_scene``.

    Returns:
        The views; none is held out.

    Raises:
        UserError: see ``read_scene``.
    """
    views = _views(read_transforms(Path(root))["train"])
    return _load(views, "train", views.camera.width if width is None else width, Path(root), memory_limit)


def read_cameras(root: str | Path) -> Camera:
    """Read the cameras of ``read_views`` without decoding images.

    Args:
        root: the set's directory.

    Returns:
        A batch of cameras at the size of the files.

    Raises:
        UserError: see ``read_views``.
    """
    return _views(read_transforms(Path(root))["train"]).camera


def with_pseudo_views(
    scene: Scene,
    root: str | Path,
    real_views: bool = True,
    memory_limit: int = MEMORY_LIMIT,
    for_rays: bool = False,
) -> Scene:
    """A scene whose training views are a teacher's views of it.

    Args:
        scene: the real scene; everything except its training views is kept.
        root: the pseudo set, see ``read_views``.
        real_views: add the scene's own training views.
        memory_limit: as in ``read_scene``.
        for_rays: leave the pseudo set on disk, with a cache file of all pixels from which ray batches are read, see
            ``nelf.data.ray_cache``.

    Raises:
        UserError: see ``read_views``; or the views have another aspect ratio than the scene's own.
    """
    camera = scene.train.camera
    views = _views(read_transforms(Path(root))["train"])
    pseudo = _load(views, "train", camera.width, Path(root), None if for_rays else memory_limit)
    if pseudo.camera.height != camera.height:
        raise UserError(
            f"{root}: has views of {pseudo.camera.width}x{pseudo.camera.height} pixels at the width of {scene.name}, "
            f"whose own are {camera.width}x{camera.height}; allowed: views of the same scene."
        )
    pseudo.camera = replace(pseudo.camera, ndc=camera.ndc)
    train = Split.cat([pseudo, scene.train] if real_views else [pseudo])
    if for_rays:
        train = shuffled(train, Path(root), fingerprint(views.paths), f"{scene.digest} {scene.train.names}")
    return replace(scene, train=train)


def _background(stated: Transforms) -> str:
    """The background that a file states, white if it states none."""
    name: object = "white" if stated.background is None else stated.background
    for known in BACKGROUNDS:
        if name == known:
            return known
    raise UserError(
        f"{stated.path}: background is {quoted(name)}; allowed: {', '.join(BACKGROUNDS)}. Or pass data.background=."
    )


def _check_controls(files: dict[str, Transforms]) -> None:
    """Refuse splits with different controls, for example if only some have a time."""
    train = files["train"]
    for file in files.values():
        if file.controls != train.controls:
            names = [", ".join(each.controls) or "no time" for each in (file, train)]
            raise UserError(
                f"{file.path}: its frames have {names[0]}, those of {train.path.name} have {names[1]}; "
                "allowed: the same in all files of a scene."
            )


def _split(path: Path, views: dict[str, _Views], holdout: int) -> dict[str, _Views]:
    """Views by split; if only training has a file, ``path``, those of test are held out from it."""
    if len(views) > 1:
        return views
    train = views["train"]
    places = held_out(len(train), holdout)
    if not places["train"]:
        raise UserError(
            f"{path}: one view is too few to hold one out; allowed: 2 or more, or a transforms file for each of "
            f"{', '.join(SPLITS)}."
        )
    return {name: train.pick(chosen) for name, chosen in places.items()}


def _views(transforms: Transforms) -> _Views:
    """Open the headers of a file's images and make their cameras.

    Intrinsics stated for another image size (``w``, ``h``) are scaled to the size of the files.
    """
    headers = image_headers(transforms.images, "scene")
    width, height = headers[0][0]
    camera = Camera(
        torch.from_numpy(transforms.c2w),
        torch.from_numpy(transforms.intrinsics(width, height)),
        width,
        height,
        None if transforms.values is None else torch.from_numpy(transforms.values),
        lens=stack(transforms.distortion()),
    )
    check_cameras(camera, transforms.names, transforms.path)
    check_rays(camera, transforms.names, transforms.path)
    alpha = any(alpha for _, alpha in headers)
    return _Views(transforms.names, transforms.images, transforms.masks, camera, alpha)


def _load(views: _Views, split: str, width: int, root: Path, memory_limit: int | None) -> Split:
    """Decode the images of a split at a width; with ``memory_limit`` None they stay on disk."""
    check_width(width, views.paths[0], views.camera.width)
    camera = views.camera.resized(width)
    channels = 4 if views.alpha else 3
    text = f"reading {split} views of {root.resolve().name}"
    own = views.camera.width, views.camera.height
    masks = load_masks(views.masks, own, (width, camera.height))
    if memory_limit is None:
        files = ImageFiles(views.paths, width, camera.height, channels)
        return Split(camera, ImageStack([files]), views.names, masks=masks)
    images = load_images(views.paths, width, camera.height, channels, root, text, memory_limit)
    return Split(camera, images, views.names, masks=masks)


def _digest(files: dict[str, Transforms]) -> str:
    """Hash of the transforms files and of the other files' names and sizes; independent of the scene's folder."""
    state = hashlib.sha256()
    for name, transforms in sorted(files.items()):
        state.update(f"{name} {transforms.path.name}\n".encode())
        state.update(transforms.path.read_bytes())
        for image, path in zip(transforms.names, transforms.images, strict=True):
            state.update(encoded(f"{image} {path.stat().st_size}\n"))
        for path in sorted({mask.path for mask in transforms.masks if mask is not None}):
            state.update(encoded(f"{path.relative_to(transforms.path.parent)} {path.stat().st_size}\n"))
        if transforms.cloud is not None and is_file(transforms.cloud):
            state.update(encoded(f"{transforms.cloud.name} {transforms.cloud.stat().st_size}\n"))
    return state.hexdigest()[:16]
