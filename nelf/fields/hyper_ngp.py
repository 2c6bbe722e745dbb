"""Instant-NGP of a capture whose topology changes: a warp and a slice through an ambient space before the hash grid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from nelf.encodings import coarse_to_fine
from nelf.errors import (
    Count,
    CountOrZero,
    Depth,
    DepthOrZero,
    Frequencies,
    Log2Size,
    NonNegative,
    Positive,
    Size,
    SizeOrZero,
)
from nelf.fields.codes import TimeCodes
from nelf.fields.displacement import DisplacementGrid
from nelf.fields.moving import MovingNGP
from nelf.fields.ngp import filled, mlp, padded
from nelf.fields.warp import SE3Warp, SlicingSurface, TranslationWarp, robust

if TYPE_CHECKING:
    from collections.abc import Callable

    from nelf.fields.volume import Pass
    from nelf.scene import Geometry

__all__ = ["HyperNGP"]

WARPS = ("se3", "translation", "grid", "none")
AMBIENT_OPENS = 1 / 80, 11 / 80  # share of the window at which the ambient space begins to count, and counts fully
BACKGROUND_SCALE, BACKGROUND_NOISE = 1e-3, 1e-3  # field unit


class HyperNGP(MovingNGP):
    """A radiance field of a capture that moves and whose topology changes, after HyperNeRF, at the speed of NGP.

    Each moment of the training views has a code. From position and code, a warp finds where a point lies in the hash
    grid at rest, and a slicing surface where it lies in an ambient space of few dimensions, which the density network
    sees beside the features of the hash grid: a mouth that opens is another slice, not another place. Both are asked at
    the position before the warp. One occupancy grid holds what is occupied at any moment.

    The frequencies of the warp are let in one after the other, and the ambient space after the first few steps; how far
    that is travels with the weights.

    Args:
        codes: numbers of the code of a moment.
        appearance: see NGP.
        warp: ``se3`` for a rotation and translation of each point, ``translation``, ``none``, all of networks; ``grid``
            for displacements on a grid of space and time, the quickest on a processor.
        warp_width: of the layers of the warp's network.
        warp_depth: its layers.
        ambient: dimensions of the ambient space; 0 has none.
        ambient_width: of the layers of the slicing surface's network.
        ambient_depth: its layers.
        frequencies: of positions in both networks.
        motion_cells: nodes of the ``grid`` along each side of space.
        motion_times: its nodes along time.
        motion_lr: learning rate of warp and slicing surface, as a multiple of the field's; the fewer rays a step has,
            the smaller, since chance pushes what moves about. The codes have the field's: training takes far fewer
            steps than HyperNeRF's, and it is they that tell moments apart.
        window_steps: training steps until all frequencies of the warp are let in.
        background_points: of the scene's points that do not move, how many the term ``background`` asks at a step.
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

    Raises:
        ValueError: ``warp`` is not one of the words above.

    Source:
        HyperNeRF (Park et al. 2021, arXiv 2106.13228), with sizes of warp and slicing surface as in its ``models.py``;
        Instant-NGP (arXiv 2201.05989) in place of its template network.
    """

    opened: Tensor
    points: Tensor

    def __init__(
        self,
        codes: SizeOrZero = 8,
        appearance: SizeOrZero = 0,
        warp: Literal["se3", "translation", "grid", "none"] = "se3",
        warp_width: Size = 128,
        warp_depth: Depth = 6,
        ambient: SizeOrZero = 2,
        ambient_width: Size = 64,
        ambient_depth: Depth = 6,
        frequencies: Frequencies = 6,
        motion_cells: Size = 16,
        motion_times: Size = 16,
        motion_lr: NonNegative = 0.1,
        window_steps: CountOrZero = 5000,
        background_points: CountOrZero = 16384,
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
        if warp not in WARPS:
            raise ValueError(f"Expected argument `warp` to be one of {WARPS}, but got {warp!r}.")
        super().__init__(
            motion_lr, levels, features, log2_table, base_resolution, finest_resolution, hidden, color_layers, scale,
            grid_resolution, grid_slices, max_samples, early_stop, low_precision, appearance=appearance,
        )  # fmt: skip
        self.density_net = mlp(padded(self.encoding.out_features + 2 * ambient), hidden, 1, 16)
        self.codes = TimeCodes(codes)
        self.warp: TranslationWarp | DisplacementGrid | None = None
        if warp == "grid":
            self.warp = DisplacementGrid(motion_cells, motion_times)
        elif warp != "none":
            kind = SE3Warp if warp == "se3" else TranslationWarp
            self.warp = kind(codes, warp_width, warp_depth, frequencies, low_precision)
        self.slices = None
        if ambient:
            self.slices = SlicingSurface(codes, ambient, ambient_width, ambient_depth, frequencies, low_precision)
        self.window_steps = window_steps
        self.background_points = background_points
        self.register_buffer("opened", torch.zeros(()))
        self.register_buffer("points", torch.empty(0, 3), persistent=False)

    def prepare(self, geometry: Geometry) -> None:
        """See ``NGP.prepare``; each moment of the training views gets a code, too."""
        super().prepare(geometry)
        times = geometry.cameras.time
        self.codes.prepare(torch.zeros(1) if times is None else times)
        if geometry.points is not None:
            self.points = (geometry.points.to(self.center) - self.center) / self.unit

    def before_step(self, step: int) -> None:
        """See ``RadianceField.before_step``; the windows open."""
        self.opened.fill_(min(step / self.window_steps, 1.0) if self.window_steps else 1.0)
        super().before_step(step)

    def moment(self, controls: Tensor) -> Tensor:
        """See ``MovingNGP.moment``: the time and its code."""
        time = controls[:, :1]
        return torch.cat([time, self.codes(time[:, 0])], 1)

    def displaced(self, positions: Tensor, moment: Tensor) -> Tensor:
        """See ``MovingNGP.displaced``."""
        if self.warp is None:
            return torch.zeros_like(positions)
        if isinstance(self.warp, DisplacementGrid):
            return self.warp(positions, moment[:, :1])  # type: ignore[no-any-return]
        size = 2 * self.scale
        return self.warp((positions - 0.5) * size, moment[:, 1:], self.opened) / size  # type: ignore[no-any-return]

    def density_at_rest(self, at_rest: Tensor, positions: Tensor, moment: Tensor) -> tuple[Tensor, Tensor]:
        """See ``MovingNGP.density_at_rest``; the slice through the ambient space is that of the position now."""
        inputs = [self.encoding(at_rest)]
        if self.slices is not None:
            begin, end = AMBIENT_OPENS
            window = coarse_to_fine(((self.opened - begin) / (end - begin)).clamp(0.0, 1.0), 1)
            ambient = self.slices((positions - 0.5) * (2 * self.scale), moment[:, 1:])
            # Not cos w: the density network has no biases, and with one it soon empties all of space.
            inputs += [window * ambient.sin(), window * (ambient.cos() - 1.0)]
        return self._from_inputs(filled(torch.cat(inputs, 1)))

    def moving_parts(self) -> list[nn.Module]:
        """See ``MovingNGP.moving_parts``."""
        return [part for part in (self.warp, self.slices) if part is not None]

    @property
    def regularizers(self) -> dict[str, Callable[[Pass], Tensor]]:
        """See ``MovingNGP.regularizers``; ``background`` holds the scene's points that do not move where they are."""
        return {**super().regularizers, "background": lambda _: self._background_loss()}

    def _background_loss(self) -> Tensor:
        """The robust loss of how far points that do not move are moved, at random times: (P,), or () without points."""
        if self.warp is None or not len(self.points):
            return self.center.new_zeros(())
        count = min(self.background_points, len(self.points))
        positions = self.points[torch.randint(len(self.points), (count,), device=self.points.device)]
        positions = positions + BACKGROUND_NOISE * torch.randn_like(positions)
        times = torch.rand_like(positions[:, 0])
        size = 2 * self.scale
        moved = self.displaced((positions / size + 0.5).clamp(0.0, 1.0), self.moment(times[:, None])) * size
        return robust(moved.square().sum(-1), BACKGROUND_SCALE)
