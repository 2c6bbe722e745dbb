"""From radiance along rays to pictures: what every model's ``render`` returns, and the wavefront renderer."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from nelf.cameras import Camera
from nelf.kernels import Samples, composite


class Rendering(NamedTuple):
    """A picture: ``rgb`` (H, W, 3) in [0, 1] on the model's background.

    ``depth`` (H, W), z-depth in scene units, and ``opacity`` (H, W) in [0, 1] are None where a model has neither.
    """

    rgb: Tensor
    depth: Tensor | None = None
    opacity: Tensor | None = None

    @staticmethod
    def over(drawn: Tensor, background: Tensor | None = None, depth: Tensor | None = None) -> Rendering:
        """Lay what a network has drawn over a background.

        Args:
            drawn: (3, H, W), or (4, H, W) with opacity and the color on black.
            background: (3,) color; unused without opacity.
            depth: see ``Rendering``.

        Returns:
            The picture, in 32 bits.
        """
        drawn = drawn.permute(1, 2, 0).float()
        if drawn.shape[-1] == 3:
            return Rendering(drawn, depth)
        assert background is not None
        opacity = drawn[..., 3:]
        return Rendering(drawn[..., :3] + (1.0 - opacity) * background.to(drawn), depth, opacity[..., 0])


class Renderable(Protocol):
    """Anything that can be looked at: teachers, students, compressed and exported models."""

    def render(self, camera: Camera, time: float | None = None) -> Rendering:
        """Draw what one camera sees."""


def intersect_box(rays_o: Tensor, rays_d: Tensor, extent: float) -> tuple[Tensor, Tensor]:
    """Where rays enter and leave the cube [-extent, extent]^3.

    Args:
        rays_o: (N, 3) origins.
        rays_d: (N, 3) directions, any length.
        extent: half the side of the cube.

    Returns:
        ``t_min``, ``t_max`` (N,) in multiples of ``rays_d``, not before the origin; ``t_max <= t_min`` for a miss.
    """
    inverse = 1.0 / torch.where(rays_d == 0, 1e-12, rays_d)
    near, far = (-extent - rays_o) * inverse, (extent - rays_o) * inverse
    t_min = torch.minimum(near, far).amax(-1).clamp(min=0.0)
    return t_min, torch.maximum(near, far).amin(-1)


@torch.no_grad()
def render_wavefront(
    march: Callable[[Tensor, Tensor, Tensor, Tensor, int], Samples],
    radiance: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
    rays_o: Tensor,
    rays_d: Tensor,
    t_min: Tensor,
    t_max: Tensor,
    early_stop: float = 1e-3,
    pass_samples: int = 2**18,
) -> tuple[Tensor, Tensor, Tensor]:
    """Composite rays a few samples at a time, and drop those that nothing more can change.

    The fewer rays are left, the more samples each gets in the next pass, so that a pass costs about the same.

    Args:
        march: ``(rays_o, rays_d, t_min, t_max, max_samples) -> Samples``.
        radiance: ``(positions (S, 3), viewdirs (N, 3), ray_indices (S,)) -> (rgb (S, 3), sigma (S,))``.
        rays_o: (N, 3) origins.
        rays_d: (N, 3) directions, unit length.
        t_min: (N,) where to begin.
        t_max: (N,) where to end.
        early_stop: a ray ends when less than this share of its light is left.
        pass_samples: about so many samples are evaluated together.

    Returns:
        ``rgb`` (N, 3) on black, ``depth`` (N,) as the weighted sum of ``t``, ``opacity`` (N,).

    Source:
        Instant-NGP, appendix E (arXiv 2201.05989).
    """
    n_rays = len(rays_o)
    rgb, depth, opacity = rays_o.new_zeros(n_rays, 3), rays_o.new_zeros(n_rays), rays_o.new_zeros(n_rays)
    alive = (t_max > t_min).nonzero()[:, 0]
    t_next = t_min.clone()
    while len(alive):
        each = max(4, pass_samples // len(alive))
        o, d = rays_o[alive], rays_d[alive]
        t_starts, t_ends, ray_indices = march(o, d, t_next[alive], t_max[alive], each)
        if not len(ray_indices):
            break
        middle = 0.5 * (t_starts + t_ends)
        color, sigma = radiance(o[ray_indices] + middle[:, None] * d[ray_indices], d, ray_indices)
        out = composite(sigma, color, t_starts, t_ends, ray_indices, len(alive))
        left = 1.0 - opacity[alive]
        rgb[alive] += left[:, None] * out.rgb
        depth[alive] += left * out.depth
        opacity[alive] += left * out.opacity
        counts = torch.bincount(ray_indices, minlength=len(alive))
        last = (counts.cumsum(0) - 1).clamp(min=0)
        t_next[alive] = t_ends[last]
        alive = alive[(counts == each) & (opacity[alive] < 1.0 - early_stop)]
    return rgb, depth, opacity


def distortion(weights: Tensor, t_starts: Tensor, t_ends: Tensor, ray_indices: Tensor, n_rays: int) -> Tensor:
    """How far apart the weights of each ray lie: the loss against matter that floats before the surface.

    ``sum_ij w_i w_j |m_i - m_j| + 1/3 sum_i w_i^2 d_i`` with mid-points ``m`` and lengths ``d``, by prefix sums.

    Args:
        weights: (S,) of ``composite``.
        t_starts: (S,) where each sample begins; ascending within a ray.
        t_ends: (S,) where it ends.
        ray_indices: (S,) non-decreasing.
        n_rays: N.

    Returns:
        (N,) in units of ``t``; differentiable in ``weights``.

    Source:
        Mip-NeRF 360, eq. 15 (arXiv 2111.12077); in one pass as in DVGO v2, section 3.2 (arXiv 2206.05085).
    """
    middle = 0.5 * (t_starts + t_ends)
    first = torch.searchsorted(ray_indices, ray_indices)

    def before(values: Tensor) -> Tensor:
        """Sum of ``values`` over the earlier samples of the same ray."""
        running = torch.nn.functional.pad(values.double().cumsum(0), (1, 0))
        return (running[:-1] - running[first]).to(values.dtype)

    apart = 2.0 * weights * (middle * before(weights) - before(weights * middle))
    within = weights.square() * (t_ends - t_starts) / 3.0
    return weights.new_zeros(n_rays).index_add(0, ray_indices, apart + within)
