"""The whole chain on the tiny scene."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import nelf
from nelf.data import read_scene, read_views

pytestmark = pytest.mark.slow


def test_one_command_from_a_scene_to_a_report(scripts) -> None:
    command = scripts.distill("run=out", "trainer.max_steps=8")
    printed = scripts.run(command)
    out = scripts.folder / "out"
    report = json.loads((out / "report.json").read_text())
    assert [row["name"] for row in report["rows"]] == ["teacher", "student", "student, optimized"]
    for row in report["rows"][:2]:
        assert {"psnr", "ssim", "parameters", "nonzero", "macs", "bytes", "latency_ms", "peak_memory_mb"} <= set(row)
        assert row["bytes"] == (out / row["name"] / "model.safetensors").stat().st_size
        assert 100 < row["peak_memory_mb"] < 4000
    for words in ("out/report.html", "student_orbit.mp4", "out/student/model.safetensors"):
        assert words in printed

    # The pseudo set is a scene like any other, and the student learned from it.
    assert len(read_views(out / "pseudo")) == 6
    student = nelf.load(out / "student")
    assert student.render(read_scene(scripts.scene).test.camera[0]).rgb.shape == (16, 16, 3)

    # Again: nothing is left to do, and no file changes.
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    again = scripts.run(command)
    assert again.count(": done, out/") == 4
    after = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    changed = {path.name for path in after if after[path] != before.get(path)}
    assert changed <= {"config.yaml", "overrides.yaml"}

    # The short command means this run: its scene and its student, not the demo's.
    printed = scripts.run(["distill", "run=out", "stages=[student,report]", "stage.student.max_steps=9"])
    assert "its settings or inputs have changed, so it is redone" in printed
    assert "teacher" not in [line.split(":")[0] for line in printed.splitlines()[:2]]
    settings = (out / "student" / "config.yaml").read_text()
    assert "nelf.lightfields.MobileR2L" in settings
    assert "width: 16" in settings

    # One architecture to a directory; one scene, too.
    refused = scripts.run(["distill", "run=out", "model.width=8"], code=2)
    assert "student: was trained with another network: model.width was 16 and is 8" in refused
    assert (out / "student" / "model.safetensors").is_file()


def test_an_existing_run_is_compressed_and_exported(scripts) -> None:
    scripts.run(scripts.distill("run=out", "trainer.max_steps=8", "stages=[teacher,pseudo,student]"))
    out = scripts.folder / "out"
    trained = (out / "student" / "model.safetensors").stat().st_mtime_ns
    options = {
        "prune": {"amount": 0.5, "rounds": 2, "max_steps": 2},
        "narrow": {"ratio": 0.5, "max_steps": 2},
        "quantize": {"views": 2, "qat_steps": 2},
        "export": {"calibration_views": 2},
    }
    settings = [f"stage.{stage}.{key}={value}" for stage, keys in options.items() for key, value in keys.items()]
    command = ["distill", "run=out", "stages=[prune,narrow,quantize,export,report]", "stage.report.frames=0", *settings]
    scripts.run(command)
    assert (out / "student" / "model.safetensors").stat().st_mtime_ns == trained
    rows = {row["name"]: row for row in json.loads((out / "report.json").read_text())["rows"]}
    assert list(rows)[:5] == ["teacher", "student", "student, optimized", "pruned 29.3 %", "pruned 50 %"]
    assert {"narrowed by 50 %", "fp16", "bf16", "int8 per tensor", "int8 static", "int8 QAT"} < set(rows)
    assert {"onnx fp32", "onnx fp16", "onnx int8 static", "onnx int8 QAT", "onnx narrowed by 50 %"} < set(rows)
    assert all(row["psnr"] > 0 and row["latency_ms"] > 0 for row in rows.values())
    assert rows["pruned 50 %"]["sparsity"] == pytest.approx(0.5, abs=1e-3)
    assert rows["pruned 50 %"]["nonzero"] < rows["student"]["nonzero"]
    assert rows["narrowed by 50 %"]["parameters"] < 0.5 * rows["student"]["parameters"]
    assert rows["onnx fp32"]["psnr"] == pytest.approx(rows["student"]["psnr"], abs=1e-3)
    # The headline is that of the bundle's first model, with its volume where it has one.
    page, bundle = (out / "report.html").read_text(), json.loads((out / "export" / "bundle.json").read_text())
    assert f"<b>{rows['onnx fp32']['psnr']:.2f} dB</b>" in page
    assert "PSNR of onnx fp32" in page
    assert f"<b>{bundle['artifacts'][0]['bytes'] / 1e6:.2f} MB</b>" in page
    assert rows["onnx fp32"]["delta_db"] == rows["onnx fp32"]["psnr"] - rows["student"]["psnr"]
    assert scripts.run(command).count(": done, out/") == 5


def test_a_single_training_ends_with_test_metrics(scripts) -> None:
    printed = scripts.run(scripts.train("trainer.max_steps=6", "run=out", "logger=tensorboard"))
    out = scripts.folder / "out"
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["steps"] == 6
    assert len(metrics["views"]) == 2
    assert metrics["psnr"] == pytest.approx(sum(view["psnr"] for view in metrics["views"]) / 2)
    assert len(list((out / "samples").glob("*.png"))) == 2
    assert f"PSNR {metrics['psnr']:.2f} dB" in printed
    assert list(out.rglob("events.out.tfevents*"))

    refused = scripts.run(["train", "run=out", "model.width=8"], code=2)
    assert "out: was trained with another network: model.width was 16 and is 8" in refused


def test_the_functions_return_their_objects(tiny_scene, tmp_path, monkeypatch) -> None:
    import runpy

    monkeypatch.chdir(tmp_path)
    script = runpy.run_path(str(Path(__file__).parents[2] / "train.py"))
    overrides = [
        *(
            "data=blender",
            f"data.root={tiny_scene}",
            "model=ngp_small",
            "trainer=cpu",
            "trainer.max_steps=1",
            "run=out",
        ),
        *("model=mobile_r2l", "model.width=8", "model.depth=2", "model.sr_factor=2"),
    ]
    with torch.random.fork_rng():
        objects = script["train"](nelf.config("train", overrides))
    assert objects["metrics"]["psnr"] > 0
    assert objects["system"].render(objects["scene"].test.camera[0]).rgb.shape == (16, 16, 3)
