"""Normalized device coordinates, against the formulas of NeRF's appendix C in 64 bits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from nelf.cameras import Camera
from nelf.fields.base import RadianceField
from nelf.fields.samplers import StratifiedSampler
from nelf.paths import look_at
from nelf.rays import NDC
from nelf.scene import Geometry

WIDTH, HEIGHT, FOCAL, NEAR = 24, 18, 20.0, 1.0


@pytest.fixture
def cameras():
    """Five that look about along -z from around the origin: some before it, some behind, and none straight."""
    position = torch.tensor([[0.1, 0.2, 0.0], [-0.4, 0.1, 0.3], [0.5, -0.3, -0.2], [0.0, 0.0, 0.4], [0.2, 0.4, -0.5]])
    target = position + torch.tensor([[0.0, 0.1, -1.0], [0.2, 0, -1], [-0.3, 0.1, -1], [0, 0, -1], [0.1, -0.2, -1]])
    c2w = torch.stack([look_at(*pair, torch.tensor([0.1, 1.0, 0.0])) for pair in zip(position, target, strict=True)])
    intrinsics = torch.tensor([FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2]).expand(5, 4)
    return Camera(c2w, intrinsics, WIDTH, HEIGHT, ndc=NDC(NEAR, WIDTH / (2 * FOCAL), HEIGHT / (2 * FOCAL)))


def in_scene(cameras):
    rays = replace(cameras, ndc=None).rays()
    return rays.origins.double().numpy(), rays.directions.double().numpy()


def pi(points):
    """The appendix's projection: eq. 8 to 21, with its a and b, for a far plane at infinity."""
    x, y, z = np.moveaxis(points, -1, 0)
    a_x, a_y = -FOCAL / (WIDTH / 2), -FOCAL / (HEIGHT / 2)
    return np.stack([a_x * x / z, a_y * y / z, 1 + 2 * NEAR / z], -1)


def test_rays_are_those_of_the_appendix(cameras):
    o, d = in_scene(cameras)
    o = o - ((NEAR + o[..., 2]) / d[..., 2])[..., None] * d  # eq. 28: to the near plane
    a_x, a_y = -FOCAL / (WIDTH / 2), -FOCAL / (HEIGHT / 2)
    ox, oy, oz = np.moveaxis(o, -1, 0)
    dx, dy, dz = np.moveaxis(d, -1, 0)
    origins = np.stack([a_x * ox / oz, a_y * oy / oz, 1 + 2 * NEAR / oz], -1)
    directions = np.stack([a_x * (dx / dz - ox / oz), a_y * (dy / dz - oy / oz), -2 * NEAR / oz], -1)
    rays = cameras.rays()
    np.testing.assert_allclose(rays.origins.numpy(), origins, atol=2e-6)
    np.testing.assert_allclose(rays.directions.numpy(), directions, atol=4e-6)
    np.testing.assert_allclose(rays.viewdirs.numpy(), d / np.linalg.norm(d, axis=-1, keepdims=True), atol=1e-6)


@pytest.mark.parametrize("beyond", [0.0, 0.3, 2.0, 40.0])
def test_points_of_a_ray_stay_points_of_the_ray(cameras, beyond):
    """A step ``beyond`` the near plane is t = 1 - o_z / (o_z + t d_z) of the ray in NDC."""
    o, d = in_scene(cameras)
    start = -(NEAR + o[..., 2]) / d[..., 2]
    expected = pi(o + (start + beyond)[..., None] * d)
    t = 1 - (-NEAR) / (-NEAR + beyond * d[..., 2])
    rays = cameras.rays()
    np.testing.assert_allclose(rays.origins.numpy() + t[..., None] * rays.directions.numpy(), expected, atol=4e-6)


