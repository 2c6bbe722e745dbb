"""A student of rays through the whole chain, on the built-in scene."""

from __future__ import annotations

import json

import pytest
import torch

import nelf
from nelf.data import read_views
from nelf.export.runtime import load

pytestmark = pytest.mark.slow


def test_a_student_of_rays_from_the_teacher_to_the_report(scripts) -> None:
    command = [
        *("distill", "data=demo", "data.root=scene", "data.width=32", "trainer=cpu", "trainer.max_steps=6"),
        *("teacher=ngp_small", *scripts.teacher, "model=r2l_small", "model.width=32", "system.batch_size=256"),
        *("callbacks=[default,hard_rays]", "callbacks.hard_rays.mul=1", "callbacks.previews.every_n_steps=100000"),
        *("run=out", "stages=[teacher,pseudo,student,prune,narrow,export,report]", "stage.pseudo.views=5"),
        *("stage.prune.max_steps=2", "stage.prune.rounds=1", "stage.narrow.max_steps=2", "stage.report.frames=0"),
        *("stage.export.precisions=[fp32,fp16]", "stage.export.calibration_views=2"),
    ]
    scripts.run(command)
    out = scripts.folder / "out"
    rows = {row["name"]: row for row in json.loads((out / "report.json").read_text())["rows"]}
    assert {"teacher", "student", "narrowed by 50 %", "onnx fp32", "onnx fp16"} <= set(rows)
    student = nelf.load(out / "student")
    assert rows["student"]["parameters"] == sum(p.numel() for p in student.parameters())
    assert rows["narrowed by 50 %"]["parameters"] < 0.7 * rows["student"]["parameters"]
    assert rows["onnx fp32"]["psnr"] == pytest.approx(rows["student"]["psnr"], abs=1e-3)

    views = read_views(out / "pseudo")
    assert len(views) == 5
    (pixels,) = (out / "pseudo" / ".nelf_cache").glob("rays_*.npy")
    assert pixels.stat().st_size >= (5 + 100) * 32 * 32 * 4  # the scene's own views are in it
    camera = views.camera[0]
    drawn = load(out / "export").render(camera).rgb
    torch.testing.assert_close(drawn, student.render(camera).rgb, atol=1e-4, rtol=0)
    assert scripts.run(command).count(": done, out/") == 7
