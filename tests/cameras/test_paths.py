import numpy as np
import pytest
import torch

from nelf import paths
from nelf.cameras import Camera

EVERY = {
    "orbit": lambda n: paths.orbit(n, 4.0, 30.0, center=(1, 2, 3)),
    "spiral": lambda n: paths.spiral(n, 4.0, center=(1, 2, 3)),
    "hemisphere": lambda n: paths.hemisphere(n, 4.0, center=(1, 2, 3)),
    "mobile_r2l": lambda n: paths.random_mobile_r2l(n, 4.0) + center_column(),
    "r2l": lambda n: paths.random_r2l(n, 4.0)[0] + center_column(),
    "dnerf": lambda n: paths.dnerf(n) + center_column(),
}


def center_column():
    return torch.cat([torch.zeros(3, 3), torch.tensor([[1.0], [2], [3]])], 1)


def polar_and_azimuth(c2w):
    position = c2w[:, :, 3].double().numpy()
    radius = np.linalg.norm(position, axis=1)
    polar = np.rad2deg(np.arccos(position[:, 2] / radius))
    return polar, np.rad2deg(np.arctan2(position[:, 1], position[:, 0])), radius


@pytest.mark.parametrize("name", EVERY)
def test_poses_are_rotations_that_look_at_the_center_without_roll(name):
    c2w = EVERY[name](40).double()
    rotation, position = c2w[:, :, :3], c2w[:, :, 3]
    identity = torch.eye(3, dtype=torch.float64).expand(40, 3, 3)
    torch.testing.assert_close(rotation.mT @ rotation, identity, atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(40, dtype=torch.float64))
    # Four units along -z of the camera lies the center; the camera's right is level, its up points upwards.
    target = position - 4.0 * rotation[:, :, 2]
    torch.testing.assert_close(target, torch.tensor([1.0, 2, 3]).double().expand(40, 3), atol=1e-5, rtol=0)
    assert rotation[:, 2, 0].abs().max() < 1e-6
    assert rotation[:, 2, 1].min() > -1e-6


def test_look_at_straight_down():
    c2w = paths.look_at(torch.tensor([[0.0, 0, 4], [0, 0, -4]]), torch.zeros(3))
    assert torch.isfinite(c2w).all()
    torch.testing.assert_close(torch.linalg.det(c2w[:, :, :3]), torch.ones(2))
    with pytest.raises(ValueError, match="stands on its target"):
        paths.look_at(torch.zeros(3), torch.zeros(3))


def test_orbit_is_a_circle_at_one_height():
    polar, azimuth, radius = polar_and_azimuth(paths.orbit(4, 2.0, 30.0))
    np.testing.assert_allclose(polar, 60.0, atol=1e-4)
    np.testing.assert_allclose(azimuth % 360, [0, 90, 180, 270], atol=1e-4)
    np.testing.assert_allclose(radius, 2.0, rtol=1e-6)


def test_spiral_climbs_evenly():
    polar, _, _ = polar_and_azimuth(paths.spiral(8, 2.0, (10.0, 80.0)))
    np.testing.assert_allclose(polar, np.linspace(80, 10, 8), atol=1e-4)


def test_hemisphere_is_even_by_area():
    # Archimedes: equal areas of a sphere are equal intervals of height.
    height = paths.hemisphere(100, 1.0)[:, 2, 3].numpy()
    np.testing.assert_allclose(np.sort(height), (np.arange(100) + 0.5) / 100, atol=1e-5)


def test_mobile_r2l_has_the_quantiles_of_the_original():
    polar, azimuth, radius = polar_and_azimuth(paths.random_mobile_r2l(200_000))
    quantiles = np.percentile(polar, [5, 25, 50, 75, 95])
    np.testing.assert_allclose(quantiles, [6.4, 25.2, 45.6, 66.0, 84.6], atol=0.3)
    assert polar.min() + 1e-3 >= 1.0
    assert polar.max() <= 90.001
    assert np.abs(azimuth).max() <= 178.001
    np.testing.assert_allclose(radius, 4.031128857, rtol=1e-5)


