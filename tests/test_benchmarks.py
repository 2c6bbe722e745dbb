"""The benchmarks' figures, and that the table of scenes goes on where it stopped."""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

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


class Faulty:
    """Stands for a chain in a folder: killed twice, then it ends, and something may be wrong with it."""

    def __init__(
        self, kills: ModuleType, folder: Path, codes: tuple[int, ...] = (-9, -9, 0), psnr: float = 30.0
    ) -> None:
        self.kills, self.codes, self.psnr = kills, list(codes), psnr
        self.folder, self.run, self.temporary = folder, folder / "out", folder / "tmp"
        self.printed = "seed\nteacher: done, out/teacher\npseudo: out/pseudo\nstudent: out/student\nstep 3\n"
        self.moments: list[float | None] = []

    def start(self, moment: float | None = None) -> object:
        self.moments.append(moment)
        for name in ("report.json", "student/checkpoints/step=1.ckpt"):
            path = self.run / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"rows": [{"name": "student", "psnr": self.psnr}]}))
        return self.kills.Start(self.codes.pop(0), 4.0 if self.codes else 1.0, self.printed)

    def files(self) -> set[str]:
        return self.kills.Command.files(self)

    def checkpoints(self) -> int:
        return self.kills.Command.checkpoints(self)

    def figures(self) -> dict[str, float]:
        return self.kills.Command.figures(self)


def test_what_is_wrong_after_kills_is_told(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    kills = importlib.import_module("kills")
    expected = kills.Undisturbed(Faulty(kills, tmp_path / "whole", codes=(0, 0)))

    def outcome(chain: Faulty, most: int = 9) -> Any:
        return kills.disturbed("static", chain, expected, random.Random(0), most, float("inf"))

    good = Faulty(kills, tmp_path / "good")
    found = outcome(good)
    assert (found.wrong, found.killed, found.starts, found.difference) == ([], ["student", "student"], 3, 0.0)
    assert all(moment is not None and moment > expected.idle / 2 for moment in good.moments)
    left = Faulty(kills, tmp_path / "left", codes=(-9, 0))
    assert outcome(left, most=1).wrong == []
    assert left.moments[1] is None  # no more kills than were asked for

    assert outcome(Faulty(kills, tmp_path / "code", codes=(-9, 2))).wrong[0].startswith("start 2 ended with 2:")
    traced = Faulty(kills, tmp_path / "traced")
    traced.printed += "Traceback (most recent call last):\n"
    assert [words.split(":")[0] for words in outcome(traced).wrong] == [f"start {i} has a traceback" for i in (1, 2, 3)]
    assert outcome(Faulty(kills, tmp_path / "other", psnr=30.5)).wrong[0].startswith("figures differ by 0.5000 dB")
    for name, words in {
        "student/.model.abcdefgh.safetensors": "left over: student/.model.abcdefgh.safetensors",
        "made.json": "too much: made.json",
        "student/checkpoints/step=2.ckpt": "2 checkpoints in place of 1",
    }.items():
        folder = tmp_path / f"with_{Path(name).name}"
        path = folder / "out" / name
        path.parent.mkdir(parents=True)
        path.write_text("")
        assert words in outcome(Faulty(kills, folder)).wrong
    expected.files.add("student/model.safetensors")
    assert outcome(Faulty(kills, tmp_path / "less")).wrong == ["missing: student/model.safetensors"]


@pytest.mark.slow
def test_a_kill_ends_a_process_with_its_children(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    kills = importlib.import_module("kills")
    script = tmp_path / "busy.py"
    script.write_text(
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1000)'])\n"
        "print(child.pid, sys.argv[1:], flush=True)\n"
        "while True: pass\n"
    )
    command = kills.Command(script, ["a=1"], tmp_path / "here")
    ended = command.start(moment=3.0)
    assert ended.code == -signal.SIGKILL
    assert ended.seconds >= 3.0
    pid, words = ended.printed.split(" ", 1)
    assert words.strip() == "['a=1', 'run=out']"
    state = Path(f"/proc/{pid}/stat")
    end = time.monotonic() + PATIENCE
    while state.is_file() and state.read_text().rpartition(")")[2].split()[0] not in "ZX":
        assert time.monotonic() < end, "the child has outlived it"
        time.sleep(0.02)
