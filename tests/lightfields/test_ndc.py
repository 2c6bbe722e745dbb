"""Light fields of a forward-facing scene, whose rays run in normalized device coordinates."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from nelf.cameras import Camera
from nelf.fields.base import RadianceField
from nelf.fields.samplers import StratifiedSampler
from nelf.lightfields import GridR2L, MobileR2L
from nelf.rays import NDC
from nelf.scene import Geometry

WIDTH, HEIGHT, FOCAL = 48, 36, 40.0
WALL = -3.0  # z of the scene


class Wall(RadianceField):
    """Opaque from z = -3 of the scene on, with waves of color along x and y."""

    def __init__(self, ndc):
        super().__init__(StratifiedSampler(256))
        self.ndc = ndc

    def density(self, positions, controls=None):
        scene = self.ndc.positions(self.to_scene(positions))
        return torch.where(scene[:, 2] < WALL, 500.0, 0.0), scene

    def color(self, features, viewdirs, view=None):
        return paint(features)


def paint(positions):
    x, y = positions[..., 0], positions[..., 1]
    return 0.5 + 0.3 * torch.stack([(2 * x).sin(), (2 * y).cos(), (x + y).sin()], -1)


def truth(camera):
    """Color and z-depth of the wall, without any NDC."""
    rays = replace(camera, ndc=None).rays()
    depth = (WALL - rays.origins[..., 2]) / rays.directions[..., 2]
    return paint(rays.origins + depth[..., None] * rays.directions), depth


@pytest.fixture(scope="module")
def cameras():
    """Nine on a square of side 0.6, not all in one plane, that look straight ahead."""
    c2w = torch.eye(3, 4).repeat(9, 1, 1)
    c2w[:, :, 3] = torch.tensor([[0.3 * (i % 3 - 1), 0.3 * (i // 3 - 1), 0.1 * (i % 2)] for i in range(9)])
    intrinsics = torch.tensor([FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2]).expand(9, 4)
    return Camera(c2w, intrinsics, WIDTH, HEIGHT, ndc=NDC(1.0, WIDTH / (2 * FOCAL), HEIGHT / (2 * FOCAL)))


@pytest.fixture(scope="module")
def geometry(cameras):
    return Geometry(torch.tensor([-1.6, -1.8, -1.0, 1.6, 1.8, 1.0]), 0.0, 1.0, cameras, torch.zeros(3))


@pytest.fixture(scope="module")
def network(cameras, geometry):
    """A volume that has been given what the wall knows of itself, and nothing learned."""
    torch.manual_seed(0)
    teacher, network = Wall(cameras.ndc), GridR2L(width=8, depth=4, resolution=48, sr_factor=2)
    teacher.prepare(geometry)
    network.prepare(geometry, None, teacher)
    return network


def test_the_volume_begins_with_the_teacher_s_wall(network, cameras):
    for index in (0, 4, 7):
        rgb, depth = truth(cameras[index])
        drawn = network.render(cameras[index])
        assert drawn.opacity.min() > 0.97
        error = float((drawn.rgb - rgb).square().mean())
        assert -10 * math.log10(error) > 22  # another place by a tenth of the picture would be 12
        torch.testing.assert_close(drawn.depth, depth, rtol=0.15, atol=0)  # a voxel is 0.11 of it


def test_voxels_are_two_thirds_of_a_block_wherever_they_are(cameras, geometry):
    network = GridR2L(width=8, depth=4, sr_factor=2)
    network.aabb.copy_(geometry.aabb)
    # The image is two units of NDC wide, so a block of two pixels is 1/12; the box's longest side is 3.6.
    assert network._sharp(cameras, 0.67, 256) == round(3.6 / (0.67 * 2 * 2 / WIDTH))


def test_only_what_the_box_covers_is_learned(network, cameras):
    """All of an image where the box fills it, a part where it does not."""
    camera = cameras[4]
    assert network.extent(camera) == (0, 0, WIDTH, HEIGHT)
    small = GridR2L(width=8, depth=4, resolution=8)
    middle = torch.tensor([[-0.5, -0.5, -3.0], [0.5, 0.5, -4.0]])  # of the scene
    ends = camera.ndc.points(middle)
    small.aabb.copy_(torch.cat([ends.amin(0), ends.amax(0)]))
    # Its sides run through the eye of this camera: half a unit at depth 3 to the left and below, at 4 to the others.
    near, far = 0.5 / 3 * FOCAL, 0.5 / 4 * FOCAL
    expected = (WIDTH / 2 - near, HEIGHT / 2 - far, WIDTH / 2 + far, HEIGHT / 2 + near)
    assert small.extent(camera) == pytest.approx(expected, abs=1.0)


def test_directions_are_the_scene_s(network, cameras):
    """The decoder sees the direction of a block in the scene: of a camera, the same wherever it stands."""
    encoded = [network.eval().encode(cameras[index].rays()[None])[:, -16:] for index in (0, 8)]
    torch.testing.assert_close(encoded[0], encoded[1])


@pytest.mark.parametrize(("sr_factor", "width", "parameters"), [(12, 1008, 4_298_371), (6, 504, None)])
def test_mobile_r2l_draws_captures_from_the_original_s_84_by_63_rays(sr_factor, width, parameters):
    """A sixth of the width is the original's twelfth with one doubling less: 64 * 64 * 16 + 64 and two blocks fewer."""
    network = MobileR2L(sr_factor=sr_factor)
    count = sum(values.numel() for values in network.parameters())
    if parameters is None:
        # Against 12: no ConvT(64->64, 4) with its two blocks of 64, the last one 64->64 instead of 64->16.
        blocks = {channels: 2 * (2 * (channels**2 + channels) + 2 * 2 * channels) for channels in (16, 64)}
        without = 64 * 64 * 16 + 64 + blocks[64]
        wider = (64 - 16) * (64 * 9 + 1) + blocks[64] - blocks[16] + 3 * (64 - 16)
        parameters = 4_298_371 - without + wider
    assert count == parameters
    ndc = NDC(1.0, 0.618, 0.464)
    camera = Camera.from_fov(torch.eye(3, 4), 1.1, width, width * 3 // 4)
    assert replace(camera, ndc=ndc).rays(network.stride).shape == (63, 84)
    small = MobileR2L(width=8, depth=4, sr_kernels=(8, 8, 4), sr_factor=sr_factor).eval()
    assert small.render(replace(camera, ndc=ndc)).rgb.shape == (width * 3 // 4, width, 3)


def test_points_of_mobile_r2l_fill_the_ndc(cameras, geometry):
    network = MobileR2L(width=8, depth=4, sr_factor=4, sr_kernels=(8, 8)).eval()
    network.prepare(geometry)
    points = network.encode(cameras.rays(4)).unflatten(1, (8, 3))
    depths = torch.linspace(-1, 1, 8)[:, None, None]
    torch.testing.assert_close(points[:, :, 2], depths.expand(9, 8, HEIGHT // 4, WIDTH // 4))
    # The average camera's pixels are straight columns of the cube.
    across = points[4, :, 0]
    expected = (torch.arange(WIDTH // 4) + 0.5) / (WIDTH // 4) * 2 - 1
    torch.testing.assert_close(across, expected.expand(8, HEIGHT // 4, WIDTH // 4), atol=1e-5, rtol=0)


def test_a_window_of_a_view_has_the_rays_of_its_pixels(cameras):
    whole, part = cameras[3].rays(), cameras[3].window(torch.tensor([8, 4]), 16, 12).rays()
    for name in ("origins", "directions", "world_directions"):
        torch.testing.assert_close(getattr(part, name), getattr(whole, name)[4:16, 8:24])