def test_r2l_is_uniform_in_angle_with_focal_zoom():
    c2w, zoom = paths.random_r2l(200_000)
    polar, azimuth, radius = polar_and_azimuth(c2w)
    np.testing.assert_allclose(np.percentile(90 - polar, [0, 25, 50, 75, 100]), [0, 22.5, 45, 67.5, 90], atol=0.3)
    np.testing.assert_allclose(np.percentile(azimuth, [0, 25, 50, 75, 100]), [-180, -90, 0, 90, 180], atol=1.0)
    np.testing.assert_allclose(np.percentile(zoom, [0, 25, 50, 75, 100]), [1, 1.25, 1.5, 1.75, 2], atol=0.01)
    np.testing.assert_allclose(radius, 4.0, rtol=1e-5)


def test_a_set_is_a_prefix_of_a_longer_one():
    assert torch.equal(paths.random_mobile_r2l(5, seed=7), paths.random_mobile_r2l(9, seed=7)[:5])
    assert torch.equal(paths.random_r2l(5, seed=7)[1], paths.random_r2l(9, seed=7)[1][:5])
    camera = Camera.from_fov(paths.hemisphere(20, 4.0), 0.7, 8, 8)
    assert torch.equal(paths.random_like(camera, 5, seed=7).c2w, paths.random_like(camera, 9, seed=7).c2w[:5])
    assert not torch.equal(paths.random_mobile_r2l(5, seed=7), paths.random_mobile_r2l(5, seed=8))