def test_points_go_there_and_back(cameras):
    ndc, draw = cameras.ndc, np.random.default_rng(0)
    positions = np.stack([*draw.normal(0, 2, (2, 200)), -draw.uniform(0.3, 30, 200)], -1)
    points = ndc.points(torch.from_numpy(positions))
    np.testing.assert_allclose(points.numpy(), pi(positions), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(ndc.positions(points).numpy(), positions, rtol=1e-9)
    infinity = ndc.positions(torch.tensor([[0.0, 0.0, 1.0]]))
    assert torch.isfinite(infinity).all()
    assert infinity[0, 2] < -1e5


@pytest.mark.parametrize("lens", [None, torch.tensor([0.05, 0.01, 0.0, 0.002, -0.003, 0.4])])
def test_project_is_the_inverse_of_rays(cameras, lens):
    camera = replace(cameras[2], lens=lens)
    t = torch.rand(HEIGHT, WIDTH) * 0.98
    rays = camera.rays()
    points = rays.origins + t[..., None] * rays.directions
    x, y, found = camera.project(points.view(-1, 3))
    columns, rows = torch.meshgrid(torch.arange(WIDTH) + 0.5, torch.arange(HEIGHT) + 0.5, indexing="xy")
    torch.testing.assert_close(x.view_as(t), columns, atol=2e-3, rtol=0)
    torch.testing.assert_close(y.view_as(t), rows, atol=2e-3, rtol=0)
    torch.testing.assert_close(found.view_as(t), t, atol=1e-5, rtol=0)


def test_what_is_beyond_infinity_or_before_the_near_plane_is_behind(cameras):
    x, y, z = torch.zeros(3), torch.zeros(3), torch.tensor([1.2, 5.0, -1.1])
    assert (cameras[0].project(torch.stack([x, y, z], -1))[2] <= 0).all()


def test_z_depth_is_the_scene_s(cameras):
    camera = cameras[1]
    depth = 1.5 + 20 * torch.rand(HEIGHT, WIDTH)
    points = camera.unproject(depth)
    o, d = in_scene(camera)
    np.testing.assert_allclose(points.numpy(), pi(o + depth.double().numpy()[..., None] * d), atol=4e-6)
    t = camera.project(points.view(-1, 3))[2].view_as(depth)
    torch.testing.assert_close(camera.z_depth(t), depth, rtol=1e-4, atol=0)


def test_cameras_keep_their_ndc_and_share_it(cameras):
    ndc = cameras.ndc
    for camera in (cameras[1], cameras.resized(12), cameras.padded(8), cameras.pinhole(), cameras.at(0.5)):
        assert camera.ndc == ndc
    assert Camera.cat([cameras, cameras]).ndc == ndc
    assert Camera.stack([cameras[0], cameras[1]]).ndc == ndc
    with pytest.raises(ValueError, match="rays run in one space"):
        Camera.cat([cameras, replace(cameras, ndc=None)])


class Wall(RadianceField):
    """Dense from z = -3 of the scene on, in the color of where it is seen from."""

    def __init__(self, ndc):
        super().__init__(StratifiedSampler(512))
        self.ndc = ndc

    def density(self, positions, controls=None):
        z = self.ndc.positions(self.to_scene(positions))[:, 2]
        return torch.where(z < -3.0, 2000.0, 0.0), positions

    def color(self, features, viewdirs, view=None):
        return 0.5 + 0.5 * viewdirs


def test_a_field_that_lives_in_ndc_is_drawn_with_the_scene_s_directions_and_depth(cameras):
    field = Wall(cameras.ndc)
    field.prepare(Geometry(torch.tensor([-2.0, -2, -1, 2, 2, 1]), 0.0, 1.0, cameras, torch.zeros(3)))
    for camera in (cameras[1], cameras[4]):
        o, d = in_scene(camera)
        drawn = field.render(camera)
        np.testing.assert_allclose(drawn.depth.numpy(), (-3.0 - o[..., 2]) / d[..., 2], rtol=6e-3)
        viewdirs = d / np.linalg.norm(d, axis=-1, keepdims=True)
        np.testing.assert_allclose(drawn.rgb.numpy(), 0.5 + 0.5 * viewdirs, atol=1e-4)
