"""GridR2L: shapes, gradients, the box it learns in, and that it learns."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nelf.cameras import Camera
from nelf.data import read_scene
from nelf.errors import UserError
from nelf.lightfields import GridR2L


def small(**changes: object) -> GridR2L:
    return GridR2L(**{"width": 8, "depth": 4, "points": 16, "resolution": 12, "features": 4, **changes})


def camera(width: int = 24, height: int = 24) -> Camera:
    c2w = torch.eye(3, 4)
    c2w[2, 3] = 4.0
    return Camera.from_fov(c2w, 0.7, width, height)


@pytest.mark.parametrize("sr_factor", [1, 2, 4, 12])
def test_shapes_and_ranges_of_a_wide_image(sr_factor: int) -> None:
    picture = small(sr_factor=sr_factor).render(camera(48, 24))
    assert picture.rgb.shape == (24, 48, 3)
    assert picture.depth.shape == picture.opacity.shape == (24, 48)
    for value in (picture.rgb, picture.opacity):
        assert float(value.min()) >= 0
        assert float(value.max()) <= 1


def test_forward_is_what_render_shows() -> None:
    network = small().eval()
    rays = camera().rays(stride=2)
    with torch.no_grad():
        rgb = network(rays.rays_o[None], rays.rays_d[None])
    assert rgb.shape == (1, 3, 24, 24)
    torch.testing.assert_close(rgb[0].permute(1, 2, 0), network.render(camera()).rgb)


def test_a_view_does_not_depend_on_its_batch() -> None:
    network = small().eval()
    rays = camera().rays(stride=2)
    rays_o = torch.stack([rays.rays_o, rays.rays_o + 0.1])
    rays_d = torch.stack([rays.rays_d, rays.rays_d])
    with torch.no_grad():
        torch.testing.assert_close(network(rays_o, rays_d)[1:], network(rays_o[1:], rays_d[1:]))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_gradient_reaches_every_parameter(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NELF_KERNELS", backend)
    network = small()
    rays = camera().rays(stride=2)
    network(rays.rays_o[None], rays.rays_d[None]).square().mean().backward()
    dead = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert dead == []


def test_both_backends_render_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    network = small()
    torch.nn.init.normal_(network.density, std=2.0)
    pictures = []
    for backend in ("reference", "cpu"):
        monkeypatch.setenv("NELF_KERNELS", backend)
        pictures.append(network.render(camera()))
    for expected, got in zip(*pictures, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-3)


def test_the_scene_is_fitted_once_and_travels_with_the_weights(tiny_scene: Path) -> None:
    scene = read_scene(tiny_scene)
    network = small()
    network.fit_scene(scene)
    assert float(network.near) == pytest.approx(2.5)
    assert (network.aabb.abs() <= 1.2 + 1e-6).all()
    middle = network.occupied.shape[0] // 2
    assert network.occupied[middle, middle, middle]
    box = network.aabb.clone()
    network.fit_scene(replace(scene, aabb=2 * scene.aabb))
    assert torch.equal(network.aabb, box)
    other = small()
    other.load_state_dict(network.state_dict())
    torch.testing.assert_close(other.render(camera()).rgb, network.render(camera()).rgb)


def test_arguments_win_over_the_scene(tiny_scene: Path) -> None:
    network = small(near=1.0)
    network.fit_scene(read_scene(tiny_scene))
    assert (float(network.near), float(network.far)) == (1.0, 5.5)


def test_a_factor_that_does_not_divide_the_image_is_named(tiny_scene: Path) -> None:
    with pytest.raises(UserError, match=r"model\.sr_factor: 3 does not divide .* 16 .*allowed here: 1, 2, 4, 8, 16\."):
        small(sr_factor=3).fit_scene(read_scene(tiny_scene))


def test_empty_cells_are_dropped_while_training() -> None:
    network = small()
    with torch.no_grad():
        network.density[:6] = -20.0
    rays = camera().rays(stride=2)
    for _ in range(100):
        network(rays.rays_o[None, :1, :1], rays.rays_d[None, :1, :1])
    assert not network.occupied[:5].any()
    assert network.occupied[5:].all()


def test_parameter_groups_hold_each_parameter_once() -> None:
    network = small()
    groups = network.parameter_groups(lr=1e-3, weight_decay=0.1)
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(id(p) for p in network.parameters())
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0, 0.0]
    assert groups[1]["lr"] == pytest.approx(15e-3)


@pytest.mark.parametrize("wrong", [{"depth": 3}, {"points": 0}, {"features": 0}, {"resolution": 1}, {"sr_factor": 0}])
def test_wrong_arguments_are_named(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(wrong))}`"):
        small(**wrong)
