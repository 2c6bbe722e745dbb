"""NeRF: a coarse and a fine MLP with frequency encoding, and hierarchical sampling."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nelf.encodings import frequency_encoding
from nelf.errors import Depth, DepthOrZero, Frequencies, NonNegative, Size, SizeOrZero
from nelf.fields.base import FieldRays, RadianceField
from nelf.fields.hierarchical import HierarchicalSampler, ask
from nelf.fields.samplers import OccupancySampler
from nelf.fields.volume import Pass, weights_along
from nelf.kernels import Samples
from nelf.kernels.mlp import in_16_bits
from nelf.rays import Rays
from nelf.rendering import evaluating

if TYPE_CHECKING:
    from nelf.scene import Geometry

__all__ = ["GridNeRF", "NeRF", "RadianceMLP"]

DENSITIES: dict[str, Callable[[Tensor], Tensor]] = {"softplus": F.softplus, "relu": F.relu}
SWEEPS = 2  # random samples of each cell to fill an occupancy grid
CHUNK_SAMPLES = 2**17  # evaluated together in rendering


class RadianceMLP(nn.Module):
    """The MLP of NeRF: density from the position, color from a feature of the last layer and the direction.

    Args:
        depth: layers for the position.
        width: of these layers.
        skips: indices, from 0, of those layers that take the encoded position again, in front of their input.
        frequencies: of the encoding of positions.
        direction_frequencies: of the encoding of directions.
        direction_depth: layers between the feature and the color.
        direction_width: of these layers.
        first_activation: whether the first layer has a ReLU, like the others.
        feature_activation: whether the layer of the feature has a ReLU.
        pi: see ``frequency_encoding``.
        density_activation: ``softplus`` or ``relu``.
        noise_std: standard deviation of the noise on densities before their activation, in training.
        low_precision: run the layers in bfloat16; None does so where the processor multiplies it natively.

    Raises:
        ValueError: ``skips`` holds the first layer or one that does not exist, or ``density_activation`` is unknown.
    """

    def __init__(
        self,
        depth: Depth = 8,
        width: Size = 256,
        skips: Sequence[int] = (4,),
        frequencies: Frequencies = 10,
        direction_frequencies: Frequencies = 4,
        direction_depth: DepthOrZero = 1,
        direction_width: Size = 128,
        first_activation: bool = True,
        feature_activation: bool = False,
        pi: bool = False,
        density_activation: Literal["softplus", "relu"] = "softplus",
        noise_std: NonNegative = 0.0,
        low_precision: bool | None = None,
    ) -> None:
        super().__init__()
        if not all(0 < skip < depth for skip in skips):
            raise ValueError(f"Expected argument `skips` to name layers from 1 to {depth - 1}, but got {list(skips)}.")
        if density_activation not in DENSITIES:
            allowed = tuple(DENSITIES)
            raise ValueError(
                f"Expected argument `density_activation` to be one of {allowed}, but got {density_activation!r}."
            )
        position, direction = 3 * (2 * frequencies + 1), 3 * (2 * direction_frequencies + 1)
        inputs = [position, *(width + position * (layer in skips) for layer in range(1, depth))]
        self.layers = nn.ModuleList(nn.Linear(each, width) for each in inputs)
        self.density_layer = nn.Linear(width, 1)
        self.feature_layer = nn.Linear(width, width)
        inputs = [width + direction, *[direction_width] * (direction_depth - 1)]
        self.direction_layers = nn.ModuleList(nn.Linear(each, direction_width) for each in inputs)
        self.color_layer = nn.Linear(direction_width, 3)
        self.skips, self.pi = frozenset(skips), pi
        self.frequencies, self.direction_frequencies = frequencies, direction_frequencies
        self.first_activation, self.feature_activation = first_activation, feature_activation
        self.density_activation, self.noise_std = DENSITIES[density_activation], noise_std
        self.low_precision = low_precision

    def density(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The density (S,) at positions (S, 3), and the activations (S, width) of the last layer."""
        encoded = frequency_encoding(positions, self.frequencies, self.pi)
        with self._autocast(positions):
            hidden = encoded
            for index, layer in enumerate(self.layers):
                hidden = layer(torch.cat([encoded.to(hidden.dtype), hidden], 1) if index in self.skips else hidden)
                if index or self.first_activation:
                    hidden = F.relu(hidden, inplace=True)
            raw = self.density_layer(hidden)[:, 0].float()
        if self.training and self.noise_std:
            raw = raw + self.noise_std * torch.randn_like(raw)
        return self.density_activation(raw), hidden

    def color_along(self, hidden: Tensor, rays: Rays, ray_indices: Tensor) -> Tensor:
        """See ``RadianceField.color_along``; directions are encoded once for each ray."""
        directions = frequency_encoding(rays.viewdirs, self.direction_frequencies, self.pi)
        with self._autocast(hidden):
            feature = self.feature_layer(hidden)
            if self.feature_activation:
                feature = F.relu(feature)
            shaded = torch.cat([feature, directions.to(feature.dtype).index_select(0, ray_indices)], 1)
            for layer in self.direction_layers:
                shaded = F.relu(layer(shaded), inplace=True)
            return torch.sigmoid(self.color_layer(shaded).float())

    def _autocast(self, inputs: Tensor) -> torch.autocast:
        low = in_16_bits(self.low_precision, inputs.device)
        return torch.autocast(inputs.device.type, torch.bfloat16, enabled=low)


