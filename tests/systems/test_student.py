"""Student: its windows and backgrounds, its learning rates, and that it learns, stops and goes on."""

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import timer

from nelf import paths
from nelf.cameras import Camera
from nelf.data import BlenderDataModule, ImageBatch, SceneDataModule, read_scene
from nelf.data.batches import Batches
from nelf.errors import UserError
from nelf.lightfields import GridR2L, LightField, MobileR2L
from nelf.rays import Rays
from nelf.scene import Split
from nelf.systems import Student
from nelf.systems.schedule import training_progress


def grid(**changes: object) -> GridR2L:
    return GridR2L(**{"width": 16, "depth": 4, "resolution": 24, "features": 4, **changes})


def trainer(**changes: object) -> pl.Trainer:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return pl.Trainer(**{"accelerator": "cpu", "max_steps": 10, **quiet, **changes})  # type: ignore[arg-type]


def batch(views: int = 3, width: int = 12, height: int = 8) -> ImageBatch:
    c2w = torch.eye(3, 4).repeat(views, 1, 1)
    return ImageBatch(Camera.from_fov(c2w, 0.7, width, height), torch.randint(256, (views, height, width, 4)).byte())


class Part(GridR2L):
    """A light field that says where in an image something may be."""

    rectangle = (0, 0, 40, 24)

    def extent(self, camera: Camera) -> tuple[int, int, int, int]:
        return self.rectangle


def located(views: int, width: int, height: int) -> ImageBatch:
    """Images whose red and green say where a pixel is, blue which view it is of; every view has a camera of its own."""
    c2w = paths.random_mobile_r2l(views, radius=4.0, seed=3)
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    rgba = [np.stack([x, y, 0 * x + view, 0 * x + 255], -1).astype(np.uint8) for view in range(views)]
    return ImageBatch(Camera.from_fov(c2w, 0.7, width, height), torch.from_numpy(np.stack(rgba)))


@pytest.mark.parametrize(("crop", "size"), [(None, (36, 20)), (12, (12, 12)), (15, (12, 12)), (1000, (36, 20))])
def test_rays_and_pixels_of_a_window_belong_together(crop: int | None, size: tuple[int, int]) -> None:
    views, student = located(8, 40, 24), Student(grid(sr_factor=4), crop=crop)
    rays, rgba, _ = student._opened(student._windows(views))
    assert rgba.shape == (8, size[1], size[0], 4)
    assert rays.origins.shape == rays.directions.shape == (8, size[1], size[0], 3)
    column, row, view = (rgba[..., :3] * 255).round().long().unbind(-1)
    assert torch.equal(view, torch.arange(8)[:, None, None].expand_as(view))
    whole = views.camera.rays()
    torch.testing.assert_close(rays.directions, whole.directions[view, row, column], atol=1e-5, rtol=0)
    torch.testing.assert_close(rays.origins, whole.origins[view, row, column])
    starts = torch.stack([column[:, 0, 0], row[:, 0, 0]], -1)
    assert len(starts.unique(dim=0)) > 3  # each view has a place of its own
    assert (starts % 4 > 0).any()  # and a pixel is seen in any place of a block


def test_rays_of_whole_blocks_get_their_windows_too() -> None:
    mobile = MobileR2L(width=8, depth=4, sr_factor=4, sr_kernels=(8, 8))
    student = Student(mobile, crop=16)
    rays, rgba, _ = student._opened(student._windows(located(3, 40, 24)))
    assert rays.directions.shape == (3, 4, 4, 3)
    assert rgba.shape == (3, 16, 16, 4)


@pytest.mark.parametrize(
    ("rectangle", "crop"), [((0, 0, 40, 24), 12), ((9, 4, 31, 20), 12), ((0, 6, 10, 24), 12), ((30, 1, 34, 5), 12)]
)
def test_every_pixel_of_the_extent_is_seen_about_as_often(rectangle: tuple[int, int, int, int], crop: int) -> None:
    """Along a side, the first and the last pixel about half as often as the middle; so a corner a quarter."""
    network = Part(width=8, depth=4, resolution=4, features=4, sr_factor=2)
    network.rectangle = rectangle
    student, views = Student(network, crop=crop), located(1, 40, 24)
    seen = torch.zeros(24, 40)
    for _ in range(3000):
        _, rgba, _ = student._opened(student._windows(views))
        x, y = (rgba[0, 0, 0, :2] * 255).round().long().tolist()
        seen[y : y + crop, x : x + crop] += 1
    x0, y0, x1, y1 = rectangle
    inside = seen[y0:y1, x0:x1]
    assert float(inside.min()) > 0.2 * float(inside.mean())
    assert float(inside.max()) < 2.6 * float(inside.mean())


