"""Mixed precision: what each model learns under autocast, and that scaled gradients do what unscaled ones do."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from nelf.data import read_scene
from nelf.data.batches import Batches
from nelf.fields import NGP
from nelf.lightfields import GridR2L, MobileR2L
from nelf.systems import Student, Teacher
from nelf.systems.system import System


def system(kind: str) -> System:
    """A small one of each that mixed precision is for."""
    if kind == "ngp":
        options = {"levels": 2, "log2_table": 10, "finest_resolution": 32, "hidden": 16, "grid_resolution": 16}
        return Teacher(NGP(**options, max_samples=32), batch_size=128)  # type: ignore[arg-type]
    if kind == "grid_r2l":
        return Student(GridR2L(width=8, depth=4, resolution=8, features=4, sr_factor=4), optimizer="adam")
    return Student(MobileR2L(width=8, depth=4, sr_factor=4, sr_kernels=(8, 8)))


@pytest.mark.parametrize("kind", ["ngp", "grid_r2l", "mobile_r2l"])
def test_a_scaled_step_is_an_unscaled_one_and_overflow_is_left_out(kind: str, tiny_scene: Path) -> None:
    scene, made = read_scene(tiny_scene), system(kind)
    made.prepare(scene)
    made.log = lambda *_, **__: None  # type: ignore[assignment, method-assign]
    made._check_progress = lambda *_: None  # type: ignore[assignment]
    other = copy.deepcopy(made)
    batch: Any = Batches(scene.train, made.batch, 128 if kind == "ngp" else 2).batch(0)
    before = [each.detach().clone() for each in made.parameters()]
    for one, scale in ((made, 2.0**16), (other, 1.0)):
        optimizer, scaler = one.optimizer(), torch.amp.GradScaler("cpu", init_scale=scale)
        torch.manual_seed(3)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = one.training_step(batch, 0)
        assert loss.dtype is torch.float32
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert scaler.get_scale() == scale
    changed = [float((one.detach() - old).abs().max()) for one, old in zip(made.parameters(), before, strict=True)]
    assert max(changed) > 1e-5
    for one, plain in zip(made.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, plain, atol=2e-4, rtol=1e-3)

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    now = [each.detach().clone() for each in made.parameters()]
    for each in made.parameters():
        each.grad = torch.full_like(each, float("inf"))
    scaler.scale(torch.ones(()))
    scaler.step(optimizer := made.optimizer())
    scaler.update()
    assert scaler.get_scale() == 2.0**15
    assert all(torch.equal(one, old) for one, old in zip(made.parameters(), now, strict=True))
    assert not any(optimizer.state.values()) or all(float(each["step"]) == 0 for each in optimizer.state.values())
