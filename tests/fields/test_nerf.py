"""NeRF against the published sizes, its formulas restated in float64, and a network that another project trained."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image

from nelf import paths
from nelf.cameras import Camera
from nelf.fields import GridNeRF, NeRF
from nelf.fields.nerf import CHUNK_SAMPLES, RadianceMLP
from nelf.rays import Rays
from nelf.scene import Geometry

Weights = dict[str, np.ndarray]
SMALL = {"depth": 3, "width": 16, "skips": [1], "direction_width": 8, "samples": 8, "fine_samples": 8}
FULL = {"low_precision": False}  # precision


# ------------------------------------------------------------------------------------------ the formulas, restated


def encode(x: np.ndarray, octaves: int) -> np.ndarray:
    return np.concatenate([x] + [wave(2.0**k * x) for k in range(octaves) for wave in (np.sin, np.cos)], -1)


def dense(weights: Weights, name: str, x: np.ndarray) -> np.ndarray:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0.0)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def classic(w: Weights, x: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Raw density and color of the paper's network, the position again before the fifth layer."""
    e = h = encode(x, 10)
    for layer in range(8):
        h = relu(dense(w, f"layers.{layer}", np.concatenate([e, h], -1) if layer == 4 else h))
    feature = np.concatenate([dense(w, "feature_layer", h), encode(d, 4)], -1)
    return dense(w, "density_layer", h)[..., 0], sigmoid(
        dense(w, "color_layer", relu(dense(w, "direction_layers.0", feature)))
    )


