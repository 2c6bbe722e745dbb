"""What an exported graph is given for a camera: where between the pose and the network the graph begins.

========  ==========================================================================================
kind      inputs, float32; h and w are the image's sides over ``sr_factor``
========  ==========================================================================================
pose      ``c2w`` (1, 3, 4); size and intrinsics are inside the graph
rays      ``rays_o``, ``rays_d`` (1, h, w, 3), of ``Camera.rays(sr_factor)``
points    ``points`` (1, 3 P, h, w): linear in t from near to far, channel ``point * 3 + coordinate``
features  ``features`` (1, C + 17, h, w): a volume's, composited along the rays, opacity and direction
========  ==========================================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from nelf.cameras import Camera
from nelf.errors import UserError
from nelf.kernels.ray_features import RayFeatures
from nelf.lightfields import GridR2L, LightField, MobileR2L
from nelf.lightfields.grid_r2l import decoder_inputs
from nelf.lightfields.mobile_r2l import ray_points

__all__ = ["KINDS", "Kind", "check_kind", "feed", "feed_of", "kinds_of"]

Kind = Literal["pose", "rays", "points", "features"]
KINDS: dict[Kind, tuple[str, ...]] = {
    "pose": ("c2w",),
    "rays": ("rays_o", "rays_d"),
    "points": ("points",),
    "features": ("features",),
}


def kinds_of(network: LightField) -> tuple[Kind, ...]:
    """The kinds of input that a network can be exported with, what suits a viewer first."""
    first: dict[type, Kind] = {GridR2L: "features", MobileR2L: "points"}
    own: tuple[Kind, ...] = tuple(kind for network_type, kind in first.items() if isinstance(network, network_type))
    return (*own, "rays", "pose")


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
) -> dict[str, np.ndarray]:
    """Make the inputs of a graph for one camera.

    Args:
        kind: where the graph begins.
        camera: a single camera.
        sr_factor: pixels along one side of a ray's block.
        points: P, for ``points``.
        near: smallest ``t``, for ``points``.
        far: largest ``t``, for ``points``.
        composite: (N, 3) ``rays_o`` and ``rays_d`` to ``RayFeatures``, for ``features``.

    Returns:
        Arrays by the names of the inputs.

    Raises:
        ValueError: ``sr_factor`` does not divide the camera's width or height.
    """
    if kind == "pose":
        return {"c2w": camera.c2w[None].numpy()}
    rays = camera.rays(stride=sr_factor)
    rays_o, rays_d = rays.rays_o[None], rays.rays_d[None]
    if kind == "rays":
        return {"rays_o": np.ascontiguousarray(rays_o.numpy()), "rays_d": rays_d.numpy()}
    if kind == "points":
        near_, far_ = rays_o.new_tensor(near), rays_o.new_tensor(far)
        return {"points": np.ascontiguousarray(ray_points(rays_o, rays_d, near_, far_, points, jitter=False).numpy())}
    assert composite is not None
    return {"features": np.ascontiguousarray(decoder_inputs(rays_d, composite(rays_o, rays_d)).numpy())}


def feed_of(network: LightField, kind: Kind, camera: Camera) -> dict[str, np.ndarray]:
    """``feed`` with what a network knows of itself."""
    near, far = float(network.near), float(network.far)
    composite = network.composite if isinstance(network, GridR2L) else None
    return feed(kind, camera, network.sr_factor, getattr(network, "points", 0), near, far, composite)
