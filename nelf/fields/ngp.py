"""Instant-NGP: a hash grid, two tiny networks and an occupancy grid."""

import math
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nelf.cameras import Camera
from nelf.encodings import HashEncoding, spherical_harmonics
from nelf.fields.occupancy import OccupancyGrid
from nelf.kernels import Composited, HashGrid, Samples, composite, march, multiplies_bfloat16
from nelf.rendering import Rendering, intersect_box, render_wavefront
from nelf.scene import Scene, background_color

_ROWS = 2048


class RenderedRays(NamedTuple):
    """What training sees of a batch of rays: their colors on black, and the samples that made them."""

    composited: Composited
    samples: Samples


class NGP(nn.Module):
    """A radiance field in a hash grid, sampled where an occupancy grid says that there is something.

    The field lives in its own units: the scene's box (``Scene.aabb``) becomes the unit cube round the origin, with
    one scale for the whole scene. ``scale`` is the half-size of what the field covers in these units: 0.5 is the
    box alone; 1, 2, 4, ... reach beyond it, with a cascade of the occupancy grid for each doubling.

    Args:
        levels: levels of the hash grid.
        features: features per level and entry.
        log2_table: binary logarithm of a level's table size.
        base_resolution: cells along a side of the coarsest level.
        finest_resolution: cells along a side of the finest level for ``scale=1`` (it grows with ``scale``).
        hidden: neurons in the hidden layers of both networks.
        color_layers: hidden layers of the color network (the density network has one).
        scale: half-size of the cube that the field covers.
        grid_resolution: cells along a side of the occupancy grid.
        grid_slices: see ``slices`` of ``OccupancyGrid``.
        max_samples: samples per ray at the most; the step is the cube's diagonal divided by it.
        early_stop: a ray ends when less than this share of its light is left.
        low_precision: run the networks in bfloat16, as tiny-cuda-nn runs them in half precision; None does so
            where the processor multiplies it natively.

    Source:
        Instant-NGP (Müller et al. 2022, arXiv 2201.05989); ngp_pl, ``models/networks.py`` and ``rendering.py``.
    """

    training_state = ("occupancy.density", "occupancy.updates")
    background: Tensor
    center: Tensor
    unit: Tensor

    def __init__(
        self,
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
        super().__init__()
        growth = (finest_resolution * scale / base_resolution) ** (1 / (levels - 1)) if levels > 1 else 1.0
        self.encoding = HashEncoding(HashGrid(levels, features, log2_table, base_resolution, growth))
        self.density_net = _mlp(self.encoding.out_features, hidden, 1, 16)
        self.color_net = _mlp(32, hidden, color_layers, 3)
        self.scale = scale
        self.step = math.sqrt(3) * 2 * scale / max_samples
        self.cone = 0.0 if scale <= 0.5 else 1 / 256
        self.max_step = math.sqrt(3) * 2 * scale / grid_resolution
        self.max_samples = max_samples
        self.early_stop = early_stop
        self.low_precision = low_precision
        self.occupancy = OccupancyGrid(grid_resolution, scale, 0.01 / self.step, 0.95, grid_slices)
        self.register_buffer("background", torch.ones(3))
        self.register_buffer("center", torch.zeros(3))
        self.register_buffer("unit", torch.ones(()))

    def fit_scene(self, scene: Scene) -> None:
        """Place the field in a scene: its box becomes the unit cube, cells that no camera sees are excluded."""
        box = scene.aabb.view(2, 3)
        self.center.copy_(box.mean(0))
        self.unit.copy_((box[1] - box[0]).max())
        self.background.copy_(background_color(scene.background))
        self.occupancy.mark_invisible(scene.train.camera, lambda points: points * self.unit + self.center)

    # ---------------------------------------------------------------------------------------- the field

    def density(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The density and the geometry features at positions of the field.

        Args:
            positions: (S, 3) in [-scale, scale].

        Returns:
            ``sigma`` (S,) per unit of the field, and ``features`` (S, 16), whose first is ``log(sigma)``.
        """
        encoded = self.encoding((positions / (2 * self.scale) + 0.5).clamp(0.0, 1.0))
        features = self._run(self.density_net, encoded)
        return _TruncatedExp.apply(features[:, 0].float()), features  # type: ignore[no-untyped-call]

    def forward(self, positions: Tensor, viewdirs: Tensor, ray_indices: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Color and density at positions, seen along directions.

        Args:
            positions: (S, 3) in [-scale, scale].
            viewdirs: (S, 3) unit length; or (N, 3) with ``ray_indices``.
            ray_indices: (S,) the direction of each position, or None.

        Returns:
            ``rgb`` (S, 3) in [0, 1] and ``sigma`` (S,) per unit of the field.
        """
        sigma, features = self.density(positions)
        return self._color(features, viewdirs, ray_indices), sigma

    @torch.no_grad()
    def sigma(self, positions: Tensor) -> Tensor:
        """The density (N,) per scene unit at positions (N, 3) of the scene; zero where the occupancy grid is empty."""
        at = (positions - self.center) / self.unit
        sigma = torch.zeros_like(at[:, 0])
        asked = self.occupancy.at(at).nonzero()[:, 0]
        sigma[asked] = self.density(at[asked])[0] / self.unit
        return sigma

    @torch.no_grad()
    def rgb(self, positions: Tensor, viewdirs: Tensor) -> Tensor:
        """The color (N, 3) at positions of the scene, seen along unit directions (N, 3)."""
        return self((positions - self.center) / self.unit, viewdirs)[0]

    def _color(self, features: Tensor, viewdirs: Tensor, ray_indices: Tensor | None) -> Tensor:
        directions = spherical_harmonics(viewdirs).to(features.dtype)
        if ray_indices is not None:
            directions = directions.index_select(0, ray_indices)
        return torch.sigmoid(self._run(self.color_net, torch.cat([directions, features], dim=1)).float())

    def _run(self, network: nn.Module, inputs: Tensor) -> Tensor:
        low = multiplies_bfloat16(inputs.device) if self.low_precision is None else self.low_precision
        # Matrix libraries prepare a kernel for each new number of rows: keep to few of them.
        padded = F.pad(inputs, (0, 0, 0, -len(inputs) % _ROWS))
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=low):
            return network(padded)[: len(inputs)]  # type: ignore[no-any-return]

    # ---------------------------------------------------------------------------------------- rays

    def render_rays(self, rays_o: Tensor, rays_d: Tensor) -> RenderedRays:
        """March and composite a batch of rays, differentiably.

        Args:
            rays_o: (N, 3) origins, scene units.
            rays_d: (N, 3) directions of any length, scene units.

        Returns:
            Colors on black, opacities, and the samples; ``t`` and depth are in units of the field here. In training
            mode each ray's samples are moved by a random part of a step.
        """
        origins, directions, t_min, t_max, _ = self._to_field(rays_o, rays_d)
        if self.training:
            t_min = t_min + self.step * torch.rand_like(t_min)
        samples = self._march(origins, directions, t_min, t_max, self.max_samples)
        sigma, features = self.density(self._positions(origins, directions, samples))
        # Many samples lie behind a surface (three of five on lego): they need no color, and have no gradient.
        seen = _in_sight(samples, sigma, len(rays_o), self.early_stop)
        samples = Samples(*(values.index_select(0, seen) for values in samples))
        rgb = self._color(features.index_select(0, seen), directions, samples.ray_indices)
        sigma = sigma.index_select(0, seen)
        return RenderedRays(composite(sigma, rgb, *samples, len(rays_o), self.early_stop), samples)

    @torch.no_grad()
    def render(self, camera: Camera, time: float | None = None) -> Rendering:
        """Draw what a camera sees, on the scene's background.

        Args:
            camera: one camera.
            time: ignored, the field is static.

        Returns:
            The picture, with z-depth in scene units and opacity.
        """
        rays = camera.to(self.center.device).rays()
        rgb, depth, opacity = [], [], []
        for rays_o, rays_d in zip(
            rays.rays_o.reshape(-1, 3).split(2**18), rays.rays_d.reshape(-1, 3).split(2**18), strict=True
        ):
            origins, directions, t_min, t_max, to_z = self._to_field(rays_o, rays_d)
            out = render_wavefront(self._march, self.forward, origins, directions, t_min, t_max)
            rgb.append(out[0] + (1.0 - out[2])[:, None] * self.background)
            depth.append(out[1] * to_z)
            opacity.append(out[2])
        size = (camera.height, camera.width)
        return Rendering(
            torch.cat(rgb).clamp(0.0, 1.0).view(*size, 3), torch.cat(depth).view(size), torch.cat(opacity).view(size)
        )

    def _to_field(self, rays_o: Tensor, rays_d: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Rays in the field's units with unit directions, their range, and the factor from ``t`` to z-depth."""
        origins = (rays_o - self.center) / self.unit
        length = rays_d.norm(dim=-1)
        directions = rays_d / length[:, None]
        t_min, t_max = intersect_box(origins, directions, self.scale)
        return origins, directions, t_min.clamp(min=0.01), t_max, self.unit / length

    def _march(self, origins: Tensor, directions: Tensor, t_min: Tensor, t_max: Tensor, at_most: int) -> Samples:
        return march(
            origins,
            directions,
            t_min,
            t_max,
            self.occupancy.occupied,
            step=self.step,
            cone=self.cone,
            max_step=self.max_step,
            extent=self.scale,
            max_samples=at_most,
        )

    @staticmethod
    def _positions(origins: Tensor, directions: Tensor, samples: Samples) -> Tensor:
        middle = 0.5 * (samples.t_starts + samples.t_ends)
        index = samples.ray_indices
        return torch.addcmul(origins.index_select(0, index), directions.index_select(0, index), middle[:, None])

    def update_occupancy(self, warm_up: bool = False) -> None:
        """Look again where the field holds matter; call it every 16 training steps."""
        self.occupancy.update(lambda positions: self.density(positions)[0], warm_up)


@torch.no_grad()
def _in_sight(samples: Samples, sigma: Tensor, n_rays: int, early_stop: float) -> Tensor:
    """Indices (V,) of the samples that at least ``early_stop`` of the light reaches."""
    nothing = sigma.new_zeros(len(sigma), 3)
    return composite(sigma.detach(), nothing, *samples, n_rays, early_stop).weights.nonzero()[:, 0]


def _mlp(inputs: int, hidden: int, hidden_layers: int, outputs: int) -> nn.Sequential:
    """A network without biases, as tiny-cuda-nn's, Xavier-uniform."""
    widths = [inputs] + [hidden] * hidden_layers + [outputs]
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(widths):
        layers += [nn.Linear(width_in, width_out, bias=False), nn.ReLU()]
        nn.init.xavier_uniform_(layers[-2].weight)  # type: ignore[arg-type]
    return nn.Sequential(*layers[:-1])


class _TruncatedExp(torch.autograd.Function):
    """exp, whose gradient is bounded so that one dense sample cannot blow up a step."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.exp(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * torch.exp(x.clamp(-15.0, 15.0))
