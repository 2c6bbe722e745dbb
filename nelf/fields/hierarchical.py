"""Hierarchical sampling: stratified samples, then further ones drawn from their weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nelf.fields.base import FieldRays
from nelf.fields.samplers import Sampler
from nelf.kernels import Samples

__all__ = ["HierarchicalSampler", "ask", "importance_points", "stratified_points"]

_EVERYWHERE = 1e-5  # added to the weight of each bin, so that every part of a ray may get samples
INFINITE = 1e10  # length of the last sample of a ray, if it has no end


class HierarchicalSampler(Sampler):
    """Stratified points between near and far, and points drawn from the weights of these.

    A sample is evaluated at its point and extends to the next one; the last one extends by the mean step.

    Args:
        samples: stratified points on each ray.
        fine_samples: points drawn by importance; a fine network is evaluated at these and the stratified ones.
        disparity: space the points evenly in 1 / t instead of t, for more of them near the camera.

    Raises:
        ValueError: ``samples`` is below 3, or ``fine_samples`` is negative.

    Source:
        NeRF, section 5.2 (arXiv 2003.08934); nerf_pl, ``models/rendering.py``.
    """

    def __init__(self, samples: int = 64, fine_samples: int = 128, disparity: bool = False) -> None:
        super().__init__()
        if samples < 3:
            raise ValueError(f"Expected argument `samples` to be 3 or more, but got {samples}.")
        if fine_samples < 0:
            raise ValueError(f"Expected argument `fine_samples` to be 0 or more, but got {fine_samples}.")
        self.samples, self.fine_samples, self.disparity = samples, fine_samples, disparity
        self.samples_per_ray = float(2 * samples + fine_samples if fine_samples else samples)

    def sample(self, rays: FieldRays, jitter: bool) -> Samples:
        """See ``Sampler.sample``: the stratified points."""
        return self.intervals(self.even(rays, jitter))

    def even(self, rays: FieldRays, jitter: bool) -> Tensor:
        """The stratified points of N rays, (N, samples)."""
        return stratified_points(rays.near, rays.far, self.samples, jitter, self.disparity)

    def refined(self, t: Tensor, weights: Tensor, jitter: bool) -> Tensor:
        """The stratified points and those drawn from their weights, sorted.

        Args:
            t: (N, samples) stratified points.
            weights: (N, samples).
            jitter: draw at random; else at evenly spaced quantiles.

        Returns:
            (N, samples + fine_samples), ascending.
        """
        return torch.cat([t, importance_points(t, weights, self.fine_samples, jitter)], 1).sort(1).values

    @staticmethod
    def intervals(t: Tensor) -> Samples:
        """Samples of N rays from their points (N, K), ray after ray."""
        n_rays, count = t.shape
        step = (t[:, -1:] - t[:, :1]) / (count - 1)
        indices = torch.arange(n_rays, device=t.device).repeat_interleave(count)
        return Samples(t.reshape(-1), torch.cat([t[:, 1:], t[:, -1:] + step], 1).view(-1), indices)


def ask(
    density: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]], rays: FieldRays, t: Tensor, infinite_end: bool
) -> tuple[Samples, Tensor, Tensor]:
    """Evaluate the density at points of rays.

    Args:
        density: see ``RadianceField.density``.
        rays: N of them.
        t: (N, K) points, ascending.
        infinite_end: the last sample of a ray has no end, and is opaque unless its density is zero.

    Returns:
        The samples, S = N K of them; their densities (S,) and features (S, F).
    """
    positions = torch.addcmul(rays.origins[:, None], rays.directions[:, None], t[..., None])
    controls = rays.scene.controls
    controls = None if controls is None else controls.repeat_interleave(t.shape[1], 0)
    sigma, features = density(positions.view(-1, 3), controls)
    samples = HierarchicalSampler.intervals(t)
    if infinite_end:
        ends = torch.zeros_like(t, dtype=torch.bool)
        ends[:, -1] = True
        sigma = torch.where(ends.view(-1), sigma * INFINITE / (samples.t_ends - samples.t_starts), sigma)
    return samples, sigma, features


def stratified_points(near: Tensor, far: Tensor, count: int, jitter: bool, disparity: bool = False) -> Tensor:
    """Points from near to far, both included.

    Args:
        near: (N,) smallest ``t``, above 0 with ``disparity``.
        far: (N,) largest ``t``.
        count: K, at least two.
        jitter: draw each uniformly in its bin; the bins end half-way between the points.
        disparity: evenly in ``1 / t`` instead of ``t``.

    Returns:
        (N, K), ascending.

    Source:
        NeRF, eq. 2 (arXiv 2003.08934); the bins are nerf_pl's, ``models/rendering.py``.
    """
    share = torch.linspace(0.0, 1.0, count, dtype=near.dtype, device=near.device)
    near, far = near[:, None], far[:, None]
    t = 1.0 / ((1.0 - share) / near + share / far) if disparity else near + (far - near) * share
    if not jitter:
        return t
    middle = 0.5 * (t[:, 1:] + t[:, :-1])
    low, high = torch.cat([t[:, :1], middle], 1), torch.cat([middle, t[:, -1:]], 1)
    return low + (high - low) * torch.rand_like(t)


@torch.no_grad()
def importance_points(t: Tensor, weights: Tensor, count: int, jitter: bool) -> Tensor:
    """Draw points along rays from weights, by the inverse of their cumulative distribution.

    The distribution is uniform in each bin between the mid-points of neighboring ``t``, which has the weight of the
    sample within it.

    Args:
        t: (N, K) points, ascending.
        weights: (N, K), >= 0; the first and the last, which are in no bin, are ignored.
        count: P, points to draw on each ray.
        jitter: draw at random; else at evenly spaced quantiles from 0 to 1.

    Returns:
        (N, P), without gradient.

    Source:
        NeRF, section 5.2 (arXiv 2003.08934); nerf_pl, ``sample_pdf`` of ``models/rendering.py``.
    """
    edges = 0.5 * (t[:, 1:] + t[:, :-1])  # (N, K - 1)
    weights = weights[:, 1:-1] + _EVERYWHERE
    cumulative = torch.cumsum(weights / weights.sum(1, keepdim=True), 1)
    cumulative = torch.cat([torch.zeros_like(cumulative[:, :1]), cumulative], 1)  # (N, K - 1)
    if jitter:
        u = torch.rand(len(t), count, dtype=t.dtype, device=t.device)
    else:
        u = torch.linspace(0.0, 1.0, count, dtype=t.dtype, device=t.device).expand(len(t), -1).contiguous()
    above = torch.searchsorted(cumulative, u, right=True).clamp(max=edges.shape[1] - 1)
    below = (above - 1).clamp(min=0)
    start, end = cumulative.gather(1, below), cumulative.gather(1, above)
    inside = (u - start) / torch.where(end - start < _EVERYWHERE, 1.0, end - start)
    low, high = edges.gather(1, below), edges.gather(1, above)
    return low + inside.clamp(0.0, 1.0) * (high - low)
