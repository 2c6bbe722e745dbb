"""The teacher system: it learns, keeps its step full, resumes, and refuses what it does not know."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch

from nelf.data import BlenderDataModule, RayBatch, SceneDataModule, read_scene
from nelf.data.batches import Batches
from nelf.fields import NGP, NeRF, RadianceField, StratifiedSampler
from nelf.kernels import gpu
from nelf.metrics import psnr
from nelf.rays import Rays
from nelf.scene import Split
from nelf.systems import Teacher


def small_field() -> NGP:
    return NGP(levels=4, log2_table=12, finest_resolution=64, grid_resolution=32, max_samples=64, hidden=16)


def trainer(root: Path, max_steps: int) -> pl.Trainer:
    return pl.Trainer(
        default_root_dir=root, max_steps=max_steps, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, limit_val_batches=0,
    )  # fmt: skip


@pytest.mark.parametrize("ahead", [False, True])
def test_learns_a_ball_with_its_opacity(
    ahead: bool, tiny_scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has seen it can draw; from elsewhere the ball has the right outline. Whether the host waits or not."""
    monkeypatch.setattr(gpu, "asynchronous", lambda device: ahead)
    teacher = Teacher(small_field(), lr=2e-2, samples_per_step=2**13)
    data = BlenderDataModule(tiny_scene, batch_size=1024)
    trainer(tmp_path, 200).fit(teacher, data)
    teacher.eval()
    seen, unseen = data.scene.train[3], data.scene.test[0]
    rgb = teacher.render(seen.camera).rgb
    assert float(psnr(rgb.permute(2, 0, 1)[None], seen.rgb().permute(2, 0, 1)[None])) > 25
    out = teacher.render(unseen.camera)
    assert out.opacity is not None
    alpha = torch.from_numpy(unseen.image[..., 3].copy()) / 255
    assert float((out.opacity - alpha).abs().mean()) < 0.05


def test_number_of_rays_follows_the_samples(tiny_scene: Path, tmp_path: Path) -> None:
    teacher = Teacher(small_field(), samples_per_step=4096)
    logged: dict[str, list[float]] = {"train/rays": [], "train/samples_per_ray": []}
    teacher.log = lambda name, value, **_: logged.setdefault(name, []).append(float(value))  # type: ignore[method-assign]
    trainer(tmp_path, 40).fit(teacher, BlenderDataModule(tiny_scene, batch_size=4096))
    samples = [rays * each for rays, each in zip(logged["train/rays"], logged["train/samples_per_ray"], strict=True)]
    assert samples[-1] == pytest.approx(4096, rel=0.25)


