"""The built-in scenes that move, through the whole chain, by their presets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nelf
from nelf.data import DemoDynamicDataModule, DemoHandheldDataModule, read_views
from nelf.export.runtime import load

pytestmark = pytest.mark.slow

TINY = ["stage.pseudo.views=5", "stage.report.frames=2", "callbacks.previews.every_n_steps=100000"]
STUDENT = ["model.width=16", "model.depth=4", "model.resolution=16", "model.motion_cells=4", "model.motion_times=4"]


def steps(**counts: int) -> list[str]:
    """Steps in place of minutes."""
    words = ((f"stage.{stage}.max_time=null", f"stage.{stage}.max_steps={count}") for stage, count in counts.items())
    return [word for pair in words for word in pair]


def rows_of(out: Path) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in json.loads((out / "report.json").read_text())["rows"]}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NELF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(("scene", "controls"), [("robot", 1), ("controls", 2)])
def test_a_scene_that_moves(scene: str, controls: int, cache: Path, scripts) -> None:
    command = [
        *("distill", "experiment=demo_dynamic", f"data.scene={scene}", "data.width=24", "run=out", *scripts.teacher),
        *("teacher.model.motion_cells=4", "teacher.model.motion_times=4", f"teacher.model.controls={controls}"),
        *(f"model.controls={controls}", *STUDENT, *TINY, *steps(teacher=60, student=6, finetune=3)),
        *("stages=[teacher,pseudo,student,finetune,prune,narrow,quantize,export,report]", "stage.prune.max_steps=2"),
        *("stage.prune.rounds=1", "stage.narrow.max_steps=2", "stage.quantize.views=2", "stage.quantize.qat_time=null"),
        *("stage.quantize.qat_steps=2", "stage.export.calibration_views=2"),
        "stage.export.precisions=[fp32,int8 static]",
    ]
    printed = scripts.run(command)
    out = scripts.folder / "out"
    rows = rows_of(out)
    assert {"teacher", "student", "narrowed by 50 %", "onnx fp32", "onnx int8 static"} <= set(rows)
    assert rows["onnx fp32"]["psnr"] == pytest.approx(rows["student"]["psnr"], abs=0.1)
    for film in ("time", "camera", "both"):
        assert (out / "report" / f"student_{film}.mp4").is_file() or f"_{film}.mp4" in printed
    pseudo = read_views(out / "pseudo").camera.controls
    assert pseudo is not None
    assert pseudo.shape == (5, controls)

    # What is shipped draws each moment as the student does, and its moments differ.
    test = DemoDynamicDataModule(scene=scene, width=24).scene.test
    shipped, student = load(out / "export"), nelf.load(out / "export" / "model.safetensors")
    assert shipped.bundle["artifacts"][0]["volume"]["motion"] is not None
    for index in (0, 10):
        camera = test.camera[index]
        drawn, expected = shipped.render(camera).rgb, student.render(camera).rgb
        np.testing.assert_allclose(drawn, expected, atol=0.03)

    again = scripts.run(command)
    assert again.count(": done, out/") == 9


def test_a_hand_held_capture(cache: Path, scripts) -> None:
    command = [
        *(
            "distill",
            "experiment=hypernerf_cpu",
            "data=demo_handheld",
            "data.image_scale=2",
            "run=out",
            *scripts.teacher,
        ),
        *("teacher.model.warp_width=16", "teacher.model.ambient_width=16", *STUDENT, *TINY),
        *(*steps(teacher=8, student=6), "stage.export.precisions=[fp32]"),
    ]
    scripts.run(command)
    out = scripts.folder / "out"
    assert {"teacher", "student", "onnx fp32"} <= set(rows_of(out))
    scene = DemoHandheldDataModule(image_scale=2).scene
    pseudo = read_views(out / "pseudo").camera
    assert pseudo.lens is None  # pinholes, whatever the capture's lens is
    assert pseudo.controls is not None
    assert float(pseudo.controls.min()) >= float(scene.train.camera.controls.min())
    picture = load(out / "export").render(scene.test.camera[0].pinhole())
    assert picture.rgb.shape == (80, 60, 3)
    assert torch.isfinite(torch.as_tensor(picture.rgb)).all()
