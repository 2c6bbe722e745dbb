"""A built-in capture: a box that opens, filmed from the front with a hand-held rig of two cameras.

It is written once in the format of Nerfies and HyperNeRF. The box first is one body; its halves separate, and the ball
inside rises between them, so the topology changes. Everything else is static. The lenses have distortion. At each time,
one camera's image is for training, left and right alternating, and the other's for validation.

World: +z up, the table at z = -0.6, the box at the origin, the wall behind it at y = 2, the cameras near y = -3.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nelf import paths
from nelf.cameras import Camera
from nelf.data import shapes as sh
from nelf.data.capture import Space
from nelf.data.capture_writer import write_capture
from nelf.data.demo import absent, draw, written
from nelf.data.shapes import ring, rod, solid
from nelf.data.solids import BOX, CONE, CYLINDER, SPHERE, Material, Solid, pack
from nelf.scene import composite_background

__all__ = ["background_points", "rig", "solids", "write"]

_TABLE, _WALL = -0.6, 2.0
_BASELINE = 0.2  # between the cameras
_MOMENTS, _WIDTH, _HEIGHT = 60, 120, 160

# At a width of 120 pixels: fx, fy, cx, cy and k1, k2, k3, p1, p2, skew of the left and of the right camera.
_INTRINSICS = torch.tensor([[150.0, 150.0, 63.5, 77.0], [151.5, 151.5, 58.0, 81.5]])
_LENS = torch.tensor([[-0.20, 0.06, 0.0, 0.003, 0.010, 0.0], [-0.17, 0.04, 0.0, -0.004, 0.008, 0.0]])

_WOOD = Material((0.62, 0.44, 0.27), (0.30, 0.17, 0.09), pattern=1, scale=3.0, shine=0.1, gloss=20.0, mirror=0.0)
_TILES = Material((0.55, 0.62, 0.66), (0.28, 0.38, 0.46), pattern=1, scale=2.0, shine=0.0, mirror=0.0)
_STRIPES = Material((0.85, 0.82, 0.78), (0.10, 0.42, 0.16), pattern=2, scale=9.0, shine=0.3, mirror=0.0)
_LACQUER = Material((0.75, 0.10, 0.06), (0.90, 0.58, 0.06), pattern=1, scale=8.0, shine=0.3, gloss=60.0, mirror=0.0)
_VELVET = sh.matt(0.06, 0.20, 0.62)
_BALL = Material((0.90, 0.70, 0.15), (0.80, 0.80, 0.80), pattern=2, scale=11.0, shine=0.5, gloss=60.0, mirror=0.0)


def solids(time: float) -> list[Solid]:
    """The scene at a time in [0, 1]: static solids first, then moving ones."""
    parted, risen = _eased(time, 0.1, 0.6), _eased(time, 0.35, 0.95)
    gap, height = 0.46 * parted, _TABLE + 0.32 + 0.7 * risen
    halves = []
    for side in (-1.0, 1.0):
        center = side * (0.27 + gap)
        halves += [
            solid(BOX, (center, 0.0, _TABLE + 0.32), (0.27, 0.3, 0.32), _LACQUER),
            # The faces between the halves, visible once they have separated.
            solid(BOX, (center - 0.135 * side, 0.0, _TABLE + 0.32), (0.1352, 0.28, 0.3), _VELVET),
        ]
    return [*_still(), *halves, solid(SPHERE, (0.0, 0.0, height), (0.22, 0, 0), _BALL)]


def _still() -> list[Solid]:
    """The static solids: table, wall, and the objects between box and wall."""
    upright = np.array([[1.0, 0, 0], [0, 0, 1.0], [0, -1.0, 0]])  # the wall's pattern lies in its plane
    return [
        solid(BOX, (0, 0, _TABLE - 0.1), (6.0, 4.0, 0.1), _WOOD),
        Solid(BOX, np.array([0.0, _WALL + 0.1, 2.0]), (6.0, 4.0, 0.1), _TILES, upright),
        solid(CYLINDER, (-1.0, 1.2, _TABLE + 0.6), (0.2, 0.6, 0), _STRIPES),
        rod((1.05, 1.1, _TABLE), (1.05, 1.1, _TABLE + 0.8), 0.32, sh.PLUM._replace(mirror=0.0), CONE),
        ring((0.45, 1.6, _TABLE + 0.38), (0.3, 1.0, 0.2), 0.3, 0.08, sh.YELLOW._replace(mirror=0.0)),
    ]


def _eased(time: float, start: float, end: float) -> float:
    """Smoothstep from 0 at ``start`` to 1 at ``end``."""
    way = min(1.0, max(0.0, (time - start) / (end - start)))
    return way * way * (3.0 - 2.0 * way)


def rig(moments: int = _MOMENTS, width: int = _WIDTH) -> tuple[Camera, Camera]:
    """The left and the right camera at ``moments`` times from 0 to 1, batches with time and lens.

    The hand-held rig sways and rolls.
    """
    time = torch.linspace(0.0, 1.0, moments, dtype=torch.float64)
    turn = 2 * torch.pi * time
    middle = torch.stack(
        [0.65 * torch.sin(1.3 * turn), -3.0 + 0.25 * torch.cos(1.7 * turn + 0.5), 0.45 + 0.3 * torch.sin(0.8 * turn)],
        -1,
    )
    target = torch.stack(
        [0.08 * torch.sin(2.9 * turn), 0.1 * torch.cos(turn), -0.05 + 0.05 * torch.sin(2.3 * turn)], -1
    )
    c2w = _rolled(paths.look_at(middle, target), 0.05 * torch.sin(1.9 * turn + 1.0))
    height = width * _HEIGHT // _WIDTH
    scale = torch.tensor([width / _WIDTH, height / _HEIGHT]).repeat(2)

    def camera(index: int) -> Camera:
        pose = c2w.clone()
        pose[:, :, 3] += (index - 0.5) * _BASELINE * c2w[:, :, 0]
        intrinsics, lens = (_INTRINSICS[index] * scale).expand(moments, 4), _LENS[index].expand(moments, 6)
        return Camera(pose.float(), intrinsics, width, height, time[:, None].float(), lens=lens)

    return camera(0), camera(1)


def _rolled(c2w: Tensor, angle: Tensor) -> Tensor:
    """Poses (N, 3, 4), rotated about their view axes by angles (N,) in radians."""
    cosine, sine = angle.cos()[:, None], angle.sin()[:, None]
    right, up = c2w[:, :, 0], c2w[:, :, 1]
    turned = [cosine * right + sine * up, cosine * up - sine * right, c2w[:, :, 2], c2w[:, :, 3]]
    return torch.stack(turned, dim=-1)


@cache
def background_points(count: int = 4000) -> np.ndarray:
    """(P, 3) float32: points on table and wall that project into the left camera's first image."""
    draws = np.random.default_rng(0).uniform(-1.0, 1.0, (count, 2))
    half = count // 2
    table = np.column_stack([draws[:half] * [3.0, _WALL], np.full(half, _TABLE)])
    wall = np.column_stack([3.0 * draws[half:, 0], np.full(count - half, _WALL), 1.5 + 2.1 * draws[half:, 1]])
    points = np.concatenate([table, wall]).astype(np.float32)
    camera = rig(2)[0][0]
    x, y, t = (values.numpy() for values in camera.project(torch.from_numpy(points)))
    return points[(t > 0) & (x > 0) & (x < camera.width) & (y > 0) & (y < camera.height)]


