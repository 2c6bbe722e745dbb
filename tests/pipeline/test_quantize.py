"""Stage quantize: its files, its list of artifacts, and that it goes on where it was stopped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

import nelf
from nelf.cli import build
from nelf.compression.quantization import activation_ranges, restore_network
from nelf.pipeline.documents import write_json
from nelf.pipeline.recipe import Recipe
from nelf.pipeline.run import Run
from nelf.pipeline.stages.quantize import quantize
from nelf.pipeline.stages.student import student_scene
from nelf.storage import save

MODELS = {
    "grid_r2l": ["model.width=8", "model.depth=4", "model.resolution=12", "model.features=4"],
    "mobile_r2l": ["model.width=16", "model.depth=4", "model.sr_factor=4"],
    "r2l_small": ["model.width=16", "model.depth=4", "model.points=4", "model.multires=4", "system.batch_size=64"],
}
NAMES = ["fp16", "bf16", "int8 per tensor", "int8 per channel", "int8 dynamic", "int8 static", "int8 QAT"]


def finished(root: Path, scene: Path, model: str) -> Run:
    """A run whose student is done, untrained."""
    overrides = ["data=blender", f"data.root={scene}", f"model={model}", "trainer=cpu", *MODELS[model]]
    config: Any = OmegaConf.to_container(nelf.config("distill", overrides), resolve=True)
    del config["callbacks"]["previews"]
    run = Run(root, Recipe(config, build))
    shutil.copytree(scene, run.folder("pseudo"), dirs_exist_ok=True)
    network, scene_read = run.recipe.network(), run.recipe.scene
    network.prepare(scene_read.geometry, scene_read.train.silhouettes())
    save(network, run.folder("student") / "model.safetensors", run.recipe.model_config(), scene_read.digest)
    for name in ("pseudo", "student"):
        write_json(run.folder(name) / "done.json", {"mark": name})
    return run


@pytest.mark.parametrize("model", MODELS)
def test_every_precision_is_a_file_that_renders(
    model: str, tmp_path: Path, tiny_scene: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished(tmp_path, tiny_scene, model)
    metrics = run.do("quantize", lambda run: quantize(run, views=3, qat_steps=3))
    folder = run.folder("quantize")
    artifacts = json.loads((folder / "artifacts.json").read_text())
    assert [each["name"] for each in artifacts] == NAMES
    assert list(metrics["val/psnr"]) == ["fp32", *NAMES]
    scene = run.recipe.scene
    plain = nelf.load(run.folder("student")).render(scene.test.camera[0]).rgb
    size = (run.folder("student") / "model.safetensors").stat().st_size
    for each in artifacts:
        assert each["kind"] == "quantize"
        assert (folder / each["file"]).stat().st_size < size
        picture = nelf.load(folder / each["file"]).render(scene.test.camera[0]).rgb
        assert picture.shape == plain.shape
        assert each["val_psnr"] == metrics["val/psnr"][each["name"]]
        if each["name"] != "int8 QAT":
            assert float((picture - plain).abs().mean()) < 0.02
    printed = [line for line in capsys.readouterr().out.splitlines() if " dB " in line]
    assert [line[:18].strip() for line in printed] == ["fp32", *NAMES]


def test_training_keeps_the_volume_and_the_ranges(tmp_path: Path, tiny_scene: Path) -> None:
    run = finished(tmp_path, tiny_scene, "grid_r2l")
    run.do("quantize", lambda run: quantize(run, views=2, qat_steps=4))
    before, after = nelf.load(run.folder("student")), nelf.load(run.folder("quantize") / "qat")
    assert torch.equal(before.volume.features, after.volume.features)
    assert torch.equal(before.volume.density, after.volume.density)
    assert not torch.equal(before.tail.weight, after.tail.weight)
    static = nelf.load(run.folder("quantize") / "int8_static.safetensors")
    assert activation_ranges(after) == activation_ranges(static) != {}
    assert type(restore_network(after).tail) is torch.nn.Conv2d


def test_without_limits_there_is_no_training(tmp_path: Path, tiny_scene: Path) -> None:
    run = finished(tmp_path, tiny_scene, "mobile_r2l")
    metrics = quantize(run, views=2, qat_steps=None)
    assert list(metrics["val/psnr"]) == ["fp32", *NAMES[:-1]]
    assert not (run.folder("quantize") / "qat").exists()


def test_a_stage_that_was_stopped_after_training_goes_on_from_its_checkpoint(
    tmp_path: Path, tiny_scene: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished(tmp_path, tiny_scene, "mobile_r2l")
    saved = run.config["callbacks"]["checkpoint"]
    del saved["train_time_interval"]
    saved["every_n_train_steps"] = 2
    run.do("quantize", lambda run: quantize(run, views=2, qat_steps=3))
    assert "goes on from" not in capsys.readouterr().out
    (run.folder("quantize") / "done.json").unlink()
    run.do("quantize", lambda run: quantize(run, views=2, qat_steps=3))
    assert "qat: goes on from step=2" in capsys.readouterr().out


def test_the_student_s_data_is_the_pseudo_set_and_the_scene_s_own_views(tmp_path: Path, tiny_scene: Path) -> None:
    run = finished(tmp_path, tiny_scene, "grid_r2l")
    assert len(student_scene(run, run.recipe.network()).train) == 16
    alone = student_scene(run, run.recipe.network(), real_views=False)
    assert len(alone.train) == 8
    system = run.recipe.system()
    data = run.recipe.data(system, alone, stream=2)
    assert data.scene is alone
    assert (data.batch, data.batch_size, data.seed) == ("views", 4, run.recipe.source.seed + 2)
