"""R2L: points on each ray, or its Plücker coordinates, and a deep residual network of linear layers."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from nelf.lightfields.base import LightField
from nelf.lightfields.mobile_r2l import stratified
from nelf.rays import Rays

__all__ = ["R2L"]


class _ResidualBlock(nn.Module):
    """Two linear layers with a ReLU between them and nothing after the sum."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.body = nn.Sequential(nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, self.body(x), alpha=self.scale)


class R2L(LightField):
    """The light field of R2L, weight for weight: a ray's color by one evaluation of a deep network.

    ``head`` (linear, ReLU) -> ``body`` (residual blocks) -> ``tail`` (linear, sigmoid). With the defaults 5,917,187
    parameters and 5.89 million multiplications a ray; 5,691,395 parameters from Plücker coordinates. Keys of the state
    dict are the original's, beside the buffers of ``LightField``.

    From ``points``, the network sees P points of a ray, linear in z-depth from near to far, both included. In training
    each depth is drawn between the mid-points to its neighbors, anew for every ray. From ``plucker``, it sees the
    direction, not normalized, and origin x direction; there is no depth in them, and nothing is drawn.

    Args:
        width: of all layers.
        depth: layers of head, body and tail: ``(depth - 2) / 2`` residual blocks.
        inputs: ``points`` or ``plucker``.
        points: P, of a ray; ``plucker`` does not look at it.
        multires: frequencies of the embedding.
        skip: add the output of the head to that of the body. The original's ``--use_residual``, which all of its
            documented commands set; nothing in a state dict tells.
        block_scale: what a block adds is multiplied by it.
        ray_shift: see ``LightField``; for weights of the original, whose rays miss the centers of pixels.

    Raises:
        ValueError: an argument is outside what is listed above.

    Source:
        Wang et al. 2022, arXiv 2203.17261; layers, order of the inputs and names as in the authors' code.
    """

    batch = "rays"
    chunk = 2**14  # 66 MB of embedded points
    low_precision = True

    def __init__(
        self,
        width: int = 256,
        depth: int = 88,
        inputs: Literal["points", "plucker"] = "points",
        points: int = 16,
        multires: int = 10,
        skip: bool = True,
        block_scale: float = 1.0,
        ray_shift: float = 0.0,
    ) -> None:
        if inputs not in ("points", "plucker"):
            raise ValueError(f"Expected argument `inputs` to be 'points' or 'plucker', but got {inputs!r}.")
        if depth < 2 or depth % 2:
            raise ValueError(f"Expected argument `depth` to be an even number from 2 on, but got {depth}.")
        if points < 2:
            raise ValueError(f"Expected argument `points` to be at least 2, but got {points}.")
        super().__init__()
        self.inputs, self.points, self.multires, self.skip = inputs, points, multires, skip
        self.ray_shift = ray_shift
        self.encoded = "points" if inputs == "points" else None
        self.encoded_channels = 3 * points if inputs == "points" else 6
        self.head = nn.Sequential(nn.Linear(self.encoded_channels * (2 * multires + 1), width), nn.ReLU(inplace=True))
        self.body = nn.Sequential(*(_ResidualBlock(width, block_scale) for _ in range((depth - 2) // 2)))
        self.tail = nn.Sequential(nn.Linear(width, 3), nn.Sigmoid())

    def forward(self, rays: Rays) -> Tensor:
        """Give the colors of rays of any shape (...): (..., 3) in [0, 1]."""
        return self._draw(self._coordinates(rays))

    def encode(self, rays: Rays) -> Tensor:
        """Points on rays (B, h, w), or their Plücker coordinates: (B, 3 P, h, w), or (B, 6, h, w).

        Channel ``point * 3 + coordinate``; or direction, then origin x direction.
        """
        return self._coordinates(rays).movedim(-1, 1)

    def decode(self, inputs: Tensor) -> Tensor:
        """The network from ``encode`` on: (B, 3 P, h, w), or (B, 6, h, w), to rgb (B, 3, h, w) in [0, 1]."""
        return self._draw(inputs.movedim(1, -1)).movedim(-1, 1)

    def _coordinates(self, rays: Rays) -> Tensor:
        """(..., 3 P) or (..., 6), scene unit, see ``encode``."""
        # Half precision cannot hold the phase of the highest frequency.
        with torch.autocast(rays.origins.device.type, enabled=False):
            rays_o, rays_d = rays.origins.to(self.near), rays.directions.to(self.near)
            if self.inputs == "plucker":
                return torch.cat([rays_d, torch.linalg.cross(rays_o, rays_d)], dim=-1)
            share = torch.linspace(0.0, 1.0, self.points, dtype=self.near.dtype, device=self.near.device)
            t = self.near + (self.far - self.near) * share
            if self.training:
                t = stratified(t, rays.shape)
            return (rays_o[..., None, :] + rays_d[..., None, :] * t[..., None]).flatten(-2)

    def _draw(self, coordinates: Tensor) -> Tensor:
        """From (..., C) coordinates to (..., 3) colors."""
        with torch.autocast(coordinates.device.type, enabled=False):
            x = self._embed(coordinates.to(self.near).reshape(-1, self.encoded_channels))
        x = self.head(x.to(next(self.head.parameters()).dtype))
        x = self.body(x) + x if self.skip else self.body(x)
        return self.tail(x).to(self.near.dtype).view(*coordinates.shape[:-1], 3)

    def _embed(self, coordinates: Tensor) -> Tensor:
        """(N, C) to (N, C * (2 L + 1)): of each coordinate L sines, L cosines, and itself."""
        octaves = 2.0 ** torch.arange(self.multires, dtype=coordinates.dtype, device=coordinates.device)
        phases = coordinates[..., None] * octaves
        return torch.cat([phases.sin(), phases.cos(), coordinates[..., None]], dim=-1).flatten(1)

    def widths(self) -> dict[str, Any]:
        """See ``LightField.widths``."""
        return {"width": self.head[0].out_features}
