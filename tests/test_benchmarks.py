"""The benchmarks' figures, and that the table of scenes goes on where it stopped."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import imageio.v3 as iio
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
PATIENCE = 1200  # seconds until something must be wrong, however busy the machine is


@pytest.fixture
def scenes(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("scenes")


def rows(scenes: ModuleType) -> list[dict]:
    gaps = {"chess": {0: 0.5, 1: 3.0, 2: 1.0}, "rocket": {0: 0.25, 1: 0.75}}
    return [
        {"scene": name, "size": 200, "seed": seed, **dict.fromkeys(scenes.FIGURES, 1.0), "student_psnr": 30 - gap}
        | {"gap_db": gap}
        for name, seeds in gaps.items()
        for seed, gap in seeds.items()
    ]


def test_median_and_worst(scenes) -> None:
    summed = scenes.summary(rows(scenes))
    figures = {name: (each["median"]["gap_db"], each["worst"]["gap_db"]) for name, each in summed["scenes"].items()}
    assert figures == {"chess": (1.0, 3.0), "rocket": (0.5, 0.75)}
    assert summed["scenes"]["chess"]["worst"]["student_psnr"] == 27.0
    assert (summed["all"]["median"]["gap_db"], summed["all"]["worst"]["gap_db"]) == (0.75, 3.0)
    assert scenes.table(200, rows(scenes), summed).row_count == 5 + 2 * 2 + 2
    assert scenes.table(200, [], scenes.summary([])).row_count == 0


def test_what_is_finished_is_kept_and_figures_of_other_settings_are_not_mixed_in(scenes, tmp_path) -> None:
    about = {"machine": {"processor": "A"}, "versions": {"nelf": "abc"}}
    path, settings = tmp_path / "new" / "scenes_200.json", {"teacher_minutes": 2.0}
    results = scenes.Results(path, settings, about)
    for each in reversed(rows(scenes)):
        results.add(each)
    again = scenes.Results(path, settings, about)
    assert [(each["scene"], each["seed"]) for each in again.rows] == [
        *(("rocket", seed) for seed in range(2)),
        *(("chess", seed) for seed in range(3)),
    ]
    assert again.has(scenes.Job("chess", 200, 2, 0))
    assert not again.has(scenes.Job("rocket", 200, 2, 0))
    with pytest.raises(SystemExit, match=r"teacher_minutes was 2\.0 and is 3\.0"):
        scenes.Results(path, {"teacher_minutes": 3.0}, about)
    with pytest.raises(SystemExit, match="processor was A and is B"):
        scenes.Results(path, settings, {**about, "machine": {"processor": "B"}})


def test_scenes_are_names_or_roots(scenes, tiny_scene, tmp_path) -> None:
    assert scenes.scene_overrides("chess") == ("chess", ["data=demo", "data.scene=chess"])
    assert scenes.scene_overrides(str(tiny_scene))[0] == "sphere"
    with pytest.raises(SystemExit, match="neither a built-in scene"):
        scenes.scene_overrides(str(tmp_path))


def test_the_circumstances_name_no_place(scenes) -> None:
    machine = importlib.import_module("_machine")
    command = [
        "python",
        "scenes.py",
        "/data/lego",
        "../chair",
        "--out",
        "/tmp/x",
        "--set",
        "data.root=/a/b",
        "k=1",
    ]
    about = machine.facts(command, names=["/data/lego", "../chair"])
    assert about["command"] == "python scenes.py lego chair --out x --set data.root=b k=1"
    assert about["machine"]["processor"]
    assert about["machine"]["cores"] >= 1
    assert {"nelf", "torch", "python"} <= set(about["versions"])
    assert str(ROOT) not in json.dumps(about)


def _end(process: subprocess.Popen[str]) -> None:
    """Leave neither the process nor its child behind."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.slow