def test_backgrounds() -> None:
    """Half of the views with alpha lie over any color, opaque ones over the scene's."""
    student, views = Student(grid()), torch.full((400, 2, 2, 4), 255, dtype=torch.uint8)
    views[::2, 1, 0, 3] = 254
    student.background_rgb.zero_()
    transparent = (views[..., 3] < 255).flatten(1).any(1)
    colors = student._backgrounds(400, transparent)
    own = (colors == 0).all(-1)
    assert own[1::2].all()
    assert 70 < int(own[::2].sum()) < 130
    drawn = colors[~own]
    assert float((drawn.mean(0) - 0.5).abs().max()) < 0.1
    assert float(drawn.std(0).min()) > 0.2
    student.has_alpha = False
    assert not student._backgrounds(400, transparent).any()


def test_a_network_without_opacity_never_sees_another_background() -> None:
    student = Student(MobileR2L(width=8, depth=4, sr_factor=1))
    assert (student._backgrounds(50, torch.ones(50, dtype=torch.bool)) == 1).all()


class Painted(GridR2L):
    """Draws the images of ``located`` as they are, from their rays, with some opacity."""

    def forward(self, rays: Rays) -> torch.Tensor:
        return self.picture


def test_a_picture_that_is_right_has_no_loss_whatever_the_background() -> None:
    student = Student(Painted(width=8, depth=4, resolution=4, features=4))
    student.log = lambda *rest, **options: None  # type: ignore[method-assign]
    views = batch(views=16)
    windows = student._windows(views)
    _, rgba, _ = student._opened(windows)
    student._check_progress = lambda *_: None  # type: ignore[method-assign]
    student.network.picture = torch.cat([rgba[..., :3] * rgba[..., 3:], rgba[..., 3:]], -1)  # type: ignore[assignment]
    assert float(student.training_step(windows, 0)) < 1e-12
    student.network.picture = student.network.picture * 0.9  # type: ignore[assignment, operator]
    assert float(student.training_step(windows, 0)) > 1e-4


@pytest.mark.parametrize("own", [0.999, 1.001])
def test_a_student_no_better_than_a_color_is_stopped_in_one_line(own: float) -> None:
    student = Student(grid(), warmup_steps=20, lr=0.5)
    target = torch.rand(2, 4, 4, 3)
    plain = float((target - target.mean((0, 1, 2), keepdim=True)).square().mean())
    alone = SimpleNamespace(reduce=lambda value: value)
    student.trainer = SimpleNamespace(global_step=0, strategy=alone)  # type: ignore[assignment]

    def train(error: float) -> None:
        for step in range(700):
            student.trainer.global_step = step
            student._check_progress(torch.tensor(error), target)

    with patch.object(Student, "global_step", property(lambda self: self.trainer.global_step)):
        if own < 1:
            train(own * plain)
            return
        with pytest.raises(
            UserError, match=r"after 519 steps .* no better than a single color .*system\.lr.*0\.5"
        ) as caught:
            train(own * plain)
    assert "\n" not in str(caught.value)


