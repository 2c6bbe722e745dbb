"""Samplers: where along rays a radiance field is evaluated."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nelf.cameras import pixel_size
from nelf.fields.occupancy import NEAREST, OccupancyGrid
from nelf.fields.volume import render_wavefront
from nelf.kernels import Samples, gpu, march, march_within
from nelf.rays import intersect_aabb

if TYPE_CHECKING:
    from nelf.cameras import Camera
    from nelf.fields.base import FieldRays, RadianceField

__all__ = ["OccupancySampler", "Sampler", "StratifiedSampler"]

_PIXELS = 2.0  # length of a step that is chosen by the pixel size
_UNKNOWN, _FOLLOWING = 128, (32, 256)  # samples per ray until the cameras are known, and limits of the choice
_SAMPLES, _MORE = 2**18, 4  # samples of a rendering pass, approximately; factor on a GPU, also of the rays
_EVERY, _WARM_UP = 16, 256  # training steps between updates of an occupancy grid, and of its warm-up


class Sampler(nn.Module):
    """Places samples along rays.

    ``samples_per_ray`` is an upper estimate of the evaluations for each ray, which sets the size of the first batch.
    """

    samples_per_ray: float = 1.0

    def sample(self, rays: FieldRays, jitter: bool) -> Samples:
        """Place the samples of N rays; with ``jitter``, at random places within their steps."""
        raise NotImplementedError

    def prepare(self, cameras: Camera, to_scene: Callable[[Tensor], Tensor]) -> None:
        """Adapt to the training cameras (N,); ``to_scene`` maps points of the field to the scene."""

    def before_step(self, step: int, density: Callable[[Tensor], Tensor]) -> None:
        """Adapt to the density (N,) at positions (N, 3) of the field, before a training step."""

    def occupied_at(self, positions: Tensor) -> Tensor:
        """Whether there may be matter at positions (N, 3) of the field, (N,) bool."""
        return torch.ones(len(positions), dtype=torch.bool, device=positions.device)

    def together(self, count: int, device: torch.device) -> int:
        """How many rays, or samples, are rendered together on a device, if it is ``count`` on a processor."""
        return count

    def render(self, field: RadianceField, rays: FieldRays) -> tuple[Tensor, Tensor, Tensor]:
        """Render N rays without gradient: ``rgb`` (N, 3) on black, ``depth`` (N,) in ``t``, ``opacity`` (N,)."""
        out = field.render_rays(rays.scene)[-1]
        return out.rgb, out.depth, out.opacity


class StratifiedSampler(Sampler):
    """A fixed number of samples between near and far, evenly spaced.

    Args:
        samples: number of samples on each ray.

    Source:
        NeRF, eq. 2 (arXiv 2003.08934); here jitter moves the edges between samples, by at most half of their length.
    """

    def __init__(self, samples: int = 64) -> None:
        super().__init__()
        self.samples_per_ray = float(samples)

    def sample(self, rays: FieldRays, jitter: bool) -> Samples:
        """See ``Sampler.sample``; each sample ends where the next one starts."""
        count = int(self.samples_per_ray)
        edges = torch.linspace(0.0, 1.0, count + 1, device=rays.near.device).expand(len(rays.near), -1)
        if jitter:
            inner = edges[:, 1:-1] + (torch.rand_like(edges[:, 1:-1]) - 0.5) / count
            edges = torch.cat([edges[:, :1], inner, edges[:, -1:]], 1)
        t = rays.near[:, None] + (rays.far - rays.near)[:, None] * edges
        indices = torch.arange(len(t), device=t.device).repeat_interleave(count)
        return Samples(t[:, :-1].reshape(-1), t[:, 1:].reshape(-1), indices)


class OccupancySampler(Sampler):
    """Samples at regular steps in the occupied cells of an occupancy grid.

    Args:
        scale: half-size of the cube around the origin that the field covers.
        grid_resolution: cells along a side of the occupancy grid.
        grid_slices: see ``slices`` of ``OccupancyGrid``.
        max_samples: samples per ray at the most; the smallest step is the diagonal of the scene's cube divided by it.
            None: chosen so that a step is two pixels of the training cameras long at the center of the cube, and at
            most 256, since a training with few samples in each step has few rays left with more; that number is saved
            with the weights.
        at_start: the mid-point of the first sample lies on the surface of the cube, instead of half a step behind it.

    Source:
        Instant-NGP, appendices C and E (arXiv 2201.05989).
    """

    most: Tensor

    def __init__(
        self,
        scale: float,
        grid_resolution: int,
        grid_slices: int | None,
        max_samples: int | None,
        at_start: bool = False,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.follows = max_samples is None
        if self.follows:
            self.register_buffer("most", torch.tensor(_UNKNOWN))
            self.register_load_state_dict_post_hook(_follow)
        self.max_step = math.sqrt(3) * 2 * scale / grid_resolution
        self.at_start = at_start
        known = max_samples or _UNKNOWN
        self.samples_per_ray = float(known)
        self.grid = OccupancyGrid(grid_resolution, scale, 0.0, 0.95, grid_slices)
        self._take(known)

    def _take(self, max_samples: int) -> None:
        """Set what derives from the number of samples, as plain numbers: reading a buffer would wait for the GPU."""
        self.max_samples = max_samples
        self.step = math.sqrt(3) / max_samples
        self.cone = 0.0 if self.scale <= 0.5 else 4 / max_samples  # 1 / 256 for the 1024 samples of Instant-NGP
        self.grid.threshold = 0.01 / self.step

    def prepare(self, cameras: Camera, to_scene: Callable[[Tensor], Tensor]) -> None:
        """Exclude the cells that no camera sees, and choose the step by the pixel size unless it is given."""
        if self.follows:
            low, high = to_scene(self.grid.density.new_tensor([[-0.5] * 3, [0.5] * 3]))
            diagonal = float((high - low).norm())
            step = max(_PIXELS * pixel_size(cameras, torch.cat([low, high])), diagonal / _FOLLOWING[1])
            self.most.fill_(max(round(diagonal / step), _FOLLOWING[0]))
            _follow(self)
        self.grid.mark_invisible(cameras, to_scene)

    def before_step(self, step: int, density: Callable[[Tensor], Tensor]) -> None:
        """Update the grid every 16 steps, as a whole in the first 256."""
        if step % _EVERY == 0:
            self.grid.update(density, warm_up=step < _WARM_UP)

    def occupied_at(self, positions: Tensor) -> Tensor:
        """See ``Sampler.occupied_at``."""
        return self.grid.at(positions)

    def sample(self, rays: FieldRays, jitter: bool) -> Samples:
        """See ``Sampler.sample``; jitter moves all samples of a ray by the same fraction of a step."""
        return self._march(rays.origins, rays.directions, *self._range(rays, jitter), self.max_samples)

    def sample_within(self, rays: FieldRays, jitter: bool, total: int) -> tuple[Samples, Tensor]:
        """Sample the first rays, as many as have ``total`` samples together, and at least one of them.

        See ``nelf.kernels.march_within``.
        """
        ways = rays.origins, rays.directions, *self._range(rays, jitter), self.grid.occupied
        return march_within(*ways, max(total, self.max_samples), **self._steps, max_samples=self.max_samples)

    def together(self, count: int, device: torch.device) -> int:
        """See ``Sampler.together``: more on a GPU, for which passes are otherwise too short."""
        return _MORE * count if gpu.asynchronous(device) else count

    def render(self, field: RadianceField, rays: FieldRays) -> tuple[Tensor, Tensor, Tensor]:
        """See ``Sampler.render``, by ``render_wavefront``."""

        def radiance(positions: Tensor, marched: Tensor, samples: Samples) -> tuple[Tensor, Tensor]:
            along = rays.scene[marched]
            index = samples.ray_indices
            controls = None if along.controls is None else along.controls[index]
            sigma, features = field.density(positions, controls)
            return field.color_along(features, along, index), sigma

        along = rays.origins, rays.directions, *self._range(rays)
        at_once = self.together(_SAMPLES, rays.origins.device)
        return render_wavefront(self._march, radiance, *along, field.early_stop, at_once)

    def _range(self, rays: FieldRays, jitter: bool = False) -> tuple[Tensor, Tensor]:
        cube = rays.origins.new_full((6,), self.scale)  # copying a list would make the host wait for the GPU
        cube[:3].neg_()
        t_min, t_max = intersect_aabb(rays.origins, rays.directions, cube)
        t_min = t_min.clamp(min=NEAREST)
        if self.at_start:  # start before the cube, so that the first mid-point is on its surface
            before = torch.minimum(t_min - 0.5 * self.step, t_min / (1.0 + 0.5 * self.cone))
            t_min = torch.maximum(before, t_min - 0.5 * self.max_step)
        if jitter:
            t_min = t_min + self.step * torch.rand_like(t_min)
        return t_min, t_max

    @property
    def _steps(self) -> dict[str, Any]:
        return {"step": self.step, "cone": self.cone, "max_step": self.max_step, "extent": self.scale}

    def _march(self, origins: Tensor, directions: Tensor, t_min: Tensor, t_max: Tensor, at_most: int) -> Samples:
        return march(origins, directions, t_min, t_max, self.grid.occupied, **self._steps, max_samples=at_most)


def _follow(sampler: OccupancySampler, loaded: object = None) -> None:
    """Apply the number of samples that was chosen, or loaded with the weights."""
    sampler._take(int(sampler.most.clamp(*_FOLLOWING)))
