"""What an exported graph is given for a camera: where between the pose and the network the graph begins.

========  ==========================================================================================
kind      inputs, float32; s is ``sr_factor``, h and w are the image's sides over s
========  ==========================================================================================
pose      ``c2w`` (1, 3, 4); size and intrinsics are inside the graph
rays      ``rays_o``, ``rays_d`` (1, ., ., 3), of ``Camera.rays(stride)``
points    ``points`` (1, 3 P, h, w): linear in t from near to far, channel ``point * 3 + coordinate``
features  ``features`` (1, (C + 1) s^2 + 16, h, w): a volume's, composited along the s^2 rays of each
          block, their opacities, and the block's direction
========  ==========================================================================================

The output is ``rgb`` (1, 3, H, W), or ``rgba`` (1, 4, H, W): rgb on black and opacity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from nelf.cameras import Camera
from nelf.errors import UserError
from nelf.kernels.lookup import RayFeatures
from nelf.lightfields import LightField
from nelf.lightfields.grid_r2l import WINDOW, decoder_inputs, decoder_window
from nelf.lightfields.mobile_r2l import ray_points

__all__ = [
    "KINDS",
    "Kind",
    "Window",
    "check_kind",
    "cut",
    "feed",
    "feed_of",
    "kinds_of",
    "output_of",
    "window_feeds",
    "window_in",
    "window_of",
]

Kind = Literal["pose", "rays", "points", "features"]
KINDS: dict[Kind, tuple[str, ...]] = {
    "pose": ("c2w",),
    "rays": ("rays_o", "rays_d"),
    "points": ("points",),
    "features": ("features",),
}


def kinds_of(network: LightField) -> tuple[Kind, ...]:
    """The kinds of input that a network can be exported with, what suits a viewer first."""
    first: dict[str, Kind] = {"volume": "features", "points": "points"}
    own: tuple[Kind, ...] = tuple(kind for part, kind in first.items() if hasattr(network, part))
    return (*own, "rays", "pose")


def output_of(network: LightField) -> str:
    """The name of a graph's output: ``rgba`` where the network leaves the background out, else ``rgb``."""
    return "rgba" if hasattr(network, "background") else "rgb"


def window_of(network: LightField) -> dict[str, int] | None:
    """What to know to find the rectangle that a network need run on, see ``nelf.export.bundle``; None: everywhere."""
    margin = getattr(network, "margin", None)
    return None if margin is None else {"margin": margin, "multiple": WINDOW}


def check_kind(network: LightField, kind: str) -> None:
    """Refuse a kind of input that a network does not have.

    Raises:
        UserError: names those that it has.
    """
    allowed = kinds_of(network)
    if kind not in allowed:
        raise UserError(f"export: {type(network).__name__} cannot begin at {kind!r}; allowed: {', '.join(allowed)}.")


@torch.no_grad()
def feed(
    kind: Kind,
    camera: Camera,
    sr_factor: int,
    points: int = 0,
    near: float = 0.0,
    far: float = 0.0,
    composite: Callable[[Tensor, Tensor], RayFeatures] | None = None,
    stride: int = 0,
) -> dict[str, np.ndarray]:
    """Make the inputs of a graph for one camera.

    Args:
        kind: where the graph begins.
        camera: a single camera.
        sr_factor: pixels along one side of a block.
        points: P, for ``points``.
        near: smallest ``t``, for ``points``.
        far: largest ``t``, for ``points``.
        composite: (N, 3) ``rays_o`` and ``rays_d`` to ``RayFeatures``, for ``features``.
        stride: pixels from one ray to the next; 0 for ``sr_factor``.

    Returns:
        Arrays by the names of the inputs.

    Raises:
        ValueError: ``sr_factor`` does not divide the camera's width or height.
    """
    if kind == "pose":
        return {"c2w": camera.c2w[None].numpy()}
    rays = camera.rays(stride or sr_factor)
    rays_o, rays_d = rays.rays_o[None], rays.rays_d[None]
    if kind == "rays":
        return {"rays_o": np.ascontiguousarray(rays_o.numpy()), "rays_d": rays_d.numpy()}
    if kind == "points":
        near_, far_ = rays_o.new_tensor(near), rays_o.new_tensor(far)
        return {"points": np.ascontiguousarray(ray_points(rays_o, rays_d, near_, far_, points, jitter=False).numpy())}
    assert composite is not None
    inputs = decoder_inputs(rays_d, composite(rays_o, rays_d), sr_factor // (stride or sr_factor))
    return {"features": np.ascontiguousarray(inputs.numpy())}


def feed_of(network: LightField, kind: Kind, camera: Camera) -> dict[str, np.ndarray]:
    """``feed`` with what a network knows of itself."""
    near, far = float(network.near), float(network.far)
    composite = getattr(network, "composite", None)
    points = getattr(network, "points", 0)
    return feed(kind, camera, network.sr_factor, points, near, far, composite, network.stride)


Window = tuple[int, int, int, int]
"""First and last row, first and last column of a rectangle of blocks, the last ones excluded."""


def window_in(features: np.ndarray, sr_factor: int, margin: int) -> Window:
    """Find the rectangle that a graph which begins at features need run on.

    Args:
        features: of ``feed``; one ray for each pixel.
        sr_factor: s.
        margin: of ``window_of``.

    Returns:
        See ``nelf.lightfields.grid_r2l.decoder_window``.
    """
    opacity = features[:, features.shape[1] - 16 - sr_factor**2 : features.shape[1] - 16]
    return decoder_window(torch.from_numpy(opacity), margin)


def cut(features: np.ndarray, window: Window) -> np.ndarray:
    """The features of a rectangle of blocks."""
    top, bottom, left, right = window
    return np.ascontiguousarray(features[:, :, top:bottom, left:right])


def window_feeds(network: LightField, kind: Kind, cameras: Camera | Sequence[Camera]) -> list[dict[str, np.ndarray]]:
    """``feed_of`` for several cameras, where possible without what need not be drawn; all of one size.

    Args:
        network: to make the inputs for.
        kind: where its graph begins.
        cameras: of one size.

    Returns:
        Arrays by name, for each camera; of features, rectangles as large as the largest that a camera needs.
    """
    feeds = [feed_of(network, kind, cameras[index]) for index in range(len(cameras))]
    about = window_of(network)
    if kind != "features" or about is None:
        return feeds
    windows = [window_in(each["features"], network.sr_factor, about["margin"]) for each in feeds]
    sides = [max(window[axis + 1] - window[axis] for window in windows) for axis in (0, 2)]
    if 0 in sides:  # no camera sees anything
        return feeds
    shape = feeds[0]["features"].shape[2:]
    cuts = []
    for each, window in zip(feeds, windows, strict=True):
        first = [min(window[2 * axis], shape[axis] - sides[axis]) for axis in (0, 1)]
        ends = (first[0], first[0] + sides[0], first[1], first[1] + sides[1])
        cuts.append({"features": cut(each["features"], ends)})
    return cuts
