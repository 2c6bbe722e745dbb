"""DyLiN: two small networks deform each ray and lift it to hyperspace, a deep residual network gives its color."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from nelf.errors import Depth, Frequencies, Size, SizeOrZero
from nelf.lightfields.base import LightField
from nelf.lightfields.residual import colors, embed, points_along, residual_layers
from nelf.rays import Rays

__all__ = ["DyLiN"]

AGAIN = 5  # index of the layer that takes the input again, by a skip connection


class _RayNetwork(nn.Module):
    """An MLP with ReLUs, a skip connection that puts the input in front, and named linear output layers."""

    def __init__(self, columns: int, width: int, depth: int, outputs: Mapping[str, int]) -> None:
        super().__init__()
        inputs = [columns, *(width + columns * (layer == AGAIN) for layer in range(1, depth))]
        self.pts_linears = nn.ModuleList(nn.Linear(each, width) for each in inputs)
        for name, channels in outputs.items():
            self.add_module(name, nn.Linear(width, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map embedded rays (N, columns) to the last hidden layer (N, width)."""
        hidden = x
        for index, layer in enumerate(self.pts_linears):
            hidden = relu(layer(torch.cat([x, hidden], 1) if index == AGAIN else hidden))
        return hidden


class _Offset(_RayNetwork):
    """The deformation network: offsets of a ray's origin and direction."""

    output_linear_o: nn.Linear
    output_linear_d: nn.Linear

    def __init__(self, columns: int, width: int, depth: int) -> None:
        super().__init__(columns, width, depth, {"output_linear_o": 3, "output_linear_d": 3})

    def forward(self, x: Tensor) -> Tensor:
        """Offsets (N, 6): of the origin, then of the direction."""
        hidden = super().forward(x)
        return torch.cat([self.output_linear_o(hidden), self.output_linear_d(hidden)], 1)


class _Hyper(_RayNetwork):
    """The hyperspace network: coordinates that model changes of topology, as in HyperNeRF."""

    output_linear: nn.Linear

    def __init__(self, columns: int, width: int, depth: int, dimensions: int) -> None:
        super().__init__(columns, width, depth, {"output_linear": dimensions})

    def forward(self, x: Tensor) -> Tensor:
        """Map embedded rays (N, columns) to (N, dimensions)."""
        return self.output_linear(super().forward(x))


class _Trunk(nn.Module):
    """The network of R2L."""

    def __init__(self, columns: int, width: int, depth: int) -> None:
        super().__init__()
        self.head, self.body, self.tail = residual_layers(columns, width, depth)

    def forward(self, x: Tensor) -> Tensor:
        """Map embedded points (N, columns) to colors (N, 3)."""
        return colors(self.head, self.body, self.tail, x)


