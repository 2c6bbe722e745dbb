"""The built-in static scenes, ray-traced for any camera, each written once as a Blender directory.

Conventions as in ``nelf.cameras``; +z is up, the ground is about 0.6 below the origin. Cameras are placed as in the
Blender synthetic scenes (4.03 from the origin, field of view 39.6 degrees). Each scene has another difficulty:

- ``blocks``: a mixture: checkerboards, thin rods, a mirror ball, specular highlights, contact and cast shadows;
- ``rocket``: a small object, so that most pixels are background;
- ``chess``: dark and bright pieces on a black background;
- ``bicycle``: thin parts, many of them thinner than a pixel;
- ``metals``: reflective surfaces everywhere;
- ``porcelain``: nearly white objects on white;
- ``village``: images without alpha, as from a camera.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nelf import paths
from nelf.cameras import Camera
from nelf.data.images import progress_bar
from nelf.data.shapes import bounds
from nelf.data.solids import Solid, pack
from nelf.data.stills import SCENES
from nelf.data.tracer import Lights, trace
from nelf.data.writer import SceneWriter
from nelf.errors import UserError, atomic_path
from nelf.scene import composite_background

__all__ = [
    "FOV",
    "SCENES",
    "VIEWS",
    "aabb",
    "absent",
    "box_around",
    "cameras",
    "draw",
    "render",
    "write",
    "write_pictures",
    "written",
]

FOV = 0.6911112070083618
"""Horizontal angle of view, radians: that of the Blender synthetic scenes."""

VIEWS = {"train": 100, "val": 10, "test": 25}
"""Number of views by split."""

_NEAR, _FAR = 2.6, 5.5
_SIDE = 3  # samples per pixel, along each side


@cache
def _packed(scene: str) -> np.ndarray:
    """The solids of a scene as a table."""
    return pack(SCENES[scene].solids())


@cache
def _lights() -> Lights:
    """Sun and sky directions for each sample of a pixel, distributed by the golden angle."""
    count = _SIDE**2
    order = np.argsort(np.random.default_rng(0).random(count))  # decorrelate neighboring samples of a pixel
    sun = np.array([0.48, -0.52, 0.80]) / np.linalg.norm([0.48, -0.52, 0.80])
    right = np.cross(sun, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    radius, angle = 0.05 * np.sqrt((order + 0.5) / count), order * np.pi * (3 - 5**0.5)
    disc = radius[:, None] * (np.cos(angle)[:, None] * right + np.sin(angle)[:, None] * np.cross(sun, right))
    directions = sun + disc

    index = np.arange(count * 2).reshape(2, count).T[order]
    height, turn = (index + 0.5) / (count * 2), index * np.pi * (3 - 5**0.5)
    level = np.sqrt(height)
    sky = np.stack([level * np.cos(turn), level * np.sin(turn), np.sqrt(1 - height)], axis=-1)
    return Lights(directions / np.linalg.norm(directions, axis=1, keepdims=True), sky)


def render(camera: Camera, scene: str = "blocks") -> Tensor:
    """Ray-trace a built-in scene.

    Args:
        camera: one camera, or a batch of shape (...,).
        scene: one of ``SCENES``.

    Returns:
        (..., H, W, 4) float32 rgba in [0, 1], transparent in the background, alpha not premultiplied.
    """
    return draw(camera, lambda index: _packed(scene))


def draw(camera: Camera, solids: Callable[[int], np.ndarray]) -> Tensor:
    """Ray-trace solids with the lights of the built-in scenes.

    Args:
        camera: one camera, or a batch of shape (...,), with or without a lens.
        solids: returns the table of ``pack`` for the camera with a flat index.

    Returns:
        As in ``render``.
    """
    size, batch = (camera.width, camera.height), camera.c2w.shape[:-2]
    poses = camera.c2w.cpu().numpy().reshape(-1, 3, 4)
    intrinsics = camera.intrinsics.cpu().numpy().reshape(-1, 4)
    lenses = None if camera.lens is None else camera.lens.cpu().reshape(len(poses), -1).tolist()
    images = []
    for index, (pose, inner) in enumerate(zip(poses, intrinsics, strict=True)):
        bent = None if lenses is None else _bent(tuple(inner.tolist()), tuple(lenses[index]), *size)
        images.append(trace(solids(index), _lights(), pose, inner, *size, bent))
    return torch.from_numpy(np.stack(images)).reshape(*batch, camera.height, camera.width, 4)


@lru_cache(4)
def _bent(intrinsics: tuple[float, ...], lens: tuple[float, ...], width: int, height: int) -> np.ndarray:
    """The pixel coordinates at which a pinhole camera has the rays of the samples of a camera with a lens."""
    camera = Camera(torch.eye(3, 4), torch.tensor(intrinsics), width, height, lens=torch.tensor(lens))
    local = camera.resized(width * _SIDE).rays().directions.double().numpy()
    fx, fy, cx, cy = intrinsics
    return np.stack([cx + fx * local[..., 0], cy - fy * local[..., 1]], axis=-1)


def aabb(scene: str = "blocks") -> Tensor:
    """(6,) bounding box of a built-in scene, with a margin of 0.03: smallest xyz, largest xyz."""
    return box_around(SCENES[scene].solids())


def box_around(solids: list[Solid]) -> Tensor:
    """(6,) bounding box of solids, with a margin of 0.03: smallest xyz, largest xyz."""
    boxes = np.stack([bounds(solid) for solid in solids])
    box = np.concatenate([boxes[:, 0].min(axis=0) - 0.03, boxes[:, 1].max(axis=0) + 0.03])
    return torch.from_numpy(box.astype(np.float32))


def cameras(width: int = 200) -> dict[str, Camera]:
    """The cameras of a built-in scene: train spread over the upper hemisphere, val random, test on a spiral."""
    radius = paths.BLENDER_RADIUS
    poses = {
        "train": paths.hemisphere(VIEWS["train"], radius, (0.0, 85.0)),
        "val": paths.random_mobile_r2l(VIEWS["val"], radius, (20.0, 85.0), seed=1),
        "test": paths.spiral(VIEWS["test"], radius, (12.0, 65.0), turns=2.1),
    }
    return {name: Camera.from_fov(c2w, FOV, width, width) for name, c2w in poses.items()}


def write(root: str | Path, scene: str = "blocks", width: int = 200) -> Path:
    """Render and write a built-in scene as a Blender directory, unless it exists.

    The directory is renamed into place when it is complete, so a killed run leaves no incomplete scene.

    Args:
        root: the directory.
        scene: one of ``SCENES``.
        width: width and height of the images in pixels.

    Returns:
        The directory.

    Raises:
        UserError: the directory holds something else, or cannot be written.
    """
    about = SCENES[scene]

    def picture(camera: Camera) -> Tensor:
        drawn = render(camera, scene)
        return drawn if about.alpha else composite_background(drawn, about.background)

    if absent(Path(root)):
        write_pictures(Path(root), cameras(width), picture, aabb=aabb(scene), background=about.background)
    return Path(root)


def absent(root: Path, file: str = "transforms_train.json", kind: str = "scene") -> bool:
    """Whether a built-in scene has yet to be written.

    Args:
        root: its directory.
        file: a file that the directory of a written scene has.
        kind: the word for it in messages.

    Raises:
        UserError: the directory holds something else.
    """
    if (root / file).is_file():
        return False
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UserError(f"data.root: {root} holds other files; allowed: a new or empty directory for the demo {kind}.")
    return True


@contextmanager
def written(root: Path, file: str = "transforms_train.json") -> Iterator[Path]:
    """Yield a folder that is renamed to ``root`` when the block ends, unless another process was first.

    Args:
        root: the scene's directory.
        file: a file that the directory of a written scene has.

    Yields:
        The folder to write into.
    """
    try:
        with atomic_path(root) as folder:
            yield folder
    except OSError as error:
        if error.errno != errno.ENOTEMPTY or absent(root, file):
            raise


def write_pictures(root: Path, cameras: dict[str, Camera], picture: Callable[[Camera], Tensor], **stated: Any) -> None:
    """Write a scene whose views are rendered one by one; the directory is renamed into place when it is complete.

    Args:
        root: the directory.
        cameras: the cameras by split.
        picture: renders a single camera, (H, W, 3|4) in [0, 1]; called from several threads.
        **stated: properties of the scene, see ``SceneWriter``.

    Raises:
        UserError: the directory cannot be written.
    """
    with (
        written(root) as folder,
        progress_bar(f"rendering the demo scene to {root}", sum(map(len, cameras.values()))) as progress,
    ):
        for name, camera in cameras.items():
            writer = SceneWriter(folder, camera, name, near=_NEAR, far=_FAR, license="CC0-1.0", **stated)
            draw = partial(_write_view, writer, camera, picture)
            with ThreadPoolExecutor(os.cpu_count()) as pool:  # the tracer releases the GIL
                for _ in pool.map(draw, range(len(camera))):
                    progress.advance(progress.task_ids[0])
            writer.finish()


def _write_view(writer: SceneWriter, camera: Camera, picture: Callable[[Camera], Tensor], index: int) -> None:
    """Render and write one view of a split."""
    writer.write(index, picture(camera[index]))
