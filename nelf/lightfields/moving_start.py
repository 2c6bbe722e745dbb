"""Initialize a dynamic student's volumes from a teacher: which corners are occupied and visible, and when."""

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

AT_REST = 0.5  # value of all controls for a teacher without a canonical state
SAMPLES = 2  # around a corner


class AtMoments:
    """A teacher's density at random times of a window, and at random values of the other controls.

    Args:
        teacher: a field ``sigma(positions, controls)``, or a static one, ``sigma(positions)``.
        controls: K, number of controls.
        window: index of the window.
        windows: number of windows, equal parts of [0, 1].

    Raises:
        UserError: the teacher has another number of controls, and is not static.
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
    """A teacher at fixed controls; with ``rgb``, if the teacher has it."""

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
    """The density (N,) of a teacher at positions (N, 3) and controls (N, K), which a static one ignores."""
    if getattr(teacher, "controls", 0):
        return teacher.sigma(positions, controls)  # type: ignore[no-any-return]
    return teacher.sigma(positions)  # type: ignore[no-any-return]


def at_rest(teacher: Any, controls: int) -> Density | None:
    """A teacher's canonical state, or its state with all controls at 0.5 if it has none; None without a teacher."""
    if teacher is None:
        return None
    if hasattr(teacher, "canonical"):
        return teacher.canonical()  # type: ignore[no-any-return]
    return _Still(teacher, torch.full((controls,), AT_REST)) if getattr(teacher, "controls", 0) else teacher


def moments_of(window: int, windows: int, controls: int, count: int) -> list[Tensor]:
    """Choose controls in a time window: evenly spaced times, from end to end; other controls at random.

    Args:
        window: index of the window.
        windows: number of windows, equal parts of [0, 1].
        controls: K, number of controls.
        count: number of moments.

    Returns:
        ``count`` tensors (K,).
    """
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
    """Find the corners of a grid that are visible at any of some moments, given a teacher's density.

    Args:
        teacher: see ``AtMoments``.
        index: (D, H, W) int32, the row of each corner, -1 where it has none.
        positions: (M, 3) of the corners, in the order of their rows.
        aabb: (6,) the box that the grid fills.
        cameras: a batch that looks at the box.
        moments: controls (K,) of each.
        step: side of a voxel, scene unit.

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
