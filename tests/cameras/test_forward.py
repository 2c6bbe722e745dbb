"""Paths of forward-facing scenes, against NeRF's ``load_llff.py`` restated in NumPy with 64 bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nelf import paths
from nelf.cameras import Camera


def unit(v):
    return v / np.linalg.norm(v)


def pose(back, up, position):
    """A camera at a position whose z axis is ``back``: columns right, up, back, position."""
    back = unit(back)
    right = unit(np.cross(up, back))
    return np.stack([right, np.cross(back, right), back, position], 1)


@pytest.fixture
def cameras():
    """Nine cameras that look along about (1, 1, 0), rolled by 30 degrees or so: far from a world's axes."""
    draw = np.random.default_rng(3)
    c2w = [
        pose(
            np.array([-1, -1, 0]) + draw.normal(0, 0.1, 3),
            np.array([0.4, -0.4, 0.8]) + draw.normal(0, 0.1, 3),
            draw.normal(5, 0.5, 3),
        )
        for _ in range(9)
    ]
    return Camera(torch.from_numpy(np.array(c2w)).float(), torch.tensor([50.0, 50, 24, 16]).expand(9, 4), 48, 32)


def average(c2w):
    return pose(c2w[:, :, 2].sum(0), c2w[:, :, 1].sum(0), c2w[:, :, 3].mean(0))


def spiral(c2w, close, infinity, n):
    """``render_path_spiral`` with the arguments of ``load_llff_data``; for recentered poses, as it gets them."""
    middle = average(c2w)
    up = unit(c2w[:, :, 1].sum(0))
    focal = 1 / (0.25 / close + 0.75 / infinity)
    radii = np.percentile(np.abs(c2w[:, :, 3]), 90, 0)
    drawn = []
    for theta in np.linspace(0, 4 * np.pi, n + 1)[:-1]:
        turn = np.array([np.cos(theta), -np.sin(theta), -np.sin(theta * 0.5)]) * radii
        eye = middle @ [*turn, 1.0]
        drawn.append(pose(eye - middle @ [0, 0, -focal, 1.0], up, eye))
    return np.array(drawn)


def test_the_average_pose_is_that_of_llff(cameras):
    expected = average(cameras.c2w.double().numpy())
    np.testing.assert_allclose(paths.average_pose(cameras.c2w).numpy(), expected, atol=1e-6)


def test_the_spiral_is_that_of_nerf_wherever_the_scene_lies(cameras):
    c2w = cameras.c2w.double().numpy()
    square = np.eye(4)
    square[:3] = average(c2w)
    recentered = np.linalg.inv(square) @ np.concatenate([c2w, np.tile([[[0, 0, 0, 1.0]]], (9, 1, 1))], 1)
    expected = square @ np.concatenate(
        [spiral(recentered[:, :3], 1.2, 5 * 7.0, 120), np.tile([[[0, 0, 0, 1.0]]], (120, 1, 1))], 1
    )
    path = paths.llff_spiral(cameras, near=1.2, far=7.0)
    np.testing.assert_allclose(path.c2w.numpy(), expected[:, :3], atol=2e-6)
    assert path.intrinsics.shape == (120, 4)
    assert path.width == 48


def test_random_poses_fill_the_enlarged_boxes_and_stand_upright(cameras):
    c2w = cameras.c2w.double().numpy()
    drawn = paths.random_forward(cameras, 4000, seed=1).c2w.double().numpy()
    low, high = c2w[:, :, 3].min(0), c2w[:, :, 3].max(0)
    margin = 0.05 * (high - low)
    assert (drawn[:, :, 3] >= low - margin - 1e-6).all()
    assert (drawn[:, :, 3] <= high + margin + 1e-6).all()
    share = (drawn[:, :, 3] - (low - margin)) / (high - low + 2 * margin)
    np.testing.assert_allclose(share.mean(0), 0.5, atol=0.02)
    np.testing.assert_allclose(share.std(0), 12**-0.5, atol=0.02)  # that of a uniform distribution
    # Right is level: the mean up has no part of it; and where up points is upwards.
    up = unit(c2w[:, :, 1].mean(0))
    assert np.abs(drawn[:, :, 0] @ up).max() < 1e-6
    assert (drawn[:, :, 1] @ up).min() > 0
    # Backs are directions of points of the box of the given backs: along each, such a point is found.
    low, high = c2w[:, :, 2].min(0), c2w[:, :, 2].max(0)
    middle, half = (low + high) / 2, 1.1 * (high - low) / 2
    lengths = np.linspace(0.5, 1.5, 2001)
    points = drawn[:200, None, :, 2] * lengths[:, None]
    assert (np.abs(points - middle) <= half + 1e-3).all(-1).any(1).all()


def test_a_longer_random_set_begins_with_the_shorter(cameras):
    few, many = (paths.random_forward(cameras, n, seed=4) for n in (3, 10))
    torch.testing.assert_close(many.c2w[:3], few.c2w, atol=0, rtol=0)
    assert not torch.allclose(paths.random_forward(cameras, 3, seed=5).c2w, few.c2w)
