"""The built-in scene: a toy still life, rendered exactly for any camera, written once as a Blender directory.

Conventions as in ``nelf.cameras``; +z up, the base plate lies about 0.6 below the origin. Cameras stand
where those of the Blender synthetic scenes do (4.03 from the origin, 39.6 degrees wide). It has what light
fields find hard: chequers, thin rods, a mirror ball, highlights that move, contact shadows and a cast shadow.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nelf import paths
from nelf.cameras import Camera
from nelf.data.images import progress_bar
from nelf.data.raytrace import BOX, CONE, CYLINDER, SPHERE, TORUS, Lights, Material, Solid, pack, trace
from nelf.data.writer import SceneWriter
from nelf.errors import UserError, atomic_path

__all__ = ["FOV", "SCENES", "VIEWS", "aabb", "cameras", "render", "write"]

FOV = 0.6911112070083618
"""Horizontal angle of view, radians: that of the Blender synthetic scenes."""

VIEWS = {"train": 100, "val": 10, "test": 25}
"""How many views of each split are written."""

_NEAR, _FAR = 2.6, 5.5
_SIDE = 3  # samples per pixel, along each side
_FLOOR = -0.62

_RED = Material((0.72, 0.07, 0.05), shine=0.5)
_YELLOW = Material((0.90, 0.58, 0.06), shine=0.5)
_GREEN = Material((0.10, 0.42, 0.16), shine=0.5)
_BLUE = Material((0.06, 0.20, 0.62), shine=0.5)
_CREAM = Material((0.82, 0.74, 0.60), shine=0.15, gloss=20.0, mirror=0.0)
_STRIPES = Material((0.85, 0.82, 0.78), (0.75, 0.06, 0.08), pattern=2, scale=12.0, shine=0.5)
_BOARD = Material((0.62, 0.44, 0.27), (0.24, 0.13, 0.07), pattern=1, scale=5.0, shine=0.2, gloss=40.0, mirror=0.03)
_CHROME = Material((0.92, 0.93, 0.95), shine=1.5, gloss=400.0, mirror=0.88, metal=True)
_GOLD = Material((0.95, 0.62, 0.22), shine=1.2, gloss=120.0, mirror=0.6, metal=True)
_STEEL = Material((0.55, 0.57, 0.60), shine=0.8, gloss=90.0, mirror=0.25, metal=True)
_PLUM = Material((0.30, 0.05, 0.28), shine=0.9, gloss=200.0, mirror=0.06)


def _blocks() -> list[Solid]:
    """Toy blocks on a round chequered board."""
    board = [_solid(CYLINDER, (0, 0, _FLOOR - 0.05), (1.15, 0.05, 0), _BOARD)]
    return board + _gate() + _tower() + _cage((-0.62, -0.42), 0.21) + _loose()


def _gate() -> list[Solid]:
    """Two striped columns, a lintel, a roof and a flag on a thin pole."""
    x, y = 0.12, 0.58
    top = _FLOOR + 0.56
    columns = [_solid(CYLINDER, (x + dx, y, _FLOOR + 0.28), (0.095, 0.28, 0), _STRIPES) for dx in (-0.3, 0.3)]
    return [
        *columns,
        _solid(BOX, (x, y, top + 0.06), (0.46, 0.13, 0.06), _CREAM),
        _solid(CONE, (x - 0.3, y, top + 0.27), (0.15, 0.15, 0), _BLUE),
        _solid(CONE, (x + 0.3, y, top + 0.27), (0.15, 0.15, 0), _BLUE),
        _solid(CYLINDER, (x, y, top + 0.42), (0.011, 0.3, 0), _STEEL),
        _solid(BOX, (x + 0.125, y, top + 0.63), (0.115, 0.006, 0.075), _RED),
        _solid(SPHERE, (x, y, top + 0.735), (0.025, 0, 0), _GOLD),
    ]


def _tower() -> list[Solid]:
    """A pile of turned blocks with a ball on top."""
    solids, height = [], _FLOOR
    for half, turn, material in ((0.22, 12, _GREEN), (0.17, 41, _YELLOW), (0.125, 75, _RED)):
        solids.append(_solid(BOX, (-0.60, 0.28, height + half), (half, half, half), material, turn=turn))
        height += 2 * half
    return [*solids, _solid(SPHERE, (-0.60, 0.28, height + 0.11), (0.11, 0, 0), _PLUM)]


def _cage(place: tuple[float, float], half: float) -> list[Solid]:
    """Twelve thin rods around a ball, turned."""
    turn = 27.0
    center = np.array([*place, _FLOOR + half + 0.012])
    axes = _axes(turn)
    solids = [_solid(SPHERE, (*place, _FLOOR + 0.13), (0.13, 0, 0), _YELLOW)]
    for k in range(3):
        u, v, w = axes[k], axes[(k + 1) % 3], axes[(k + 2) % 3]
        for a in (-half, half):
            for b in (-half, half):
                rod = Solid(CYLINDER, center + a * u + b * v, (0.012, half + 0.012, 0), _STEEL, np.stack([u, v, w]))
                solids.append(rod)
    return solids


def _loose() -> list[Solid]:
    """What lies about: a mirror ball, a leaning ring, a cone and small balls."""
    ring = _tilt(72.0) @ _axes(-35.0)
    return [
        _solid(SPHERE, (0.36, -0.30, _FLOOR + 0.25), (0.25, 0, 0), _CHROME),
        Solid(TORUS, np.array([0.74, 0.22, _FLOOR + 0.248]), (0.20, 0.055, 0), _GOLD, ring),
        _solid(CONE, (-0.10, -0.78, _FLOOR + 0.17), (0.14, 0.17, 0), _GREEN),
        _solid(SPHERE, (0.80, -0.42, _FLOOR + 0.09), (0.09, 0, 0), _RED),
        _solid(SPHERE, (0.22, -0.72, _FLOOR + 0.06), (0.06, 0, 0), _BLUE),
        _solid(BOX, (-0.12, 0.05, _FLOOR + 0.08), (0.17, 0.08, 0.08), _BLUE, turn=-24),
        _solid(CYLINDER, (0.62, -0.78, _FLOOR + 0.05), (0.11, 0.05, 0), _CREAM),
    ]


SCENES = {"blocks": _blocks}
"""The built-in scenes."""


def _solid(
    kind: int,
    center: tuple[float, float, float],
    size: tuple[float, float, float],
    material: Material,
    turn: float = 0.0,
) -> Solid:
    """A solid that stands upright, turned about z by degrees."""
    return Solid(kind, np.array(center), size, material, _axes(turn))


def _axes(turn: float) -> np.ndarray:
    """(3, 3) rows: axes turned about +z by degrees."""
    c, s = np.cos(np.deg2rad(turn)), np.sin(np.deg2rad(turn))
    return np.array([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]])


def _tilt(angle: float) -> np.ndarray:
    """(3, 3) rows: axes tilted about x by degrees."""
    c, s = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    return np.array([[1.0, 0.0, 0.0], [0.0, c, s], [0.0, -s, c]])


@cache
def _packed(scene: str) -> np.ndarray:
    """The solids of a scene as a table."""
    return pack(SCENES[scene]())


@cache
def _lights() -> Lights:
    """Sun and sky directions for each sample of a pixel: both spread by the golden ratio."""
    count = _SIDE**2
    order = np.argsort(np.random.default_rng(0).random(count))  # neighbours in the pixel look at unlike places
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
    """The exact picture of a built-in scene.

    Args:
        camera: one camera, or a batch of shape (...,).
        scene: one of ``SCENES``.

    Returns:
        (..., H, W, 4) float32 rgba in [0, 1], transparent where nothing is, alpha not premultiplied.
    """
    c2w = camera.c2w.cpu().numpy().reshape(-1, 3, 4)
    intrinsics = camera.intrinsics.cpu().numpy().reshape(-1, 4)
    size = camera.width, camera.height
    images = [trace(_packed(scene), _lights(), pose, lens, *size) for pose, lens in zip(c2w, intrinsics, strict=True)]
    batch = camera.c2w.shape[:-2]
    return torch.from_numpy(np.stack(images)).reshape(*batch, camera.height, camera.width, 4)


def aabb(scene: str = "blocks") -> Tensor:
    """(6,) tight box around a built-in scene, with a margin of 0.03: smallest xyz, largest xyz."""
    low, high = [], []
    for solid in SCENES[scene]():
        a, b, c = solid.size
        half = {SPHERE: (a, a, a), BOX: (a, b, c), TORUS: (a + b, a + b, b)}.get(solid.kind, (a, a, b))
        reach = np.abs(solid.axes).T @ np.array(half)
        low.append(solid.center - reach)
        high.append(solid.center + reach)
    box = np.concatenate([np.min(low, axis=0) - 0.03, np.max(high, axis=0) + 0.03])
    return torch.from_numpy(box.astype(np.float32))


def cameras(width: int = 200) -> dict[str, Camera]:
    """The cameras of a built-in scene: train spread over the upper half, val random, test on a spiral."""
    radius = paths.BLENDER_RADIUS
    poses = {
        "train": paths.hemisphere(VIEWS["train"], radius, (0.0, 85.0)),
        "val": paths.random_mobile_r2l(VIEWS["val"], radius, (20.0, 85.0), seed=1),
        "test": paths.spiral(VIEWS["test"], radius, (12.0, 65.0), turns=2.1),
    }
    return {name: Camera.from_fov(c2w, FOV, width, width, _NEAR, _FAR) for name, c2w in poses.items()}


def write(root: str | Path, scene: str = "blocks", width: int = 200) -> Path:
    """Render and write a built-in scene as a Blender directory, unless it is there.

    The directory gets its name when it is complete: a killed run leaves nothing that is taken for a scene.

    Args:
        root: the directory.
        scene: one of ``SCENES``.
        width: width and height of the images in pixels.

    Returns:
        The directory.

    Raises:
        UserError: the directory holds something else, another width, or cannot be written.
    """
    root = Path(root)
    if (root / "transforms_train.json").is_file():
        return root
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UserError(f"data.root: {root} holds other files; allowed: a new or empty directory for the demo scene.")
    views = cameras(width)
    with (
        atomic_path(root) as partial,
        progress_bar(f"rendering the demo scene to {root}", sum(VIEWS.values())) as progress,
    ):
        for name, camera in views.items():
            writer = SceneWriter(partial, camera, name, aabb=aabb(scene), license="CC0-1.0")
            for index in range(len(camera)):
                writer.write(index, render(camera[index], scene))
                progress.advance(progress.task_ids[0])
            writer.finish()
    return root