class DyLiN(LightField):
    """The light field of DyLiN, with the original's layers: R2L for dynamic scenes.

    A ray is seven numbers: origin, direction (not normalized), time. From their embedding, ``offset`` predicts the
    offsets of origin and direction to the corresponding ray of the canonical scene, and ``hyper`` the hyperspace
    coordinates w, which model changes of topology. ``trunk``, the network of R2L, takes P points on the deformed ray,
    linear in z-depth from near to far, then w once per ray. In training each depth is drawn between the mid-points to
    its neighbors, independently for every ray.

    With the defaults 6,138,001 parameters and 6.11 million multiplications a ray. Keys of the state dict are the
    original's for each of the three networks, prefixed by ``trunk.``, ``offset.`` and ``hyper.``. All layers have
    PyTorch's default initialization, so the offsets are not zero at the start.

    Further controls are inputs after the time: the idea of CoDyLiN, whose code was not published.

    Args:
        width: of all layers of the trunk.
        depth: layers of head, body and tail of the trunk: ``(depth - 2) / 2`` residual blocks.
        points: P, points per ray.
        multires: frequencies of both embeddings.
        offset_width: of the hidden layers of ``offset``.
        offset_depth: number of hidden layers of ``offset``; the sixth takes the embedded ray again.
        hyper_width: of the hidden layers of ``hyper``.
        hyper_depth: number of hidden layers of ``hyper``; the sixth takes the embedded ray again.
        hyper_dim: dimensions of w.
        controls: K, number of controls; the first is the time.
        ray_shift: see ``LightField``; for weights of the original, whose rays do not pass through pixel centers.

    Raises:
        ValueError: an argument is too small, or ``depth`` is odd; in ``forward``, the rays have fewer controls.

    Source:
        Yu et al. 2023, arXiv 2303.14243; layers, order of the inputs and names as in the authors' code.
    """

    batch = "rays"
    chunk = 2**14  # 77 MB of embedded points
    low_precision = True
    exact_parts = ("offset", "hyper")

    def __init__(
        self,
        width: Size = 256,
        depth: Depth = 88,
        points: Size = 16,
        multires: Frequencies = 10,
        offset_width: Size = 128,
        offset_depth: Depth = 7,
        hyper_width: Size = 64,
        hyper_depth: Depth = 6,
        hyper_dim: SizeOrZero = 8,
        controls: int = 1,
        ray_shift: float = 0.0,
    ) -> None:
        least = {"points": 2, "offset_depth": 1, "hyper_depth": 1, "hyper_dim": 1, "controls": 1}
        given = (points, offset_depth, hyper_depth, hyper_dim, controls)
        for (name, smallest), value in zip(least.items(), given, strict=True):
            if value < smallest:
                raise ValueError(f"Expected argument `{name}` to be at least {smallest}, but got {value}.")
        super().__init__()
        self.points, self.multires, self.controls, self.ray_shift = points, multires, controls, ray_shift
        self.encoded_channels = 3 * points + hyper_dim
        each = 2 * multires + 1
        self.offset = _Offset((6 + controls) * each, offset_width, offset_depth)
        self.hyper = _Hyper((6 + controls) * each, hyper_width, hyper_depth, hyper_dim)
        self.trunk = _Trunk(self.encoded_channels * each, width, depth)

    def forward(self, rays: Rays) -> Tensor:
        """Give the colors of rays of any shape (...): (..., 3) in [0, 1]."""
        return self._draw(self._coordinates(rays))

    def encode(self, rays: Rays) -> Tensor:
        """Points on the deformed rays (B, h, w), and their hyperspace coordinates: (B, 3 P + hyper_dim, h, w).

        Channels are ``point * 3 + coordinate``, then w.
        """
        return self._coordinates(rays).movedim(-1, 1)

    def decode(self, inputs: Tensor) -> Tensor:
        """Apply the trunk to the output of ``encode``: rgb (B, 3, h, w) in [0, 1]."""
        return self._draw(inputs.movedim(1, -1)).movedim(-1, 1)

    def prunable(self) -> dict[str, dict[str, nn.Parameter]]:
        """See ``LightField.prunable``: ``head``, ``body`` and ``tail`` of the trunk, ``offset`` and ``hyper``."""
        found = super().prunable()
        for name, weight in found.pop("trunk").items():
            found.setdefault(name.split(".")[1], {})[name] = weight
        return found

    def widths(self) -> dict[str, Any]:
        """See ``LightField.widths``."""
        return {"width": self.trunk.head[0].out_features}

    def _coordinates(self, rays: Rays) -> Tensor:
        """(..., 3 P + hyper_dim), see ``encode``; controls beyond K are ignored."""
        found = 0 if rays.controls is None else rays.controls.shape[-1]
        if rays.controls is None or found < self.controls:
            raise ValueError(f"Expected `rays` to have {self.controls} controls, the time first, but got {found}.")
        # Half precision cannot hold the phase of the highest frequency, so the offsets need float32, too.
        with torch.autocast(rays.origins.device.type, enabled=False):
            parts = (rays.origins, rays.directions, rays.controls[..., : self.controls])
            numbers = torch.cat([part.to(self.near).reshape(-1, part.shape[-1]) for part in parts], 1)
            embedded = embed(numbers, self.multires)
            rays_o, rays_d = (numbers[:, :6] + self.offset(embedded)).split(3, 1)
            along = points_along(rays_o, rays_d, self.near, self.far, self.points, self.training)
            return torch.cat([along, self.hyper(embedded)], 1).view(*rays.shape, -1)

    def _draw(self, coordinates: Tensor) -> Tensor:
        """Map coordinates (..., 3 P + hyper_dim) to colors (..., 3)."""
        with torch.autocast(coordinates.device.type, enabled=False):
            x = embed(coordinates.to(self.near).reshape(-1, self.encoded_channels), self.multires)
        return self.trunk(x).to(self.near.dtype).view(*coordinates.shape[:-1], 3)