def test_the_error_that_stops_a_student_comes_out_of_its_training(
    tiny_scene: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nelf.systems.student.CHECKED", 6)
    monkeypatch.setattr("nelf.systems.student.CHECKED_STEPS", 4)
    student = Student(grid(), lr=1e-12, warmup_steps=0, warmup_lr=1e-12)
    student.network.low_precision = False
    torch.nn.init.constant_(student.network.tail.bias, 5.0)  # white all over, for ever
    with pytest.raises(UserError, match="no better than a single color"):
        trainer(max_steps=20).fit(student, BlenderDataModule(tiny_scene, batch="views", batch_size=2))


def test_exponential_schedule_is_the_originals() -> None:
    student = Student(grid(), lr=5e-4, warmup_lr=1e-4, warmup_steps=200, decay_steps=500_000)
    rates = {0: 1e-4, 100: 3e-4, 200: 5e-4, 500_200: 5e-5, 1_200_000: 1.99e-6, 1_600_000: 3.16e-7}
    for step, lr in rates.items():
        assert 5e-4 * student.lr_factor(step) == pytest.approx(lr, rel=2e-3)


def test_cosine_schedule_follows_the_budget(tiny_scene: Path) -> None:
    seen: list[tuple[float, float]] = []

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, *_: object) -> None:
            seen.append((training_progress(trainer), trainer.optimizers[0].param_groups[0]["lr"]))

    student = Student(grid(), lr=1e-2, warmup_lr=1e-3, warmup_steps=2, schedule="cosine")
    trainer(max_steps=8, callbacks=[Watch()]).fit(student, BlenderDataModule(tiny_scene, batch="views", batch_size=1))
    assert [progress for progress, _ in seen] == pytest.approx([k / 8 for k in range(8)])
    assert seen[0][1] == pytest.approx(1e-3)
    assert seen[4][1] == pytest.approx(1e-2 * 0.51)
    assert [lr for _, lr in seen[2:]] == sorted((lr for _, lr in seen[2:]), reverse=True)


