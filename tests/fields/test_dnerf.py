"""D-NeRF against the published sizes, and against its formulas restated in float64 under the authors' names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from nelf import paths
from nelf.cameras import Camera
from nelf.data import SceneDataModule, Split
from nelf.errors import UserError
from nelf.fields import DNeRF
from nelf.rays import Rays
from nelf.scene import Geometry, Scene
from nelf.systems import Teacher

SMALL = {"depth": 3, "width": 16, "skips": [1], "direction_width": 8, "samples": 8, "fine_samples": 8}
FULL = {"low_precision": False}  # precision

Weights = dict[str, np.ndarray]

#: The authors' name of each layer, by nelf's.
NAMES = {f"deformation.layers.{layer}": f"_time.{layer}" for layer in range(8)}
NAMES |= {f"canonical.layers.{layer}": f"_occ.pts_linears.{layer}" for layer in range(8)}
NAMES |= {
    "deformation.displacement_layer": "_time_out",
    "canonical.density_layer": "_occ.alpha_linear",
    "canonical.feature_layer": "_occ.feature_linear",
    "canonical.direction_layers.0": "_occ.views_linears.0",
    "canonical.color_layer": "_occ.rgb_linear",
}


def named(field: DNeRF) -> Weights:
    """The weights of a field in float64, under the authors' names."""
    return {
        f"{NAMES[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}": values.detach().double().numpy()
        for name, values in field.named_parameters()
    }


def encode(x: np.ndarray, octaves: int = 10) -> np.ndarray:
    return np.concatenate([x] + [wave(2.0**k * x) for k in range(octaves) for wave in (np.sin, np.cos)], -1)


def dense(weights: Weights, name: str, x: np.ndarray) -> np.ndarray:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def moved(w: Weights, x: np.ndarray, t: float) -> np.ndarray:
    """The displacement at positions (S, 3): the position, and not the time, comes again after the fifth layer."""
    position = encode(x)
    h = np.concatenate([position, encode(np.full((len(x), 1), t))], -1)
    for layer in range(8):
        h = np.maximum(dense(w, f"_time.{layer}", h), 0)
        if layer == 4:
            h = np.concatenate([position, h], -1)
    return dense(w, "_time_out", h)


