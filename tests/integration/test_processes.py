"""The chain in two processes on a processor, compared with one."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

TWO = "trainer.devices=2"
NO_DISTURBANCE = ["callbacks.previews=null", "trainer.log_every_n_steps=5"]


def losses(folder: Path) -> list[float]:
    with next(folder.glob("logs/*/metrics.csv")).open() as file:
        return [float(row["train/psnr"]) for row in csv.DictReader(file) if row.get("train/psnr")]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.suffix in (".png", ".json")}


def test_two_processes_end_as_one(scripts) -> None:
    steps = ["stage.teacher.max_steps=60", "stage.student.max_steps=60", *NO_DISTURBANCE]
    scripts.run(scripts.distill("run=one", *steps))
    # Views of the same teacher are the same files, whoever renders which.
    shutil.copytree(scripts.folder / "one" / "teacher", scripts.folder / "given" / "teacher")
    printed = scripts.run(scripts.distill("run=given", TWO, "stages=[teacher,pseudo]", *steps))
    assert printed.count("pseudo: given/pseudo") == 1
    written = {name: files(scripts.folder / run / "pseudo" / "train") for run in ("one", "given") for name in (run,)}
    assert len(written["one"]) == 6
    assert written["one"] == written["given"]
    # From the beginning: as good as one process, one report, one set of marks.
    scripts.run(scripts.distill("run=two", TWO, *steps))
    out = scripts.folder / "two"
    reports = {name: json.loads((scripts.folder / name / "report.json").read_text())["rows"] for name in ("one", "two")}
    assert [row["name"] for row in reports["two"]] == [row["name"] for row in reports["one"]]
    for one, two in zip(reports["one"], reports["two"], strict=True):
        assert two["psnr"] > one["psnr"] - 1.0
    for stage in ("teacher", "student"):
        curves = [losses(scripts.folder / name / stage) for name in ("one", "two")]
        assert len(curves[0]) == len(curves[1])
        assert abs(curves[0][-1] - curves[1][-1]) < 3.0
    assert len(list(out.glob("*/done.json"))) == 4
    assert not (out / "lock.json").exists()


def test_a_volume_loses_the_same_corners_in_both(scripts) -> None:
    """Trap: what is trimmed at the end of a training depends on random rays, which the processes draw by themselves."""
    steps = ["stage.teacher.max_steps=40", "stage.student.max_steps=5", "stages=[teacher,pseudo,student]"]
    grid = ["model=grid_r2l", "model.width=8", "model.resolution=32"]
    scripts.run([word for word in scripts.distill("run=grid", TWO, *grid, *steps) if word not in scripts.student])
    assert (scripts.folder / "grid" / "student" / "done.json").is_file()


def test_a_killed_process_ends_the_run_with_a_line_and_it_goes_on(scripts) -> None:
    more = ["stages=[teacher]", "callbacks.checkpoint.train_time_interval.seconds=0", *NO_DISTURBANCE]
    command = scripts.distill("run=out", TWO, "stage.teacher.max_steps=100000", *more)
    process = scripts.start(command)
    checkpoints = scripts.folder / "out" / "teacher" / "checkpoints"
    while not list(checkpoints.glob("*.ckpt")):
        assert process.poll() is None, process.communicate()[0]
    ranks = children(process.pid)
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGKILL)
    printed = scripts.finish(process, 1)
    assert "Traceback" not in printed
    assert "process 1 of 2 was ended by SIGKILL, so the others are stopped. The same command goes on." in printed
    # Ctrl-C ends both after the same step.
    before = set(checkpoints.glob("*.ckpt"))
    printed = scripts.stop_when(command, lambda: bool(set(checkpoints.glob("*.ckpt")) - before), signal.SIGINT)
    assert printed.count("Interrupted. To go on: ") == 1
    assert "goes on from step=" in printed
    last = max(int(path.stem.split("=")[1]) for path in checkpoints.glob("*.ckpt"))
    done = scripts.run(scripts.distill("run=out", TWO, f"stage.teacher.max_steps={last + 5}", *more))
    assert "Traceback" not in done


def children(pid: int) -> list[int]:
    """The processes that one has started, in their order."""
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
