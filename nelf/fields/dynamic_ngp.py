"""Instant-NGP of a scene that moves: a displacement into a hash grid at rest."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from nelf.encodings import frequency_encoding
from nelf.errors import Count, Depth, DepthOrZero, Frequencies, Log2Size, NonNegative, Positive, Size
from nelf.fields.displacement import DisplacementGrid, DisplacementNetwork
from nelf.fields.moving import MovingNGP
from nelf.fields.ngp import filled, mlp, padded

__all__ = ["DynamicNGP"]


class DynamicNGP(MovingNGP):
    """A radiance field that moves: a point's displacement leads into a hash grid of the scene at rest.

    The density network sees the encoded controls, too, so that what a displacement cannot say, such as a shadow, has a
    place. One occupancy grid holds what is occupied at any moment.

    Args:
        controls: K, how many values in [0, 1] move the scene; the first is the time.
        motion: ``grid`` for displacements on a coarse grid of space and time, which learns in minutes on a processor;
            ``network`` for one of encoded positions, which a GPU can afford.
        motion_cells: nodes of the grid along each side of space.
        motion_times: nodes along each control.
        motion_lr: learning rate of the displacement, as a multiple of the field's.
        control_frequencies: of the controls in the density network; 0 leaves them out.
        levels: this and what follows are NGP's.
        features: see NGP.
        log2_table: see NGP.
        base_resolution: see NGP.
        finest_resolution: see NGP.
        hidden: see NGP.
        color_layers: see NGP.
        scale: see NGP.
        grid_resolution: see NGP.
        grid_slices: see NGP.
        max_samples: see NGP.
        early_stop: see NGP.
        low_precision: see NGP.

    Source:
        The displacement into a field at rest is D-NeRF's (Pumarola et al. 2021, arXiv 2011.13961), without its pose at
        rest at time 0; the hash grid Instant-NGP's (arXiv 2201.05989). That the displacement should not be in a hash
        grid was found by torch-ngp.
    """

    def __init__(
        self,
        controls: int = 1,
        motion: Literal["grid", "network"] = "grid",
        motion_cells: Size = 16,
        motion_times: Size = 16,
        motion_lr: NonNegative = 0.1,
        control_frequencies: Frequencies = 4,
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
    ) -> None:
        if motion not in ("grid", "network"):
            raise ValueError(f"Expected argument `motion` to be 'grid' or 'network', but got {motion!r}.")
        if controls < 1:
            raise ValueError(f"Expected argument `controls` to be 1 or more, but got {controls}.")
        super().__init__(
            motion_lr, levels, features, log2_table, base_resolution, finest_resolution, hidden, color_layers, scale,
            grid_resolution, grid_slices, max_samples, early_stop, low_precision,
        )  # fmt: skip
        self.density_net = mlp(padded(self.encoding.out_features + 2 * control_frequencies * controls), hidden, 1, 16)
        self.controls = controls
        self.control_frequencies = control_frequencies
        self.displacement: DisplacementGrid | DisplacementNetwork
        if motion == "grid":
            self.displacement = DisplacementGrid(motion_cells, motion_times, controls)
        else:
            self.displacement = DisplacementNetwork(controls)

    def displaced(self, positions: Tensor, moment: Tensor) -> Tensor:
        """See ``MovingNGP.displaced``."""
        return self.displacement(positions, moment)  # type: ignore[no-any-return]

    def density_at_rest(self, at_rest: Tensor, positions: Tensor, moment: Tensor) -> tuple[Tensor, Tensor]:
        """See ``MovingNGP.density_at_rest``."""
        waves = frequency_encoding(moment, self.control_frequencies, pi=True)[:, self.controls :]
        return self._from_inputs(filled(torch.cat([self.encoding(at_rest), waves], 1)))

    def moving_parts(self) -> list[nn.Module]:
        """See ``MovingNGP.moving_parts``."""
        return [self.displacement]
