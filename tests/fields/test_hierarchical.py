"""Hierarchical sampling against closed forms, the distribution that it draws from, and its deterministic quantiles."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nelf.fields import HierarchicalSampler
from nelf.fields.hierarchical import importance_points, stratified_points

NEAR, FAR = torch.tensor([2.0, 1.0]), torch.tensor([6.0, 3.0])


def test_even_points_reach_from_near_to_far() -> None:
    t = stratified_points(NEAR, FAR, 5, jitter=False)
    torch.testing.assert_close(t, torch.tensor([[2.0, 3.0, 4.0, 5.0, 6.0], [1.0, 1.5, 2.0, 2.5, 3.0]]))


def test_disparity_is_even_in_the_inverse() -> None:
    """From 1/2 to 1/6 in two steps: 1/2, 1/3, 1/6; from 1 to 1/3: 1, 2/3, 1/3."""
    t = stratified_points(NEAR, FAR, 3, jitter=False, disparity=True)
    torch.testing.assert_close(t, torch.tensor([[2.0, 3.0, 6.0], [1.0, 1.5, 3.0]]))


@pytest.mark.parametrize("disparity", [False, True])
def test_jitter_draws_one_point_anywhere_in_each_bin(disparity: bool) -> None:
    near, far = torch.full((4000,), 2.0), torch.full((4000,), 6.0)
    t = stratified_points(near, far, 6, jitter=True, disparity=disparity).numpy()
    even = 1 / np.linspace(1 / 2, 1 / 6, 6) if disparity else np.linspace(2, 6, 6)
    edges = np.concatenate([even[:1], (even[1:] + even[:-1]) / 2, even[-1:]])
    assert (t >= edges[:-1] - 1e-5).all()
    assert (t <= edges[1:] + 1e-5).all()
    share = (t - edges[:-1]) / (edges[1:] - edges[:-1])
    np.testing.assert_allclose(share.mean(0), 0.5, atol=0.03)
    np.testing.assert_allclose(share.std(0), 12**-0.5, atol=0.02)


def test_points_are_drawn_from_the_weights() -> None:
    """Edges 0.5, 2, 4, 7 and weights 1, 6, 3 of 10 in between; the first and the last weight do not count."""
    t = torch.tensor([[0.0, 1.0, 3.0, 5.0, 9.0]])
    weights = torch.tensor([[50.0, 1.0, 6.0, 3.0, 70.0]])
    drawn = importance_points(t, weights, 40_000, jitter=True)[0].numpy()
    counts, _ = np.histogram(drawn, [0.5, 2.0, 4.0, 7.0])
    assert counts.sum() == 40_000
    np.testing.assert_allclose(counts / 40_000, [0.1, 0.6, 0.3], atol=0.012)
    inside = drawn[(drawn > 4.0) & (drawn < 7.0)]
    np.testing.assert_allclose([inside.mean(), inside.std()], [5.5, 3 * 12**-0.5], atol=0.03)


def test_without_jitter_points_are_the_quantiles() -> None:
    t = torch.tensor([[0.0, 1.0, 3.0, 5.0, 9.0]])
    weights = torch.tensor([[50.0, 1.0, 6.0, 3.0, 70.0]])
    expected = np.interp(np.linspace(0, 1, 11), [0.0, 0.1, 0.7, 1.0], [0.5, 2.0, 4.0, 7.0])
    drawn = importance_points(t, weights, 11, jitter=False)[0].numpy()
    np.testing.assert_allclose(drawn, expected, atol=1e-3)  # 1e-5 is added to each weight


def test_a_ray_that_sees_nothing_is_sampled_everywhere() -> None:
    t = torch.linspace(2.0, 6.0, 64)[None]
    drawn = importance_points(t, torch.zeros(1, 64), 1000, jitter=True)[0]
    counts = torch.histc(drawn, 4, 2.0, 6.0) / 1000
    torch.testing.assert_close(counts, torch.full((4,), 0.25), atol=0.06, rtol=0)


def test_the_fine_points_are_the_union_in_order_and_carry_no_gradient() -> None:
    sampler = HierarchicalSampler(8, 16)
    t = stratified_points(NEAR, FAR, 8, jitter=True)
    weights = torch.rand(2, 8, requires_grad=True)
    union = sampler.refined(t, weights, jitter=True)
    assert union.shape == (2, 24)
    assert not union.requires_grad
    assert (union.diff(dim=1) >= 0).all()
    assert all(set(even.tolist()) <= set(all_.tolist()) for even, all_ in zip(t, union, strict=True))
    assert sampler.samples_per_ray == 8 + 24
    assert HierarchicalSampler(8, 0).samples_per_ray == 8


def test_each_sample_reaches_to_the_next_and_the_last_one_mean_step_farther() -> None:
    samples = HierarchicalSampler.intervals(torch.tensor([[1.0, 2.0, 4.0], [0.0, 3.0, 5.0]]))
    assert samples.t_starts.tolist() == [1.0, 2.0, 4.0, 0.0, 3.0, 5.0]
    assert samples.t_ends.tolist() == [2.0, 4.0, 5.5, 3.0, 5.0, 7.5]
    assert samples.ray_indices.tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(("argument", "value"), [("samples", 2), ("fine_samples", -1)])
def test_refuses_too_few_samples(argument: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"`{argument}` to be"):
        HierarchicalSampler(**{argument: value})
