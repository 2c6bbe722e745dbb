"""The built-in moving scenes, ray-traced for any camera and time, each written once as a D-NeRF directory.

Consecutive times are seen from unrelated viewpoints, as in D-NeRF: no real camera could record that, but a field learns
more from such views than from a camera that moves slowly. Light, field of view and ground are those of
``nelf.data.demo``. The images have an alpha channel.

- ``robot``: a dancing toy robot; arms, legs, head and their shadows move;
- ``controls``: a windmill turns with the time, and a second control, ``bridge``, raises a drawbridge.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nelf import paths
from nelf.cameras import Camera
from nelf.data import demo, toys
from nelf.data.solids import Solid, pack

__all__ = ["SCENES", "VIEWS", "Toy", "aabb", "cameras", "render", "write"]

VIEWS = {"train": 90, "val": 10, "test": 20}
"""Number of views by split."""

_ELEVATIONS = (5.0, 80.0)
_MOMENTS = 81  # combinations of control values from which a scene's box is computed


class Toy(NamedTuple):
    """A built-in moving scene.

    Attributes:
        solids: makes its solids from one number in [0, 1] per control.
        controls: names of the controls, the time first.
    """

    solids: Callable[..., list[Solid]]
    controls: tuple[str, ...] = ("time",)


SCENES = {"robot": Toy(toys.robot), "controls": Toy(toys.mill, ("time", "bridge"))}
"""The built-in moving scenes by name."""


def render(camera: Camera, scene: str = "robot") -> Tensor:
    """Ray-trace a built-in moving scene.

    Args:
        camera: one camera, or a batch of shape (...,), with the controls of the scene.
        scene: one of ``SCENES``.

    Returns:
        (..., H, W, 4) float32 rgba in [0, 1], transparent in the background, alpha not premultiplied.

    Raises:
        ValueError: the camera has other controls than the scene.
    """
    toy = SCENES[scene]
    if camera.controls is None or camera.controls.shape[-1] != len(toy.controls):
        count = 0 if camera.controls is None else camera.controls.shape[-1]
        raise ValueError(f"Expected a `camera` with {len(toy.controls)} controls, but got one with {count}.")
    moments = camera.controls.cpu().double().reshape(-1, len(toy.controls)).tolist()
    return demo.draw(camera, lambda index: pack(toy.solids(*moments[index])))


def aabb(scene: str = "robot") -> Tensor:
    """(6,) bounding box of a built-in scene over all times, with a margin of 0.03: smallest xyz, largest xyz."""
    toy = SCENES[scene]
    count = round(_MOMENTS ** (1 / len(toy.controls)))
    steps = [np.linspace(0.0, 1.0, count).tolist()] * len(toy.controls)
    return demo.box_around([solid for moment in itertools.product(*steps) for solid in toy.solids(*moment)])


def cameras(width: int = 200, scene: str = "robot") -> dict[str, Camera]:
    """The cameras of a built-in moving scene, sorted by time in each split.

    Training cameras surround the scene in random order; those of val and test have other poses. If the time is the only
    control, training views have evenly spaced times from 0 to 1, and other views some of these times; with more
    controls, each view has random values.

    Args:
        width: of the images, pixels.
        scene: one of ``SCENES``.

    Returns:
        A batch of cameras for each split.
    """
    radius, count = paths.BLENDER_RADIUS, len(SCENES[scene].controls)
    order = torch.from_numpy(np.random.default_rng(2).permutation(VIEWS["train"]))
    poses = {
        "train": paths.hemisphere(VIEWS["train"], radius, _ELEVATIONS)[order],
        "val": paths.random_mobile_r2l(VIEWS["val"], radius, (20.0, 85.0), seed=1),
        "test": paths.spiral(VIEWS["test"], radius, (12.0, 65.0), turns=2.1),
    }
    result = {}
    for seed, (name, c2w) in enumerate(poses.items()):
        moments = _random(len(c2w), count, seed) if count > 1 else _even(len(c2w))
        result[name] = replace(Camera.from_fov(c2w, demo.FOV, width, width), controls=moments)
    return result


def write(root: str | Path, scene: str = "robot", width: int = 200) -> Path:
    """Render and write a built-in moving scene as a D-NeRF directory, unless it exists.

    Args:
        root: the directory, renamed into place when it is complete.
        scene: one of ``SCENES``.
        width: width and height of the images in pixels.

    Returns:
        The directory.

    Raises:
        UserError: the directory holds something else, or cannot be written.
    """
    if demo.absent(Path(root)):
        stated = {"aabb": aabb(scene), "controls": SCENES[scene].controls}
        demo.write_pictures(Path(root), cameras(width, scene), lambda camera: render(camera, scene), **stated)
    return Path(root)


def _even(count: int) -> Tensor:
    """(count, 1) times from 0 to 1, each of them a time of a training view."""
    last = VIEWS["train"] - 1
    return torch.linspace(0, last, count).round()[:, None] / last


def _random(count: int, controls: int, seed: int) -> Tensor:
    """(count, controls) random values, sorted by time."""
    values = np.random.default_rng((3, seed)).random((count, controls))
    return torch.from_numpy(values[values[:, 0].argsort()].astype(np.float32))
