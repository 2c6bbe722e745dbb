"""A classic NeRF as the teacher of the chain: it trains, draws the pseudo set, and tells a student its density."""

from __future__ import annotations

import json

import pytest

import nelf
from nelf.data import read_views

pytestmark = pytest.mark.slow

MODEL = {"depth": 2, "width": 16, "skips": "[1]", "frequencies": 4, "direction_width": 8}
SAMPLES = {"samples": 8, "fine_samples": 8}


def test_a_nerf_teaches_a_volume(scripts) -> None:
    command = [
        *("distill", "data=blender", f"data.root={scripts.scene}", "trainer=cpu", "trainer.max_steps=30", "run=out"),
        *("teacher=nerf_small", *(f"teacher.model.{key}={value}" for key, value in {**MODEL, **SAMPLES}.items())),
        *("teacher.system.optimizer=radam", "teacher.system.schedule=steplr", "teacher.system.milestones=[0.5,0.75]"),
        *("model=grid_r2l", "model.width=8", "model.depth=2", "model.resolution=16", "stage.pseudo.views=4"),
        *("callbacks.previews.every_n_steps=100000", "stage.report.frames=0"),
    ]
    scripts.run(command)
    out = scripts.folder / "out"
    rows = {row["name"]: row for row in json.loads((out / "report.json").read_text())["rows"]}
    assert {"teacher", "student"} <= set(rows)
    assert len(read_views(out / "pseudo")) == 4
    teacher = nelf.load(out / "teacher")
    assert rows["teacher"]["parameters"] == sum(parameter.numel() for parameter in teacher.parameters())
    assert teacher.picture is teacher.fine
    assert scripts.run(command).count(": done, out/") == 4
