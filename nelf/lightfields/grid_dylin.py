"""GridDyLiN: GridR2L for dynamic scenes, with a canonical volume and a grid of displacements."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_max_pool3d, interpolate

from nelf.errors import Depth, NonNegative, Size, UserError
from nelf.kernels import reference
from nelf.kernels.lookup import RayFeatures, most_points, ray_features
from nelf.lightfields.base import LightField
from nelf.lightfields.decoder import decoder_inputs
from nelf.lightfields.frames import EMPTY, Frame, FrameGrid, grid_at, motion_at, see_through, window_at
from nelf.lightfields.grid_r2l import BOX_CELLS, CORNERS, MIN_ALPHA, MIN_ALPHA_RENDERING, UNKNOWN, GridR2L
from nelf.lightfields.moving_start import AtMoments, at_rest, lit_corners, moments_of
from nelf.lightfields.visual_hull import tight_box
from nelf.lightfields.volume import MOST_CORNERS, around, cells_at, corners_of
from nelf.lightfields.warm_start import LIT, bake, cells_holding, dense_cells, light_on

if TYPE_CHECKING:
    from nelf.cameras import Camera
    from nelf.lightfields.warm_start import Density
    from nelf.rays import Rays
    from nelf.scene import Geometry, Silhouettes

__all__ = ["GridDyLiN"]

WINDOWS = 16  # of time, each with its own corners
ROWS, FRAME = 400_000, 300_000  # canonical rows, and rows of a frame, at most, if ``resolution`` is None
DENSITY_UNIT = 100.0  # unit of the density channel of the motion grid, so that one learning rate suits all channels
TRIM_MOMENTS, TRIM_VIEWS = 4, 12  # moments and cameras that tell which corners of a window are visible
READ_MOMENTS = 8  # moments of a window that tell which canonical corners are read


class GridDyLiN(GridR2L):
    """The light field of a dynamic scene that trains in minutes on a CPU.

    A frame, the volume of one moment, is composited and decoded as in ``GridR2L``. Its corners read density and
    features from a canonical volume, at positions displaced by a coarse motion grid, which is linear in space and in
    each control; the grid's fourth channel is added to the density, so that matter can vanish. Time is divided into
    sixteen windows; each has only the corners near surfaces that are visible at some moment of it.

    A teacher gives the motion, the density and color of the canonical volume, and the corners of the frames. From one
    without ``motion`` and ``canonical``, the canonical volume is its state with all controls at 0.5, and the motion
    starts at zero. Without a teacher all corners exist, since silhouettes of different moments cannot carve.

    Args:
        width: see GridR2L.
        depth: see GridR2L.
        resolution: voxel corners along the longest side of a frame. None: a voxel is two thirds of a block of pixels,
            or larger where a frame would have over 300,000 corners, or the canonical volume over 400,000 rows.
        features: see GridR2L.
        sr_factor: see GridR2L.
        activation: see GridR2L.
        feature_lr: see GridR2L.
        density_lr: see GridR2L.
        controls: K, number of controls in [0, 1]; the first is the time.
        motion_cells: nodes of the motion grid along each side of space.
        motion_times: nodes along each control.
        motion_lr: learning rate of the motion grid, as a multiple of the network's.

    Raises:
        ValueError: an argument is outside what is listed above, or the motion grid has fewer than two nodes on a side.

    Source:
        A light field deformed into a canonical one: DyLiN (arXiv 2303.14243); displaced positions: D-NeRF (arXiv
        2011.13961). All else: see GridR2L.
    """

    background: Tensor
    motion: Tensor
    motion_aabb: Tensor
    canonical_aabb: Tensor
    unit: Tensor

    def __init__(
        self,
        width: Size = 32,
        depth: Depth = 6,
        resolution: Size | None = None,
        features: Size = 8,
        sr_factor: int = 2,
        activation: str = "relu",
        feature_lr: NonNegative = 4.0,
        density_lr: NonNegative = 20.0,
        controls: int = 1,
        motion_cells: Size = 16,
        motion_times: Size = 16,
        motion_lr: NonNegative = 0.1,
    ) -> None:
        if controls < 1:
            raise ValueError(f"Expected argument `controls` to be 1 or more, but got {controls}.")
        for name, nodes in (("motion_cells", motion_cells), ("motion_times", motion_times)):
            if nodes < 2:
                raise ValueError(f"Expected argument `{name}` to be 2 or more, but got {nodes}.")
        super().__init__(width, depth, resolution, features, sr_factor, activation, feature_lr, density_lr)
        self.controls = controls
        self.motion_lr = motion_lr
        self.motion = nn.Parameter(torch.zeros(controls, motion_times, motion_cells, motion_cells, motion_cells, 4))
        self.frames = FrameGrid()
        self.register_buffer("motion_aabb", self.aabb.clone())
        self.register_buffer("canonical_aabb", self.aabb.clone())
        self.register_buffer("unit", torch.ones(()))
        self._last: tuple[tuple[float, ...], list[tuple[Tensor, int]], Frame] | None = None

    # ---------------------------------------------------------------------------------------- the scene

    def prepare(
        self, geometry: Geometry, silhouettes: Silhouettes | None = None, teacher: Density | None = None
    ) -> None:
        """Take box, background and motion; find which corners each frame has, and initialize the canonical volume.

        Args:
            geometry: of the scene to learn.
            silhouettes: unused: background at one moment may be matter at another.
            teacher: a field ``sigma(positions, controls)``, optionally with ``motion()`` and ``canonical()`` as in
                ``nelf.fields.DynamicNGP``; or a static field.

        Raises:
            UserError: the scene has fewer controls, or the teacher another number of them.
        """
        if self.prepared:
            return
        if len(geometry.controls) < self.controls:
            raise UserError(
                f"{type(self).__name__}: takes {self.controls} controls, the first of which is the time, but the "
                f"scene's cameras have {len(geometry.controls)}. For static scenes there is model=grid_r2l."
            )
        LightField.prepare(self, geometry)
        self.background.copy_(geometry.background)
        low, high = self.aabb.view(2, 3)
        self.unit.fill_((high - low).max())
        self.motion_aabb.copy_(torch.cat([low + high - self.unit, low + high + self.unit]) / 2)
        if (motion := getattr(teacher, "motion", None)) is not None:
            self._take_motion(*motion())
        windows = None
        if teacher is not None:
            self.aabb.copy_(tight_box(self._matter_in(teacher, 1)[0], self.aabb))
            windows = self._matter_in(teacher, WINDOWS, around(self._matter_in(teacher, 1)[0]))

        def start(resolution: int) -> float:
            self._start_frames(resolution, geometry.cameras, teacher, windows)
            self._start_at_rest(geometry.cameras, teacher)
            rows, largest = len(self.volume.density), self.frames.largest
            return max(rows / ROWS, largest / FRAME) if self.resolution is None else max(rows, largest) / MOST_CORNERS

        corners = UNKNOWN if teacher is None else CORNERS[1]
        if teacher is not None and self.resolution is None:  # a fine start that fills its box takes minutes
            corners = min(corners, int(BOX_CELLS / self._reached(start)[1] ** 0.5))
        self._try_resolutions(geometry.cameras, corners, start)

    def _matter_in(self, teacher: Density, windows: int, among: Tensor | None = None) -> Tensor:
        """The cells (windows, z, y, x) of the box that the teacher occupies at some moment of each window."""
        asked = [AtMoments(teacher, self.controls, window, windows) for window in range(windows)]
        return torch.stack([dense_cells(each, self.aabb, (BOX_CELLS,) * 3, among) for each in asked])

    @torch.no_grad()
    def _take_motion(self, values: Tensor, aabb: Tensor) -> None:
        """Resample a teacher's displacements (K, T, Z, Y, X, 3), scene unit, over a box (6,) to the motion grid."""
        if len(values) != self.controls:
            raise UserError(
                f"{type(self).__name__}: takes {self.controls} controls, but its teacher moves with {len(values)}; "
                f"allowed: model.controls={len(values)}."
            )
        controls, times, *_, channels = values.shape
        own_times, own_sides = self.motion.shape[1], self.motion.shape[2:5]
        space = values.movedim(-1, 2).flatten(0, 1)  # (K * T, 3, Z, Y, X)
        space = interpolate(space, tuple(own_sides), mode="trilinear", align_corners=True)
        along = space.reshape(controls, times, -1).mT  # (K, 3 * Z * Y * X, T)
        along = interpolate(along, own_times, mode="linear", align_corners=True).mT
        motion = along.reshape(controls, own_times, channels, *own_sides).movedim(2, -1)
        self.motion[..., :3] = motion / self.unit
        self.motion_aabb.copy_(aabb)

    def _start_frames(self, resolution: int, cameras: Camera, teacher: Density | None, windows: Tensor | None) -> None:
        """Find the corners of each window that are visible at some moment, from the teacher's density."""
        shape = self._divide(resolution)
        if teacher is None or windows is None or not windows.any():
            self.frames.resize(torch.ones(1, *(side + 1 for side in shape), dtype=torch.bool))
            return
        cells = adaptive_max_pool3d(windows.float(), shape) > 0
        self.frames.resize(torch.stack([corners_of(around(each)) for each in cells]))
        kept = []
        for window, exists in enumerate(self.frames.exists):
            index, places = self.frames.window(window)
            moments = moments_of(window, len(self.frames), self.controls, TRIM_MOMENTS)
            lit = lit_corners(teacher, index, self._place(places), self.aabb, self._some(cameras), moments, self.voxel)
            kept.append(exists & corners_of(around(cells_at(index, lit))))
        self.frames.resize(torch.stack(kept))

    def _start_at_rest(self, cameras: Camera, teacher: Density | None) -> None:
        """Find the canonical box and corners that frames read, and initialize them from the teacher."""
        ends = torch.stack([torch.cat([q.amin(0), q.amax(0)]) for q in self._read()])
        low, high = ends[:, :3].amin(0) - self.voxel, ends[:, 3:].amax(0) + self.voxel
        cells = ((high - low) / self.voxel - 1e-3).ceil().long()
        self.canonical_aabb.copy_(torch.cat([low, low + self.voxel * cells]))
        shape = tuple(cells.flip(0).tolist())
        self.volume.resize(corners_of(around(self._cells_read(shape))))
        rest = at_rest(teacher, self.controls)
        if rest is not None:
            bake(self.volume, rest, self.canonical_aabb, cameras)

    def _cells_read(self, shape: tuple[int, ...]) -> Tensor:
        """The cells (z, y, x) of the canonical volume that the corners of frames read."""
        cells = torch.zeros(shape, dtype=torch.bool)
        for positions in self._read():
            cells |= cells_holding(positions, self.canonical_aabb, shape)
        return cells

    @torch.no_grad()
    def _read(self) -> Iterator[Tensor]:
        """The displaced positions (M, 3) of the corners of frames, at several moments of each window."""
        for window in range(len(self.frames)):
            _, places = self.frames.window(window)
            positions = self._place(places)
            for controls in moments_of(window, len(self.frames), self.controls, READ_MOMENTS):
                yield positions + self._motion(controls, positions)[:, :3]

    @torch.no_grad()
    def trim(self, cameras: Camera) -> None:
        """Drop corners that are invisible at every moment, see ``GridR2L.trim``; canonical ones that no frame reads."""
        kept = []
        for window, exists in enumerate(self.frames.exists):
            cells = torch.zeros([side - 1 for side in exists.shape], dtype=torch.bool)
            for controls in moments_of(window, len(self.frames), self.controls, TRIM_MOMENTS):
                density, _, index = self._make_frame(controls)
                light = light_on(density, index, self.aabb, self._some(cameras), self.voxel, MIN_ALPHA_RENDERING)
                visible = torch.sigmoid(density) > MIN_ALPHA_RENDERING
                cells |= cells_at(index, visible) & cells_at(index, light > LIT)
            kept.append(exists & corners_of(cells))
        self.frames.resize(torch.stack(kept))
        self.volume.keep(self._cells_read(tuple(side - 1 for side in self.volume.shape.tolist())))
        # Zero the nodes of the motion grid that no corner reads: zeros compress well in the exported file.
        shape = tuple(side - 1 for side in self.motion.shape[2:5])
        places = torch.cat([self._place(self.frames.window(window)[1]) for window in range(len(self.frames))])
        self.motion[:, :, ~corners_of(cells_holding(places, self.motion_aabb, shape))] = 0.0

    @staticmethod
    def _some(cameras: Camera) -> Camera:
        """A few cameras, at random."""
        return cameras[torch.randperm(len(cameras))[:TRIM_VIEWS]]

    @property
    def voxel(self) -> float:
        """See ``GridR2L.voxel``; the canonical volume has the same."""
        return self.box_side(self.frames.window(0)[0].shape[2] - 1)

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """See ``GridR2L.parameter_groups``; the motion grid has its own learning rate."""
        network, *volume = super().parameter_groups(lr, weight_decay)
        network["params"] = [parameter for parameter in network["params"] if parameter is not self.motion]
        return [network, *volume, {"params": [self.motion], "lr": lr * self.motion_lr, "weight_decay": 0.0}]

    # ---------------------------------------------------------------------------------------- a moment

    @property
    def displacements(self) -> Tensor:
        """(K, T, Z, Y, X, 4): displacement xyz, scene unit, and added density at the nodes of the motion grid."""
        return self.motion * self._units

    @torch.no_grad()
    def set_displacements(self, values: Tensor) -> None:
        """Set ``displacements``, (K, T, Z, Y, X, 4)."""
        self.motion.copy_(values.to(self.motion) / self._units)

    @property
    def _units(self) -> Tensor:
        """(4,) units of the channels of the motion grid."""
        return torch.cat([self.unit.expand(3), self.unit.new_tensor([DENSITY_UNIT])])

    def _place(self, places: Tensor) -> Tensor:
        """Map positions (M, 3) from the unit cube to the box of the frames."""
        return self.aabb[:3] + places * (self.aabb[3:] - self.aabb[:3])

    def _motion(self, controls: Tensor, positions: Tensor) -> Tensor:
        """Displacement, scene unit, and added density (M, 4) at positions (M, 3)."""
        return motion_at(grid_at(self.motion, controls) * self._units, self.motion_aabb, positions)

    def frame(self, controls: Tensor) -> Frame:
        """The volume of a moment, over ``aabb``; without gradients, that of the last moment is cached.

        Args:
            controls: (K,) in [0, 1].

        Returns:
            Density and features of its corners, and their index.
        """
        if torch.is_grad_enabled():
            self._last = None  # an optimizer step follows, which need not raise the tensors' versions
            return self._make_frame(controls)
        moment = tuple(controls.tolist())
        parts = (self.motion, self.volume.density, self.volume.features, self.frames.masks, self.aabb)
        state = [(part, 0 if part.is_inference() else part._version) for part in parts]
        if self._last is not None and self._last[0] == moment:
            known = zip(self._last[1], state, strict=True)
            if all(old is new and before == now for (old, before), (new, now) in known):
                return self._last[2]
        with torch.inference_mode(False), torch.no_grad():  # cached beyond a validation's inference mode
            self._last = moment, state, self._make_frame(controls.clone())
        return self._last[2]

    def _make_frame(self, controls: Tensor) -> Frame:
        index, places = self.frames.window(window_at(float(controls[0]), len(self.frames)))
        positions, volume = self._place(places), self.volume
        motion = self._motion(controls, positions)
        rows = volume.density, volume.features
        return Frame(*see_through(motion, positions, *rows, volume.index, self.canonical_aabb, EMPTY), index)

    def composite(self, rays: Rays) -> RayFeatures:
        """Composite along rays of any shape, flattened, each in the volume of its moment; see ``nelf.kernels.lookup``.

        Raises:
            UserError: the rays lack controls.
        """
        given = 0 if rays.controls is None else rays.controls.shape[-1]
        if rays.controls is None or given < self.controls:
            raise UserError(
                f"{type(self).__name__}: takes {self.controls} controls, the first of which is the time, but its rays "
                f"have {given}; camera.at(...) gives them."
            )
        rays_o, rays_d = (values.reshape(-1, 3).float() for values in (rays.origins, rays.directions))
        moments, which = _distinct(rays.controls.reshape(-1, given)[:, : self.controls].float())
        if len(moments) == 1:
            return self._look_up(moments[0], rays_o, rays_d)
        order = which.argsort(stable=True)
        parts = zip(moments, order.split(which.bincount(minlength=len(moments)).tolist()), strict=True)
        found = [self._look_up(moment, rays_o[part], rays_d[part]) for moment, part in parts]
        back = order.argsort()
        return RayFeatures(*(torch.cat(each)[back] for each in zip(*found, strict=True)))

    def _look_up(self, controls: Tensor, rays_o: Tensor, rays_d: Tensor) -> RayFeatures:
        """Composite along rays (N, 3) at one moment, controls (K,)."""
        jitter = torch.rand_like(rays_o[:, 0]) if self.training else torch.full_like(rays_o[:, 0], 0.5)
        least = MIN_ALPHA if self.training else MIN_ALPHA_RENDERING
        return ray_features(*self.frame(controls), rays_o, rays_d, self.aabb, jitter, self.voxel, least)

    # ---------------------------------------------------------------------------------------- export

    def traceable(self) -> nn.Module:
        """See ``LightField.traceable``."""
        return _Traceable(self)