def shallow(w: Weights, x: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same of krrish94's networks, with their own names: the first layer has no activation, the feature has one."""
    h = dense(w, "layer1", encode(x, 10))
    for layer in range(3):
        h = relu(dense(w, f"layers_xyz.{layer}", h))
    feature = np.concatenate([relu(dense(w, "fc_feat", h)), encode(d, 4)], -1)
    return dense(w, "fc_alpha", h)[..., 0], sigmoid(dense(w, "fc_rgb", relu(dense(w, "layers_dir.0", feature))))


def restated(network, coarse, fine, rays, near, far, samples, fine_samples, end=1e10) -> np.ndarray:  # type: ignore[no-untyped-def]
    """Colors (N, 3) over white, with ReLU densities: equations 3 to 5 of the paper, ray by ray, in float64."""
    out = []
    for o, d in zip(rays.origins.double().numpy(), rays.directions.double().numpy(), strict=True):
        unit = d / np.linalg.norm(d)

        def march(weights, t, o=o, d=d, unit=unit):  # type: ignore[no-untyped-def]
            raw, rgb = network(weights, o + t[:, None] * d, np.broadcast_to(unit, (len(t), 3)))
            alpha = 1 - np.exp(-relu(raw) * np.append(np.diff(t), end) * np.linalg.norm(d))
            light = np.cumprod(np.append(1.0, 1 - alpha))[:-1]
            return alpha * light, rgb

        t = np.linspace(near, far, samples)
        share, _ = march(coarse, t)
        share = share[1:-1] + 1e-5
        cdf = np.append(0.0, np.cumsum(share / share.sum()))
        t = np.sort(np.append(t, np.interp(np.linspace(0, 1, fine_samples), cdf, (t[1:] + t[:-1]) / 2)))
        share, rgb = march(fine, t)
        out.append((share[:, None] * rgb).sum(0) + 1 - share.sum())
    return np.array(out)


def float64(state: dict[str, torch.Tensor]) -> Weights:
    return {name: tensor.double().numpy() for name, tensor in state.items()}


def over_white(field: NeRF, rays: Rays) -> np.ndarray:
    with torch.no_grad():
        out = field.render_rays(rays)[-1]
    return (out.rgb + 1 - out.opacity[:, None]).numpy()


def rays_at_the_origin(n: int) -> Rays:
    origins = torch.nn.functional.normalize(torch.randn(n, 3), dim=-1) * 4
    return Rays(origins, 0.2 * torch.randn(n, 3) - origins / 4)


def matter(field: NeRF) -> None:
    """Clouds here and there: random weights alone are the same nearly everywhere."""
    for network in (field.coarse, field.fine):
        for layer in network.layers:
            torch.nn.init.kaiming_normal_(layer.weight)
        weights = torch.randn_like(network.density_layer.weight)
        network.density_layer.weight.data.copy_(weights - weights.mean())
        network.color_layer.weight.data.mul_(10.0)


# ------------------------------------------------------------------------------------------ sizes and layouts


def test_parameters_are_the_paper_s() -> None:
    field = NeRF()
    assert sum(p.numel() for p in field.coarse.parameters()) == 595_844
    assert sum(p.numel() for p in field.fine.parameters()) == 595_844
    shapes = {name: tuple(tensor.shape) for name, tensor in field.fine.state_dict().items()}
    assert len(shapes) == 24
    assert shapes["layers.0.weight"] == (256, 63)
    assert shapes["layers.4.weight"] == (256, 319)
    assert shapes["direction_layers.0.weight"] == (128, 283)
    assert sum(p.numel() for p in NeRF(skips=(5,)).fine.parameters()) == 595_844  # yenchenlin's, one layer later
    assert NeRF(fine_samples=0).fine is None


def test_the_paper_s_network_and_rendering_are_their_formulas() -> None:
    field = NeRF(density_activation="relu", infinite_end=True, samples=24, fine_samples=16, **FULL).eval()
    matter(field)
    rays = rays_at_the_origin(12)
    weights = [float64(network.state_dict()) for network in (field.coarse, field.fine)]
    expected = restated(classic, *weights, rays, 2.0, 6.0, 24, 16)
    assert expected.std() > 0.1
    np.testing.assert_allclose(over_white(field, rays), expected, atol=5e-4)
    torch.nn.init.zeros_(field.fine.layers[4].weight[:, :63])  # a skip that is not there would not be missed
    assert np.abs(over_white(field, rays) - expected).max() > 0.05


KRRISH94 = {
    "layer1": "layers.0", "layers_xyz.0": "layers.1", "layers_xyz.1": "layers.2", "layers_xyz.2": "layers.3",
    "fc_alpha": "density_layer", "fc_feat": "feature_layer", "layers_dir.0": "direction_layers.0",
    "fc_rgb": "color_layer",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.data
def test_a_network_of_another_layout_draws_what_it_has_learned(data: Path) -> None:
    """128 wide, no skip, no activation after the first layer, one after the feature; trained on lego by krrish94."""
    file = data / "checkpoints" / "nerf-pytorch_lego-lowres" / "checkpoint199999.ckpt"
    stored = torch.load(file, map_location="cpu", weights_only=True)
    states = [stored[f"model_{kind}_state_dict"] for kind in ("coarse", "fine")]
    field = NeRF(
        depth=4, width=128, skips=(), direction_width=64, first_activation=False, feature_activation=True,
        density_activation="relu", infinite_end=True, samples=64, fine_samples=64, **FULL,
    ).eval()  # fmt: skip
    for network, state in zip((field.coarse, field.fine), states, strict=True):
        renamed = {f"{KRRISH94[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}": state[name] for name in state}
        network.load_state_dict(renamed)
    scene = data / "nerf_synthetic" / "lego"
    frames = json.loads((scene / "transforms_test.json").read_text())
    c2w = torch.tensor(frames["frames"][0]["transform_matrix"])[:3]
    camera = Camera.from_fov(c2w, frames["camera_angle_x"], 200, 200)
    # Its rays go through the corners of the pixels of its images, 400 wide.
    corner = camera.intrinsics + torch.tensor([0.0, 0.0, 0.25, 0.25])
    rays = replace(camera, intrinsics=corner).rays().map(lambda part: part[2::5, 2::5])

    few = rays.map(lambda part: part[18]).reshape(-1)
    expected = restated(shallow, *map(float64, states), few, 2.0, 6.0, 64, 64)
    assert expected.min() < 0.2  # lego, not only the background
    np.testing.assert_allclose(over_white(field, few), expected, atol=2e-3)

    drawn = np.concatenate([over_white(field, part) for part in rays.chunks(256)])
    with Image.open(scene / f"{frames['frames'][0]['file_path']}.png") as image:
        rgba = np.asarray(image.convert("RGBA"), dtype=np.float64) / 255
    truth = rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:]
    truth = truth.reshape(200, 4, 200, 4, 3).mean((1, 3))[2::5, 2::5].reshape(-1, 3)
    assert -10 * np.log10(((drawn.clip(0, 1) - truth) ** 2).mean()) > 27


@pytest.mark.parametrize(
    ("options", "message"),
    [({"skips": [3]}, "`skips` to name layers from 1 to 2"), ({"density_activation": "exp"}, "`density_activation`")],
)
def test_refuses_what_no_network_has(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NeRF(**{**SMALL, **options})


# ------------------------------------------------------------------------------------------ density and color


@pytest.mark.parametrize("options", [{}, {"density_activation": "relu"}, {"direction_depth": 3, "pi": True}])
def test_gradient_reaches_every_parameter_of_both_networks(options: dict[str, object]) -> None:
    field = NeRF(**SMALL, **options).train()
    matter(field)
    passes = field.render_rays(rays_at_the_origin(64))
    assert [len(each.rgb) for each in passes] == [64, 64]
    sum(each.rgb.square().sum() + each.opacity.sum() for each in passes).backward()
    for name, parameter in field.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_densities_are_a_softplus_or_a_relu_and_colors_lie_between_0_and_1() -> None:
    positions = torch.rand(50, 3)
    for raw, word, expected in ((-2.0, "softplus", np.log1p(np.exp(-2.0))), (1.5, "relu", 1.5), (-1.5, "relu", 0.0)):
        network = RadianceMLP(3, 16, (1,), density_activation=word, **FULL)  # type: ignore[arg-type]
        torch.nn.init.zeros_(network.density_layer.weight)
        torch.nn.init.constant_(network.density_layer.bias, raw)
        sigma, _ = network.density(positions)
        np.testing.assert_allclose(sigma.detach(), np.full(50, expected), rtol=1e-6)
    field = NeRF(**SMALL)
    torch.nn.init.normal_(field.fine.color_layer.weight, std=1e3)
    rgb = field.rgb(positions, torch.nn.functional.normalize(positions, dim=-1))
    assert rgb.min() >= 0
    assert 0.99 < rgb.max() <= 1


def test_noise_is_added_before_the_activation_in_training_only() -> None:
    field = NeRF(**SMALL, density_activation="relu", noise_std=0.7, **FULL)
    torch.nn.init.zeros_(field.fine.density_layer.weight)
    torch.nn.init.constant_(field.fine.density_layer.bias, 10.0)
    positions = torch.rand(20_000, 3)
    with torch.no_grad():
        noisy, _ = field.train().density(positions)
    assert float(noisy.mean()) == pytest.approx(10.0, abs=0.03)
    assert float(noisy.std()) == pytest.approx(0.7, abs=0.02)
    assert torch.equal(field.sigma(positions), torch.full((20_000,), 10.0))  # asked while training
    assert field.training


def test_low_precision_is_close() -> None:
    field = NeRF(**SMALL, **FULL)
    positions, viewdirs = torch.rand(200, 3) - 0.5, torch.nn.functional.normalize(torch.randn(200, 3), dim=-1)
    full = field.rgb(positions, viewdirs)
    field.fine.low_precision = True
    low = field.rgb(positions, viewdirs)
    assert low.dtype == torch.float32
    assert 0 < (low - full).abs().max() < 0.03


# ------------------------------------------------------------------------------------------ space and rendering


def geometry() -> Geometry:
    camera = Camera.from_fov(torch.eye(3, 4)[None], 0.7, 8, 8)
    box = torch.tensor([0.0, -2.0, 3.0, 4.0, 1.0, 4.0])
    return Geometry(box, 1.0, 7.0, camera, torch.ones(3), ())


def test_its_space_is_the_scene_s_or_has_the_box_between_minus_one_and_one() -> None:
    places = torch.tensor([[0.0, -0.5, 3.5], [4.0, -0.5, 3.5], [2.0, -0.5, 3.5]])
    field = NeRF(**SMALL, **FULL)
    field.prepare(geometry())
    rays = field.to_field(Rays(places, torch.ones(3, 3)))
    torch.testing.assert_close(rays.origins, places)
    torch.testing.assert_close(rays.near, torch.full((3,), 3**0.5))
    sigma, _ = field.density(places)
    torch.testing.assert_close(field.sigma(places), sigma)
    field = NeRF(**SMALL, pi=True, **FULL)
    field.prepare(geometry())
    rays = field.to_field(Rays(places, torch.ones(3, 3)))
    torch.testing.assert_close(rays.origins, torch.tensor([[-1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    sigma, _ = field.density(rays.origins)
    torch.testing.assert_close(field.sigma(places), sigma / 2)  # a unit of the field is two of the scene


@pytest.mark.parametrize("infinite", [False, True])
def test_a_ray_through_fog_ends_at_far_or_never(infinite: bool) -> None:
    """Fog of density 0.1 from t = 2 to one step behind 6, along a direction of length 2."""
    field = NeRF(**{**SMALL, "samples": 17}, density_activation="relu", infinite_end=infinite, **FULL).eval()
    for network in (field.coarse, field.fine):
        torch.nn.init.zeros_(network.density_layer.weight)
        torch.nn.init.constant_(network.density_layer.bias, 0.1)
    with torch.no_grad():
        (out,) = field.render_rays(Rays(torch.zeros(1, 3), torch.tensor([[0.0, 0.0, -2.0]])))
    step = 4 / 24  # of 25 points
    expected = 1.0 if infinite else 1 - np.exp(-0.1 * 2 * (4 + step))
    assert float(out.opacity) == pytest.approx(expected, abs=1e-5)
    assert 4 < float(out.depth) < 2 * (6 + step)


class Recorded(NeRF):
    """Writes down of how many positions it is asked together."""

    def __init__(self) -> None:
        super().__init__(**{**SMALL, "samples": 64, "fine_samples": 128}, **FULL)
        self.asked: list[int] = []
        for network in (self.coarse, self.fine):
            network.layers[0].register_forward_hook(lambda layer, inputs, output: self.asked.append(len(output)))


def test_an_image_of_any_size_is_rendered_in_bounded_memory() -> None:
    field = Recorded()
    matter(field)
    camera = Camera.from_fov(torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 4]]), 0.7, 40, 20)
    whole = field.render(camera)
    assert sum(field.asked) == 40 * 20 * (64 + 192)
    assert max(field.asked) <= CHUNK_SAMPLES
    assert len(field.asked) == 4  # two passes over two chunks
    field.chunk = 100
    field.asked.clear()
    parts = field.render(camera)
    assert max(field.asked) == 100 * 192
    torch.testing.assert_close(parts.rgb, whole.rgb, atol=1e-4, rtol=0)
    torch.testing.assert_close(parts.depth, whole.depth, atol=1e-3, rtol=0)


def test_rendering_is_the_same_each_time_and_training_is_not() -> None:
    field = NeRF(**SMALL, **FULL)
    matter(field)
    rays = rays_at_the_origin(16)
    first, second = (over_white(field.eval(), rays) for _ in range(2))
    assert np.array_equal(first, second)
    assert np.abs(over_white(field.train(), rays) - over_white(field.train(), rays)).max() > 1e-3


# ------------------------------------------------------------------------------------------ through an occupancy grid


class _Ball(torch.nn.Module):
    """A network that knows a ball of radius 0.8 in the scene; everything else as ``RadianceMLP``."""

    def density(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return 60.0 * (positions.norm(dim=-1) < 0.8), positions

    def color_along(self, hidden: torch.Tensor, rays: Rays, ray_indices: torch.Tensor) -> torch.Tensor:
        return 0.5 + 0.5 * hidden.clamp(-1, 1)


def test_through_a_grid_the_same_is_seen_with_a_fraction_of_the_samples() -> None:
    cameras = Camera.from_fov(paths.orbit(4, 4.0, 20.0), 0.7, 24, 24)
    box = torch.tensor([-1.4, -1.2, -1.0, 1.4, 1.2, 1.0])
    geometry = Geometry(box, 2.0, 6.0, cameras, torch.ones(3))
    layout = {**SMALL, **FULL, "samples": 256, "fine_samples": 256}
    nerf = NeRF(**layout)
    nerf.coarse = nerf.fine = _Ball()
    nerf.prepare(geometry)
    field = GridNeRF(**layout, grid_resolution=32, max_samples=512)
    field.nerf = nerf
    field.prepare(geometry)
    field.fill()
    assert 0.05 < float(field.sampler.grid.occupied.float().mean()) < 0.3
    asked: list[int] = []
    original = _Ball.density

    def counted(self: _Ball, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        asked.append(len(positions))
        return original(self, positions)

    plain = nerf.eval().render(cameras[1])
    with patch.object(_Ball, "density", counted):
        quick = field.eval().render(cameras[1])
        samples = sum(asked)
    assert samples < 24 * 24 * 100
    inside = plain.opacity > 0.99
    # Where the surface is hit at a grazing angle, the two place their samples differently.
    assert (quick.rgb - plain.rgb)[inside].abs().mean() < 0.005
    assert (quick.depth - plain.depth)[inside].abs().mean() < 0.02
    assert ((quick.opacity - plain.opacity).abs() > 0.1).float().mean() < 0.03  # along the outline only
    points = torch.rand(200, 3) * 2 - 1
    torch.testing.assert_close(field.sigma(points * 0.7), nerf.sigma(points * 0.7))


def test_a_trained_nerf_keeps_its_weights_and_its_place_behind_the_grid() -> None:
    cameras = Camera.from_fov(paths.orbit(3, 4.0, 20.0), 0.7, 8, 8)
    geometry = Geometry(torch.tensor([-1.0, -1.0, -1.0, 1.0, 1.0, 1.0]), 2.0, 6.0, cameras, torch.ones(3))
    layout = {**SMALL, **FULL, "ray_shift": 0.01}
    nerf = NeRF(**layout)
    nerf.near.fill_(2.5)
    field = nerf.through_grid(layout, geometry)
    assert isinstance(field, GridNeRF)
    assert (float(field.nerf.near), field.ray_shift) == (2.5, 0.01)
    for name, value in nerf.state_dict().items():
        assert torch.equal(field.nerf.state_dict()[name], value)
