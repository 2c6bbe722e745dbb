"""What a teacher that moves knows of a scene, for the volumes of a student: where matter is, and when."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nelf.errors import UserError
from nelf.lightfields.grid_r2l import MIN_ALPHA_RENDERING
from nelf.lightfields.warm_start import CHUNK, LARGEST, LIT, light_on

if TYPE_CHECKING:
    from nelf.cameras import Camera
    from nelf.lightfields.warm_start import Density

__all__ = ["AtMoments", "at_rest", "lit_corners", "moments_of"]

AT_REST = 0.5  # all controls of a teacher that has no pose at rest of its own
SAMPLES = 2  # around a corner


class AtMoments:
    """A teacher whose density is asked for at random moments of a window of the time, and at any other controls.

    Args:
        teacher: a field ``sigma(positions, controls)``; one without controls is asked without them.
        controls: K.
        window: which.
        windows: how many there are.

    Raises:
        UserError: the teacher has another number of controls.
    """

    def __init__(self, teacher: Any, controls: int, window: int, windows: int) -> None:
        self.teacher, self.controls, self.window, self.windows = teacher, controls, window, windows
        own = getattr(teacher, "controls", 0)
        if own not in (0, controls):
            raise UserError(f"The student takes {controls} controls, but its teacher {own}; set model.controls={own}.")

    def sigma(self, positions: Tensor) -> Tensor:
        """See ``Density``."""
        controls = torch.rand(len(positions), self.controls, device=positions.device)
        controls[:, 0] = (self.window + controls[:, 0]) / self.windows
        return sigma_at(self.teacher, positions, controls)


class _Still:
    """A teacher at one moment; with colors, if it has any."""

    def __init__(self, teacher: Any, controls: Tensor) -> None:
        self.teacher, self.controls = teacher, controls
        if hasattr(teacher, "rgb"):
            self.rgb = self._rgb

    def sigma(self, positions: Tensor) -> Tensor:
        """See ``Density``."""
        return sigma_at(self.teacher, positions, self.controls.to(positions).expand(len(positions), -1))

    def _rgb(self, positions: Tensor, viewdirs: Tensor) -> Tensor:
        controls = self.controls.to(positions).expand(len(positions), -1)
        return self.teacher.rgb(positions, viewdirs, controls)  # type: ignore[no-any-return]


def sigma_at(teacher: Any, positions: Tensor, controls: Tensor) -> Tensor:
    """The density (N,) of a teacher at positions (N, 3) under controls (N, K), if it takes any."""
    if getattr(teacher, "controls", 0):
        return teacher.sigma(positions, controls)  # type: ignore[no-any-return]
    return teacher.sigma(positions)  # type: ignore[no-any-return]


def at_rest(teacher: Any, controls: int) -> Density | None:
    """A teacher at rest: its own pose at rest, else its moment in the middle; None without one."""
    if teacher is None:
        return None
    if hasattr(teacher, "canonical"):
        return teacher.canonical()  # type: ignore[no-any-return]
    return _Still(teacher, torch.full((controls,), AT_REST)) if getattr(teacher, "controls", 0) else teacher


def moments_of(window: int, windows: int, controls: int, count: int) -> list[Tensor]:
    """Moments (K,) evenly over a window of the time, nearly to its ends; other controls are drawn at random."""
    moments = torch.rand(count, controls)
    moments[:, 0] = (window + torch.linspace(0.001, 0.999, count)) / windows
    return list(moments)


@torch.no_grad()
def lit_corners(
    teacher: Any,
    index: Tensor,
    positions: Tensor,
    aabb: Tensor,
    cameras: Camera,
    moments: Sequence[Tensor],
    step: float,
) -> Tensor:
    """Find the corners of a grid that light reaches at any of some moments, if they have a teacher's density.

    Args:
        teacher: see ``AtMoments``.
        index: (D, H, W) int32, the row of each corner, -1 where it has none.
        positions: (M, 3) of the corners, in the order of their rows.
        aabb: (6,) the box that the grid fills.
        cameras: from where light comes.
        moments: (K,) each.
        step: side of a voxel.

    Returns:
        (M,) bool.
    """
    lit = torch.zeros(len(positions), dtype=torch.bool, device=positions.device)
    for moment in moments:
        alpha = torch.zeros_like(positions[:, 0])
        for _ in range(SAMPLES):
            places = positions + step * (torch.rand_like(positions) - 0.5)
            sigma = [sigma_at(teacher, part, moment.to(part).expand(len(part), -1)) for part in places.split(CHUNK)]
            alpha -= torch.expm1(-step * torch.cat(sigma)) / SAMPLES
        density = torch.logit(alpha).clamp(-LARGEST, LARGEST)
        lit |= light_on(density, index, aabb, cameras, step, MIN_ALPHA_RENDERING) > LIT
    return lit