class _Traceable(nn.Module):
    """The light field with look-ups as gathers, for rays of one moment.

    One index covers the corners of all windows, and a table tells which of them each window has.
    """

    index: Tensor
    at_rest: Tensor
    places: Tensor
    windows: Tensor

    def __init__(self, network: GridDyLiN) -> None:
        super().__init__()
        self.network, self.step = network, network.voxel
        self.points = most_points(network.aabb, self.step)
        frames = FrameGrid()
        exists = network.frames.exists
        frames.resize(exists.any(0, keepdim=True))
        index, places = frames.window(0)
        self.register_buffer("index", index.long())
        self.register_buffer("places", places)
        self.register_buffer("windows", exists[:, frames.exists[0]])
        self.register_buffer("at_rest", network.volume.index.long())

    def forward(self, rays: Rays) -> Tensor:
        network, volume = self.network, self.network.volume
        assert rays.controls is not None
        controls = rays.controls[0, 0, 0, : network.controls]
        count = len(self.windows)
        window = (controls[0] * count).long().clamp(max=count - 1)
        has = self.windows[window][self.index.clamp(min=0)]
        index = torch.where((self.index >= 0) & has, self.index, -1)

        positions = network._place(self.places)
        motion = network._motion(controls, positions)
        frame = see_through(
            motion, positions, volume.density, volume.features, self.at_rest, network.canonical_aabb, EMPTY
        )
        flat_o, flat_d = rays.origins.reshape(-1, 3), rays.directions.reshape(-1, 3)
        along = reference.ray_features(
            *frame, index, flat_o, flat_d, network.aabb, torch.full_like(flat_o[:, 0], 0.5),
            self.step, MIN_ALPHA_RENDERING, self.points,
        )  # fmt: skip
        return network.decode(decoder_inputs(rays, along, network.sr_factor)).movedim(1, -1)


def _distinct(controls: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct rows (U, K) of controls (N, K), and the index (N,) of each row; faster where rows repeat."""
    runs, run = torch.unique_consecutive(controls, dim=0, return_inverse=True)
    if len(runs) == 1:
        return runs, run
    moments, which = torch.unique(runs, dim=0, return_inverse=True)
    return moments, which[run]
