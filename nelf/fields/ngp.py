"""Instant-NGP: a hash grid, two tiny networks and an occupancy grid."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nelf.encodings import HashEncoding, spherical_harmonics
from nelf.errors import Count, Depth, DepthOrZero, Log2Size, NonNegative, Positive, Size, SizeOrZero, UserError
from nelf.fields.base import FieldRays, RadianceField
from nelf.fields.codes import ViewCodes
from nelf.fields.samplers import OccupancySampler
from nelf.kernels import HashGrid, gpu
from nelf.kernels.mlp import in_16_bits
from nelf.kernels.mlp import mlp as fused_mlp
from nelf.rays import Rays

if TYPE_CHECKING:
    from nelf.scene import Geometry

__all__ = ["NGP", "contracted", "filled", "mlp", "padded", "run_padded"]

MULTIPLE = 16  # matrix kernels in bfloat16 are slow for row widths that are not a multiple of it
_ROWS = 2048


class NGP(RadianceField):
    """A radiance field on a hash grid, sampled in the occupied cells of an occupancy grid.

    The field has its own units: the scene's box (``Scene.aabb``) becomes the unit cube around the origin, with one
    scale for all axes. ``scale`` is the half-size of the cube that the field covers in these units: 0.5 is the box
    alone; 1, 2, 4, ... extend beyond it, with a cascade of the occupancy grid for each doubling, and steps that grow
    with the distance from the camera.

    For an unbounded scene, set a large ``scale`` and ``contract``: the hash grid then covers a cube of twice the box's
    size whatever the scale, and distant space shares few cells.

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
            None: as many as make it two pixels long, see ``OccupancySampler``.
        early_stop: a ray ends when its transmittance falls below this.
        low_precision: run the networks in bfloat16, as tiny-cuda-nn runs them in half precision; None does so
            where the processor multiplies it natively.
        z_steps: measure steps and density along directions with camera z = -1, as ngp_pl and its weights do, instead of
            unit directions; a sample is then evaluated at the start of its step, not in its middle.
        contract: see ``contracted``: the hash grid covers the scene's box unchanged, and all space around it.
        appearance: size of a latent code of each training view in the color network, for views of different exposure; 0
            for none. Rays without a training view, such as held-out ones, use the mean of all codes.

    Raises:
        ValueError: ``contract`` is set at a ``scale`` of 0.5 or less.

    Source:
        Instant-NGP (Müller et al. 2022, arXiv 2201.05989); ngp_pl, ``models/networks.py`` and ``rendering.py``. Codes
        in the color network alone: NeRF in the Wild, section 4.1 (arXiv 2008.02268).
    """

    training_state = ("sampler.grid.density", "sampler.grid.updates")

    def __init__(
        self,
        levels: Depth = 16,
        features: Size = 2,
        log2_table: Log2Size = 19,
        base_resolution: Size = 16,
        finest_resolution: Count = 2048,
        hidden: Size = 64,
        color_layers: DepthOrZero = 2,
        scale: Positive = 0.5,
        grid_resolution: Size = 128,
        grid_slices: Count | None = None,
        max_samples: Count | None = 1024,
        early_stop: NonNegative = 1e-4,
        low_precision: bool | None = None,
        z_steps: bool = False,
        contract: bool = False,
        appearance: SizeOrZero = 0,
    ) -> None:
        if contract and scale <= 0.5:
            raise ValueError(f"Expected argument `scale` to be above 0.5 with `contract`, but got {scale}.")
        super().__init__(OccupancySampler(scale, grid_resolution, grid_slices, max_samples, at_start=z_steps))
        self.covered = 1.0 if contract else scale  # half-size of the hash grid
        growth = (finest_resolution * self.covered / base_resolution) ** (1 / (levels - 1)) if levels > 1 else 1.0
        self.encoding = HashEncoding(HashGrid(levels, features, log2_table, base_resolution, growth))
        self.density_net = mlp(self.encoding.out_features, hidden, 1, 16)
        self.color_net = mlp(32 + padded(appearance), hidden, color_layers, 3)
        self.appearance = ViewCodes(appearance) if appearance else None
        self.scale = scale
        self.contract = contract
        self.early_stop = early_stop
        self.low_precision = low_precision
        self.z_steps = z_steps

    def prepare(self, geometry: Geometry) -> None:
        """See ``RadianceField.prepare``; each training view gets a code if ``appearance`` is set.

        Raises:
            UserError: ``appearance`` is set, but the scene's cameras have no view index.
        """
        super().prepare(geometry)
        if self.appearance is not None:
            if geometry.cameras.view is None:
                raise UserError("model.appearance: the views of this scene have no numbers; allowed: 0.")
            self.appearance.prepare(geometry.cameras.view)

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
            controls: unused.

        Returns:
            ``sigma`` (S,) per unit of the field, and ``features`` (S, 16), whose first is ``log(sigma)``.
        """
        positions = contracted(positions) if self.contract else positions
        return self._from_inputs(self.encoding((positions / (2 * self.covered) + 0.5).clamp(0.0, 1.0)))

    def _from_inputs(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Density and features from the inputs (S, C) of the density network."""
        features = self._run(self.density_net, inputs)
        return _TruncatedExp.apply(features[:, 0].float()), features  # type: ignore[no-untyped-call]

    def color(self, features: Tensor, viewdirs: Tensor, view: Tensor | None = None) -> Tensor:
        """See ``RadianceField.color``."""
        return self._shade(features, self._around(viewdirs, view).to(features.dtype))

    def color_along(self, features: Tensor, rays: Rays, ray_indices: Tensor) -> Tensor:
        """See ``RadianceField.color_along``; directions are encoded once for each ray."""
        around = self._around(rays.viewdirs, rays.view).to(features.dtype)
        return self._shade(features, around.index_select(0, ray_indices))

    def _around(self, viewdirs: Tensor, view: Tensor | None) -> Tensor:
        """Inputs of the color network for N rays: their encoded directions, and the codes of their views."""
        harmonics = spherical_harmonics(viewdirs)
        if self.appearance is None:
            return harmonics
        return torch.cat([harmonics, filled(self.appearance(view, len(viewdirs)))], 1)

    def _shade(self, features: Tensor, around: Tensor) -> Tensor:
        return torch.sigmoid(self._run(self.color_net, torch.cat([around, features], dim=1)).float())

    def _run(self, network: nn.Sequential, inputs: Tensor) -> Tensor:
        low = in_16_bits(self.low_precision, inputs.device)
        if low and len(network) > 1 and gpu.asynchronous(inputs.device):
            return fused_mlp(inputs, [layer.weight for layer in network if isinstance(layer, nn.Linear)])
        return run_padded(network, inputs, low)


def contracted(positions: Tensor) -> Tensor:
    """Contract all of space into the cube of half-size 1; the cube of half-size 0.5 stays unchanged.

    ``(1 - 1 / (4 r)) x / r`` for ``r = max |x_i|`` of 0.5 or more, so that cubes stay cubes.

    Args:
        positions: (..., 3) in the field's space.

    Returns:
        (..., 3) in (-1, 1).

    Source:
        Mip-NeRF 360, eq. 10 (arXiv 2111.12077), with the maximum norm as in nerfstudio, for a scene's box.

    Example:
        >>> contracted(torch.tensor([[0.25, 0.5, 0.0], [0.0, 1.0, 2.0]]))
        tensor([[0.2500, 0.5000, 0.0000],
                [0.0000, 0.4375, 0.8750]])
    """
    radius = positions.abs().amax(-1, keepdim=True).clamp(min=0.5)
    return positions * ((1.0 - 0.25 / radius) / radius)


def padded(width: int) -> int:
    """``width`` rounded up to a multiple of ``MULTIPLE``."""
    return math.ceil(width / MULTIPLE) * MULTIPLE


def filled(inputs: Tensor) -> Tensor:
    """Pad inputs (S, C) with zeros to (S, ``padded(C)``)."""
    return F.pad(inputs, (0, padded(inputs.shape[1]) - inputs.shape[1]))


def run_padded(network: Callable[[Tensor], Tensor], inputs: Tensor, low_precision: bool | None) -> Tensor:
    """Run a network on inputs (S, C), their rows padded to a multiple; for ``low_precision`` see ``NGP``."""
    low = in_16_bits(low_precision, inputs.device)
    # Matrix libraries prepare a kernel for each new number of rows, so use few different ones.
    padded = F.pad(inputs, (0, 0, 0, -len(inputs) % _ROWS))
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=low):
        return network(padded)[: len(inputs)]


def mlp(inputs: int, hidden: int, hidden_layers: int, outputs: int) -> nn.Sequential:
    """An MLP without biases, as in tiny-cuda-nn, with Xavier-uniform weights.

    Args:
        inputs: number of inputs.
        hidden: neurons of each hidden layer.
        hidden_layers: number of hidden layers.
        outputs: number of outputs.
    """
    widths = [inputs] + [hidden] * hidden_layers + [outputs]
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(widths):
        layers += [nn.Linear(width_in, width_out, bias=False), nn.ReLU(inplace=True)]
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