def turned(axis, degrees):
    """(3, 3) rotation about an axis by Rodrigues' formula, float64."""
    unit = np.array(axis) / np.linalg.norm(axis)
    cross = np.array([[0, -unit[2], unit[1]], [unit[2], 0, -unit[0]], [-unit[1], unit[0], 0]])
    angle = np.deg2rad(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def two_cameras(axis, degrees, start=((0.3, -1.0, 0.2), 70.0)):
    """Two poses, the second turned about a world axis and moved by (2, 4, 6), with a lens and times 0.25 and 0.75."""
    first = turned(*start)
    poses = [np.column_stack([first, [1.0, 2, 3]]), np.column_stack([turned(axis, degrees) @ first, [3.0, 6, 9]])]
    intrinsics = torch.tensor([[10.0, 11, 4, 3], [20.0, 21, 4, 3]])
    time, lens = torch.tensor([[0.25], [0.75]]), torch.full((2, 6), 0.01)
    c2w = torch.from_numpy(np.stack(poses)).float()
    return Camera(c2w, intrinsics, 8, 6, time, torch.arange(2), lens), first


@pytest.mark.parametrize("degrees", [0.0, 0.001, 25.0, 120.0, 179.0])
@pytest.mark.parametrize("axis", [(1, 2, -0.5), (0, 0, 1), (-1, 0.1, 0)])
def test_random_between_goes_straight_and_turns_evenly_about_one_axis(axis, degrees):
    camera, start = two_cameras(axis, degrees)
    drawn = paths.random_between(camera, 200, seed=1)
    position = drawn.c2w[:, :, 3].double().numpy()
    share = (position[:, 0] - 1) / 2
    np.testing.assert_allclose(position, np.array([1, 2, 3]) + share[:, None] * [2, 4, 6], atol=1e-5)
    for index in range(200):
        expected = turned(axis, share[index] * degrees) @ start
        np.testing.assert_allclose(drawn.c2w[index, :, :3].numpy(), expected, atol=2e-5)
    assert share.min() >= 0
    assert share.max() <= 1
    np.testing.assert_allclose(np.histogram(share, 4, (0, 1))[0], 50, atol=25)
    # Intrinsics of the one that it starts from, which is either; no lens, and no image that was taken.
    assert set(drawn.intrinsics[:, 0].tolist()) == {10.0, 20.0}
    assert drawn.lens is None
    assert drawn.view is None
    assert 0.25 <= drawn.time.min() < 0.3
    assert 0.7 < drawn.time.max() <= 0.75
    assert abs(np.corrcoef(drawn.time.numpy(), share)[0, 1]) < 0.2


def test_random_between_joins_different_cameras():
    c2w = torch.eye(3, 4).repeat(5, 1, 1)
    c2w[:, 0, 3] = torch.tensor([0.0, 1, 10, 100, 1000])
    x = paths.random_between(Camera.from_fov(c2w, 0.7, 8, 8), 500).c2w[:, 0, 3]
    assert (torch.isin(x, c2w[:, 0, 3])).float().mean() < 0.02  # of twice the same, there is nothing between
    assert torch.equal(paths.random_between(Camera.from_fov(c2w[:1], 0.7, 8, 8), 3).c2w, c2w[:1].repeat(3, 1, 1))


@pytest.mark.parametrize("poses", ["hemisphere", "interpolate", "mobile_r2l", "r2l"])
def test_random_cameras_are_pinholes_and_the_first_ones_of_more(poses):
    camera, _ = two_cameras((0, 0, 1), 30.0)
    drawn = paths.random_cameras(camera, 9, poses, seed=7)
    assert drawn.lens is None
    assert drawn.view is None
    assert torch.equal(paths.random_cameras(camera, 5, poses, seed=7).c2w, drawn.c2w[:5])


@pytest.mark.parametrize("degrees", [0.0, 15.0, 35.0])
def test_a_roll_is_found(degrees):
    c2w = paths.hemisphere(400, 4.0, (10, 40)).double()
    turns = [torch.from_numpy(turned((0, 0, 1), degrees * sign)) for sign in (1, -1)]
    c2w[:, :, :3] = torch.stack([c2w[k, :, :3] @ turns[k % 2] for k in range(400)])
    assert paths.rolled(Camera.from_fov(c2w, 0.7, 8, 8)) == pytest.approx(degrees, abs=0.3)


def test_random_like_follows_a_world_that_is_turned():
    turn, move = torch.from_numpy(turned((1, 2, 0.5), 100.0)), torch.tensor([[1.0], [2], [3]])
    c2w = paths.hemisphere(60, 4.0, (10, 40)).double()
    other = torch.cat([turn @ c2w[:, :, :3], turn @ c2w[:, :, 3:] + move], -1)
    drawn = paths.random_like(Camera.from_fov(other.float(), 0.7, 8, 8), 200)
    back = turn.T @ torch.cat([drawn.c2w[:, :, :3], drawn.c2w[:, :, 3:] - move], -1).double()
    polar, _, radius = polar_and_azimuth(back)
    np.testing.assert_allclose(radius, 4.0, atol=1e-3)
    assert 50 - 1e-2 < polar.min() < polar.max() < 80 + 1e-2
    assert back[:, 2, 0].abs().max() < 1e-4  # right axes are level in the world that was not turned
    assert back[:, 2, 1].min() > 0


def test_random_like_stays_where_the_cameras_stand():
    near, far = paths.hemisphere(40, 3.0, (10, 60), (1, 2, 3)), paths.hemisphere(40, 5.0, (10, 60), (1, 2, 3))
    camera = Camera.from_fov(torch.cat([near, far]), 0.7, 8, 6, time=torch.linspace(0.2, 0.6, 80))
    drawn = paths.random_like(camera, 1000)
    c2w = drawn.c2w - center_column()
    polar, azimuth, radius = polar_and_azimuth(c2w)
    assert 3.0 <= radius.min() + 1e-3 < 3.1
    assert 4.9 < radius.max() <= 5.001
    assert 10 <= 90 - polar.max() + 0.01 < 12
    assert 58 < 90 - polar.min() <= 60.01
    assert np.histogram(azimuth, 12, (-180, 180))[0].min() > 70  # all around: 83 expected in each
    assert (drawn.width, drawn.height) == (8, 6)
    assert 0.2 <= drawn.time.min() < drawn.time.max() <= 0.6 + 1e-6


def test_random_like_keeps_to_the_side_that_was_seen():
    c2w = paths.orbit(40, 4.0, 20.0, turns=0.4)
    _, azimuth, _ = polar_and_azimuth(paths.random_like(Camera.from_fov(c2w, 0.7, 8, 8), 300).c2w)
    assert azimuth.min() > -0.1
    assert azimuth.max() < 0.4 * 360 + 0.1


def pose_spherical(theta, phi, radius):
    """NeRF's, multiplied out of its four matrices."""
    t, p = np.deg2rad(theta), np.deg2rad(phi)
    move = np.eye(4)
    move[2, 3] = radius
    tilt = np.array([[1, 0, 0, 0], [0, np.cos(p), -np.sin(p), 0], [0, np.sin(p), np.cos(p), 0], [0, 0, 0, 1]])
    turn = np.array([[np.cos(t), 0, -np.sin(t), 0], [0, 1, 0, 0], [np.sin(t), 0, np.cos(t), 0], [0, 0, 0, 1]])
    flip = np.array([[-1, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    return (flip @ turn @ tilt @ move)[:3]


def test_the_path_of_d_nerf_is_the_original_s():
    expected = [pose_spherical(-180 + 9 * k, -30.0, 4.0) for k in range(40)]
    np.testing.assert_allclose(paths.dnerf(), np.stack(expected), atol=1e-6)


def moving(n=80, controls=2):
    """Cameras with controls of unlike ranges: the first 0.2 to 0.6, the second 0.5 to 1."""
    first = torch.linspace(0.2, 0.6, n)
    values = torch.stack([first, torch.linspace(1.0, 0.5, n)], -1)[:, :controls]
    camera = Camera.from_fov(paths.hemisphere(n, 3.0, (10, 60)), 0.7, 8, 6)
    return Camera(camera.c2w, camera.intrinsics, 8, 6, values, torch.arange(n))


@pytest.mark.parametrize("poses", paths.POSES)
def test_random_cameras_have_random_controls(poses):
    drawn = paths.random_cameras(moving(), 2000, poses)
    low, high = ((0.0, 0.0), (1.0, 1.0)) if poses == "dnerf" else ((0.2, 0.5), (0.6, 1.0))
    for index in range(2):
        # Uniform: the quartiles of its range, to four of their standard errors.
        quartiles = np.quantile(drawn.controls[:, index], [0, 0.25, 0.5, 0.75, 1])
        expected = low[index] + (high[index] - low[index]) * np.array([0, 0.25, 0.5, 0.75, 1])
        np.testing.assert_allclose(quartiles, expected, atol=0.045)
        assert drawn.controls[:, index].min() >= low[index]
        assert drawn.controls[:, index].max() <= high[index]
    position = drawn.c2w[:, :, 3]
    for other in (*position.T, drawn.controls[:, 1]):  # time says nothing of where the camera stands
        assert abs(np.corrcoef(drawn.time, other)[0, 1]) < 0.1
    assert drawn.view is None
    shorter = paths.random_cameras(moving(), 7, poses)
    assert torch.equal(shorter.controls, drawn.controls[:7])
    assert not torch.equal(shorter.controls, paths.random_cameras(moving(), 7, poses, seed=1).controls)
    static = paths.random_cameras(moving().at(), 7, poses)
    assert static.controls is None
    if poses != "hemisphere":  # whose recurrence has a dimension for each quantity
        assert torch.equal(static.c2w, shorter.c2w)


def test_the_distribution_of_d_nerf_s_pseudo_data():
    camera = moving(controls=1)
    drawn = paths.random_cameras(camera, 20_000, "dnerf")
    polar, azimuth, radius = polar_and_azimuth(drawn.c2w)
    np.testing.assert_allclose(np.percentile(90 - polar, [0, 25, 50, 75, 100]), [0, 22.5, 45, 67.5, 90], atol=1.0)
    np.testing.assert_allclose(np.percentile(azimuth, [0, 25, 50, 75, 100]), [-180, -90, 0, 90, 180], atol=4.0)
    np.testing.assert_allclose(radius, 4.0, rtol=1e-5)  # whatever the training cameras' is
    zoom = drawn.intrinsics[:, 0] / camera.intrinsics[0, 0]
    np.testing.assert_allclose(np.percentile(zoom, [0, 25, 50, 75, 100]), [1, 1.25, 1.5, 1.75, 2], atol=0.02)
    np.testing.assert_allclose(np.percentile(drawn.time, [0, 25, 50, 75, 100]), [0, 0.25, 0.5, 0.75, 1], atol=0.02)


def test_in_motion():
    path = moving(5)
    time = paths.in_motion(path, "time", (0.0, 1.0))
    assert torch.equal(time.c2w, path.c2w[:1].expand(5, 3, 4))
    assert time.time.tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    both = paths.in_motion(path, "both", (0.0, 1.0))
    assert torch.equal(both.c2w, path.c2w)
    assert torch.equal(both.time, time.time)
    camera = paths.in_motion(path, "camera", (0.25, 1.0))
    assert torch.equal(camera.c2w, path.c2w)
    assert camera.time.tolist() == [0.25] * 5
    assert paths.in_motion(path, "camera", (0.25, 1.0), 0.75).time.tolist() == [0.75] * 5
    for each in (time, both, camera):
        assert torch.equal(each.controls[:, 1], path.controls[:, 1])
    with pytest.raises(ValueError, match="static scene"):
        paths.in_motion(path.at(), "time", (0.0, 1.0))
