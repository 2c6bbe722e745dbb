"""Instant-NGP for captures whose topology changes: a warp and ambient coordinates before the hash grid."""

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
AMBIENT_OPENS = 1 / 80, 11 / 80  # fractions of ``window_steps`` between which the ambient inputs are faded in
BACKGROUND_SCALE, BACKGROUND_NOISE = 1e-3, 1e-3  # field unit


class HyperNGP(MovingNGP):
    """A radiance field of a dynamic capture whose topology changes, after HyperNeRF, at the speed of NGP.

    Each time of the training views has a latent code. From position and code, a warp gives the position in a canonical
    hash grid, and a slicing surface the coordinates in an ambient space of few dimensions, which are inputs of the
    density network beside the features of the hash grid: a mouth opens by another slice, not by a warp. Both take the
    position before the warp. One occupancy grid holds what is occupied at any moment.

    The frequencies of the warp are enabled one after the other, and the ambient coordinates after the first few steps;
    the progress is saved with the weights.

    Args:
        codes: size of the code of a moment.
        appearance: see NGP.
        warp: ``se3``, a rotation and translation of each point, or ``translation``, both by a network; ``grid``,
            displacements on a grid of space and time, the fastest on a CPU; or ``none``.
        warp_width: of the layers of the warp's network.
        warp_depth: number of its layers.
        ambient: dimensions of the ambient space; 0 for none.
        ambient_width: of the layers of the slicing surface's network.
        ambient_depth: number of its layers.
        frequencies: of positions in both networks.
        motion_cells: nodes of the ``grid`` along each side of space.
        motion_times: nodes of the ``grid`` along time.
        motion_lr: learning rate of warp and slicing surface, as a multiple of the field's; smaller for fewer rays per
            step, whose gradients are noisier. The codes have the field's rate, since training takes far fewer steps
            than HyperNeRF's.
        window_steps: training steps until all frequencies of the warp are enabled.
        background_points: number of the scene's static points that the term ``background`` samples at each step.
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

    Raises:
        ValueError: ``warp`` is none of the above.

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
        """See ``RadianceField.before_step``; updates ``opened``, the progress of the coarse-to-fine schedule."""
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
        """See ``MovingNGP.density_at_rest``; the ambient coordinates are those of the position before the warp."""
        inputs = [self.encoding(at_rest)]
        if self.slices is not None:
            begin, end = AMBIENT_OPENS
            window = coarse_to_fine(((self.opened - begin) / (end - begin)).clamp(0.0, 1.0), 1)
            ambient = self.slices((positions - 0.5) * (2 * self.scale), moment[:, 1:])
            # Not cos w: the density network has no biases, and a constant input lets it soon empty all of space.
            inputs += [window * ambient.sin(), window * (ambient.cos() - 1.0)]
        return self._from_inputs(filled(torch.cat(inputs, 1)))

    def moving_parts(self) -> list[nn.Module]:
        """See ``MovingNGP.moving_parts``."""
        return [part for part in (self.warp, self.slices) if part is not None]

    @property
    def regularizers(self) -> dict[str, Callable[[Pass], Tensor]]:
        """See ``MovingNGP.regularizers``; ``background`` penalizes displacements of the scene's static points."""
        return {**super().regularizers, "background": lambda _: self._background_loss()}

    def _background_loss(self) -> Tensor:
        """The mean robust loss () of displacements of static points at random times; 0 without points."""
        if self.warp is None or not len(self.points):
            return self.center.new_zeros(())
        count = min(self.background_points, len(self.points))
        positions = self.points[torch.randint(len(self.points), (count,), device=self.points.device)]
        positions = positions + BACKGROUND_NOISE * torch.randn_like(positions)
        times = torch.rand_like(positions[:, 0])
        size = 2 * self.scale
        moved = self.displaced((positions / size + 0.5).clamp(0.0, 1.0), self.moment(times[:, None])) * size
        return robust(moved.square().sum(-1), BACKGROUND_SCALE).mean()
