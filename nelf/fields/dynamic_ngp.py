"""Instant-NGP of a scene that moves: a displacement into a hash grid at rest."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from nelf.encodings import frequency_encoding
from nelf.fields.displacement import DisplacementGrid, DisplacementNetwork
from nelf.fields.ngp import NGP, mlp
from nelf.rendering import evaluating

if TYPE_CHECKING:
    from collections.abc import Callable

    from nelf.fields.volume import Pass

__all__ = ["LOOKS", "DynamicNGP", "padded"]

CHUNK = 2**18
MULTIPLE = 16  # matrix kernels in bfloat16 are slow where a row has another number of values
LOOKS = 12  # at an occupied cell, each at another moment: what passes through it is there for a short time


class DynamicNGP(NGP):
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
        motion_cells: int = 16,
        motion_times: int = 16,
        motion_lr: float = 0.1,
        control_frequencies: int = 4,
        levels: int = 16,
        features: int = 2,
        log2_table: int = 19,
        base_resolution: int = 16,
        finest_resolution: int = 2048,
        hidden: int = 64,
        color_layers: int = 2,
        scale: float = 0.5,
        grid_resolution: int = 128,
        grid_slices: int | None = None,
        max_samples: int = 1024,
        early_stop: float = 1e-4,
        low_precision: bool | None = None,
    ) -> None:
        if motion not in ("grid", "network"):
            raise ValueError(f"Expected argument `motion` to be 'grid' or 'network', but got {motion!r}.")
        if controls < 1:
            raise ValueError(f"Expected argument `controls` to be 1 or more, but got {controls}.")
        super().__init__(
            levels, features, log2_table, base_resolution, finest_resolution, hidden, color_layers, scale,
            grid_resolution, grid_slices, max_samples, early_stop, low_precision,
        )  # fmt: skip
        self.sampler.grid.looks = LOOKS  # type: ignore[union-attr]
        self.density_net = mlp(padded(self.encoding.out_features + 2 * control_frequencies * controls), hidden, 1, 16)
        self.controls = controls
        self.control_frequencies = control_frequencies
        self.motion_lr = motion_lr
        self.displacement: DisplacementGrid | DisplacementNetwork
        if motion == "grid":
            self.displacement = DisplacementGrid(motion_cells, motion_times, controls)
        else:
            self.displacement = DisplacementNetwork(controls)

    def density(self, positions: Tensor, controls: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See ``RadianceField.density``; without controls, all of them are 0."""
        if controls is None:
            controls = positions.new_zeros(len(positions), self.controls)
        inside = (positions / (2 * self.scale) + 0.5).clamp(0.0, 1.0)
        return self._density_at(inside + self.displacement(inside, controls), controls)

    def _density_at(self, at_rest: Tensor, controls: Tensor) -> tuple[Tensor, Tensor]:
        """The density of positions (S, 3) at rest, in [0, 1]."""
        waves = frequency_encoding(controls, self.control_frequencies, pi=True)[:, self.controls :]
        inputs = torch.cat([self.encoding(at_rest.clamp(0.0, 1.0)), waves], 1)
        return self._from_inputs(pad(inputs, (0, padded(inputs.shape[1]) - inputs.shape[1])))

    @property
    def regularizers(self) -> dict[str, Callable[[Pass], Tensor]]:
        """See ``RadianceField.regularizers``; ``roughness`` is that of the displacement."""
        return {**super().regularizers, "roughness": lambda _: self.displacement.roughness()}

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """See ``RadianceField.parameter_groups``; the displacement has its own rate."""
        own = list(self.displacement.parameters())  # in order: an optimizer resumes by it
        rest = [parameter for parameter in self.parameters() if parameter not in set(own)]
        return [
            {"params": rest, "lr": lr, "weight_decay": weight_decay},
            {"params": own, "lr": lr * self.motion_lr, "weight_decay": weight_decay},
        ]

    # ---------------------------------------------------------------------------------------- what a student asks

    @torch.no_grad()
    def motion(self, cells: int = 16, times: int = 16) -> tuple[Tensor, Tensor]:
        """Give the displacement at the nodes of a grid.

        Args:
            cells: nodes along each side of space, of a network.
            times: nodes along each control, of a network; it has one control then.

        Returns:
            ``values`` (K, T, D, H, W, 3) in scene units, and the box (6,) that they fill, node ``i`` of ``n`` at
            ``i / (n - 1)`` of each side.
        """
        size = 2 * self.scale * self.unit
        box = torch.cat([self.center - size / 2, self.center + size / 2])
        if isinstance(self.displacement, DisplacementGrid):
            return self.displacement.values.detach() * size, box
        side, moments = torch.linspace(0, 1, cells), torch.linspace(0, 1, times)
        z, y, x = torch.meshgrid(side, side, side, indexing="ij")
        positions = torch.stack([x, y, z], -1).view(-1, 3).to(box)
        grids = [self.displacement(positions, t.expand(len(positions), self.controls).to(box)) for t in moments]
        return torch.stack(grids).view(1, times, cells, cells, cells, 3) * size, box

    def canonical(self) -> AtRest:
        """The field at rest, as something to start a student from."""
        return AtRest(self)


class AtRest:
    """A moving field without its displacement, all its controls in the middle.

    Args:
        field: what moves.
    """

    def __init__(self, field: DynamicNGP) -> None:
        self._field = field

    @torch.no_grad()
    def sigma(self, positions: Tensor) -> Tensor:
        """See ``RadianceField.sigma``; nobody notes where the field at rest is empty."""
        parts = [self._ask(part)[0] / self._field.unit for part in positions.split(CHUNK)]
        return torch.cat(parts) if parts else positions[:, 0]

    @torch.no_grad()
    def rgb(self, positions: Tensor, viewdirs: Tensor) -> Tensor:
        """See ``RadianceField.rgb``."""
        with evaluating(self._field):
            return self._field.color(self._ask(positions)[1], viewdirs)

    def _ask(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        field = self._field
        at = (positions - field.center) / field.unit / (2 * field.scale) + 0.5
        sigma, features = field._density_at(at, at.new_full((len(at), field.controls), 0.5))
        outside = ((at < 0) | (at > 1)).any(-1)
        return sigma.masked_fill(outside, 0.0), features


def padded(width: int) -> int:
    """So many inputs that rows of them are quick to multiply."""
    return math.ceil(width / MULTIPLE) * MULTIPLE
