"""The base class of dynamic fields on a hash grid, and the canonical field that initializes a student."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nelf.fields.displacement import DisplacementGrid
from nelf.fields.ngp import NGP
from nelf.rendering import evaluating

if TYPE_CHECKING:
    from collections.abc import Callable

    from nelf.fields.volume import Pass

__all__ = ["AtRest", "MovingNGP"]

CHUNK = 2**18
LOOKS = 12  # samples of an occupied cell, each at another moment, as moving matter is in it only briefly


class MovingNGP(NGP):
    """A canonical hash grid, and the displacement of each point into it at any moment.

    One occupancy grid holds what is occupied at any moment.

    Args:
        motion_lr: learning rate of ``moving_parts``, as a multiple of the field's.
        *sizes: NGP's arguments, in their order.
        appearance: see NGP.
    """

    controls = 1

    def __init__(self, motion_lr: float, *sizes: Any, appearance: int = 0) -> None:
        super().__init__(*sizes, appearance=appearance)  # type: ignore[misc]
        self.motion_lr = motion_lr
        self.sampler.grid.looks = LOOKS  # type: ignore[union-attr]

    def moment(self, controls: Tensor) -> Tensor:
        """Encode controls (S, K) for ``displaced`` and ``density_at_rest``: (S, M)."""
        return controls

    @abstractmethod
    def displaced(self, positions: Tensor, moment: Tensor) -> Tensor:
        """The displacement (S, 3) from positions (S, 3) in [0, 1] to canonical ones, at a ``moment`` (S, M)."""

    @abstractmethod
    def density_at_rest(self, at_rest: Tensor, positions: Tensor, moment: Tensor) -> tuple[Tensor, Tensor]:
        """``density`` at canonical positions ``at_rest`` (S, 3) in [0, 1], displaced from ``positions`` (S, 3)."""

    @abstractmethod
    def moving_parts(self) -> list[nn.Module]:
        """The submodules whose learning rate ``motion_lr`` scales."""

    def density(self, positions: Tensor, controls: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See ``RadianceField.density``; without controls, all of them are 0."""
        if controls is None:
            controls = positions.new_zeros(len(positions), self.controls)
        inside = (positions / (2 * self.scale) + 0.5).clamp(0.0, 1.0)
        moment = self.moment(controls)
        at_rest = inside + self.displaced(inside, moment)
        return self.density_at_rest(at_rest.clamp(0.0, 1.0), inside, moment)

    @property
    def regularizers(self) -> dict[str, Callable[[Pass], Tensor]]:
        """See ``RadianceField.regularizers``; ``roughness`` is that of the displacement grid, 0 without one."""
        return {**super().regularizers, "roughness": lambda _: self._roughness()}

    def _roughness(self) -> Tensor:
        grid = self._grid
        return self.center.new_zeros(()) if grid is None else grid.roughness()

    @property
    def _grid(self) -> DisplacementGrid | None:
        """The displacement grid, if there is one."""
        return next((part for part in self.moving_parts() if isinstance(part, DisplacementGrid)), None)

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """See ``RadianceField.parameter_groups``; ``moving_parts`` have their own learning rate."""
        # In a fixed order, by which an optimizer's state is restored.
        own = [parameter for part in self.moving_parts() for parameter in part.parameters()]
        rest = [parameter for parameter in self.parameters() if parameter not in set(own)]
        return [
            {"params": rest, "lr": lr, "weight_decay": weight_decay},
            {"params": own, "lr": lr * self.motion_lr, "weight_decay": weight_decay},
        ]

    # ---------------------------------------------------------------------------------------- initializing a student

    @torch.no_grad()
    def motion(self, cells: int = 16, times: int = 16) -> tuple[Tensor, Tensor]:
        """Give the displacement at the nodes of a grid.

        Args:
            cells: nodes along each side of space, to sample a network; a grid has its own.
            times: nodes along each control, to sample a network; a grid has its own. A network's displacement is
                approximated by a sum over controls, exact where at most one of them is not at 0.5.

        Returns:
            ``values`` (K, T, D, H, W, 3) in scene units, and the box (6,) of the grid, with node ``i`` of ``n`` at
            ``i / (n - 1)`` of each side.
        """
        size = 2 * self.scale * self.unit
        box = torch.cat([self.center - size / 2, self.center + size / 2])
        if self._grid is not None:
            return self._grid.values.detach() * size, box
        side, moments = torch.linspace(0, 1, cells), torch.linspace(0, 1, times)
        z, y, x = torch.meshgrid(side, side, side, indexing="ij")
        positions = torch.stack([x, y, z], -1).view(-1, 3).to(box)

        def displacement(controls: Tensor) -> Tensor:
            return self.displaced(positions, self.moment(controls.to(box).expand(len(positions), -1)))

        middle = torch.full((self.controls,), 0.5)
        # Subtracted from each of the K grids, so that their sum is exact where at most one control is not at 0.5.
        shared = (1.0 - 1.0 / self.controls) * displacement(middle)
        grids = []
        for control in range(self.controls):
            for t in moments:
                controls = middle.clone()
                controls[control] = t
                grids.append(displacement(controls) - shared)
        return torch.stack(grids).view(self.controls, times, cells, cells, cells, 3) * size, box

    def canonical(self) -> AtRest:
        """The canonical field, to initialize a student from."""
        return AtRest(self)


class AtRest:
    """The canonical field of a dynamic one: without displacement, all controls at 0.5.

    Args:
        field: the dynamic field.
    """

    def __init__(self, field: MovingNGP) -> None:
        self._field = field

    @torch.no_grad()
    def sigma(self, positions: Tensor) -> Tensor:
        """See ``RadianceField.sigma``; there is no occupancy grid of the canonical field."""
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
        middle = field.moment(at.new_full((len(at), field.controls), 0.5))
        sigma, features = field.density_at_rest(at.clamp(0.0, 1.0), at, middle)
        outside = ((at < 0) | (at > 1)).any(-1)
        return sigma.masked_fill(outside, 0.0), features
