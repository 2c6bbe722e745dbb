"""Volume rendering: the composited samples of rays, loss terms of them, and the wavefront renderer."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from nelf.kernels import Samples, composite

__all__ = ["Pass", "distortion", "opacity_entropy", "render_wavefront", "weights_along"]


class Pass(NamedTuple):
    """Rays composited from samples.

    Attributes:
        rgb: (N, 3) color on black.
        opacity: (N,) in [0, 1].
        depth: (N,) sum of weights * t, in the unit of the samples' ``t``.
        weights: (S,) rendering weight of each sample.
        samples: the S samples.
    """

    rgb: Tensor
    opacity: Tensor
    depth: Tensor
    weights: Tensor
    samples: Samples


@torch.no_grad()
def weights_along(samples: Samples, sigma: Tensor, n_rays: int, early_stop: float = 0.0) -> Tensor:
    """The rendering weights (S,) of samples, without gradient; 0 where the transmittance is below ``early_stop``.

    Args:
        samples: S of them.
        sigma: (S,) their densities.
        n_rays: N.
        early_stop: transmittance at which a ray ends.
    """
    nothing = sigma.new_zeros(len(sigma), 3)
    return composite(sigma.detach(), nothing, *samples, n_rays, early_stop).weights


def opacity_entropy(rays: Pass) -> Tensor:
    """``-o log(o)`` of each ray's opacity, (N,): a loss term that pushes it to 0 or 1.

    Source:
        ngp_pl, ``losses.py``.
    """
    opacity = rays.opacity + 1e-10
    return -opacity * opacity.log()


def distortion(rays: Pass) -> Tensor:
    """The distortion loss of each ray, (N,), in units of ``t``, against floaters.

    ``sum_ij w_i w_j |m_i - m_j| + 1/3 sum_i w_i^2 d_i`` with mid-points ``m`` and lengths ``d``, by prefix sums.
    Differentiable in the weights.

    Source:
        Mip-NeRF 360, eq. 15 (arXiv 2111.12077); in one pass as in DVGO v2, section 3.2 (arXiv 2206.05085).
    """
    weights, (t_starts, t_ends, ray_indices) = rays.weights, rays.samples
    middle = 0.5 * (t_starts + t_ends)
    first = torch.searchsorted(ray_indices, ray_indices)

    def before(values: Tensor) -> Tensor:
        """Sum of ``values`` over the earlier samples of the same ray."""
        running = pad(values.double().cumsum(0), (1, 0))
        return (running[:-1] - running[first]).to(values.dtype)

    apart = 2.0 * weights * (middle * before(weights) - before(weights * middle))
    within = weights.square() * (t_ends - t_starts) / 3.0
    n_rays = len(rays.opacity)  # and one more, of which padding is
    return weights.new_zeros(n_rays + 1).index_add(0, ray_indices, apart + within)[:n_rays]


@torch.no_grad()
def render_wavefront(
    march: Callable[[Tensor, Tensor, Tensor, Tensor, int], Samples],
    radiance: Callable[[Tensor, Tensor, Samples], tuple[Tensor, Tensor]],
    rays_o: Tensor,
    rays_d: Tensor,
    t_min: Tensor,
    t_max: Tensor,
    early_stop: float = 1e-3,
    pass_samples: int = 2**18,
) -> tuple[Tensor, Tensor, Tensor]:
    """Composite rays a few samples at a time, and drop those that are opaque or have left the scene.

    The fewer rays are left, the more samples each gets in the next pass, so that all passes cost about the same.

    Args:
        march: ``(rays_o, rays_d, t_min, t_max, max_samples) -> Samples`` of M rays.
        radiance: ``(positions (S, 3), rays (M,), samples) -> (rgb (S, 3), sigma (S,))``; ``rays`` are the indices,
            among all N, of the rays that were marched.
        rays_o: (N, 3) origins.
        rays_d: (N, 3) directions, unit length.
        t_min: (N,) start of each ray.
        t_max: (N,) end of each ray.
        early_stop: a ray ends when its transmittance falls below this.
        pass_samples: samples that are evaluated together, approximately.

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
        samples = march(o, d, t_next[alive], t_max[alive], each)
        t_starts, t_ends, ray_indices = samples
        if not len(ray_indices):
            break
        middle = 0.5 * (t_starts + t_ends)
        color, sigma = radiance(o[ray_indices] + middle[:, None] * d[ray_indices], alive, samples)
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