def write(root: str | Path, moments: int = _MOMENTS, width: int = _WIDTH) -> Path:
    """Render and write the capture, unless it exists: images of ``width`` and of half of it.

    The directory is renamed into place when it is complete.

    Args:
        root: the directory.
        moments: number of times, 2 or more, with two images each.
        width: of the images in pixels; the height is four thirds of it.

    Returns:
        The directory.

    Raises:
        UserError: the directory holds something else, or cannot be written.
    """
    root = Path(root)
    if not absent(root, "dataset.json", "capture"):
        return root
    left, right = rig(moments, width)
    camera, points = Camera.cat([left, right]), background_points()
    names = [f"{side}_{moment:06d}" for side in ("left", "right") for moment in range(moments)]
    metadata = {
        name: {"warp_id": moment, "appearance_id": moment, "camera_id": side, "time_id": moment}
        for name, (side, moment) in zip(names, np.ndindex(2, moments), strict=True)
    }
    train, val = ([names[(m + other) % 2 * moments + m] for m in range(moments)] for other in (0, 1))

    def image(index: int) -> np.ndarray:
        table = pack(solids(index % moments / (moments - 1)))
        picture = composite_background(draw(camera[index], lambda _: table), "black")
        return (picture * 255 + 0.5).byte().numpy()

    with written(root, "dataset.json") as folder:
        write_capture(
            folder,
            camera,
            image,
            metadata,
            {"train_ids": train, "val_ids": val},
            _space(camera, points),
            points,
            {"sway": rig(40, width)[0]},
            image_scales=(1, 2),
        )
    return root


def _space(camera: Camera, points: np.ndarray) -> Space:
    """A scene in which the bounding box of points and cameras has diagonal 1; near and far with margins."""
    origins = camera.c2w[:, :, 3].numpy().astype(np.float64)
    inner = np.concatenate([points, origins])
    low, high = inner.min(0), inner.max(0)
    scale = 1.0 / float(np.linalg.norm(high - low))
    distances = np.linalg.norm(points - origins[:, None], axis=-1)
    return Space(scale, (low + high) / 2, 0.8 * float(distances.min()) * scale, 1.2 * float(distances.max()) * scale)