class NeRF(RadianceField):
    """The radiance field of the NeRF paper, as nerf_pl builds it: a coarse and a fine network.

    The coarse one is evaluated at stratified points of each ray, the fine one at these and at further points, drawn
    from the coarse weights. Both are trained; the image is the fine one's. The field's space is that of the scene, in
    its unit, so that weights of other projects stay valid; with ``pi`` it is the paper's, the scene's box in [-1, 1].

    With a ReLU on the density, training can collapse to an empty scene: where all densities before it are negative,
    none has a gradient. The default is therefore a softplus, which always has one.

    A softplus is never zero, so rays end at ``far``, and the transmittance that is left goes to the background. With
    ``infinite_end``, as in the original, the last sample has no end and is opaque unless its density is zero.

    Args:
        depth: see ``RadianceMLP``, also for the arguments up to ``low_precision``.
        width: of its layers.
        skips: layers that take the position again.
        frequencies: of positions.
        direction_frequencies: of directions.
        direction_depth: layers between the feature and the color.
        direction_width: of these layers.
        first_activation: a ReLU after the first layer.
        feature_activation: a ReLU after the feature.
        pi: phases in multiples of pi, and the scene's box in [-1, 1].
        density_activation: ``softplus`` or ``relu``.
        noise_std: of the density in training; nerf_pl has 0 for synthetic scenes and 1 for photographs.
        low_precision: bfloat16.
        samples: see ``HierarchicalSampler``, also for the next two.
        fine_samples: 0 for a coarse network alone.
        disparity: evenly spaced in 1 / t.
        infinite_end: the last sample of a ray extends to infinity; meant for ``relu``.
        ray_shift: see ``RadianceField``; for weights of other projects, whose rays do not pass through pixel centers.
        euclidean: ``near`` and ``far`` are distances from the camera, not z-depths, as for nerf_pl's weights.

    Raises:
        ValueError: see ``RadianceMLP`` and ``HierarchicalSampler``.

    Source:
        NeRF (Mildenhall et al. 2020, arXiv 2003.08934), sections 3 to 5 and figure 7; nerf_pl, ``models/nerf.py`` and
        ``models/rendering.py``: 595,844 parameters in each network.
    """

    sampler: HierarchicalSampler
    fine: RadianceMLP | None

    def __init__(
        self,
        depth: Depth = 8,
        width: Size = 256,
        skips: Sequence[int] = (4,),
        frequencies: Frequencies = 10,
        direction_frequencies: Frequencies = 4,
        direction_depth: DepthOrZero = 1,
        direction_width: Size = 128,
        first_activation: bool = True,
        feature_activation: bool = False,
        pi: bool = False,
        density_activation: Literal["softplus", "relu"] = "softplus",
        noise_std: NonNegative = 0.0,
        low_precision: bool | None = None,
        samples: Size = 64,
        fine_samples: SizeOrZero = 128,
        disparity: bool = False,
        infinite_end: bool = False,
        ray_shift: float = 0.0,
        euclidean: bool = False,
    ) -> None:
        super().__init__(HierarchicalSampler(samples, fine_samples, disparity))
        layout = (depth, width, skips, frequencies, direction_frequencies, direction_depth, direction_width)
        options = (first_activation, feature_activation, pi, density_activation, noise_std, low_precision)
        self.coarse = RadianceMLP(*layout, *options)
        self.fine = RadianceMLP(*layout, *options) if fine_samples else None
        self.pi, self.infinite_end, self.ray_shift, self.euclidean = pi, infinite_end, ray_shift, euclidean
        self.chunk = max(1, CHUNK_SAMPLES // (samples + fine_samples))

    @property
    def picture(self) -> RadianceMLP:
        """The network of the image: the fine one, or the coarse one alone."""
        return self.coarse if self.fine is None else self.fine

    def density(self, positions: Tensor, controls: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See ``RadianceField.density``; that of ``picture``, static."""
        return self.picture.density(positions)

    def color(self, features: Tensor, viewdirs: Tensor, view: Tensor | None = None) -> Tensor:
        """See ``RadianceField.color``; ``view`` is unused."""
        each = torch.arange(len(features), device=features.device)
        return self.picture.color_along(features, Rays(viewdirs, viewdirs), each)

    def prepare(self, geometry: Geometry) -> None:
        """See ``RadianceField.prepare``; the field's space is the scene's, or has its box in [-1, 1]."""
        super().prepare(geometry)
        if self.pi:
            self.unit.mul_(0.5)
        else:
            self.center.zero_()
            self.unit.fill_(1.0)

    def to_field(self, rays: Rays) -> FieldRays:
        """See ``RadianceField.to_field``."""
        here = super().to_field(rays)
        if not self.euclidean:
            return here
        near, far = ((depth / self.unit).expand_as(here.near) for depth in (self.near, self.far))
        return here._replace(near=near, far=far)

    def render_rays(self, rays: Rays) -> list[Pass]:
        """See ``RadianceField.render_rays``; in evaluation mode there is no coarse pass beside a fine one."""
        here = self.to_field(rays)
        t = self.sampler.even(here, self.training)
        samples, sigma, hidden = self._ask(self.coarse, here, t)
        if self.fine is None:
            return [self.shade(here, samples, sigma, hidden, self.coarse.color_along)]
        passes = [self.shade(here, samples, sigma, hidden, self.coarse.color_along)] if self.training else []
        weights = weights_along(samples, sigma, len(t)).view_as(t)
        t = self.sampler.refined(t, weights, self.training)
        samples, sigma, hidden = self._ask(self.fine, here, t)
        return [*passes, self.shade(here, samples, sigma, hidden, self.fine.color_along)]

    def through_grid(self, layout: Mapping[str, Any], geometry: Geometry) -> GridNeRF:
        """See ``RadianceField.through_grid``."""
        return GridNeRF.of(self, layout, geometry)

    def _ask(self, network: RadianceMLP, rays: FieldRays, t: Tensor) -> tuple[Samples, Tensor, Tensor]:
        """Samples at points (N, K) of N rays, their densities and features."""
        return ask(lambda positions, _: network.density(positions), rays, t, self.infinite_end)


class GridNeRF(RadianceField):
    """The network of a NeRF's image, evaluated only in the occupied cells of the scene's box.

    Most samples along whole rays are in empty space. Here rays are marched at regular steps through the cells in which
    the trained density exceeds a threshold, without the coarse network.

    Args:
        grid_resolution: cells along a side of the occupancy grid.
        max_samples: samples on the diagonal of the box's cube.
        **layout: arguments of ``NeRF``.

    Source:
        The grid is Instant-NGP's, appendix C (arXiv 2201.05989).
    """

    sampler: OccupancySampler

    def __init__(self, grid_resolution: int = 128, max_samples: int = 512, **layout: Any) -> None:
        super().__init__(OccupancySampler(0.5, grid_resolution, None, max_samples))
        self.nerf = NeRF(**layout)
        self.ray_shift = self.nerf.ray_shift

    @classmethod
    def of(cls, nerf: NeRF, layout: Mapping[str, Any], geometry: Geometry) -> GridNeRF:
        """Wrap a trained NeRF, and fill the grid from its density.

        Args:
            nerf: trained.
            layout: the arguments of its constructor.
            geometry: of the scene; only its box is rendered.
        """
        field = cls(**layout).to(nerf.near.device)
        field.nerf.load_state_dict(nerf.state_dict())
        field.prepare(geometry)
        field.fill()
        return field

    @torch.no_grad()
    def fill(self) -> None:
        """Fill the grid from random samples of the density in each cell, and dilate it for what they miss."""
        grid = self.sampler.grid
        with evaluating(self):
            for _ in range(SWEEPS):
                grid.update(lambda positions: self.density(positions)[0], warm_up=True)
        reached = F.max_pool3d(grid.occupied.float()[:, None], kernel_size=3, stride=1, padding=1)[:, 0] > 0
        grid.occupied.copy_(reached & (grid.density >= 0))

    def density(self, positions: Tensor, controls: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See ``RadianceField.density``; that of ``NeRF.picture``."""
        at = (self.to_scene(positions) - self.nerf.center) / self.nerf.unit
        sigma, features = self.nerf.density(at)
        return sigma * (self.unit / self.nerf.unit), features

    def color(self, features: Tensor, viewdirs: Tensor, view: Tensor | None = None) -> Tensor:
        """See ``RadianceField.color``."""
        return self.nerf.color(features, viewdirs, view)

    def color_along(self, features: Tensor, rays: Rays, ray_indices: Tensor) -> Tensor:
        """See ``RadianceField.color_along``."""
        return self.nerf.picture.color_along(features, rays, ray_indices)
