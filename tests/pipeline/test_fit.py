"""Training in a folder: what is validated, and how often."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf

import nelf
from nelf import cli
from nelf.errors import UserError
from nelf.lightfields import MobileR2L
from nelf.pipeline.fit import check_trainer, fit
from nelf.pipeline.recipe import Recipe
from nelf.systems.system import System

SMALL = ("model.width=8", "model.depth=4", "model.points=3", "model.multires=2", "system.batch_size=64")


@pytest.mark.parametrize("changed_at_the_end", [False, True])
@pytest.mark.parametrize(("steps", "validated"), [(3, [2, 3]), (4, [2, 4])])
def test_what_training_has_validated_last_is_not_validated_again(
    tmp_path, tiny_scene: Path, monkeypatch, steps: int, validated: list[int], changed_at_the_end: bool
) -> None:
    """Training validates after each second step; afterwards only what it has not seen, or what is changed then."""
    seen: list[int] = []
    step = System.validation_step

    def counted(system: System, view: Any, batch_idx: int) -> None:
        seen.append(system.trainer.global_step)
        step(system, view, batch_idx)

    monkeypatch.setattr(System, "validation_step", counted)
    overrides = ["data=blender", f"data.root={tiny_scene}", "model=r2l_small", *SMALL, "trainer=cpu"]
    composed = nelf.config("distill", [*overrides, "trainer.val_check_interval=2"])
    plain: dict[str, Any] = OmegaConf.to_container(composed, resolve=True)  # type: ignore[assignment]
    recipe = Recipe(plain, cli.build)
    system = recipe.system()
    end = (lambda _: None) if changed_at_the_end else None
    found = fit(recipe, system, recipe.data(system), tmp_path / "run", end=end, max_steps=steps)
    again = [4] if steps == 4 and changed_at_the_end else []
    assert seen == [each for each in [*validated, *again] for _ in range(2)]  # the scene has two views
    expected = nelf.evaluate(system.network, recipe.scene.val)["psnr"]
    assert found == {"val/psnr": pytest.approx(expected, abs=1e-3), "steps": steps}


def recipe_of(scene: Path, *more: str, model: Sequence[str] = ("model=r2l_small", *SMALL)) -> Recipe:
    words = ["data=blender", f"data.root={scene}", *model, "trainer=cpu", *more]
    plain: dict[str, Any] = OmegaConf.to_container(nelf.config("distill", words), resolve=True)  # type: ignore[assignment]
    return Recipe(plain, cli.build)


def test_batch_norms_over_devices_are_an_option(tmp_path: Path, tiny_scene: Path) -> None:
    trainer = recipe_of(tiny_scene, "trainer.sync_batchnorm=true").trainer(tmp_path)
    layers = trainer._accelerator_connector._layer_sync.apply(MobileR2L(width=8, depth=4, sr_factor=1))
    norms = [each for each in layers.modules() if isinstance(each, torch.nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert all(isinstance(each, torch.nn.SyncBatchNorm) for each in norms)
    assert set(layers.prunable()["norms"]) == set(MobileR2L(width=8, depth=4, sr_factor=1).prunable()["norms"])
    assert recipe_of(tiny_scene).trainer(tmp_path)._accelerator_connector._layer_sync is None


def test_gradients_that_are_scaled_are_not_clipped(tiny_scene: Path) -> None:
    words = "trainer.precision=16-mixed", "trainer.gradient_clip_val=1.0"
    with pytest.raises(UserError, match=r"trainer\.gradient_clip_val: is 1\.0, .*allowed: null, or"):
        check_trainer(recipe_of(tiny_scene, *words))
    check_trainer(recipe_of(tiny_scene, words[1]))
    with pytest.raises(UserError, match=r"system\.clip_norm: is 0\.1, .*allowed: null, or"):
        check_trainer(recipe_of(tiny_scene, words[0]))


class Stops(pl.Callback):
    """Ends a training before its fourth step, without a word."""

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == 3:
            raise ConnectionAbortedError


SMALL_TEACHER = {"levels": 2, "log2_table": 8, "hidden": 16, "grid_resolution": 16, "max_samples": 16}
TRAININGS = {
    "teacher": [
        "model=r2l_small",
        "teacher=ngp_small",
        "teacher.system.samples_per_step=512",
        *(f"teacher.model.{key}={value}" for key, value in SMALL_TEACHER.items()),
    ],
    "student": ["model=grid_r2l", "model.width=8", "model.depth=2", "model.resolution=8", "system.crop=8"],
}


@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_that_goes_on_is_the_one_that_was_never_stopped(name: str, tmp_path: Path, tiny_scene: Path) -> None:
    """Places of samples, colors of backgrounds and windows of views are drawn from PyTorch's generator."""
    recipe = recipe_of(tiny_scene, model=TRAININGS[name])

    def trained(folder: str, *callbacks: pl.Callback) -> dict[str, torch.Tensor]:
        system = recipe.system(name)
        data = recipe.data(system)
        system.prepare(data.scene)
        fit(recipe, system, data, tmp_path / folder, name=name, callbacks=callbacks, max_steps=6)
        return system.network.state_dict()

    whole = trained("whole")
    with pytest.raises(ConnectionAbortedError):
        trained("stopped", Stops())
    torch.testing.assert_close(trained("stopped"), whole, rtol=0, atol=0)
