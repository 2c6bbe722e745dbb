"""The Instant-NGP field: sizes, units, gradients, and rays in the scene's units."""

import math
from dataclasses import replace

import pytest
import torch

from nelf.cameras import Camera
from nelf.data.blender import read_scene
from nelf.errors import UserError
from nelf.fields import NGP, RadianceField
from nelf.fields.ngp import contracted
from nelf.kernels import gpu
from nelf.paths import look_at
from nelf.rays import Rays
from nelf.scene import Geometry

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


@pytest.mark.parametrize("ahead", [False, True])
def test_render_rays_uses_the_same_samples_as_render(tiny_scene, monkeypatch, ahead: bool) -> None:  # type: ignore[no-untyped-def]
    """On a GPU, too, where colors are computed of samples that no light reaches, and rays are in larger parts."""
    monkeypatch.setattr(gpu, "asynchronous", lambda device: ahead)
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


def test_contraction_is_that_of_mip_nerf_360_in_units_of_the_box() -> None:
    """In units of the half-size, (2 - 1 / r) x / r beyond r = 1; its inverse is r = 1 / (2 - r')."""
    positions = torch.randn(2000, 3, dtype=torch.float64) * torch.logspace(-1, 4, 2000, dtype=torch.float64)[:, None]
    inside = positions.abs().amax(-1) <= 0.5
    assert 100 < int(inside.sum()) < 1900
    drawn = contracted(positions)
    torch.testing.assert_close(drawn[inside], positions[inside])
    outer, radius = 2 * drawn[~inside], 2 * drawn[~inside].abs().amax(-1, keepdim=True)
    assert ((radius > 1) & (radius < 2)).all()
    torch.testing.assert_close(0.5 * outer / radius / (2 - radius), positions[~inside], rtol=1e-6, atol=0)
    # No step and no hole: far neighbors are near, those at the face of the box as far as they are.
    steps = torch.linspace(0.3, 0.7, 401, dtype=torch.float64)[:, None] * torch.tensor([1.0, -0.4, 0.9]).double()
    lengths = contracted(steps).diff(dim=0).norm(dim=-1) / steps.diff(dim=0).norm(dim=-1)
    assert lengths.max() < 1 + 1e-9
    assert lengths.min() > 0.25


def test_a_contracting_field_has_the_hash_grid_of_twice_the_box_and_sees_beyond_it() -> None:
    field, plain = NGP(**SMALL, scale=16.0, contract=True, low_precision=False), NGP(**SMALL, low_precision=False)
    assert field.encoding.table.shape == NGP(**SMALL, scale=1.0).encoding.table.shape
    torch.nn.init.normal_(field.encoding.table)
    plain.encoding, plain.density_net, plain.covered = field.encoding, field.density_net, 1.0
    near = torch.rand(200, 3) - 0.5
    torch.testing.assert_close(field.density(near)[0], plain.density(near)[0])
    far = torch.tensor([[12.0, 1.0, -3.0], [3.0, 15.0, 2.0]])
    torch.testing.assert_close(field.density(far)[0], plain.density(contracted(far))[0])
    assert len(field.sampler.grid.density) == 6
    with pytest.raises(ValueError, match=r"`scale` to be above 0\.5 with `contract`, but got 0\.5"):
        NGP(**SMALL, contract=True)


class _Shell(NGP):
    """Opaque beyond a largest coordinate of 10, colored by direction; nothing before it."""

    def density(self, positions, controls=None):  # type: ignore[no-untyped-def]
        return (positions.abs().amax(-1) > 10.0) * 1e3, positions

    def color_along(self, features, rays, ray_indices):  # type: ignore[no-untyped-def]
        return 0.5 + 0.5 * torch.nn.functional.normalize(features, dim=-1)


@pytest.mark.parametrize("contract", [True, False])
def test_what_is_far_is_found_in_few_samples_whatever_the_scale(contract: bool) -> None:
    """Steps grow with the distance, so a ray gets through; its end is opaque, and its depth is right to a step."""
    field = _Shell(**{**SMALL, "max_samples": 128}, scale=16.0, contract=contract).eval()
    assert field.sampler.cone == 4 / 128
    for step in (0, 16, 32):
        field.before_step(step)  # what is near is known to be empty
    directions = torch.nn.functional.normalize(torch.randn(200, 3), dim=-1)
    (out,) = field.render_rays(Rays(0.1 * torch.randn(200, 3), directions))
    assert torch.bincount(out.samples.ray_indices).max() <= 128
    torch.testing.assert_close(out.opacity, torch.ones(200), atol=1e-3, rtol=0)
    torch.testing.assert_close(out.rgb, 0.5 + 0.5 * directions, atol=0.05, rtol=0)
    wall = 10.0 / directions.abs().amax(-1)  # of a camera in the middle
    assert ((out.depth / wall - 1).abs() < 0.15).all()