def test_a_table_of_scenes_goes_on_where_it_stopped(scenes, tiny_scene, tmp_path, request) -> None:
    teacher = {"levels": 2, "log2_table": 10, "finest_resolution": 32, "hidden": 16, "grid_resolution": 16}
    command = [
        *(sys.executable, str(ROOT / "benchmarks" / "scenes.py"), str(tiny_scene)),
        *("--sizes", "16", "--teacher-minutes", "1", "--student-minutes", "1", "--students-per-teacher", "2"),
        *("--out", "out", "--results", "results", "--set", "trainer.max_steps=2", "stage.pseudo.views=3"),
        *(f"teacher.model.{key}={value}" for key, value in {**teacher, "max_samples": 32}.items()),
        *("teacher.system.samples_per_step=2048", "callbacks.previews.every_n_steps=100000"),
        *("model=mobile_r2l", "model.width=16", "model.depth=4", "model.sr_factor=4"),
        *("stage.export.calibration_views=2", "--seeds"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def start(*seeds: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*command, *seeds],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # so that the signal reaches this process and its child alone, as Ctrl-C does
        )
        request.addfinalizer(lambda: _end(process))
        return process

    def finish(process: subprocess.Popen[str], code: int = 0) -> str:
        printed, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == code, printed
        return printed

    first = start("0")
    end = time.monotonic() + PATIENCE
    while not (tmp_path / "out" / "sphere_16_0" / "teacher" / "done.json").is_file():
        assert first.poll() is None, first.communicate()[0]
        assert time.monotonic() < end, "it did not come so far"
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGINT)
    assert "the same command goes on from here" in finish(first, 130)
    assert not (tmp_path / "results").exists()

    assert "teacher: done, out/sphere_16_0/teacher" in finish(start("0"))
    printed = finish(start("0", "1"))
    assert "run=out/sphere_16_1" in printed
    assert "stages=[teacher,pseudo,student" not in printed
    document = json.loads((tmp_path / "results" / "scenes_16.json").read_text())
    assert [(each["scene"], each["seed"], each["teacher_seed"]) for each in document["rows"]] == [
        ("sphere", 0, 0),
        ("sphere", 1, 0),
    ]
    # One teacher, two students of it.
    one, two = document["rows"]
    assert one["teacher_psnr"] == two["teacher_psnr"]
    assert one["student_psnr"] != two["student_psnr"]
    for each in document["rows"]:
        assert each["gap_db"] == pytest.approx(each["teacher_psnr"] - each["student_psnr"], abs=1e-3)
        assert each["shipped"] == "onnx fp32"
        bundle = json.loads((tmp_path / "out" / f"sphere_16_{each['seed']}" / "export" / "bundle.json").read_text())
        assert each["shipped_mb"] == pytest.approx(bundle["artifacts"][0]["bytes"] / 1e6, abs=1e-4)
    assert str(tiny_scene) not in json.dumps(document)
    sheet = iio.imread(tmp_path / "out" / "sphere_16.png")
    assert sheet.shape == (2 * 16, 4 * 16, 3)
    np.testing.assert_array_equal(sheet[:16, :32], sheet[16:, :32])  # truth and teacher
    assert (sheet[:16, 32:48] != sheet[16:, 32:48]).any()
    assert "$ python" not in finish(start("0", "1"))


def test_ray_batches_are_timed_in_each_form(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    loader = importlib.import_module("loader")
    sizes = ["--views", "4", "--pixels", "64", "--batch", "8192", "--batches", "1", "--repeats", "1"]
    monkeypatch.setattr(sys, "argv", ["loader.py", *sizes, "--out", str(tmp_path / "loader.json")])
    loader.main()
    rows = json.loads((tmp_path / "loader.json").read_text())["rows"]
    assert [(row["from"], row["files"]) for row in rows] == [
        (name, state) for name in ("shuffled file", "random pixels", "files of 4096 rays") for state in ("cold", "warm")
    ]
    assert [round(row["bytes_per_ray"]) for row in rows] == [4, 4, 4, 4, 36, 36]
    assert all(row["million_rays_per_second"] > 0 for row in rows)
