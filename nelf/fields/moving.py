"""What the moving fields on a hash grid share: a displacement, one occupancy grid, and what a student starts from."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from nelf.fields.displacement import DisplacementGrid
from nelf.fields.ngp import NGP
from nelf.rendering import evaluating

__all__ = ["AtRest", "MovingNGP", "padded"]

CHUNK = 2**18
MULTIPLE = 16  # matrix kernels in bfloat16 are slow where a row has another number of values
LOOKS = 12  # at an occupied cell, each at another moment: what passes through it is there for a short time


class MovingNGP(NGP):
    """A hash grid of a scene at rest, and where each point of it is at any moment.

    One occupancy grid holds what is occupied at any moment.

    Args:
        motion_lr: learning rate of what moves the scene, as a multiple of the field's.
        *sizes: NGP's arguments, in their order.
    """

    controls = 1

    def __init__(self, motion_lr: float, *sizes: Any) -> None:
        super().__init__(*sizes)
        self.motion_lr = motion_lr
        self.sampler.grid.looks = LOOKS  # type: ignore[union-attr]

    @abstractmethod
    def displaced(self, positions: Tensor, controls: Tensor) -> Tensor:
        """How far positions (S, 3) in [0, 1] are from where they lie at rest, (S, 3), under controls (S, K)."""

    @abstractmethod
    def density_at_rest(self, at_rest: Tensor, positions: Tensor, controls: Tensor) -> tuple[Tensor, Tensor]:
        """``density`` of what lies at rest at (S, 3) in [0, 1], and now at ``positions``."""

    @abstractmethod
    def moving_parts(self) -> list[nn.Module]:
        """What has the rate ``motion_lr``."""

    def density(self, positions: Tensor, controls: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See ``RadianceField.density``; without controls, all of them are 0."""
        if controls is None:
            controls = positions.new_zeros(len(positions), self.controls)
        inside = (positions / (2 * self.scale) + 0.5).clamp(0.0, 1.0)
        at_rest = inside + self.displaced(inside, controls)
        return self.density_at_rest(at_rest.clamp(0.0, 1.0), inside, controls)

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """See ``RadianceField.parameter_groups``; what moves the scene has its own rate."""
        own = [
            each for part in self.moving_parts() for each in part.parameters()
        ]  # in order: an optimizer resumes by it
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
        for grid in self.moving_parts():
            if isinstance(grid, DisplacementGrid):
                return grid.values.detach() * size, box
        side, moments = torch.linspace(0, 1, cells), torch.linspace(0, 1, times)
        z, y, x = torch.meshgrid(side, side, side, indexing="ij")
        positions = torch.stack([x, y, z], -1).view(-1, 3).to(box)
        grids = [self.displaced(positions, t.expand(len(positions), self.controls).to(box)) for t in moments]
        return torch.stack(grids).view(1, times, cells, cells, cells, 3) * size, box

    def canonical(self) -> AtRest:
        """The field at rest, as something to start a student from."""
        return AtRest(self)


class AtRest:
    """A moving field without its displacement, all its controls in the middle.

    Args:
        field: what moves.
    """

    def __init__(self, field: MovingNGP) -> None:
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
        sigma, features = field.density_at_rest(at.clamp(0.0, 1.0), at, at.new_full((len(at), field.controls), 0.5))
        outside = ((at < 0) | (at > 1)).any(-1)
        return sigma.masked_fill(outside, 0.0), features


def padded(width: int) -> int:
    """So many inputs that rows of them are quick to multiply."""
    return math.ceil(width / MULTIPLE) * MULTIPLE
