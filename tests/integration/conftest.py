"""Run the scripts as a user does: processes of their own, in an empty directory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


class Scripts:
    """The two scripts on the tiny scene, with networks and batches of a size that trains in seconds."""

    def __init__(self, folder: Path, scene: Path) -> None:
        self.folder, self.scene = folder, scene
        self._started: list[subprocess.Popen[str]] = []

    @property
    def teacher(self) -> list[str]:
        """What makes a teacher tiny."""
        model = {"levels": 2, "log2_table": 10, "finest_resolution": 32, "hidden": 16, "grid_resolution": 16}
        system = {"samples_per_step": 2048}
        return [
            *(f"teacher.model.{key}={value}" for key, value in {**model, "max_samples": 32}.items()),
            *(f"teacher.system.{key}={value}" for key, value in system.items()),
        ]

    @property
    def student(self) -> list[str]:
        """What makes a student tiny."""
        return ["model=mobile_r2l", "model.width=16", "model.depth=4", "model.sr_factor=4"]

    def distill(self, *more: str) -> list[str]:
        """The command of a whole chain."""
        data = [
            "data=blender",
            f"data.root={self.scene}",
            "trainer=cpu",
            "teacher=ngp_small",
            "callbacks.previews.every_n_steps=100000",
        ]
        stages = ["stage.pseudo.views=6", "stage.report.frames=2"]
        return ["distill", *data, *self.teacher, *self.student, *stages, *more]

    def train(self, *more: str) -> list[str]:
        """The command of a single training."""
        data = [
            "data=blender",
            f"data.root={self.scene}",
            "trainer=cpu",
            "callbacks.previews.every_n_steps=100000",
        ]
        return ["train", *data, *self.student, *more]

    def start(self, command: list[str]) -> subprocess.Popen[str]:
        """Start one and do not wait."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(
            [sys.executable, str(ROOT / f"{command[0]}.py"), *command[1:]],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._started.append(process)
        return process

    def finish(self, process: subprocess.Popen[str], code: int = 0) -> str:
        """Wait for the end, which must be as expected, and return what was printed."""
        output, _ = process.communicate(timeout=300)
        assert process.returncode == code, output
        return output

    def run(self, command: list[str], code: int = 0) -> str:
        """Run one to its end."""
        return self.finish(self.start(command), code)

    def stop_when(self, command: list[str], reached: Callable[[], bool], sign: signal.Signals) -> str:
        """Start one and send it a signal once something has happened."""
        process = self.start(command)
        end = time.monotonic() + 120
        while not reached():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < end, "it did not come so far"
            time.sleep(0.02)
        process.send_signal(sign)
        return self.finish(process, -sign if sign is signal.SIGKILL else 130)

    def close(self) -> None:
        """Leave no process behind."""
        for process in self._started:
            if process.poll() is None:
                process.kill()
                process.communicate()


@pytest.fixture
def scripts(tmp_path: Path, tiny_scene: Path) -> Iterator[Scripts]:
    folder = tmp_path / "here"
    folder.mkdir()
    scripts = Scripts(folder, tiny_scene)
    yield scripts
    scripts.close()
