"""What an exported graph is given for a camera: where between the pose and the network the graph begins.

========  ==========================================================================================
kind      inputs, float32; s is ``sr_factor``, h and w are the image's sides over s, rounded up
========  ==========================================================================================
pose      ``c2w`` (1, 3, 4); size and intrinsics are inside the graph
rays      ``rays_o``, ``rays_d`` (1, ., ., 3), of ``LightField.rays``; those of the scene, NDC are inside the
          graph
points    ``points`` (1, 3 P, h, w): linear in t from near to far, channel ``point * 3 + coordinate``
features  ``features`` (1, (C + 1) s^2 + 16, h, w): a volume's, composited along the s^2 rays of each
          block, their opacities, and the block's direction
========  ==========================================================================================

A light field that takes controls has the further inputs ``time`` (1,) and, beyond the first control, ``controls``
(1, K - 1), in [0, 1]; but for features, which are those of a moment. The output is ``rgb`` (1, 3, H, W), or ``rgba``
(1, 4, H, W): rgb on black and opacity. Where s does not divide the sides of an image, H and W are the next multiples,
and what is beyond the image is cut off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from nelf.cameras import Camera
from nelf.errors import UserError
from nelf.lightfields import LightField
from nelf.lightfields.decoder import decoder_window
from nelf.rays import Rays

__all__ = [
    "KINDS",
    "Kind",
    "Window",
    "check_kind",
    "cut",
    "feed",
    "feed_of",
    "names_of",
    "output_of",
    "window_feeds",
    "window_in",
    "with_controls",
]

Kind = Literal["pose", "rays", "points", "features"]
KINDS: dict[str, tuple[str, ...]] = {
    "pose": ("c2w",),
    "rays": ("rays_o", "rays_d"),
    "points": ("points",),
    "features": ("features",),
}


def names_of(network: LightField, kind: str) -> tuple[str, ...]:
    """The names of the inputs of a network's graph that begins at ``kind``."""
    count = 0 if kind == "features" else network.controls
    return (*KINDS[kind], *(["time"] if count else []), *(["controls"] if count > 1 else []))


def output_of(network: LightField) -> str:
    """The name of a graph's output: ``rgba`` where the network leaves the background out, else ``rgb``."""
    return "rgb" if network.background is None else "rgba"


def check_kind(network: LightField, kind: str) -> None:
    """Refuse a kind of input that a network does not have.

    Raises:
        UserError: names those that it has.
    """
    allowed = network.entries
    if kind not in allowed or kind not in KINDS:
        raise UserError(f"export: {type(network).__name__} cannot begin at {kind!r}; allowed: {', '.join(allowed)}.")


@torch.no_grad()
def feed(
    kind: str, camera: Camera, rays: Callable[[Camera], Rays], encode: Callable[[Rays], Tensor] | None = None
) -> dict[str, np.ndarray]:
    """Make the inputs of a graph for one camera.

    Args:
        kind: where the graph begins.
        camera: a single camera.
        rays: gives the rays (h, w) that the network draws the picture of a camera from, see ``LightField.rays``.
        encode: makes ``points`` or ``features`` of rays (1, h, w).

    Returns:
        Arrays by the names of the inputs; with ``time`` and ``controls`` where the camera has any, but for features.
    """
    arrays: dict[str, Tensor]
    if kind == "pose":
        arrays = {"c2w": camera.c2w[None]}
    elif kind == "rays":
        of_scene = rays(replace(camera, ndc=None))
        arrays = {"rays_o": of_scene.origins[None], "rays_d": of_scene.directions[None]}
    else:
        assert encode is not None
        arrays = {kind: encode(rays(camera)[None])}
    if camera.controls is not None and kind != "features":
        arrays["time"] = camera.controls[:1]
        arrays |= {"controls": camera.controls[None, 1:]} if len(camera.controls) > 1 else {}
    return {name: np.ascontiguousarray(values.numpy()) for name, values in arrays.items()}


def feed_of(network: LightField, kind: str, camera: Camera) -> dict[str, np.ndarray]:
    """``feed`` with what a network knows of itself; controls that it does not take are left out."""
    camera = with_controls(camera, network.controls)
    return feed(kind, camera, network.rays, network.encode)


def with_controls(camera: Camera, count: int) -> Camera:
    """A single camera with so many controls: its own, and zeros for those that it lacks."""
    own = [] if camera.controls is None else camera.controls.tolist()
    return camera.at(*[*own, *[0.0] * count][:count])


Window = tuple[int, int, int, int]
"""First and last row, first and last column of a rectangle of blocks, the last ones excluded."""


def window_in(features: np.ndarray, sr_factor: int, window: dict[str, int]) -> Window:
    """Find the rectangle that a graph which begins at features need run on.

    Args:
        features: of ``feed``; one ray for each pixel.
        sr_factor: s.
        window: ``margin`` and ``multiple``, see ``LightField.window``.

    Returns:
        See ``nelf.lightfields.decoder.decoder_window``.
    """
    opacity = features[:, features.shape[1] - 16 - sr_factor**2 : features.shape[1] - 16]
    return decoder_window(torch.from_numpy(opacity), window["margin"], window["multiple"])


def cut(features: np.ndarray, window: Window) -> np.ndarray:
    """The features of a rectangle of blocks."""
    top, bottom, left, right = window
    return np.ascontiguousarray(features[:, :, top:bottom, left:right])


def window_feeds(network: LightField, kind: str, cameras: Camera | Sequence[Camera]) -> list[dict[str, np.ndarray]]:
    """``feed_of`` for several cameras, where possible without what need not be drawn; all of one size.

    Args:
        network: to make the inputs for.
        kind: where its graph begins.
        cameras: of one size.

    Returns:
        Arrays by name, for each camera; of features, rectangles as large as the largest that a camera needs.
    """
    feeds = [feed_of(network, kind, cameras[index]) for index in range(len(cameras))]
    if kind != "features" or network.window is None:
        return feeds
    windows = [window_in(each["features"], network.sr_factor, dict(network.window)) for each in feeds]
    sides = [max(window[axis + 1] - window[axis] for window in windows) for axis in (0, 2)]
    if 0 in sides:  # no camera sees anything
        return feeds
    shape = feeds[0]["features"].shape[2:]
    cuts = []
    for each, window in zip(feeds, windows, strict=True):
        first = [min(window[2 * axis], shape[axis] - sides[axis]) for axis in (0, 1)]
        ends = (first[0], first[0] + sides[0], first[1], first[1] + sides[1])
        cuts.append({**each, "features": cut(each["features"], ends)})
    return cuts