@pytest.mark.parametrize(("focal", "expected"), [(120.0, 52), (1e6, 256), (1.0, 32)])
def test_without_a_number_of_samples_a_step_is_two_pixels_long(focal: float, expected: int) -> None:
    """Cameras 4 away from the middle of a box of side 2 see pixels of 4 / 120; its diagonal is 104 of them."""
    field = NGP(**{**SMALL, "max_samples": None})
    directions = torch.nn.functional.normalize(torch.randn(9, 3), dim=-1)
    middle, box = torch.tensor([5.0, -2.0, 1.0]), torch.tensor([4.0, -3.0, 0.0, 6.0, -1.0, 2.0])
    cameras = Camera(look_at(middle + 4 * directions, middle), torch.tensor([focal, focal, 4, 4]).repeat(9, 1), 8, 8)
    field.prepare(Geometry(box, 1.0, 9.0, cameras, torch.ones(3)))
    assert field.sampler.max_samples == expected
    assert field.sampler.step == pytest.approx(math.sqrt(3) / expected)
    assert field.sampler.grid.threshold == pytest.approx(0.01 * expected / math.sqrt(3))
    again = NGP(**{**SMALL, "max_samples": None})
    again.load_state_dict(field.state_dict())
    assert again.sampler.max_samples == expected
    given = NGP(**SMALL)
    assert given.state_dict().keys() == field.state_dict().keys() - {"sampler.most"}


def test_rays_that_leave_an_unbounded_field_end_in_the_background() -> None:
    """Nothing anywhere: the picture is the scene's own background, and says that it is not opaque."""
    field = NGP(**SMALL, scale=8.0, contract=True)
    cameras = Camera.from_fov(torch.eye(3, 4)[None], 1.0, 8, 8)
    box = torch.tensor([-1.0, -1, -1, 1, 1, 1])
    field.prepare(Geometry(box, 0.1, 100.0, cameras, torch.tensor([0.1, 0.2, 0.3])))
    field.sampler.grid.occupied.zero_()
    out = field.eval().render(cameras[0])
    assert out.opacity is not None
    assert not out.opacity.any()
    torch.testing.assert_close(out.rgb, torch.tensor([0.1, 0.2, 0.3]).expand(8, 8, 3))


def test_codes_take_up_different_exposures() -> None:
    """Colors that each of eight views darkens: without codes, nothing is nearer than the spread of the factors."""
    gains, features, base = torch.linspace(0.3, 1.0, 8), torch.randn(16, 16), 0.2 + 0.6 * torch.rand(16, 3)
    view, viewdirs = torch.arange(8).repeat_interleave(16), torch.tensor([0.0, 0.0, 1.0]).expand(128, 3)
    target = gains[view, None] * base.repeat(8, 1)
    least = float(base.square().mean() * gains.var(unbiased=False))
    error = {}
    for codes in (0, 4):
        field = NGP(**SMALL, appearance=codes, low_precision=False)
        learned = list(field.color_net.parameters())
        if field.appearance is not None:
            field.appearance.resize(8)
            learned += list(field.appearance.parameters())
        adam = torch.optim.Adam(learned, lr=1e-2)
        for _ in range(300):
            loss = (field.color(features.repeat(8, 1), viewdirs, view) - target).square().mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
        error[codes] = float(loss.detach())
    assert error[0] > 0.99 * least
    assert error[4] < 0.1 * least


def test_each_training_view_has_its_code_and_no_view_the_mean(tiny_scene) -> None:  # type: ignore[no-untyped-def]
    scene = read_scene(tiny_scene)
    field = NGP(**SMALL, appearance=3, low_precision=False)
    field.prepare(scene.geometry)
    assert field.appearance is not None
    assert field.appearance.rows.shape == (8, 3)
    torch.nn.init.normal_(field.appearance.rows)
    features, along = torch.randn(4, 16), Rays(torch.zeros(2, 3), torch.randn(2, 3), view=torch.tensor([5, 2]))
    index = torch.tensor([0, 1, 1, 1])
    own = field.color(features, along.viewdirs[index], torch.tensor([5, 2, 2, 2]))
    torch.testing.assert_close(field.color_along(features, along, index), own)
    mean = field.color(features, along.viewdirs[index])
    assert (own - mean).abs().max() > 1e-3
    with torch.no_grad():
        field.appearance.rows.copy_(field.appearance.rows.mean(0).expand(8, -1))
    torch.testing.assert_close(field.color(features, along.viewdirs[index], index), mean)
    geometry = scene.geometry
    with pytest.raises(UserError, match=r"^model.appearance: the views of this scene have no numbers; allowed: 0\.$"):
        field.prepare(replace(geometry, cameras=replace(geometry.cameras, view=None)))
