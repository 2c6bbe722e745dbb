"""The progress display: what it prints, and what it costs."""

import io
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from nelf.callbacks import Progress


class Endless(IterableDataset):
    def __iter__(self) -> Iterator[torch.Tensor]:
        while True:
            yield torch.ones(1)


class Toy(pl.LightningModule):
    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.seconds = seconds

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        time.sleep(self.seconds)
        self.log("train/psnr", torch.tensor(21.5))
        return 0 * self.layer(batch).sum() + 0.125

    def test_step(self, batch: torch.Tensor, index: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _trainer(folder: Path, progress: Progress, **options: object) -> pl.Trainer:
    settings = {"enable_checkpointing": False, "logger": False, "accelerator": "cpu"} | options
    return pl.Trainer(callbacks=[progress], default_root_dir=folder, enable_model_summary=False, **settings)


def _train(folder: Path, progress: Progress, seconds: float = 0.0, **options: object) -> None:
    _trainer(folder, progress, **options).fit(Toy(seconds), DataLoader(Endless(), batch_size=None))


def test_plain_lines_know_max_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _train(tmp_path, Progress(line_seconds=0.05), seconds=0.002, max_steps=100)
    output = capsys.readouterr().out
    lines = [line for line in output.splitlines() if line.startswith("training:")]
    assert 2 <= len(lines) < 40
    pattern = r"training: step (\d+) / 100  [\d.]+ it/s  left 0:00:0\d  loss 0\.125  train/psnr 21\.50"
    steps = [int(re.fullmatch(pattern, line)[1]) for line in lines[1:]]
    assert steps == sorted(steps)
    assert "\x1b" not in output
    assert "\r" not in output
    assert re.search(rf"Trained to step 100 in 0:00:0\d\. Results: {re.escape(str(tmp_path))}\n", output)


def test_plain_lines_know_max_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(line_seconds=0.2)
    _train(tmp_path, progress, seconds=0.01, max_steps=-1, max_epochs=-1, max_time={"seconds": 2})
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("training:")]
    left = [re.search(r"step \d+  .* left 0:00:0(\d)", line)[1] for line in lines[1:]]
    assert left[0] in "12"
    assert left[-1] == "0"


def test_speed_is_the_steps_per_second(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _train(tmp_path, Progress(line_seconds=0.1), seconds=0.02, max_steps=40)
    line = [line for line in capsys.readouterr().out.splitlines() if line.startswith("training:")][-1]
    assert 20 < float(re.search(r"([\d.]+) it/s", line)[1]) < 51


def test_checkpoints_are_named_at_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _train(tmp_path, Progress(), max_steps=2, enable_checkpointing=True)
    assert f"Checkpoints: {tmp_path / 'checkpoints'}" in capsys.readouterr().out


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    _train(tmp_path, Progress(refresh_seconds=0.01), seconds=0.003, max_steps=30)
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


def test_a_step_costs_next_to_nothing(tmp_path: Path) -> None:
    progress = Progress()
    trainer = _trainer(tmp_path, progress, max_steps=1)
    model = Toy()
    trainer.fit(model, DataLoader(Endless(), batch_size=None))
    outputs = {"loss": torch.tensor(0.5)}
    progress.on_train_batch_end(trainer, model, outputs, None, 0)
    start = time.perf_counter()
    for index in range(1000):
        progress.on_train_batch_end(trainer, model, outputs, None, index)
    assert (time.perf_counter() - start) / 1000 < 0.2e-3
