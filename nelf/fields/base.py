"""The base class of radiance fields: their space in the scene, and rendering of rays and images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from nelf.fields.volume import Pass, distortion, opacity_entropy, weights_along
from nelf.kernels import Samples, composite, gpu
from nelf.rays import Rays
from nelf.rendering import Rendering, evaluating

if TYPE_CHECKING:
    from nelf.cameras import Camera
    from nelf.fields.samplers import OccupancySampler, Sampler
    from nelf.scene import Geometry

__all__ = ["ColorAlong", "FieldRays", "RadianceField"]

#: Colors (S, 3) of samples from their features (S, F), the N rays in the scene, and the ray (S,) of each sample.
ColorAlong = Callable[[Tensor, Rays, Tensor], Tensor]


class FieldRays(NamedTuple):
    """N rays in the space of a field.

    Attributes:
        origins: (N, 3) in the field's unit.
        directions: (N, 3) unit length, unless the field counts ``t`` as z-depth.
        near: (N,) smallest ``t`` of the scene's content, in the field's unit.
        far: (N,) largest ``t`` of the scene's content.
        to_z: (N,) factor from ``t`` to that of the scene's rays (z-depth in scene units, unless in NDC).
        scene: the same rays in the scene.
    """

    origins: Tensor
    directions: Tensor
    near: Tensor
    far: Tensor
    to_z: Tensor
    scene: Rays


class RadianceField(nn.Module):
    """Density and color at positions, and a sampler of positions along rays.

    A subclass implements ``density`` and ``color``. The field has its own space: the scene's box is scaled into the
    cube of side 1 around the origin, with one scale for all axes.

    Args:
        sampler: places samples along rays.
    """

    #: A ray ends when its transmittance falls below this; samples behind it get no color.
    early_stop: float = 1e-4
    #: Rays that are rendered together.
    chunk: int = 2**18
    #: Offset of the rays to the left of and above the pixel centers, image widths, for weights trained with such rays;
    #: see ``Camera.shifted``. Applied in training and rendering.
    ray_shift: float = 0.0
    #: Number of controls, such as the time, that it takes with a position.
    controls: int = 0

    background: Tensor
    center: Tensor
    unit: Tensor
    near: Tensor
    far: Tensor

    def __init__(self, sampler: Sampler) -> None:
        super().__init__()
        self.sampler = sampler
        self.register_buffer("background", torch.ones(3))
        self.register_buffer("center", torch.zeros(3))
        self.register_buffer("unit", torch.ones(()))
        self.register_buffer("near", torch.tensor(2.0))
        self.register_buffer("far", torch.tensor(6.0))

    # ---------------------------------------------------------------------------------------- to be implemented

    def density(self, positions: Tensor, controls: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Give the density at positions, and the features that ``color`` takes.

        Args:
            positions: (S, 3) in the field's space.
            controls: (S, K) in [0, 1], or None.

        Returns:
            ``sigma`` (S,) per unit of the field, and ``features`` (S, F).
        """
        raise NotImplementedError

    def color(self, features: Tensor, viewdirs: Tensor, view: Tensor | None = None) -> Tensor:
        """Give the color of samples; evaluated only for samples with enough transmittance.

        Args:
            features: (S, F) of ``density``.
            viewdirs: (S, 3) unit length, in the scene.
            view: (S,) int64, the training view of each sample's ray, or None.

        Returns:
            (S, 3) in [0, 1].
        """
        raise NotImplementedError

    def color_along(self, features: Tensor, rays: Rays, ray_indices: Tensor) -> Tensor:
        """``color`` for samples of rays; a subclass may override it to compute some parts once for each ray.

        Args:
            features: (S, F).
            rays: N of them, in the scene.
            ray_indices: (S,) the ray of each sample.

        Returns:
            (S, 3) in [0, 1].
        """
        view = None if rays.view is None else rays.view[ray_indices]
        return self.color(features, rays.viewdirs[ray_indices], view)

    @property
    def regularizers(self) -> dict[str, Callable[[Pass], Tensor]]:
        """Loss terms by name: (N,) of the rays of a pass, of which ``Teacher`` takes the mean, or () of the field."""
        return {"opacity": opacity_entropy, "distortion": distortion}

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Group the parameters for a ``torch.optim`` optimizer; one group unless a subclass has more."""
        return [{"params": list(self.parameters()), "lr": lr, "weight_decay": weight_decay}]

    # ---------------------------------------------------------------------------------------- the scene

    def prepare(self, geometry: Geometry) -> None:
        """Place the field in a scene: the scene's box becomes the cube of side 1.

        Args:
            geometry: of the scene.
        """
        box = geometry.aabb.view(2, 3)
        self.center.copy_(box.mean(0))
        self.unit.copy_((box[1] - box[0]).max())
        self.background.copy_(geometry.background)
        self.near.fill_(geometry.near)
        self.far.fill_(geometry.far)
        self.sampler.prepare(geometry.cameras, self.to_scene)

    def before_step(self, step: int) -> None:
        """Prepare a training step, for example by an update of the occupancy grid.

        Args:
            step: number of training steps so far.
        """

        def density(positions: Tensor) -> Tensor:
            """The density at random controls: the grid holds what is occupied at any moment."""
            controls = torch.rand(len(positions), self.controls, device=positions.device) if self.controls else None
            return self.density(positions, controls)[0]

        self.sampler.before_step(step, density)

    def through_grid(self, layout: Mapping[str, Any], geometry: Geometry) -> RadianceField | None:
        """An equivalent field that skips empty space by an occupancy grid; None if this trained one does so already.

        Args:
            layout: the arguments of this field's constructor.
            geometry: of the scene.
        """
        return None

    def to_scene(self, positions: Tensor) -> Tensor:
        """Map positions (N, 3) from the field's space to the scene."""
        return positions * self.unit + self.center

    def to_field(self, rays: Rays) -> FieldRays:
        """Map rays (N,) from the scene to the field's space."""
        origins = (rays.origins - self.center) / self.unit
        length = rays.directions.norm(dim=-1)
        stretch = length / self.unit
        directions = rays.directions / length[:, None]
        return FieldRays(origins, directions, self.near * stretch, self.far * stretch, self.unit / length, rays)

    # ---------------------------------------------------------------------------------------- rays and images

    def render_rays(self, rays: Rays) -> list[Pass]:
        """Render a batch of rays, differentiably.

        Args:
            rays: N of them, in the scene.

        Returns:
            The passes, coarse first; the last one is the image. ``t`` and depth are in the field's unit. In training
            mode samples are jittered.
        """
        here = self.to_field(rays)
        return [self.render_samples(here, self.sampler.sample(here, self.training))]

    def render_within(self, rays: Rays, total: int) -> tuple[Pass, Tensor]:
        """Render the first rays of a batch, as many as have ``total`` samples together.

        All shapes are known beforehand, so on a GPU nothing has to be waited for. For fields with an occupancy grid.

        Args:
            rays: N of them, in the scene.
            total: number of samples.

        Returns:
            The pass, and the number of rays () that were rendered; the others are empty.
        """
        here = self.to_field(rays)
        samples, rendered = cast("OccupancySampler", self.sampler).sample_within(here, self.training, total)
        return self.render_samples(here, samples), rendered

    def render_samples(self, rays: FieldRays, samples: Samples) -> Pass:
        """Composite N rays from samples, each evaluated at its mid-point.

        Args:
            rays: N of them.
            samples: S of them, possibly with padding.
        """
        index = _within(samples, len(rays.origins))
        controls = rays.scene.controls
        controls = None if controls is None else controls.index_select(0, index)
        sigma, features = self.density(_positions(rays, samples, index), controls)
        return self.shade(rays, samples, sigma, features, self.color_along)

    def shade(self, rays: FieldRays, samples: Samples, sigma: Tensor, features: Tensor, color: ColorAlong) -> Pass:
        """Composite N rays from samples of known density; those behind ``early_stop`` get no weight and no gradient.

        Args:
            rays: N of them.
            samples: S of them.
            sigma: (S,) their densities.
            features: (S, F) that ``color`` takes.
            color: see ``color_along``.
        """
        n_rays = len(rays.origins)
        if not gpu.asynchronous(sigma.device):
            seen = weights_along(samples, sigma, n_rays, self.early_stop).nonzero()[:, 0]
            if len(seen) < len(sigma):
                samples = Samples(*(values.index_select(0, seen) for values in samples))
                sigma, features = sigma.index_select(0, seen), features.index_select(0, seen)
        rgb = color(features, rays.scene, _within(samples, n_rays))
        out = composite(sigma, rgb, *samples, n_rays, self.early_stop)
        return Pass(*out, samples)

    @torch.no_grad()
    def draw(self, rays: Rays) -> Rendering:
        """Render rays of any leading shape (...), each independently, in bounded memory.

        Args:
            rays: in the scene.

        Returns:
            ``rgb`` (..., 3) on the scene's background, depth (...) in ``t`` of these rays, and opacity (...).
        """
        parts = []
        with evaluating(self):
            for part in rays.to(self.center.device).chunks(self.sampler.together(self.chunk, self.center.device)):
                here = self.to_field(part)
                rgb, depth, opacity = self.sampler.render(self, here)
                over = rgb + (1.0 - opacity)[:, None] * self.background
                parts.append((over.clamp(0.0, 1.0), depth * here.to_z, opacity))
        rgb, depth, opacity = (torch.cat(part) for part in zip(*parts, strict=True))
        return Rendering(rgb.view(*rays.shape, 3), depth.view(rays.shape), opacity.view(rays.shape))

    def render(self, camera: Camera) -> Rendering:
        """Render one camera of any size, in bounded memory.

        Args:
            camera: a single camera.

        Returns:
            The image on the scene's background, with z-depth in scene units and opacity.
        """
        return self.draw(self.rays(camera.to(self.center.device))).in_scene(camera)

    def rays(self, camera: Camera) -> Rays:
        """The rays (..., H, W) for the image of a camera, or of a batch of cameras (...)."""
        return camera.shifted(self.ray_shift).rays()

    # ---------------------------------------------------------------------------------------- initializing a student

    @torch.no_grad()
    def sigma(self, positions: Tensor, controls: Tensor | None = None) -> Tensor:
        """The density (N,) per scene unit at positions (N, 3) of the scene; zero where the sampler has no matter."""
        at = (positions - self.center) / self.unit
        sigma = torch.zeros_like(at[:, 0])
        asked = self.sampler.occupied_at(at).nonzero()[:, 0]
        with evaluating(self):
            sigma[asked] = self.density(at[asked], None if controls is None else controls[asked])[0] / self.unit
        return sigma

    @torch.no_grad()
    def rgb(self, positions: Tensor, viewdirs: Tensor, controls: Tensor | None = None) -> Tensor:
        """The color (N, 3) at positions of the scene, seen along unit directions (N, 3)."""
        with evaluating(self):
            return self.color(self.density((positions - self.center) / self.unit, controls)[1], viewdirs)


def _positions(rays: FieldRays, samples: Samples, index: Tensor) -> Tensor:
    """Mid-points (S, 3) of samples of the rays ``index`` (S,), in the field's space."""
    middle = 0.5 * (samples.t_starts + samples.t_ends)
    return torch.addcmul(rays.origins.index_select(0, index), rays.directions.index_select(0, index), middle[:, None])


def _within(samples: Samples, n_rays: int) -> Tensor:
    """The ray (S,) of each sample; for padding, that of the last one, which exists."""
    return samples.ray_indices.clamp(max=n_rays - 1)
