"""DyLiN of a disk that moves, through the whole chain, from a D-NeRF."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import nelf
from nelf import paths
from nelf.cameras import Camera
from nelf.data import Scene, Split, read_views, write_scene
from nelf.export.runtime import load

pytestmark = pytest.mark.slow


def written(root: Path, size: int = 24) -> Path:
    """A disk that faces each camera and goes from left to right with the time."""
    splits = {}
    for name, count in (("train", 10), ("val", 2), ("test", 2)):
        camera = Camera.from_fov(paths.orbit(count, 4.0, 20.0), 0.7, size, size)
        times = torch.linspace(0, 1, count)
        columns = np.arange(size)[None, None] - size / 2 - 4 * (2 * times.numpy()[:, None, None] - 1)
        images = np.full((count, size, size, 4), 90, np.uint8)
        images[..., 3] = 255 * (np.hypot(columns, np.arange(size)[None, :, None] - size / 2) < 6)
        splits[name] = Split(replace(camera, controls=times[:, None]), images, [f"{name}_{i}" for i in range(count)])
    box = torch.tensor([-1.5, -1.5, -1.5, 1.5, 1.5, 1.5])
    return write_scene(root, Scene("disk", None, **splits, aabb=box, near=2.0, far=6.0, controls=("time",)))


def test_a_student_with_time_from_the_teacher_to_the_report(scripts) -> None:
    written(scripts.folder / "scene")
    command = [
        *("distill", "data=blender", "data.root=scene", "trainer=cpu", "trainer.max_steps=8", "run=out"),
        *("teacher=dnerf_small", "teacher.model.width=16", "teacher.model.samples=8", "teacher.model.fine_samples=8"),
        *("model=dylin_small", "model.width=32", "model.depth=4", "system.batch_size=128"),
        *("callbacks=[default,hard_rays]", "callbacks.hard_rays.mul=1", "callbacks.previews.every_n_steps=100000"),
        *("stages=[teacher,pseudo,student,finetune,prune,narrow,quantize,export,report]", "stage.pseudo.views=5"),
        *("stage.finetune.max_steps=3", "stage.prune.max_steps=2", "stage.prune.rounds=1", "stage.narrow.max_steps=2"),
        *("stage.quantize.views=2", "stage.quantize.qat_steps=2", "stage.export.calibration_views=2"),
        *("stage.report.frames=2", "stage.export.precisions=[fp32,fp16,int8 dynamic,int8 static,int8 QAT]"),
    ]
    scripts.run(command)
    out = scripts.folder / "out"
    rows = {row["name"]: row for row in json.loads((out / "report.json").read_text())["rows"]}
    files = {f"onnx {name}" for name in ("fp32", "fp16", "int8 dynamic", "int8 static", "int8 QAT")}
    assert {"teacher", "student", "narrowed by 50 %", *files} <= set(rows)
    assert rows["onnx fp32"]["psnr"] == pytest.approx(rows["student"]["psnr"], abs=0.05)
    pseudo = read_views(out / "pseudo")
    assert pseudo.camera.controls is not None
    assert pseudo.camera.controls.shape == (5, 1)
    assert len(pseudo.camera.controls.unique()) == 5

    exported, student = load(out / "export"), nelf.load(out / "export" / "model.safetensors")
    assert exported.bundle["time"] == {"min": 0.0, "max": 1.0, "value": 0.0}
    for time in (0.1, 0.9):
        camera = pseudo.camera[0].at(time)
        drawn = exported.render(camera).rgb
        torch.testing.assert_close(drawn, student.render(camera).rgb, atol=1e-4, rtol=0)
    assert scripts.run(command).count(": done, out/") == 9
