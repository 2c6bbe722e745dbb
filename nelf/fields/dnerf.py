"""D-NeRF: a canonical NeRF, and a deformation network that maps points of any time into it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nelf.encodings import frequency_encoding
from nelf.errors import Depth, Frequencies, Size, SizeOrZero
from nelf.fields.base import RadianceField
from nelf.fields.hierarchical import HierarchicalSampler, ask
from nelf.fields.nerf import CHUNK_SAMPLES, RadianceMLP
from nelf.fields.volume import Pass, weights_along
from nelf.rays import Rays

if TYPE_CHECKING:
    from nelf.scene import Geometry

__all__ = ["DNeRF", "DeformationMLP"]


class DeformationMLP(nn.Module):
    """The deformation network of D-NeRF: from encoded position and time to a displacement.

    Args:
        depth: number of hidden layers.
        width: of these layers.
        skips: indices, from 0, of those layers that take the encoded position again, without the time, in front of
            their input.
        frequencies: of the encoding of positions.
        time_frequencies: of the encoding of the time.
    """

    def __init__(self, depth: int, width: int, skips: Sequence[int], frequencies: int, time_frequencies: int) -> None:
        super().__init__()
        position, time = 3 * (2 * frequencies + 1), 2 * time_frequencies + 1
        inputs = [position + time, *(width + position * (layer in skips) for layer in range(1, depth))]
        self.layers = nn.ModuleList(nn.Linear(each, width) for each in inputs)
        self.displacement_layer = nn.Linear(width, 3)
        self.skips, self.frequencies, self.time_frequencies = frozenset(skips), frequencies, time_frequencies

    def forward(self, positions: Tensor, time: Tensor) -> Tensor:
        """The displacement (S, 3) of positions (S, 3) at times (S, 1), in their unit."""
        encoded = frequency_encoding(positions, self.frequencies)
        hidden = torch.cat([encoded, frequency_encoding(time, self.time_frequencies)], 1)
        for index, layer in enumerate(self.layers):
            hidden = F.relu(layer(torch.cat([encoded, hidden], 1) if index in self.skips else hidden), inplace=True)
        return self.displacement_layer(hidden)  # type: ignore[no-any-return]


class DNeRF(RadianceField):
    """The radiance field of D-NeRF: ``canonical`` at x + ``deformation(x, t)``, for position x and time t.

    The same two networks are evaluated twice: without gradient at stratified points of each ray, whose weights tell
    where further points are drawn, then at all points for the image, the only pass with a loss. With the defaults
    1,095,047 parameters. The field's space is that of the scene, in its unit.

    As in the original, and unlike in ``NeRF``, the density has a ReLU and the last sample of a ray has no end.

    Args:
        depth: number of layers for the position, in both networks.
        width: of these layers.
        skips: indices, from 0, of those layers that take the encoded position again.
        frequencies: of positions.
        time_frequencies: of the time.
        direction_frequencies: of directions.
        direction_width: of the layer between the feature and the color.
        zero_canonical: set the displacement at time 0, and only there, to zero, so that the canonical field is the
            scene of the first moment; the displacement may then be discontinuous at time 0.
        density_activation: ``softplus`` or ``relu``, see ``NeRF``.
        low_precision: run the canonical network in bfloat16; None does so where the processor multiplies it natively.
        samples: see ``HierarchicalSampler``.
        fine_samples: see ``HierarchicalSampler``; 0 for a single evaluation.
        infinite_end: the last sample of a ray extends to infinity; meant for ``relu``.
        ray_shift: see ``RadianceField``; for weights of the original, whose rays do not pass through pixel centers.

    Raises:
        ValueError: see ``RadianceMLP`` and ``HierarchicalSampler``.

    Source:
        Pumarola et al. 2021, arXiv 2011.13961, sections 3 and 4; layers and rendering as in the authors' code.
    """

    controls = 1
    sampler: HierarchicalSampler

    def __init__(
        self,
        depth: Depth = 8,
        width: Size = 256,
        skips: Sequence[int] = (5,),
        frequencies: Frequencies = 10,
        time_frequencies: Frequencies = 10,
        direction_frequencies: Frequencies = 4,
        direction_width: Size = 128,
        zero_canonical: bool = True,
        density_activation: Literal["softplus", "relu"] = "relu",
        low_precision: bool | None = None,
        samples: Size = 64,
        fine_samples: SizeOrZero = 128,
        infinite_end: bool = True,
        ray_shift: float = 0.0,
    ) -> None:
        super().__init__(HierarchicalSampler(samples, fine_samples))
        self.canonical = RadianceMLP(
            depth,
            width,
            skips,
            frequencies,
            direction_frequencies,
            direction_width=direction_width,
            density_activation=density_activation,
            low_precision=low_precision,
        )
        self.deformation = DeformationMLP(depth, width, skips, frequencies, time_frequencies)
        self.zero_canonical, self.infinite_end, self.ray_shift = zero_canonical, infinite_end, ray_shift
        self.chunk = max(1, CHUNK_SAMPLES // (samples + fine_samples))

    def displacement(self, positions: Tensor, controls: Tensor) -> Tensor:
        """The displacement (S, 3) of positions (S, 3) at controls (S, K), the first of which is the time."""
        time = controls[:, :1].to(positions)
        # Half precision cannot hold the phase of the canonical network's highest frequency.
        with torch.autocast(positions.device.type, enabled=False):
            moved = self.deformation(positions, time)
        return torch.where(time == 0, 0.0, moved) if self.zero_canonical else moved

    def density(self, positions: Tensor, controls: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See ``RadianceField.density``; without controls, that of the canonical field."""
        if controls is not None:
            positions = positions + self.displacement(positions, controls)
        return self.canonical.density(positions)

    def color(self, features: Tensor, viewdirs: Tensor, view: Tensor | None = None) -> Tensor:
        """See ``RadianceField.color``; ``view`` is unused."""
        each = torch.arange(len(features), device=features.device)
        return self.canonical.color_along(features, Rays(viewdirs, viewdirs), each)

    def color_along(self, features: Tensor, rays: Rays, ray_indices: Tensor) -> Tensor:
        """See ``RadianceField.color_along``."""
        return self.canonical.color_along(features, rays, ray_indices)

    def prepare(self, geometry: Geometry) -> None:
        """See ``RadianceField.prepare``; the field's space is the scene's."""
        super().prepare(geometry)
        self.center.zero_()
        self.unit.fill_(1.0)

    def render_rays(self, rays: Rays) -> list[Pass]:
        """See ``RadianceField.render_rays``; one pass, over all points."""
        here = self.to_field(rays)
        t = self.sampler.even(here, self.training)
        if self.sampler.fine_samples:
            with torch.no_grad():
                samples, sigma, _ = ask(self.density, here, t, self.infinite_end)
            weights = weights_along(samples, sigma, len(t)).view_as(t)
            t = self.sampler.refined(t, weights, self.training)
        return [self.shade(here, *ask(self.density, here, t, self.infinite_end), self.color_along)]
