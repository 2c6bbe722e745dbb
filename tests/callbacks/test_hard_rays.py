"""The callback of hard rays in a Trainer: what it adds to batches, and that it survives."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch

from nelf.callbacks import HardRays
from nelf.data import BlenderDataModule
from nelf.data.batches import RayBatch
from nelf.errors import UserError
from nelf.fields import NGP
from nelf.lightfields import R2L, DyLiN, MobileR2L
from nelf.rays import Rays
from nelf.systems import Student, Teacher


def fit(scene, tmp_path, steps: int, checkpoint: str | None = None) -> tuple[Student, HardRays, pl.Trainer]:
    """So many steps of 64 rays; a step's rays are those of its pool's numbers."""
    torch.manual_seed(1)
    student = Student(R2L(width=8, depth=4, points=3, multires=2), batch_size=64)
    hard = HardRays(ratio_in=0.25, ratio_out=0.5, mul=1, seed=3)
    trainer = pl.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[hard],
        enable_checkpointing=False, enable_model_summary=False, default_root_dir=tmp_path,
        num_sanity_val_steps=0, val_check_interval=1000, check_val_every_n_epoch=None,
    )  # fmt: skip
    torch.manual_seed(2)
    trainer.fit(student, BlenderDataModule(scene, **student.batches), ckpt_path=checkpoint, weights_only=True)
    return student, hard, trainer


def test_a_step_learns_from_fresh_rays_and_from_those_of_the_pool(tiny_scene, tmp_path, monkeypatch) -> None:
    seen, forward = [], R2L.forward
    monkeypatch.setattr(R2L, "forward", lambda self, rays: seen.append(len(rays)) or forward(self, rays))
    student, hard, _ = fit(tiny_scene, tmp_path, 7)
    assert seen == [64] * 4 + [96] * 3  # 16 a step, full with 64
    assert hard.pool.rays.shape == (64, 10)
    assert student.hard_rays is None  # taken back


def test_a_ray_of_the_pool_keeps_its_time_and_its_color() -> None:
    """Time, color and position of each ray tell the same number, which is larger the harder it is."""
    seen: list[RayBatch] = []

    class Recorded(DyLiN):
        def forward(self, rays: Rays) -> torch.Tensor:
            assert rays.controls is not None
            seen.append(RayBatch(rays, rays.controls))
            return 0 * super().forward(rays)  # so that a ray's error is its color's

    student = Student(Recorded(width=8, depth=2, points=2, multires=1, offset_depth=1, hyper_depth=1), batch_size=20)
    student.log, student._check_progress = lambda *_, **__: None, lambda *_: None  # type: ignore[method-assign]
    student.hard_rays = HardRays(ratio_in=0.2, ratio_out=0.2, mul=1).pool
    for step in range(8):
        number = (torch.randperm(20)[:, None] + 20 * step).float() / 160
        rays = Rays(number.expand(20, 3), -number.expand(20, 3), torch.cat([number, 1 - number], 1))
        student.training_step(RayBatch(rays, torch.cat([number.expand(20, 3), torch.ones(20, 1)], 1)), step)
    assert [len(each.rays) for each in seen] == [20] * 5 + [24] * 3  # 4 a step, full with 20
    for each in seen:
        number = each.rays.origins[:, :1]
        assert torch.equal(each.rgba, torch.cat([number, 1 - number], 1))
        assert torch.equal(each.rays.directions, -number.expand(-1, 3))
    drawn = torch.cat([each.rays.origins[20:, 0] for each in seen]) * 160
    assert (drawn.round() % 20 >= 16).all()  # the four hardest of their steps
    assert student.hard_rays.rays.shape == (20, 12)


def test_killed_and_resumed_the_pool_is_the_same(tiny_scene, tmp_path, monkeypatch) -> None:
    # Without jitter: the Trainer does not bring torch's generator back, and it decides which rays are hard.
    monkeypatch.setattr("nelf.lightfields.residual.stratified", lambda t, shape: t.expand(*shape, -1))
    whole, expected, _ = fit(tiny_scene, tmp_path, 9)
    for killed_after in (2, 6):
        path = tmp_path / f"{killed_after}.ckpt"
        fit(tiny_scene, tmp_path, killed_after)[2].save_checkpoint(path)
        state = torch.load(path, weights_only=True)["callbacks"]["HardRays"]
        assert state["rays"].shape == (16 * min(killed_after, 4), 10)
        resumed, hard, _ = fit(tiny_scene, tmp_path, 9, str(path))
        assert torch.equal(hard.pool.rays, expected.pool.rays)
        assert hard.pool.steps == 9
        for a, b in zip(whole.network.parameters(), resumed.network.parameters(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(("rank", "kept"), [(0, 64), (1, 0)])
def test_of_several_processes_only_the_first_goes_on_with_the_pool_of_a_checkpoint(rank: int, kept: int) -> None:
    """It is the first one's: rays that all processes had would count as many times as there are processes."""
    hard, student = HardRays(), Student(R2L(width=8, depth=4, points=3, multires=2), batch_size=64)
    hard.load_state_dict({"rays": torch.zeros(64, 10), "full": True, "steps": 7})
    hard.on_fit_start(SimpleNamespace(global_rank=rank), student)  # type: ignore[arg-type]
    assert student.hard_rays is hard.pool
    assert (len(hard.pool.rays), hard.pool.full, hard.pool.steps) == (kept, kept > 0, 7)


def test_who_has_no_rays_of_its_own_is_told(tmp_path) -> None:
    hard, trainer = HardRays(), pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    mobile = Student(MobileR2L(width=8, depth=4, sr_factor=1))
    with pytest.raises(UserError, match="MobileR2L learns from whole views; allowed: light fields of rays"):
        hard.on_fit_start(trainer, mobile)
    teacher = Teacher(NGP(levels=1, log2_table=4, hidden=4, grid_resolution=4))
    hard.on_fit_start(trainer, teacher)
    assert not hasattr(teacher, "hard_rays")
