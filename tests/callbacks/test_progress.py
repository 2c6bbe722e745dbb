"""The progress display: what it prints, and when it reads anything."""

import io
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import pytorch_lightning.callbacks.timer
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, IterableDataset

import nelf.callbacks.progress
from nelf.callbacks import Progress


class Clock:
    """Time that passes only when a step says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the display and of Lightning's ``max_time``, whatever else the machine does."""
    clock = Clock()
    for module in (nelf.callbacks.progress, pytorch_lightning.callbacks.timer):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


class Endless(IterableDataset):
    def __iter__(self) -> Iterator[torch.Tensor]:
        while True:
            yield torch.ones(1)


class Toy(pl.LightningModule):
    def __init__(self, clock: Clock | None = None, seconds: float = 0.0) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.clock, self.seconds = clock, seconds

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        if self.clock is not None:
            self.clock.now += self.seconds
        self.log("train/psnr", torch.tensor(21.5))
        return 0 * self.layer(batch).sum() + 0.125

    def test_step(self, batch: torch.Tensor, index: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _trainer(folder: Path, progress: Progress, **options: object) -> pl.Trainer:
    settings = {"enable_checkpointing": False, "logger": False, "accelerator": "cpu"} | options
    return pl.Trainer(callbacks=[progress], default_root_dir=folder, enable_model_summary=False, **settings)


def _train(
    folder: Path, progress: Progress, clock: Clock | None = None, seconds: float = 0.0, **options: object
) -> None:
    _trainer(folder, progress, **options).fit(Toy(clock, seconds), DataLoader(Endless(), batch_size=None))


def _lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("training:")]


def test_plain_lines_know_max_steps(tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    _train(tmp_path, Progress(line_seconds=8.0), clock, seconds=0.5, max_steps=100)
    output = capsys.readouterr().out
    lines = [line for line in output.splitlines() if line.startswith("training:")]
    expected = [(step, round((100 - step) / 2)) for step in (1, 17, 33, 49, 65, 81, 97)]
    assert lines == [
        f"training: step {step} / 100  2.0 it/s  left 0:00:{left:02}  loss 0.125  train/psnr 21.50"
        for step, left in expected
    ]
    assert "\x1b" not in output
    assert "\r" not in output
    assert f"Trained to step 100 in 0:00:50. Results: {tmp_path}\n" in output


def test_plain_lines_know_max_time(tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(line_seconds=10.0)
    _train(tmp_path, progress, clock, seconds=1.0, max_steps=-1, max_epochs=-1, max_time={"seconds": 32})
    found = [re.search(r"step (\d+)  1\.0 it/s  left 0:00:(\d\d)", line) for line in _lines(capsys)]
    assert [tuple(map(int, each.groups())) for each in found if each] == [(1, 31), (11, 21), (21, 11), (31, 1)]


def test_speed_is_that_of_the_recent_past(tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    class Slower(Toy):
        def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
            self.seconds = 0.25 if index < 40 else 1.0
            return super().training_step(batch, index)

    trainer = _trainer(tmp_path, Progress(line_seconds=0.0), max_steps=80)
    trainer.fit(Slower(clock), DataLoader(Endless(), batch_size=None))
    speeds = [float(re.search(r"([\d.]+) it/s", line)[1]) for line in _lines(capsys)]
    assert speeds[0] == speeds[39] == 4.0
    assert speeds[-1] == 1.0


def test_checkpoints_are_named_at_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _train(tmp_path, Progress(), max_steps=2, enable_checkpointing=True)
    assert f"Checkpoints: {tmp_path / 'checkpoints'}" in capsys.readouterr().out


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    _train(tmp_path, Progress(refresh_seconds=1.0), clock, seconds=1.0, max_steps=30)
    shown = terminal.getvalue()
    assert "\x1b[" in shown
    assert "/ 30" in shown
    assert "train/psnr 21.50" in shown
    assert "training:" not in shown
    assert shown.rstrip().endswith(f"Results: {tmp_path}")


def test_testing_counts_views(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = _trainer(tmp_path, Progress(line_seconds=0.0))
    trainer.test(Toy(), DataLoader([torch.ones(1)] * 3, batch_size=None), verbose=False)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("testing:")]
    assert lines == [f"testing: view {i} / 3" for i in (1, 2, 3)]


def test_disabled_is_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(line_seconds=0.0)
    progress.disable()
    _train(tmp_path, progress, max_steps=3)
    assert "step" not in capsys.readouterr().out


class Operations(TorchDispatchMode):
    """Counts what is computed, and what is read from a device."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_nothing_is_read_between_two_refreshes(
    tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = Progress(line_seconds=10.0)
    trainer, model = _trainer(tmp_path, progress, max_steps=1), Toy()
    trainer.fit(model, DataLoader(Endless(), batch_size=None))
    outputs = {"loss": torch.tensor(0.5)}
    counts = []
    for seconds in (10.0, *[0.0] * 100, 9.9, 0.2):
        clock.now += seconds
        with Operations() as operations:
            progress.on_train_batch_end(trainer, model, outputs, None, 0)
        counts.append(operations.count)
    assert counts[1:-1] == [0] * 101
    assert min(counts[0], counts[-1]) > 0
    assert len(_lines(capsys)) == 3  # the one of the training itself, and two
