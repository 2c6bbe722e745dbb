"""How cameras stand, which way is up, and that films and random poses stay where they stood."""

import numpy as np
import pytest
import torch

from nelf import paths
from nelf.cameras import Camera
from nelf.data import demo_handheld, read_scene
from nelf.paths import trajectories as known
from nelf.paths.flights import spherical


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
    turned[:, :, 3] += torch.as_tensor(offset, dtype=torch.float64)
    return turned


def ball(n=60, elevations=(5, 70)):
    return paths.hemisphere(n, 4.0, elevations)


def array(n=5):
    """n x n cameras side by side that look along -z, y up."""
    c2w = torch.eye(3, 4).repeat(n * n, 1, 1)
    c2w[:, :2, 3] = torch.cartesian_prod(torch.linspace(-1, 1, n), torch.linspace(-1, 1, n))
    return c2w


def test_of_cameras_around_something_all_is_known():
    stand = known.viewpoints(lens(moved(ball(), torch.eye(3).double())))
    np.testing.assert_allclose(stand.target, [1, 2, 3], atol=1e-5)
    assert stand.up.tolist() == [0, 0, 1]
    np.testing.assert_allclose(stand.radius, 4.0, atol=1e-5)
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
        stands = [known.up_axis(lens(each)) for each in (c2w, moved(c2w, turn))]
        expected = turn.numpy() @ stands[0]
        np.testing.assert_allclose(stands[1], expected, atol=1e-4)


def test_up_of_an_array_is_its_cameras_up():
    np.testing.assert_allclose(known.up_axis(lens(array())), [0, 1, 0], atol=1e-7)
    np.testing.assert_allclose(known.up_axis(lens(array(1))), [0, 1, 0], atol=1e-7)


@pytest.mark.parametrize("degrees", [-2.0, 2.0, 20.0])
def test_up_of_cameras_that_look_along_z_is_not_z(degrees):
    turn = rotation((1, 0, 0), degrees)
    np.testing.assert_allclose(known.up_axis(lens(moved(array(), turn))), turn.numpy() @ [0, 1, 0], atol=1e-6)


def test_a_hand_that_is_not_quite_steady_leaves_z_up():
    left, _ = demo_handheld.rig()
    assert known.up_axis(left).tolist() == [0, 0, 1]


@pytest.mark.parametrize("up", [(0, 0, 1), (1, 0, 0), (0.6, 0, 0.8), (-0.05, 1, 0.3)])
def test_the_frame_is_a_rotation_whose_last_axis_is_up(up):
    up = np.array(up) / np.linalg.norm(up)
    axes = known.frame(up)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-12)
    assert np.linalg.det(axes) == pytest.approx(1.0)
    np.testing.assert_allclose(axes[:, 2], up, atol=1e-12)
    assert np.array_equal(known.frame(np.array([0.0, 0.0, 1.0])), np.eye(3))


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


TURN, OFFSET = rotation((1, 2, 0.5), 100.0), torch.tensor([1.0, 2.0, 3.0]).double()


def on_an_ellipse(n=24, middle=(170.0, 20.0), axes=(30.0, 10.0)):
    """Cameras 4 from the origin whose azimuths, across the seam at 180 degrees, and elevations lie on an ellipse."""
    angle = 2 * np.pi * np.arange(n) / n
    return spherical(middle[0] + axes[0] * np.cos(angle), middle[1] + axes[1] * np.sin(angle), np.full(n, 4.0))


def angles(c2w):
    """Azimuth, elevation (degrees) and distance of positions around the origin, +z up."""
    x, y, z = c2w[:, :, 3].double().numpy().T
    return np.rad2deg(np.arctan2(y, x)), np.rad2deg(np.arctan2(z, np.hypot(x, y))), np.sqrt(x * x + y * y + z * z)


def returned(c2w):
    """Poses of the world that ``TURN`` and ``OFFSET`` moved, in the one before."""
    back = c2w.double()
    return TURN.T @ torch.cat([back[:, :, :3], back[:, :, 3:] - OFFSET[:, None]], -1)


def assert_upright_and_aimed(c2w, tolerance=1e-4):
    """At the origin, +z up."""
    assert c2w[:, 2, 0].abs().max() < tolerance  # the right axis is level
    assert c2w[:, 2, 1].min() > 0
    radius = c2w[:, :, 3].norm(dim=-1, keepdim=True)
    torch.testing.assert_close(c2w[:, :, 3], radius * c2w[:, :, 2], atol=10 * tolerance, rtol=0)


@pytest.mark.parametrize("film", [paths.around, paths.winding])
def test_of_cameras_on_an_ellipse_the_film_is_this_ellipse(film):
    camera = lens(moved(on_an_ellipse(), TURN, OFFSET))
    c2w = returned(film(paths.viewpoints(camera), 40))
    azimuth, elevation, radius = angles(c2w)
    np.testing.assert_allclose(radius, 4.0, atol=1e-4)
    assert_upright_and_aimed(c2w)
    size = np.hypot(((azimuth - 170 + 180) % 360 - 180) / 30, (elevation - 20) / 10)
    np.testing.assert_allclose(size, np.ones(40) if film is paths.around else np.linspace(0, 1, 40), atol=1e-2)


def test_around_is_closed():
    c2w = paths.around(paths.viewpoints(lens(on_an_ellipse())), 40)[:, :, 3]
    steps = (c2w - c2w.roll(1, 0)).norm(dim=-1)
    assert steps.max() < 3 * steps.min()