def test_on_a_gpu_as_many_rays_are_taken_as_fit(tiny_scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same loss and gradients as with these rays alone."""
    scene, found = read_scene(tiny_scene), {}
    for ahead in (True, False):
        torch.manual_seed(0)
        monkeypatch.setattr(gpu, "asynchronous", lambda device, ahead=ahead: ahead)
        regularizers = {"opacity": 1e-2, "distortion": 1e-2}
        teacher = Teacher(small_field(), background="scene", samples_per_step=2000, regularizers=regularizers)
        teacher.prepare(scene)
        teacher.eval()  # no jitter, which would differ
        logged: dict[str, float] = {}
        teacher.log = lambda name, value, logged=logged, **_: logged.update({name: float(value)})  # type: ignore[method-assign]
        batch = Batches(scene.train, "rays", 512).batch(0)
        if not ahead:
            taken = int(found[True][0]["train/rays"])
            teacher.samples_per_ray = 2000 / taken
        teacher.training_step(batch, 0).backward()
        found[ahead] = logged, [parameter.grad for parameter in teacher.parameters()]
    logged, gradients = found[True]
    used = logged["train/rays"] * logged["train/samples_per_ray"]
    assert 2000 - 64 < used <= 2000
    assert logged == pytest.approx(found[False][0], rel=1e-4)
    for got, expected in zip(gradients, found[False][1], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-6)


def test_resumes_with_the_same_numbers(tiny_scene: Path, tmp_path: Path) -> None:
    """A checkpoint loads with weights_only and holds all that a step depends on."""
    first = Teacher(small_field(), samples_per_step=2048)
    run = trainer(tmp_path, 20)
    run.fit(first, BlenderDataModule(tiny_scene, batch_size=512))
    run.save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 20
    second = Teacher(small_field(), samples_per_step=2048)
    trainer(tmp_path, 21).fit(
        second, BlenderDataModule(tiny_scene, batch_size=512), ckpt_path=str(tmp_path / "last.ckpt"), weights_only=True
    )
    assert second.samples_per_ray == pytest.approx(first.samples_per_ray, rel=0.5)
    assert second.samples_per_ray < small_field().sampler.samples_per_ray / 2
    moved = (second.network.encoding.table - first.network.encoding.table).abs().max()
    assert 0 < moved < 0.1


@pytest.mark.parametrize("has_alpha", [True, False])
def test_opaque_scenes_lie_over_their_own_background(has_alpha: bool) -> None:
    """A pixel of the background costs a teacher that draws nothing no loss; over random colors it would."""
    teacher = Teacher(small_field(), regularizers={})
    teacher.log = lambda *rest, **options: None  # type: ignore[method-assign]
    teacher.has_alpha = has_alpha
    rays_o, rays_d = torch.tensor([[0.0, 0.0, 9.0]]).repeat(64, 1), torch.tensor([[0.0, 0.0, 1.0]]).repeat(64, 1)
    loss = teacher.training_step(RayBatch(Rays(rays_o, rays_d), torch.ones(64, 4)), 0)  # opaque white, past everything
    assert (float(loss.detach()) > 0.1) == has_alpha
    assert has_alpha or float(loss.detach()) == 0.0


def test_regularizers_are_the_field_s_and_are_logged_by_name() -> None:
    with pytest.raises(ValueError, match="`regularizers` to name some of opacity, distortion, but got 'fog'"):
        Teacher(small_field(), regularizers={"fog": 1.0})
    teacher, logged = Teacher(small_field(), regularizers={"opacity": 0.0, "distortion": 0.5}), {}
    teacher.log = lambda name, value, **_: logged.update({name: float(value)})  # type: ignore[method-assign]
    rays_o, rays_d = torch.tensor([[0.0, 0.0, 4.0]]).repeat(64, 1), torch.tensor([[0.0, 0.0, -1.0]]).repeat(64, 1)
    loss = teacher.training_step(RayBatch(Rays(rays_o, rays_d), torch.rand(64, 4)), 0)
    assert "train/opacity" not in logged
    color = 10 ** (-logged["train/psnr"] / 10)
    assert logged["train/distortion"] > 0
    assert float(loss.detach()) == pytest.approx(color + 0.5 * logged["train/distortion"], rel=1e-4)


class TwoPasses(RadianceField):
    """A coarse and a fine ball of one learned color each, sampled between near and far."""

    def __init__(self) -> None:
        super().__init__(StratifiedSampler(8))
        self.fine = StratifiedSampler(24)
        self.colors = torch.nn.Parameter(torch.zeros(2, 3))
        self.asked = []

    def density(self, positions, controls=None):  # type: ignore[no-untyped-def]
        return (positions.norm(dim=-1) < 0.3) * 1e3, positions

    def color(self, features, viewdirs, view=None):  # type: ignore[no-untyped-def]
        self.asked.append(len(features))
        return torch.sigmoid(self.colors[self.number]).expand(len(features), 3)

    def render_rays(self, rays):  # type: ignore[no-untyped-def]
        here, passes = self.to_field(rays), []
        for number, sampler in enumerate((self.sampler, self.fine)):
            self.number = number
            passes.append(self.render_samples(here, sampler.sample(here, self.training)))
        return passes


def test_a_field_with_two_passes_learns_from_both(tiny_scene: Path, tmp_path: Path) -> None:
    field = TwoPasses()
    trainer(tmp_path, 30).fit(Teacher(field, lr=0.1), BlenderDataModule(tiny_scene, batch_size=256))
    assert field.colors.detach().abs().min() > 1e-4
    # Behind the first opaque sample nobody asks for a color: of 32 samples a ray, at most a few.
    assert max(field.asked) < 2 * 256
    picture = field.render(BlenderDataModule(tiny_scene).scene.test[0].camera)
    torch.testing.assert_close(
        picture.rgb[8, 8], torch.sigmoid(field.colors[1]).detach(), atol=1e-3, rtol=0
    )  # the last pass is the picture


def test_test_views_are_measured_by_lightning(tiny_scene: Path, tmp_path: Path) -> None:
    teacher, data = Teacher(small_field()), BlenderDataModule(tiny_scene)
    found = trainer(tmp_path, 1).test(teacher, data, verbose=False)[0]
    assert set(found) == {"test/psnr", "test/ssim"}


@pytest.mark.parametrize("argument", ["loss", "background", "optimizer", "schedule"])
def test_refuses_unknown_words(argument: str) -> None:
    with pytest.raises(ValueError, match=f"`{argument}` to be one of"):
        Teacher(small_field(), **{argument: "nothing"})


def small_nerf(**options: object) -> NeRF:
    layout = {"depth": 3, "width": 32, "skips": (1,), "frequencies": 5, "direction_width": 16}
    return NeRF(**{**layout, "samples": 16, "fine_samples": 16, **options})  # type: ignore[arg-type]


def test_the_default_optimizer_is_instant_ngp_s() -> None:
    found = Teacher(small_field()).optimizer()
    assert type(found) is torch.optim.Adam
    constants = {key: found.defaults[key] for key in ("lr", "betas", "eps", "weight_decay")}
    assert constants == {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-15, "weight_decay": 0.0}


@pytest.mark.parametrize(
    ("word", "kind", "constants"),
    [
        ("ngp_pl", torch.optim.Adam, {"betas": (0.9, 0.999), "eps": 1e-15}),
        ("adam", torch.optim.Adam, {"betas": (0.9, 0.999), "eps": 1e-8}),
        ("radam", torch.optim.RAdam, {"betas": (0.9, 0.999), "eps": 1e-8}),
        ("sgd", torch.optim.SGD, {"momentum": 0.9}),
    ],
)
def test_the_other_optimizers_have_the_constants_of_their_names(
    word: str, kind: type, constants: dict[str, object]
) -> None:
    found = Teacher(small_field(), lr=0.1, weight_decay=0.2, optimizer=word).optimizer()  # type: ignore[arg-type]
    assert type(found) is kind
    expected = {"lr": 0.1, "weight_decay": 0.2, **constants}
    assert {key: found.defaults[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1.0, 0.5 + 0.5 / 30 + (0.5 - 0.5 / 30) * 2**-0.5, 0.5 + 0.5 / 30, 1 / 30]),  # half a cosine to 1/30
        ({"lr_end": 0.0}, [1.0, 0.5 + 0.5 * 2**-0.5, 0.5, 0.0]),
        ({"schedule": "exponential", "lr_end": 0.0625}, [1.0, 0.5, 0.25, 0.0625]),
        ({"schedule": "steplr"}, [1.0, 0.25, 0.125, 0.125]),  # 25 of 100 steps: past 1/8 and 1/4
        ({"schedule": "steplr", "milestones": [0.3], "gamma": 0.1}, [1.0, 1.0, 0.1, 0.1]),
        (
            {"rate_every": 40},
            [
                1.0,
                1.0,
                1 / 30 + (1 - 1 / 30) * 0.5 * (1 + math.cos(0.4 * math.pi)),
                1 / 30 + (1 - 1 / 30) * 0.5 * (1 + math.cos(0.8 * math.pi)),
            ],
        ),
        ({"schedule": "poly"}, [1.0, 0.75**0.9, 0.5**0.9, 0.0]),
        ({"schedule": "poly", "power": 2.0, "warmup_steps": 50}, [0.0, 0.5 * 0.75**2, 0.25, 0.0]),
    ],
)
def test_schedules_count_the_share_of_the_training(options: dict[str, object], expected: list[float]) -> None:
    teacher = Teacher(small_field(), **options)  # type: ignore[arg-type]
    found = []
    for step in (0, 25, 50, 100):
        teacher._trainer = SimpleNamespace(max_steps=100, global_step=step, callbacks=[], world_size=1)
        found.append(teacher.lr_factor(step))
    assert found == pytest.approx(expected)


def test_a_nerf_takes_all_rays_of_a_batch_at_every_step(tiny_scene: Path, tmp_path: Path) -> None:
    teacher = Teacher(small_nerf(density_activation="relu"), optimizer="adam", samples_per_step=None)
    logged: dict[str, list[float]] = {}
    teacher.log = lambda name, value, **_: logged.setdefault(name, []).append(float(value))  # type: ignore[method-assign]
    trainer(tmp_path, 4).fit(teacher, BlenderDataModule(tiny_scene, batch_size=100))
    assert logged["train/rays"] == [100.0] * 4
    assert min(logged["train/samples_per_ray"]) < 16 + 32  # what no light reaches is not composited


@pytest.mark.parametrize("density", ["softplus", "relu"])
def test_a_nerf_does_not_collapse_to_the_background(density: str, tiny_scene: Path, tmp_path: Path) -> None:
    """A picture that is all background has the opacity and the error of an empty scene."""
    field = small_nerf(density_activation=density)
    teacher = Teacher(
        field, lr=5e-3, optimizer="adam", regularizers={}, background="scene", batch_size=96, samples_per_step=None
    )
    data = BlenderDataModule(tiny_scene, batch_size=96)
    trainer(tmp_path, 150).fit(teacher, data)
    view = data.scene.train[3]
    truth = view.rgb("white")
    white = -10 * float((truth - 1).square().mean().log10())
    drawn = teacher.render(view.camera)
    assert -10 * float((drawn.rgb - truth).square().mean().log10()) > white + 8


class Plane(RadianceField):
    """Draws where each ray goes; all of its one sample is matter."""

    def __init__(self, ray_shift: float) -> None:
        super().__init__(StratifiedSampler(1))
        self.ray_shift = ray_shift
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def density(self, positions: torch.Tensor, controls: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        return torch.full_like(positions[:, 0], 1e6), positions + 0 * self.unused

    def color(self, features: torch.Tensor, viewdirs: torch.Tensor, view: torch.Tensor | None = None) -> torch.Tensor:
        return 0.5 + 0.5 * viewdirs + 0 * features


def test_a_field_learns_from_the_rays_that_it_draws_with(tiny_scene: Path, tmp_path: Path) -> None:
    """Its own pictures leave it nothing to learn: their error is that of 8 bits, 1 / 12 of a squared level."""
    field, scene = Plane(0.5 / 16), read_scene(tiny_scene)
    field.prepare(scene.geometry)
    drawn = [field.render(scene.train.camera[index]).rgb for index in range(len(scene.train))]
    views = Split(scene.train.camera, (torch.stack(drawn) * 255).round().byte().numpy(), scene.train.names)
    teacher = Teacher(field, batch_size=1000)
    found: dict[str, float] = {}
    teacher.log = lambda name, value, **_: found.update({name: float(value)})  # type: ignore[method-assign]
    trainer(tmp_path, 1).fit(teacher, SceneDataModule(replace(scene, train=views), **teacher.batches))
    assert found["train/psnr"] > 10 * math.log10(12 * 255**2) - 2
