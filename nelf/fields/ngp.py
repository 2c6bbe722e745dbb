"""Instant-NGP: a hash grid, two tiny networks and an occupancy grid."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nelf.encodings import HashEncoding, spherical_harmonics
from nelf.errors import Count, CountOrZero, NonNegative, Positive
from nelf.fields.base import FieldRays, RadianceField
from nelf.fields.samplers import OccupancySampler
from nelf.kernels import HashGrid, multiplies_bfloat16
from nelf.rays import Rays

__all__ = ["NGP", "mlp", "run_padded"]

_ROWS = 2048


class NGP(RadianceField):
    """A radiance field in a hash grid, sampled where an occupancy grid says that there is something.

    The field lives in its own units: the scene's box (``Scene.aabb``) becomes the unit cube round the origin, with
    one scale for the whole scene. ``scale`` is the half-size of what the field covers in these units: 0.5 is the
    box alone; 1, 2, 4, ... reach beyond it, with a cascade of the occupancy grid for each doubling.

    Args:
        levels: levels of the hash grid.
        features: features per level and entry.
        log2_table: binary logarithm of a level's table size.
        base_resolution: cells along a side of the coarsest level.
        finest_resolution: cells along a side of the finest level for ``scale=1`` (it grows with ``scale``).
        hidden: neurons in the hidden layers of both networks.
        color_layers: hidden layers of the color network (the density network has one).
        scale: half-size of the cube that the field covers.
        grid_resolution: cells along a side of the occupancy grid.
        grid_slices: see ``slices`` of ``OccupancyGrid``.
        max_samples: samples per ray at the most; the smallest step is the diagonal of the scene's cube divided by it.
        early_stop: a ray ends when less than this share of its light is left.
        low_precision: run the networks in bfloat16, as tiny-cuda-nn runs them in half precision; None does so
            where the processor multiplies it natively.
        z_steps: count steps and density along directions of camera z -1, as ngp_pl does and as its weights mean it,
            instead of along unit ones; a sample then lies where its step begins, not in its middle.

    Source:
        Instant-NGP (Müller et al. 2022, arXiv 2201.05989); ngp_pl, ``models/networks.py`` and ``rendering.py``.
    """

    training_state = ("sampler.grid.density", "sampler.grid.updates")

    def __init__(
        self,
        levels: Count = 16,
        features: Count = 2,
        log2_table: Count = 19,
        base_resolution: Count = 16,
        finest_resolution: Count = 2048,
        hidden: Count = 64,
        color_layers: CountOrZero = 2,
        scale: Positive = 0.5,
        grid_resolution: Count = 128,
        grid_slices: Count | None = None,
        max_samples: Count = 1024,
        early_stop: NonNegative = 1e-4,
        low_precision: bool | None = None,
        z_steps: bool = False,
    ) -> None:
        super().__init__(OccupancySampler(scale, grid_resolution, grid_slices, max_samples, at_start=z_steps))
        growth = (finest_resolution * scale / base_resolution) ** (1 / (levels - 1)) if levels > 1 else 1.0
        self.encoding = HashEncoding(HashGrid(levels, features, log2_table, base_resolution, growth))
        self.density_net = mlp(self.encoding.out_features, hidden, 1, 16)
        self.color_net = mlp(32, hidden, color_layers, 3)
        self.scale = scale
        self.early_stop = early_stop
        self.low_precision = low_precision
        self.z_steps = z_steps

    def to_field(self, rays: Rays) -> FieldRays:
        """See ``RadianceField.to_field``; with ``z_steps``, directions keep their camera z of -1."""
        here = super().to_field(rays)
        if not self.z_steps:
            return here
        unit = self.unit.expand_as(here.near)
        return FieldRays(here.origins, rays.directions, self.near / unit, self.far / unit, unit, rays)

    def density(self, positions: Tensor, controls: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See ``RadianceField.density``; a static field.

        Args:
            positions: (S, 3) in [-scale, scale].
            controls: not looked at.

        Returns:
            ``sigma`` (S,) per unit of the field, and ``features`` (S, 16), whose first is ``log(sigma)``.
        """
        return self._from_inputs(self.encoding((positions / (2 * self.scale) + 0.5).clamp(0.0, 1.0)))

    def _from_inputs(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Density and features from the inputs (S, C) of the density network."""
        features = self._run(self.density_net, inputs)
        return _TruncatedExp.apply(features[:, 0].float()), features  # type: ignore[no-untyped-call]

    def color(self, features: Tensor, viewdirs: Tensor, view: Tensor | None = None) -> Tensor:
        """See ``RadianceField.color``; the same in every view."""
        return self._shade(features, spherical_harmonics(viewdirs).to(features.dtype))

    def color_along(self, features: Tensor, rays: Rays, ray_indices: Tensor) -> Tensor:
        """See ``RadianceField.color_along``; directions are encoded once for each ray."""
        harmonics = spherical_harmonics(rays.viewdirs).to(features.dtype)
        return self._shade(features, harmonics.index_select(0, ray_indices))

    def _shade(self, features: Tensor, harmonics: Tensor) -> Tensor:
        return torch.sigmoid(self._run(self.color_net, torch.cat([harmonics, features], dim=1)).float())

    def _run(self, network: nn.Module, inputs: Tensor) -> Tensor:
        return run_padded(network, inputs, self.low_precision)


def run_padded(network: Callable[[Tensor], Tensor], inputs: Tensor, low_precision: bool | None) -> Tensor:
    """Run a network on inputs (S, C), in bfloat16 if ``low_precision`` says so; see there."""
    low = multiplies_bfloat16(inputs.device) if low_precision is None else low_precision
    # Matrix libraries prepare a kernel for each new number of rows: keep to few of them.
    padded = F.pad(inputs, (0, 0, 0, -len(inputs) % _ROWS))
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=low):
        return network(padded)[: len(inputs)]


def mlp(inputs: int, hidden: int, hidden_layers: int, outputs: int) -> nn.Sequential:
    """A network without biases, as tiny-cuda-nn's, Xavier-uniform.

    Args:
        inputs: values that it takes.
        hidden: neurons of each hidden layer.
        hidden_layers: how many there are.
        outputs: values that it gives.
    """
    widths = [inputs] + [hidden] * hidden_layers + [outputs]
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(widths):
        layers += [nn.Linear(width_in, width_out, bias=False), nn.ReLU()]
        nn.init.xavier_uniform_(layers[-2].weight)  # type: ignore[arg-type]
    return nn.Sequential(*layers[:-1])


class _TruncatedExp(torch.autograd.Function):
    """exp, whose gradient is bounded so that one dense sample cannot blow up a step."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.exp(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * torch.exp(x.clamp(-15.0, 15.0))