def restated(w: Weights, x: np.ndarray, d: np.ndarray, t: float, zero: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Density and color at positions (S, 3), seen along unit directions, at a time."""
    dx = np.zeros_like(x) if zero and t == 0 else moved(w, x, t)
    position = h = encode(x + dx)
    for layer in range(8):
        h = np.maximum(dense(w, f"_occ.pts_linears.{layer}", h), 0)
        if layer == 4:
            h = np.concatenate([position, h], -1)
    feature = np.concatenate([dense(w, "_occ.feature_linear", h), encode(d, 4)], -1)
    shaded = np.maximum(dense(w, "_occ.views_linears.0", feature), 0)
    rgb = 1 / (1 + np.exp(-dense(w, "_occ.rgb_linear", shaded)))
    return np.maximum(dense(w, "_occ.alpha_linear", h)[:, 0], 0), rgb


def drawn(w: Weights, rays: Rays, samples: int, fine_samples: int) -> np.ndarray:
    """Colors (N, 3) over white from z-depth 2 to 6, ray by ray, the last sample without an end."""
    out = []
    parts = (part.double().numpy() for part in (rays.origins, rays.directions, rays.controls))
    for o, d, c in zip(*parts, strict=True):
        unit = d / np.linalg.norm(d)

        def march(t, o=o, d=d, unit=unit, time=c[0]):  # type: ignore[no-untyped-def]
            sigma, rgb = restated(w, o + t[:, None] * d, np.broadcast_to(unit, (len(t), 3)), time)
            alpha = 1 - np.exp(-sigma * np.append(np.diff(t), 1e10) * np.linalg.norm(d))
            return alpha * np.cumprod(np.append(1.0, 1 - alpha))[:-1], rgb

        t = np.linspace(2, 6, samples)
        share, _ = march(t)
        share = share[1:-1] + 1e-5
        cdf = np.append(0.0, np.cumsum(share / share.sum()))
        t = np.sort(np.append(t, np.interp(np.linspace(0, 1, fine_samples), cdf, (t[1:] + t[:-1]) / 2)))
        share, rgb = march(t)
        out.append((share[:, None] * rgb).sum(0) + 1 - share.sum())
    return np.array(out)


def matter(field: DNeRF, motion: float = 0.1) -> DNeRF:
    """Clouds here and there that move: random weights alone are the same nearly everywhere."""
    for network in (field.canonical, field.deformation):
        for layer in network.layers:
            torch.nn.init.kaiming_normal_(layer.weight)
    weights = torch.randn_like(field.canonical.density_layer.weight)
    field.canonical.density_layer.weight.data.copy_(weights - weights.mean())
    field.canonical.color_layer.weight.data.mul_(10.0)
    field.deformation.displacement_layer.weight.data.mul_(motion)
    return field


def rays_at_the_origin(n: int) -> Rays:
    origins = torch.nn.functional.normalize(torch.randn(n, 3), dim=-1) * 4
    times = torch.rand(n, 1) * (torch.arange(n)[:, None] % 3 > 0)  # a third of them at 0
    return Rays(origins, 0.2 * torch.randn(n, 3) - origins / 4, times)


def test_parameters_are_the_originals() -> None:
    field = DNeRF()
    assert sum(p.numel() for p in field.canonical.parameters()) == 595_844
    assert sum(p.numel() for p in field.deformation.parameters()) == 499_203
    assert sum(p.numel() for p in field.parameters()) == 1_095_047
    shapes = {name: tuple(values.shape) for name, values in field.named_parameters()}
    assert shapes["deformation.layers.0.weight"] == (256, 84)
    assert shapes["deformation.layers.5.weight"] == (256, 319)
    assert shapes["deformation.displacement_layer.weight"] == (3, 256)
    assert shapes["canonical.layers.5.weight"] == (256, 319)
    assert shapes["canonical.direction_layers.0.weight"] == (128, 283)
    assert len(shapes) == 2 * len(NAMES)
    assert field.sampler.samples_per_ray == 64 + 192  # the same network is asked at both


@pytest.mark.parametrize("zero", [True, False])
def test_density_color_and_displacement_are_their_formulas(zero: bool) -> None:
    field = matter(DNeRF(zero_canonical=zero, **FULL)).eval()
    weights = named(field)
    positions = torch.randn(40, 3)
    viewdirs = torch.nn.functional.normalize(torch.randn(40, 3), dim=-1)
    for time in (0.0, 1e-6, 0.375, 1.0):
        controls = torch.tensor([time, 0.7]).expand(40, 2)  # further controls are not its own
        x, d, t = positions.double().numpy(), viewdirs.double().numpy(), float(controls[0, 0])
        sigma, rgb = restated(weights, x, d, t, zero)
        with torch.no_grad():
            dx = field.displacement(positions, controls)
        expected = np.zeros((40, 3)) if zero and time == 0 else moved(weights, x, t)
        np.testing.assert_allclose(dx, expected, atol=2e-5)
        # What is displaced is rounded to 32 bits, and the highest octave multiplies that by 512.
        np.testing.assert_allclose(field.sigma(positions, controls), sigma, atol=2e-3 * sigma.max())
        np.testing.assert_allclose(field.rgb(positions, viewdirs, controls), rgb, atol=5e-3)
        assert sigma.std() > 0.1
    still = restated(weights, x, d, 0.0, zero=True)[0]
    np.testing.assert_allclose(field.sigma(positions), still, atol=2e-3 * still.max())  # without a time: at rest


def test_it_draws_by_its_formula_rays_of_all_times_together() -> None:
    field = matter(DNeRF(samples=24, fine_samples=16, **FULL)).eval()
    rays = rays_at_the_origin(12)
    expected = drawn(named(field), rays, 24, 16)
    assert expected.std() > 0.1

    def over_white(along: Rays) -> np.ndarray:
        with torch.no_grad():
            (out,) = field.render_rays(along)
        return (out.rgb + 1 - out.opacity[:, None]).numpy()

    np.testing.assert_allclose(over_white(rays), expected, atol=2e-3)
    assert rays.controls is not None
    other = np.abs(over_white(replace(rays, controls=1 - rays.controls)) - expected).max(1)
    assert (other > 0.02).mean() > 0.5


def test_only_the_picture_has_a_loss_and_every_parameter_a_gradient() -> None:
    field = matter(DNeRF(**SMALL, density_activation="softplus", infinite_end=False, **FULL)).train()
    graphs: list[bool] = []
    field.deformation.register_forward_hook(lambda _, __, out: graphs.append(out.requires_grad))
    passes = field.render_rays(rays_at_the_origin(64))
    assert graphs == [False, True]
    assert [len(each.rgb) for each in passes] == [64]
    (passes[0].rgb.square().sum() + passes[0].opacity.sum()).backward()
    for name, parameter in field.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_without_fine_samples_the_network_is_asked_once() -> None:
    field = matter(DNeRF(**{**SMALL, "fine_samples": 0}, **FULL)).eval()
    asked: list[int] = []
    field.deformation.register_forward_hook(lambda _, __, out: asked.append(len(out)))
    with torch.no_grad():
        field.render_rays(rays_at_the_origin(5))
    assert asked == [5 * 8]


def test_what_moves_positions_stays_in_32_bits() -> None:
    field = matter(DNeRF(**SMALL, low_precision=True))
    positions, controls = torch.rand(200, 3) - 0.5, torch.rand(200, 1)
    with torch.no_grad():
        plain = field.displacement(positions, controls)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(field.displacement(positions, controls), plain)
    low = field.sigma(positions, controls)
    field.canonical.low_precision = False
    full = field.sigma(positions, controls)
    assert low.dtype == torch.float32
    assert 0 < float((low - full).abs().max()) < 0.05 * float(full.max())


def test_its_space_is_the_scene_s() -> None:
    camera = Camera.from_fov(torch.eye(3, 4)[None], 0.7, 8, 8)
    geometry = Geometry(torch.tensor([0.0, -2.0, 3.0, 4.0, 1.0, 4.0]), 1.0, 7.0, camera, torch.ones(3), ("time",))
    field = matter(DNeRF(**SMALL, **FULL))
    field.prepare(geometry)
    places, controls = torch.rand(3, 3), torch.rand(3, 1)
    torch.testing.assert_close(field.to_field(Rays(places, torch.ones(3, 3))).origins, places)
    torch.testing.assert_close(field.sigma(places, controls), field.density(places, controls)[0])


@pytest.fixture(scope="module")
def moving() -> Scene:
    """A gray disk in front of white that shifts along x with the time."""
    splits = {}
    for name, count in (("train", 16), ("val", 1), ("test", 1)):
        camera = Camera.from_fov(paths.orbit(count, 4.0, 10.0), 0.7, 12, 12)
        camera = replace(camera, controls=torch.linspace(0, 1, count)[:, None])
        images = np.full((count, 12, 12, 4), 120, np.uint8)
        places = np.arange(12)[None, None] - 5.5 - 2 * np.linspace(-1, 1, count)[:, None, None]
        images[..., 3] = 255 * (np.hypot(places, np.arange(12)[None, :, None] - 5.5) < 3)
        splits[name] = Split(camera, images, [f"{name}_{index}" for index in range(count)])
    box = torch.tensor([-1.5, -1.5, -1.5, 1.5, 1.5, 1.5])
    return Scene("disk", None, **splits, aabb=box, near=2.0, far=6.0, controls=("time",))


def trainer(root: Path, steps: int) -> pl.Trainer:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return pl.Trainer(default_root_dir=root, accelerator="cpu", max_steps=steps, limit_val_batches=0, **quiet)  # type: ignore[arg-type]


def test_it_learns_a_scene_that_moves_and_refuses_one_without_time(moving: Scene, tmp_path: Path) -> None:
    field = DNeRF(**SMALL, frequencies=4, time_frequencies=2, density_activation="softplus", infinite_end=False)
    teacher = Teacher(field, lr=5e-3, optimizer="adam", background="scene", batch_size=128, samples_per_step=None)
    seen: list[float] = []

    def error() -> float:
        views = (moving.train[index] for index in (0, 8, 15))
        each = [(teacher.render(view.camera).rgb - view.rgb("white")).square().mean() for view in views]
        return float(torch.stack(each).mean())

    teacher.network.prepare(moving.geometry)
    seen.append(error())
    trainer(tmp_path, 30).fit(teacher, SceneDataModule(moving, **teacher.batches))
    seen.append(error())
    assert seen[1] < 0.5 * seen[0]
    still = replace(moving, train=Split(moving.train.camera.at(), moving.train.images, moving.train.names))
    with pytest.raises(UserError, match=r"^disk: its training views have no time.* but DNeRF takes a time; allowed"):
        trainer(tmp_path, 1).fit(teacher, SceneDataModule(still, **teacher.batches))
