"""The Instant-NGP field: sizes, units, gradients, and rays in the scene's units."""

import math

import pytest
import torch

from nelf.cameras import Camera
from nelf.data.blender import read_scene
from nelf.fields import NGP, RadianceField
from nelf.rays import Rays

SMALL = {"levels": 4, "log2_table": 12, "finest_resolution": 64, "grid_resolution": 16, "max_samples": 64}


def test_parameters_are_ngp_pls() -> None:
    """What tiny-cuda-nn counts at scale 0.5: 11,445,040 in the grid, 3,072 for density, 7,168 - 13 * 64 for color."""
    field = NGP()
    assert field.encoding.table.numel() == 11_445_040
    assert sum(p.numel() for p in field.density_net.parameters()) == 3072
    assert sum(p.numel() for p in field.color_net.parameters()) == 7168 - 13 * 64  # tiny-cuda-nn pads 3 to 16
    assert NGP(scale=4.0).encoding.table.numel() == 13_074_912
    assert field.sampler.step == pytest.approx(math.sqrt(3) / 1024)
    assert field.sampler.grid.threshold == pytest.approx(0.01 * 1024 / math.sqrt(3))


def test_gradient_reaches_every_parameter() -> None:
    field = NGP(**SMALL).train()
    rays_o, rays_d = torch.tensor([[0.0, 0.0, 2.0]]).repeat(64, 1), torch.tensor([[0.0, 0.0, -1.0]]).repeat(64, 1)
    (out,) = field.render_rays(Rays(rays_o + 0.3 * torch.randn(64, 3), rays_d))
    out.rgb.square().sum().backward()
    for name, parameter in field.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_density_is_a_truncated_exponential() -> None:
    field = NGP(**SMALL, low_precision=False)
    positions = torch.rand(100, 3) - 0.5
    sigma, features = field.density(positions)
    torch.testing.assert_close(sigma, features[:, 0].exp())


def test_low_precision_is_close() -> None:
    field = NGP(**SMALL, low_precision=False)
    torch.nn.init.normal_(field.encoding.table)
    positions, viewdirs = torch.rand(200, 3) - 0.5, torch.nn.functional.normalize(torch.randn(200, 3), dim=-1)
    full = field.rgb(positions, viewdirs)
    field.low_precision = True
    assert (field.rgb(positions, viewdirs) - full).abs().max() < 0.03


def test_one_viewdir_per_ray_or_per_sample_is_the_same() -> None:
    field = NGP(**SMALL, low_precision=False)
    rays, index = Rays(torch.zeros(5, 3), torch.randn(5, 3)), torch.tensor([0, 0, 3, 4, 4, 4])
    _, features = field.density(torch.rand(6, 3) - 0.5)
    expected = field.color(features, rays.viewdirs[index])
    torch.testing.assert_close(field.color_along(features, rays, index), expected)
    torch.testing.assert_close(RadianceField.color_along(field, features, rays, index), expected)


class _Ball(NGP):
    """A ball of radius 1 in scene units, colored by position."""

    def density(self, positions, controls=None):  # type: ignore[no-untyped-def]
        scene = self.to_scene(positions)
        return (scene.norm(dim=-1) < 1.0) * 1e5, scene

    def color_along(self, features, rays, ray_indices):  # type: ignore[no-untyped-def]
        return (features / 3 + 0.5).clamp(0, 1)


def test_render_is_in_scene_units(tiny_scene) -> None:  # type: ignore[no-untyped-def]
    """Depth is z-depth, the ball is where it is, the rest is background; a box off the origin changes nothing."""
    scene = read_scene(tiny_scene)
    scene.aabb = torch.tensor([-1.2, -1.3, -1.1, 1.5, 1.2, 1.4])
    field = _Ball(**{**SMALL, "max_samples": 512})
    field.prepare(scene.geometry)
    camera = Camera.from_fov(scene.test.camera[0].c2w, 0.7, 40, 20)
    out = field.eval().render(camera)
    assert out.rgb.shape == (20, 40, 3)
    assert out.depth is not None
    assert out.opacity is not None
    rays = camera.rays()
    length = rays.directions.norm(dim=-1)
    viewdirs = rays.directions / length[..., None]
    closest = -(rays.origins * viewdirs).sum(-1)
    inside = 1.0 - ((rays.origins**2).sum(-1) - closest**2)
    z_depth = (closest - inside.clamp(min=0).sqrt()) / length
    hit, miss = inside > 0.05, inside < -0.05
    assert hit.any()
    step = field.sampler.step * float(field.unit)
    assert (out.depth - z_depth)[hit].abs().max() < 1.5 * step
    torch.testing.assert_close(out.rgb[miss], torch.ones_like(out.rgb[miss]))


def test_render_rays_uses_the_same_samples_as_render(tiny_scene) -> None:  # type: ignore[no-untyped-def]
    scene = read_scene(tiny_scene)
    field = NGP(**SMALL, low_precision=False)
    torch.nn.init.normal_(field.encoding.table, std=2.0)
    field.prepare(scene.geometry)
    field.eval()
    camera = scene.test.camera[0]
    rays = camera.rays()
    with torch.no_grad():
        (out,) = field.render_rays(rays.reshape(-1))
    expected = out.rgb + (1 - out.opacity)[:, None]
    rendered = field.render(camera).rgb.view(-1, 3)
    assert len(out.samples.t_starts) > 1000
    assert (rendered - expected.clamp(0, 1)).abs().max() < 2e-3  # the renderer stops a ray at 1e-3


def test_one_that_learned_from_corners_of_pixels_is_asked_for_them(tiny_scene) -> None:  # type: ignore[no-untyped-def]
    """Half a pixel of an image of 8 is one of 16: what was pixel (i, j) is pixel (i + 1, j + 1)."""
    field = NGP(**SMALL, low_precision=False)
    torch.nn.init.normal_(field.encoding.table, std=2.0)
    field.prepare(read_scene(tiny_scene).geometry)
    camera = read_scene(tiny_scene).test.camera[0]
    before = field.render(camera).rgb
    field.ray_shift = 0.5 / 8
    shifted = field.render(camera).rgb
    torch.testing.assert_close(shifted[1:, 1:], before[:-1, :-1], atol=1e-3, rtol=0)
    assert (shifted - before).abs().max() > 0.01


def test_sigma_and_rgb_are_the_field_s_in_scene_units() -> None:
    """A box off the origin, four units wide: a density per scene unit is a quarter of one per unit of the field."""
    field = NGP(**SMALL, low_precision=False)
    torch.nn.init.normal_(field.encoding.table)
    field.center.copy_(torch.tensor([1.0, -2.0, 0.5]))
    field.unit.fill_(4.0)
    positions = (torch.rand(300, 3) - 0.5) * 3.9 + field.center
    viewdirs = torch.nn.functional.normalize(torch.randn(300, 3), dim=-1)
    sigma, features = field.density((positions - field.center) / 4)
    rgb = field.color(features, viewdirs)
    torch.testing.assert_close(field.sigma(positions), sigma / 4)
    torch.testing.assert_close(field.rgb(positions, viewdirs), rgb)


def test_sigma_is_zero_where_the_occupancy_grid_is_empty_and_outside() -> None:
    field = NGP(**SMALL, low_precision=False)
    field.unit.fill_(2.0)
    field.sampler.grid.occupied[0, 8:] = False  # x > 0
    positions = torch.rand(300, 3) * 1.98 - 0.99
    assert torch.equal(field.sigma(positions) > 0, positions[:, 0] < 0)
    assert not field.sigma(torch.tensor([[-1.01, 0.0, 0.0], [0.0, 5.0, 0.0]])).any()
