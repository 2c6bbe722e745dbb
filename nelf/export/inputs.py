"""The inputs of an exported graph for a camera, by kind: how much of the way from pose to network is in the graph.

========  ==========================================================================================
kind      inputs, float32; s is ``sr_factor``, h and w are the image's sides over s, rounded up
========  ==========================================================================================
pose      ``c2w`` (1, 3, 4); size and intrinsics are inside the graph
rays      ``rays_o``, ``rays_d`` (1, ., ., 3), of ``LightField.rays``, in scene coordinates; the mapping to
          NDC is inside the graph
points    ``points`` (1, 3 P, h, w): linear in t from near to far, channel ``point * 3 + coordinate``
features  ``features`` (1, (C + 1) s^2 + 16, h, w): a volume's, composited along the s^2 rays of each
          block, their opacities, and the block's direction
========  ==========================================================================================

A light field with K controls has the further inputs ``time`` (1,) and, if K > 1, ``controls`` (1, K - 1), in [0, 1];
except for features, which already depend on the controls. The output is ``rgb`` (1, 3, H, W), or ``rgba`` (1, 4, H, W):
rgb on black and opacity. If s does not divide the sides of an image, H and W are the next multiples, and the output is
cropped.
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
    """The names of the inputs of a network's graph, by their kind."""
    count = 0 if kind == "features" else network.controls
    return (*KINDS[kind], *(["time"] if count else []), *(["controls"] if count > 1 else []))


def output_of(network: LightField) -> str:
    """The name of a graph's output: ``rgba`` if the background is not part of the network's colors, else ``rgb``."""
    return "rgb" if network.background is None else "rgba"


def check_kind(network: LightField, kind: str) -> None:
    """Refuse a kind of input that a network does not support.

    Raises:
        UserError: it does not; the message lists the supported kinds.
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
        kind: kind of the graph's inputs.
        camera: a single camera.
        rays: returns the rays (h, w) of a camera's image, see ``LightField.rays``.
        encode: returns ``points`` or ``features`` of rays (1, h, w).

    Returns:
        Arrays by input name; with ``time`` and ``controls`` if the camera has them, except for features.
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
    """``feed`` for a network; controls that the network does not take are left out."""
    camera = with_controls(camera, network.controls)
    return feed(kind, camera, network.rays, network.encode)


def with_controls(camera: Camera, count: int) -> Camera:
    """A single camera with ``count`` controls: its own, filled up with zeros."""
    own = [] if camera.controls is None else camera.controls.tolist()
    return camera.at(*[*own, *[0.0] * count][:count])


Window = tuple[int, int, int, int]
"""A rectangle of blocks: first row, end row, first column, end column; the ends are excluded."""


def window_in(features: np.ndarray, sr_factor: int, window: dict[str, int]) -> Window:
    """Find the rectangle of blocks on which a graph with features as inputs has to run.

    Args:
        features: from ``feed``, with one ray per pixel.
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
    """``feed_of`` for several cameras; features are cropped to the rectangle on which the graph has to run.

    Args:
        network: the network.
        kind: kind of its graph's inputs.
        cameras: cameras of one size.

    Returns:
        Arrays by name for each camera; all rectangles of features have the size of the largest.
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
