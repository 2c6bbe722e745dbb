"""Killed at any moment and started again with the same command, a run goes on."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

EVERY_STEP = "callbacks.checkpoint.train_time_interval.seconds=0"


def checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoints/*.ckpt"), key=lambda path: path.stat().st_mtime_ns)


def whole(folder: Path) -> None:
    """The run has come to its end, and nothing unfinished lies about."""
    report = json.loads((folder / "report.json").read_text())
    assert [row["name"] for row in report["rows"]] == ["teacher", "student", "student, optimized"]
    assert json.loads((folder / "teacher" / "metrics.json").read_text())["steps"] == 40
    assert json.loads((folder / "student" / "metrics.json").read_text())["steps"] == 40
    assert len(list((folder / "pseudo" / "train").glob("*.png"))) == 6
    assert not [path for path in folder.rglob(".*") if path.is_file()]


def test_kill_inside_and_between_all_stages(scripts) -> None:
    command = scripts.distill("run=out", "trainer.max_steps=40", EVERY_STEP)
    out = scripts.folder / "out"
    moments = [
        lambda: bool(checkpoints(out / "teacher")),
        lambda: (out / "teacher" / "done.json").exists(),
        lambda: (out / "pseudo" / "train" / "00002.png").exists(),
        lambda: len(checkpoints(out / "student")) > 1,
        lambda: (out / "report" / "teacher" / "samples").exists(),
    ]
    printed = [scripts.stop_when(command, moment, signal.SIGKILL) for moment in moments]
    last = scripts.run(command)
    assert f"{Path('out/teacher')}: goes on from step=" in printed[1]
    assert "teacher: done, out/teacher" in printed[2]
    assert "student: done, out/student" in last or "goes on from" in last
    whole(out)


def test_interrupt_says_how_to_go_on_and_loses_nothing(scripts) -> None:
    command = scripts.train("trainer.max_steps=100000", "run=out")
    out = scripts.folder / "out"

    def under_way() -> bool:
        log = list(out.glob("logs/*/metrics.csv"))
        return bool(log) and len(log[0].read_text().splitlines()) > 1

    printed = scripts.stop_when(command, under_way, signal.SIGINT)
    assert "Traceback" not in printed
    line = printed.strip().splitlines()[-1]
    assert line.startswith("Interrupted. To go on: python ")
    assert line.endswith("run=out")
    (saved,) = checkpoints(out)
    steps = int(saved.stem.split("=")[1].split("-")[0])
    assert steps >= 50
    printed = scripts.run([*command, f"trainer.max_steps={steps + 3}"])
    assert f"goes on from {saved.name}" in printed
    assert json.loads((out / "metrics.json").read_text())["steps"] == steps + 3


def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(scripts) -> None:
    command = scripts.train("trainer.max_steps=6", "run=out", EVERY_STEP)
    scripts.run(command)
    out = scripts.folder / "out"
    older, newest = checkpoints(out)
    newest.write_bytes(newest.read_bytes()[:1000])
    printed = scripts.run([*command, "trainer.max_steps=8"])
    assert f"{newest.relative_to(scripts.folder)}: is damaged" in printed
    assert "the one before it is used" in printed
    assert f"goes on from {older.name}" in printed
    assert json.loads((out / "metrics.json").read_text())["steps"] == 8