def test_around_what_was_seen_from_all_sides_is_a_circle():
    c2w = torch.cat([paths.orbit(9, 3.0, 20.0), paths.orbit(9, 5.0, 40.0)])
    camera = lens(moved(c2w, TURN, OFFSET))
    film = returned(paths.around(paths.viewpoints(camera), 12))
    azimuth, elevation, radius = angles(film)
    np.testing.assert_allclose(radius, 4.0, atol=1e-4)
    np.testing.assert_allclose(elevation, 30.0, atol=1e-3)
    np.testing.assert_allclose(np.diff(np.unwrap(azimuth, period=360)), 30.0, atol=1e-3)
    assert_upright_and_aimed(film)
    _, elevation, _ = angles(returned(paths.winding(paths.viewpoints(camera), 12)))
    np.testing.assert_allclose(elevation, np.linspace(20, 40, 12), atol=1e-3)  # no higher than they stood


@pytest.mark.parametrize("film", [paths.around, paths.winding])
@pytest.mark.parametrize("roll", [0.0, 130.0])
def test_a_film_of_a_hand_held_capture_stays_among_its_cameras(film, roll):
    """Rolled as a whole, as by a phone that is held sideways while the world's axes are anybody's."""
    left, right = demo_handheld.rig(40)
    world = rotation((0.2, 1, 0.1), roll)
    camera = lens(moved(torch.cat([left.c2w, right.c2w]), world, (0.0, 0.0, 0.0)))
    c2w = world.T @ film(paths.viewpoints(camera, "between"), 30).double()
    given = world.T @ camera.c2w.double()
    low, high = given[:, :, 3].aminmax(dim=0)
    assert bool(((c2w[:, :, 3] >= low - 0.1) & (c2w[:, :, 3] <= high + 0.1)).all())
    assert torch.cdist(c2w[:, :, 3], given[:, :, 3]).amin(1).max() < 0.25  # they are 3 from what they look at
    up = c2w[:, :, 1].mean(0)
    assert float(up @ torch.tensor([0.0, 0.0, 1.0]).double()) > 0.95
    for pose in c2w.float():
        x, y, depth = lens(pose).project(torch.zeros(1, 3))  # the casket is in the middle of the picture
        assert float(depth) > 2
        assert abs(float(x) - 4) < 1.5
        assert abs(float(y) - 4) < 1.5


def test_a_room_is_filmed_from_within():
    c2w = noisy(paths.orbit(40, 1.0, 0.0), 5.0).float()
    c2w[:, :, [0, 2]] *= -1  # backs to the middle
    stand = paths.viewpoints(lens(c2w), "between")
    film = paths.around(stand, 12)
    assert film[:, :, 3].norm(dim=-1).max() < 1.0
    back, position = film[:, :, 2], film[:, :, 3]
    assert (film[:, 2, 1]).min() > 0.9
    assert np.ptp(np.unwrap(np.arctan2(*back[:, :2].numpy().T[::-1]))) > 5.5  # once around: 330 degrees of 12 poses
    torch.testing.assert_close((position * back).sum(-1), position.norm(dim=-1), atol=0.1, rtol=0)


def test_cameras_side_by_side_turn_around_what_llff_s_path_looks_at():
    stand = paths.viewpoints(lens(moved(array(), TURN, OFFSET)), "forward", (2.0, 8.0))
    expected = TURN @ torch.tensor([0.0, 0.0, -1 / (0.25 / 2 + 0.75 / 40)]).double() + OFFSET
    np.testing.assert_allclose(stand.target, expected, atol=1e-5)
    c2w = paths.around(stand, 20)
    local = TURN.T @ (c2w[:, :, 3].double().T - OFFSET[:, None])
    assert local[:2].abs().max() < 1.0  # where the array was
    assert local[2].abs().max() < 0.3
    torch.testing.assert_close((TURN.T @ c2w[:, :, 1].double().T)[1], torch.ones(20).double(), atol=0.05, rtol=0)


def test_between_is_not_through_the_middle():
    """Cameras all around: the way between two that look 45 degrees apart stays away from the center."""
    camera = lens(paths.orbit(72, 4.0, 0.0))
    radius = paths.random_between(camera, 2000).c2w[:, :, 3].norm(dim=-1)
    assert 4 * np.cos(np.deg2rad(22.5)) < radius.min() < 4 * np.cos(np.deg2rad(20))
    ends = Camera.from_fov(paths.orbit(2, 4.0, 0.0), 0.7, 8, 8)
    assert paths.random_between(ends, 99).c2w[:, :, 3].norm(dim=-1).min() < 0.2  # there is no other


@pytest.mark.parametrize("how", ["orbit", "forward", "between"])
def test_each_trajectory_has_random_poses_of_its_own(how):
    c2w = {"orbit": paths.hemisphere(30, 4.0), "forward": array(), "between": demo_handheld.rig()[0].c2w}[how]
    drawn = paths.random_cameras(lens(c2w), 200, paths.FOLLOWING[how]).c2w
    low, high = c2w[:, :, 3].aminmax(dim=0)
    margin = 0.06 * (high - low)
    assert bool(((drawn[:, :, 3] >= low - margin) & (drawn[:, :, 3] <= high + margin)).all())