def test_progress_counts_time_too(tiny_scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = count()  # of Lightning's timer: a hundredth of a second whenever it is asked, however slow the machine is
    monkeypatch.setattr(timer, "time", SimpleNamespace(monotonic=lambda: next(ticks) / 100))
    watch = trainer(max_steps=1_000_000, max_time={"seconds": 1})
    watch.fit(Student(grid()), BlenderDataModule(tiny_scene, batch="views", batch_size=1))
    assert training_progress(watch) == pytest.approx(1.0, abs=0.01)
    assert training_progress(trainer(max_steps=-1, max_epochs=1)) == 0.0


def test_one_view_is_learned_to_30_db(tiny_scene: Path) -> None:
    data = BlenderDataModule(tiny_scene, batch="views", batch_size=1)
    data.setup("fit")
    scene = data.scene
    one = scene.train.camera[:1]
    scene.train = type(scene.train)(one, scene.train.images[:1], scene.train.names[:1])
    student = Student(grid(), lr=5e-3, warmup_steps=10, schedule="cosine", optimizer="adam", weight_decay=0.0)
    trainer(max_steps=500).fit(student, data)
    error = student.render(scene.train.camera[0]).rgb - scene.train.rgb(0)
    assert -10 * float(error.square().mean().log10()) > 30


@pytest.mark.parametrize("network", ["grid", "mobile"])
def test_training_goes_on_where_it_stopped(network: str, tiny_scene: Path, tmp_path: Path) -> None:
    """The checkpoint holds plain values only, and the resumed run ends with the weights of the whole one."""

    def make() -> Student:
        torch.manual_seed(1)
        small = grid() if network == "grid" else MobileR2L(width=8, depth=4, sr_factor=2, sr_kernels=(8,))
        return Student(small, crop=8)

    def data() -> BlenderDataModule:
        return BlenderDataModule(tiny_scene, batch="views", batch_size=2)

    def step(seed: int) -> Iterator[pl.Callback]:
        class Seed(pl.Callback):
            def on_train_batch_start(self, trainer: pl.Trainer, *_: object) -> None:
                torch.manual_seed(seed + trainer.global_step)

        yield Seed()

    whole = make()
    trainer(max_steps=6, callbacks=list(step(5))).fit(whole, data())
    half = make()
    first = trainer(max_steps=3, callbacks=list(step(5)))
    first.fit(half, data())
    first.save_checkpoint(tmp_path / "half.ckpt")
    torch.load(tmp_path / "half.ckpt", weights_only=True)
    rest = make()
    trainer(max_steps=6, callbacks=list(step(5))).fit(rest, data(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(rest.state_dict()[name], value, msg=name)
    if network == "grid":  # as many rows as the checkpoint has, not as a new network
        assert len(rest.network.volume.density) == len(whole.network.volume.density) < 24**3


def test_the_gradient_has_a_largest_norm(tiny_scene: Path) -> None:
    norms: dict[float | None, list[float]] = {None: [], 1e-3: []}

    class Norms(pl.Callback):
        def on_before_zero_grad(self, trainer: pl.Trainer, module: pl.LightningModule, *_: object) -> None:
            parts = [values.grad.norm() for values in module.parameters() if values.grad is not None]
            if parts:
                norms[module.hparams["clip_norm"]].append(float(torch.stack(parts).norm()))

    for limit in norms:
        torch.manual_seed(0)
        student = Student(grid(), clip_norm=limit)
        trainer(max_steps=4, callbacks=[Norms()]).fit(student, BlenderDataModule(tiny_scene, batch="views"))
    assert min(norms[None]) > 2e-3
    assert norms[1e-3] == pytest.approx([1e-3] * len(norms[None]), rel=1e-3)


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_precisions(precision: str, tiny_scene: Path) -> None:
    for network in (grid(), MobileR2L(width=8, depth=4, sr_factor=2, sr_kernels=(8,))):
        run = trainer(max_steps=2, precision=precision)
        student = Student(network)
        run.fit(student, BlenderDataModule(tiny_scene, batch="views", batch_size=2))
        assert all(p.isfinite().all() for p in student.parameters())
        assert "val/psnr" in run.validate(student, BlenderDataModule(tiny_scene), verbose=False)[0]


def test_a_window_needs_pixels() -> None:
    with pytest.raises(ValueError, match=r"`crop` to be 1 or more, or None, but got 0"):
        Student(grid(), crop=0)


@pytest.mark.parametrize(("key", "word"), [("schedule", "linear"), ("optimizer", "sgd")])
def test_wrong_words_are_named(key: str, word: str) -> None:
    with pytest.raises(ValueError, match=f"`{key}`.*{word}"):
        Student(grid(), **{key: word})  # type: ignore[arg-type]


@pytest.mark.parametrize("width", [16, 13])
def test_whole_views_are_drawn_on_the_grid_that_rendering_draws_on(tiny_scene: Path, width: int) -> None:
    data = BlenderDataModule(tiny_scene, width=width, batch="views", batch_size=2)
    batch = Batches(data.scene.train, "views", 2).batch(0)
    network = MobileR2L(width=16, depth=4, sr_factor=4)
    student = Student(network, whole_views=True)
    rays, rgba, _ = student._opened(student._windows(batch))
    expected = batch.camera.padded(4).rays(4)
    assert torch.equal(rays.origins, expected.origins)
    assert torch.equal(rays.directions, expected.directions)
    assert rgba.shape == (2, 16, 16, 4)
    assert torch.equal((rgba[:, :width, :width] * 255).round().byte(), batch.rgba)


class Plane(LightField):
    """Draws where each ray goes, and learns nothing."""

    def __init__(self, batch: str, ray_shift: float) -> None:
        super().__init__()
        self.batch, self.ray_shift = batch, ray_shift  # type: ignore[assignment]
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, rays: Rays) -> torch.Tensor:
        return (0.5 + 0.5 * rays.directions).clamp(0, 1) + 0 * self.unused


@pytest.mark.parametrize("kind", ["rays", "views"])
def test_a_network_learns_from_the_rays_that_it_draws_with(kind: str, tiny_scene: Path, tmp_path: Path) -> None:
    """Its own pictures leave it nothing to learn: their error is that of 8 bits, 1 / 12 of a squared level."""
    network = Plane(kind, 0.5 / 16)
    scene = read_scene(tiny_scene)
    drawn = [network.render(scene.train.camera[index]).rgb for index in range(len(scene.train))]
    views = Split(scene.train.camera, (torch.stack(drawn) * 255).round().byte().numpy(), scene.train.names)
    student = Student(network, batch_size=8)
    found: list[float] = []
    student.log = lambda name, value, **_: found.append(float(value))  # type: ignore[method-assign]
    data = SceneDataModule(replace(scene, train=views), **student.batches)
    trainer(max_steps=1, limit_val_batches=0, default_root_dir=tmp_path).fit(student, data)
    assert found[0] > 10 * math.log10(12 * 255**2) - 2
