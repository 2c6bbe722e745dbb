"""R2L: points on each ray, or its Plücker coordinates, and a deep residual network of linear layers."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from nelf.errors import Depth, Frequencies, Size
from nelf.lightfields.base import LightField
from nelf.lightfields.residual import colors, embed, points_along, residual_layers
from nelf.rays import Rays

__all__ = ["R2L"]


class R2L(LightField):
    """The light field of R2L, with the original's layers: a ray's color by one evaluation of a deep network.

    ``head`` (linear, ReLU) -> ``body`` (residual blocks) -> ``tail`` (linear, sigmoid). With the defaults 5,917,187
    parameters and 5.89 million multiplications a ray; 5,691,395 parameters from Plücker coordinates. Keys of the state
    dict are the original's, besides the buffers of ``LightField``.

    With ``inputs="points"``, the network takes P points on each ray, linear in z-depth from near to far, both included.
    In training each depth is drawn between the mid-points to its neighbors, independently for every ray. With
    ``inputs="plucker"``, it takes the direction, not normalized, and origin x direction, without jitter.

    Args:
        width: of all layers.
        depth: layers of head, body and tail: ``(depth - 2) / 2`` residual blocks.
        inputs: ``points`` or ``plucker``.
        points: P, points per ray; unused by ``plucker``.
        multires: frequencies of the embedding.
        skip: add the output of the head to that of the body. The original's ``--use_residual``, which all of its
            documented commands set; a state dict does not record it.
        block_scale: factor on what a block adds to its input.
        ray_shift: see ``LightField``; for weights of the original, whose rays do not pass through pixel centers.

    Raises:
        ValueError: an argument is outside what is listed above.

    Source:
        Wang et al. 2022, arXiv 2203.17261; layers, order of the inputs and names as in the authors' code.
    """

    batch = "rays"
    chunk = 2**14  # 66 MB of embedded points
    low_precision = True
    exact_in_8_bits = ("tail",)  # its three rows of weights cause half of the loss of 8 bits

    def __init__(
        self,
        width: Size = 256,
        depth: Depth = 88,
        inputs: Literal["points", "plucker"] = "points",
        points: Size = 16,
        multires: Frequencies = 10,
        skip: bool = True,
        block_scale: float = 1.0,
        ray_shift: float = 0.0,
    ) -> None:
        if inputs not in ("points", "plucker"):
            raise ValueError(f"Expected argument `inputs` to be 'points' or 'plucker', but got {inputs!r}.")
        if points < 2:
            raise ValueError(f"Expected argument `points` to be at least 2, but got {points}.")
        super().__init__()
        self.inputs, self.points, self.multires, self.skip = inputs, points, multires, skip
        self.ray_shift = ray_shift
        self.encoded = "points" if inputs == "points" else None
        self.encoded_channels = 3 * points if inputs == "points" else 6
        columns = self.encoded_channels * (2 * multires + 1)
        self.head, self.body, self.tail = residual_layers(columns, width, depth, block_scale)

    def forward(self, rays: Rays) -> Tensor:
        """Give the colors of rays of any shape (...): (..., 3) in [0, 1]."""
        return self._draw(self._coordinates(rays))

    def encode(self, rays: Rays) -> Tensor:
        """Points on rays (B, h, w), or their Plücker coordinates: (B, 3 P, h, w), or (B, 6, h, w).

        Channels are ``point * 3 + coordinate``; or direction, then origin x direction.
        """
        return self._coordinates(rays).movedim(-1, 1)

    def decode(self, inputs: Tensor) -> Tensor:
        """Apply the network to the output of ``encode``: rgb (B, 3, h, w) in [0, 1]."""
        return self._draw(inputs.movedim(1, -1)).movedim(-1, 1)

    def _coordinates(self, rays: Rays) -> Tensor:
        """(..., 3 P) or (..., 6), scene unit, see ``encode``."""
        # Half precision cannot hold the phase of the highest frequency.
        with torch.autocast(rays.origins.device.type, enabled=False):
            rays_o, rays_d = rays.origins.to(self.near), rays.directions.to(self.near)
            if self.inputs == "plucker":
                return torch.cat([rays_d, torch.linalg.cross(rays_o, rays_d)], dim=-1)
            return points_along(rays_o, rays_d, self.near, self.far, self.points, self.training)

    def _draw(self, coordinates: Tensor) -> Tensor:
        """Map coordinates (..., C) to colors (..., 3)."""
        with torch.autocast(coordinates.device.type, enabled=False):
            x = embed(coordinates.to(self.near).reshape(-1, self.encoded_channels), self.multires)
        drawn = colors(self.head, self.body, self.tail, x, self.skip)
        return drawn.to(self.near.dtype).view(*coordinates.shape[:-1], 3)

    def widths(self) -> dict[str, Any]:
        """See ``LightField.widths``."""
        return {"width": self.head[0].out_features}
