"""How cameras stand: what they look at, which way is up, and where new ones may be."""

import numpy as np
import pytest
import torch

from nelf import paths
from nelf.cameras import Camera
from nelf.data import demo_handheld, read_scene
from nelf.paths import viewpoints as vp


def rotation(axis, degrees):
    """(3, 3) float64 rotation by Rodrigues' formula."""
    unit = np.array(axis) / np.linalg.norm(axis)
    cross = np.cross(np.eye(3), unit)
    angle = np.deg2rad(degrees)
    return torch.from_numpy(np.eye(3) - np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross)


def lens(c2w):
    return Camera.from_fov(c2w, 0.7, 8, 8)


def moved(c2w, turn, offset=(1.0, 2.0, 3.0)):
    """Poses of a world that is turned and then moved."""
    turned = turn @ c2w.double()
    turned[:, :, 3] += torch.tensor(offset, dtype=torch.float64)
    return turned


def ball(n=60, elevations=(5, 70)):
    return paths.hemisphere(n, 4.0, elevations)


def array(n=5):
    """n x n cameras side by side that look along -z, y up."""
    c2w = torch.eye(3, 4).repeat(n * n, 1, 1)
    c2w[:, :2, 3] = torch.cartesian_prod(torch.linspace(-1, 1, n), torch.linspace(-1, 1, n))
    return c2w


def test_of_cameras_around_something_all_is_known():
    stand = vp.viewpoints(lens(moved(ball(), torch.eye(3).double())))
    np.testing.assert_allclose(stand.target, [1, 2, 3], atol=1e-5)
    assert stand.up.tolist() == [0, 0, 1]
    np.testing.assert_allclose(stand.radius, 4.0, atol=1e-5)
    np.testing.assert_allclose(stand.miss, 0.0, atol=1e-5)
    heights = (np.arange(60) + 0.5) / 60  # even by area between two elevations
    low, high = np.sin(np.deg2rad([5, 70]))
    np.testing.assert_allclose(np.sin(np.deg2rad(stand.elevation)), low + (high - low) * heights, atol=1e-5)
    golden = np.arange(60) * 180 * (3 - 5**0.5)
    np.testing.assert_allclose((stand.azimuth - golden + 180) % 360, 180, atol=1e-3)


@pytest.mark.parametrize("axis", [(1, 0.3, -0.2), (0, 1, 0), (-1, 1, 1)])
@pytest.mark.parametrize("degrees", [12.0, 90.0, 130.0, 180.0])
def test_up_turns_with_the_world(axis, degrees):
    turn = rotation(axis, degrees)
    for c2w in (ball(), array()):
        stands = [vp.up_axis(lens(each)) for each in (c2w, moved(c2w, turn))]
        expected = turn.numpy() @ stands[0]
        np.testing.assert_allclose(stands[1], expected, atol=1e-4)


def test_up_of_an_array_is_its_cameras_up():
    np.testing.assert_allclose(vp.up_axis(lens(array())), [0, 1, 0], atol=1e-7)
    np.testing.assert_allclose(vp.up_axis(lens(array(1))), [0, 1, 0], atol=1e-7)


def test_a_hand_that_is_not_quite_steady_leaves_z_up():
    left, _ = demo_handheld.rig()
    assert vp.up_axis(left).tolist() == [0, 0, 1]


@pytest.mark.parametrize("up", [(0, 0, 1), (1, 0, 0), (0.6, 0, 0.8), (-0.05, 1, 0.3)])
def test_the_frame_is_a_rotation_whose_last_axis_is_up(up):
    up = np.array(up) / np.linalg.norm(up)
    axes = vp.frame(up)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-12)
    assert np.linalg.det(axes) == pytest.approx(1.0)
    np.testing.assert_allclose(axes[:, 2], up, atol=1e-12)
    assert np.array_equal(vp.frame(np.array([0.0, 0.0, 1.0])), np.eye(3))


def noisy(c2w, degrees, seed=0):
    """Cameras of a hand: turned by so much about axes of their own."""
    axes = np.random.default_rng(seed).normal(size=(len(c2w), 3))
    turns = torch.stack([rotation(axis, degrees) for axis in axes])
    return torch.cat([turns @ c2w[:, :, :3].double(), c2w[:, :, 3:].double()], -1)


def test_how_cameras_stand():
    turn = rotation((1, 2, 0.5), 100.0)
    assert paths.trajectory(lens(ball())) == "orbit"
    assert paths.trajectory(lens(paths.orbit(12, 4.0, 20.0, turns=0.4))) == "orbit"  # aimed by a program
    assert paths.trajectory(lens(noisy(moved(ball(), turn, (0, 0, 0)), 8.0))) == "orbit"  # walked around with a phone
    assert paths.trajectory(lens(moved(array(), turn))) == "forward"
    walk = paths.orbit(40, 4.0, 20.0, turns=0.4)
    assert paths.trajectory(lens(noisy(walk, 8.0))) == "between"  # and half around
    outward = walk.clone()
    outward[:, :, [0, 2]] *= -1  # a room, from within
    assert paths.trajectory(lens(outward)) == "between"


def test_a_scene_says_how_its_cameras_stand(tiny_scene):
    assert read_scene(tiny_scene).trajectory == "orbit"
