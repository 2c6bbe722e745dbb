"""Student: what it draws from a batch, its learning rates, and that it learns, stops and goes on."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import timer

from nelf.cameras import Camera
from nelf.data import BlenderDataModule, ImageBatch
from nelf.lightfields import GridR2L, MobileR2L
from nelf.systems import Student
from nelf.systems.schedule import training_progress


def grid(**changes: object) -> GridR2L:
    return GridR2L(**{"width": 16, "depth": 4, "points": 24, "resolution": 24, "features": 4, **changes})


def trainer(**changes: object) -> pl.Trainer:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return pl.Trainer(**{"accelerator": "cpu", "max_steps": 10, **quiet, **changes})  # type: ignore[arg-type]


def batch(views: int = 3, width: int = 12, height: int = 8) -> ImageBatch:
    c2w = torch.eye(3, 4).repeat(views, 1, 1)
    return ImageBatch(Camera.from_fov(c2w, 0.7, width, height), torch.randint(256, (views, height, width, 4)).byte())


def test_shifted_rays_still_look_at_their_pixels() -> None:
    """An image whose red and green say where a pixel is: the ray of a block must point to its mean."""
    student = Student(grid(sr_factor=4))
    views = batch(views=8, width=40, height=24)
    x, y = np.meshgrid(np.arange(40), np.arange(24))
    rgba = np.stack([x, y, 0 * x, 0 * x + 255], -1).astype(np.uint8)
    views = ImageBatch(views.camera, torch.from_numpy(rgba).expand(8, -1, -1, -1))
    rays_o, rays_d, target = student._rays_and_target(views)
    assert rays_o.shape == rays_d.shape == (8, 5, 9, 3)
    assert target.shape == (8, 3, 20, 36)
    middle = torch.nn.functional.avg_pool2d(target * 255, 4)[:, :2] + 0.5  # pixel centres are at +0.5
    fx, _, cx, cy = views.camera.intrinsics[0].tolist()
    torch.testing.assert_close(rays_d[..., 0] * fx + cx, middle[:, 0], atol=1e-3, rtol=0)
    torch.testing.assert_close(cy - rays_d[..., 1] * fx, middle[:, 1], atol=1e-3, rtol=0)
    assert len(rays_d[:, 0, 0, :2].unique(dim=0)) > 3  # each view has its own shift


def test_without_shift_the_whole_view_is_used() -> None:
    rays_o, _, target = Student(grid(sr_factor=4), shift=False)._rays_and_target(batch())
    assert rays_o.shape == (3, 2, 3, 3)
    assert target.shape == (3, 3, 8, 12)


def test_alpha_is_laid_over_the_background() -> None:
    views = batch()
    student = Student(grid(sr_factor=4), shift=False)
    _, _, target = student._rays_and_target(views)
    rgba = views.rgba[1, 5, 7].double() / 255
    torch.testing.assert_close(target[1, :, 5, 7].double(), rgba[:3] * rgba[3] + 1 - rgba[3], atol=1e-6, rtol=0)
    student.background = "black"
    torch.testing.assert_close(student._rays_and_target(views)[2][1, :, 5, 7].double(), rgba[:3] * rgba[3])


def test_exponential_schedule_is_the_originals() -> None:
    student = Student(grid(), lr=5e-4, warmup_lr=1e-4, warmup_steps=200, decay_steps=500_000)
    for step, lr in ((0, 1e-4), (100, 3e-4), (200, 5e-4), (500_200, 5e-5)):
        assert 5e-4 * student._lr_factor(step) == pytest.approx(lr)


def test_cosine_schedule_follows_the_budget(tiny_scene: Path) -> None:
    seen: list[tuple[float, float]] = []

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, *_: object) -> None:
            seen.append((training_progress(trainer), trainer.optimizers[0].param_groups[0]["lr"]))

    student = Student(grid(), lr=1e-2, warmup_lr=1e-3, warmup_steps=2, schedule="cosine")
    trainer(max_steps=8, callbacks=[Watch()]).fit(student, BlenderDataModule(tiny_scene, batch_views=1))
    assert [progress for progress, _ in seen] == pytest.approx([k / 8 for k in range(8)])
    assert seen[0][1] == pytest.approx(1e-3)
    assert seen[4][1] == pytest.approx(1e-2 * 0.51)
    assert [lr for _, lr in seen[2:]] == sorted((lr for _, lr in seen[2:]), reverse=True)


def test_progress_counts_time_too(tiny_scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = count()  # of Lightning's timer: a hundredth of a second whenever it is asked, however slow the machine is
    monkeypatch.setattr(timer, "time", SimpleNamespace(monotonic=lambda: next(ticks) / 100))
    watch = trainer(max_steps=1_000_000, max_time={"seconds": 1})
    watch.fit(Student(grid()), BlenderDataModule(tiny_scene, batch_views=1))
    assert training_progress(watch) == pytest.approx(1.0, abs=0.01)
    assert training_progress(trainer(max_steps=-1, max_epochs=1)) == 0.0


def test_one_view_is_learned_to_30_db(tiny_scene: Path) -> None:
    data = BlenderDataModule(tiny_scene, batch_views=1)
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
        return Student(small, shift=False)

    def data() -> BlenderDataModule:
        return BlenderDataModule(tiny_scene, batch_views=2)

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


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_precisions(precision: str, tiny_scene: Path) -> None:
    for network in (grid(), MobileR2L(width=8, depth=4, sr_factor=2, sr_kernels=(8,))):
        run = trainer(max_steps=2, precision=precision)
        student = Student(network)
        run.fit(student, BlenderDataModule(tiny_scene, batch_views=2))
        assert all(p.isfinite().all() for p in student.parameters())
        assert "val/psnr" in run.validate(student, BlenderDataModule(tiny_scene), verbose=False)[0]


@pytest.mark.parametrize(("key", "word"), [("schedule", "linear"), ("optimizer", "sgd")])
def test_wrong_words_are_named(key: str, word: str) -> None:
    with pytest.raises(ValueError, match=f"`{key}`.*{word}"):
        Student(grid(), **{key: word})  # type: ignore[arg-type]
