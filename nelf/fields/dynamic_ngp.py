"""Instant-NGP for dynamic scenes: a displacement into a canonical hash grid."""

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
    """A dynamic radiance field: a displacement of each point into a canonical hash grid.

    The density network also takes the encoded controls, to represent changes that a displacement cannot, such as
    shadows. One occupancy grid holds what is occupied at any moment.

    Args:
        controls: K, number of controls in [0, 1]; the first is the time.
        motion: ``grid`` for displacements on a coarse grid of space and controls, which trains in minutes on a CPU;
            ``network`` for an MLP of encoded positions and controls, for a GPU.
        motion_cells: nodes of the grid along each side of space.
        motion_times: nodes along each control.
        motion_lr: learning rate of the displacement, as a multiple of the field's.
        control_frequencies: of the encoded controls in the density network; 0 for none.
        levels: see NGP.
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
        The displacement into a canonical field is D-NeRF's (Pumarola et al. 2021, arXiv 2011.13961), but time 0 is not
        forced to be canonical; the hash grid is Instant-NGP's (arXiv 2201.05989). That the displacement itself should
        not be on a hash grid was found by torch-ngp.
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
