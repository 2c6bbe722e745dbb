"""The built-in moving scenes, rendered exactly for any camera and moment, each written once as a D-NeRF directory.

One picture shows one moment, and the next moment is seen from elsewhere: nobody could take such pictures, and a field
learns more from them than from a camera that goes slowly around. Light, lens and ground are those of
``nelf.data.demo``. The pictures have an alpha channel.

- ``robot``: a toy robot dances; arms, legs and head move, and their shadows do;
- ``controls``: a windmill turns with the time, a drawbridge is raised by a second control, ``bridge``.
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
"""How many views of each split are written."""

_ELEVATIONS = (5.0, 80.0)
_MOMENTS = 81  # at which a scene's box is measured


class Toy(NamedTuple):
    """A built-in moving scene.

    Attributes:
        solids: makes its solids of one number in [0, 1] for each control.
        controls: names of the controls, the first is the time.
    """

    solids: Callable[..., list[Solid]]
    controls: tuple[str, ...] = ("time",)


SCENES = {"robot": Toy(toys.robot), "controls": Toy(toys.mill, ("time", "bridge"))}
"""The built-in moving scenes by name."""


def render(camera: Camera, scene: str = "robot") -> Tensor:
    """The exact picture of a built-in moving scene.

    Args:
        camera: one camera, or a batch of shape (...,), with the controls of the scene.
        scene: one of ``SCENES``.

    Returns:
        (..., H, W, 4) float32 rgba in [0, 1], transparent where nothing is, alpha not premultiplied.

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
    """(6,) box around all that a built-in scene ever is, with a margin of 0.03: smallest xyz, largest xyz."""
    toy = SCENES[scene]
    count = round(_MOMENTS ** (1 / len(toy.controls)))
    steps = [np.linspace(0.0, 1.0, count).tolist()] * len(toy.controls)
    return demo.box_around([solid for moment in itertools.product(*steps) for solid in toy.solids(*moment)])


def cameras(width: int = 200, scene: str = "robot") -> dict[str, Camera]:
    """The cameras of a built-in moving scene, those of each split in the order of time.

    Training cameras stand all around in a random order. Those of val and test stand elsewhere. With the time as its
    only control, a scene is seen at even times from 0 to 1 by the training views, and at some of their times by the
    others; with more controls, each view has random values of its own.

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
    """Render and write a built-in moving scene as a D-NeRF directory, unless it is there.

    Args:
        root: the directory, which gets its name when it is complete.
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
    """(count, 1) times from 0 to 1, each one of those of the training views."""
    last = VIEWS["train"] - 1
    return torch.linspace(0, last, count).round()[:, None] / last


def _random(count: int, controls: int, seed: int) -> Tensor:
    """(count, controls) random values, in the order of time."""
    values = np.random.default_rng((3, seed)).random((count, controls))
    return torch.from_numpy(values[values[:, 0].argsort()].astype(np.float32))
