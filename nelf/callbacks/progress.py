"""A progress display for training that is limited by steps, time, or both, without epochs."""

import sys
import time
from collections import deque
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ProgressBar, Timer
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as RichProgress

__all__ = ["Progress"]


class Progress(ProgressBar):
    """Show step, steps per second, time left, loss and PSNR, on a terminal or line by line in a log.

    If a teacher renders views online, their number per second is shown, too.

    It replaces Lightning's own bar. It uses the trainer's ``max_steps`` and ``max_time``, whichever ends
    first, and needs no epochs. If standard output is not a terminal (nohup, a CI log), it prints plain lines.
    Metrics are read from the device only for a refresh, so that other steps do not synchronize. At the end it
    prints where the results are.

    Args:
        refresh_seconds: time between refreshes on a terminal.
        line_seconds: time between lines elsewhere.
    """

    def __init__(self, refresh_seconds: float = 0.25, line_seconds: float = 10.0) -> None:
        super().__init__()
        self._intervals = (refresh_seconds, line_seconds)
        self._enabled = True
        self._bar: RichProgress | None = None
        self._task = TaskID(0)
        self._next_refresh = 0.0
        self._started = 0.0
        # (seconds, step, views rendered) of the last refreshes, for the recent speed.
        self._history: deque[tuple[float, int, float]] = deque(maxlen=20)

    def disable(self) -> None:
        """Show nothing from now on, as on all ranks except the first."""
        self._enabled = False
        self._close()

    def enable(self) -> None:
        """Show progress again."""
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the bar, as ``LightningModule.print`` asks for."""
        if self._bar is not None:
            self._bar.console.print(*args)
        else:
            print(*args, **kwargs)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the display."""
        self._started = time.monotonic()
        self._history.clear()
        self._history.append((self._started, trainer.global_step, _rendered(trainer) or 0.0))
        self._open("Training")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Refresh if it is due."""
        now = time.monotonic()
        if not self._enabled or now < self._next_refresh:
            return
        self._history.append((now, trainer.global_step, _rendered(trainer) or 0.0))
        self._show(trainer, _fraction(trainer), [*self._pace(trainer), *_metrics(trainer, outputs)])

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the display and say where the results are."""
        self._close()
        if self._enabled:
            took = _clock(time.monotonic() - self._started)
            print(f"Trained to step {trainer.global_step:,} in {took}. {_results(trainer)}", flush=True)

    def on_validation_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Show which validation view is being rendered."""
        self._show_evaluation(trainer, "Validating", batch_idx, trainer.num_val_batches)

    def on_test_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Show which test view is being rendered."""
        self._show_evaluation(trainer, "Testing", batch_idx, trainer.num_test_batches)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Exclude the time of a validation from the speed."""
        if trainer.training or trainer.sanity_checking:
            self._history.clear()
            self._history.append((time.monotonic(), trainer.global_step, _rendered(trainer) or 0.0))
        else:
            self._close()

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the display."""
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Close the display before the error is printed."""
        self._close()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Close the display however the stage ended."""
        self._close()

    def _open(self, description: str) -> None:
        """Start the bar on a terminal; elsewhere there is nothing to open."""
        self._next_refresh = 0.0
        if self._enabled and self._bar is None and sys.stdout.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=30),
                TextColumn("{task.fields[text]}"),
            )
            # Refreshed explicitly, without a thread that competes with training for a core.
            self._bar = RichProgress(*columns, auto_refresh=False)
            self._bar.start()
            self._task = self._bar.add_task(description, total=None, text="")

    def _close(self) -> None:
        """Stop the bar, leaving its last state on the terminal."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _show(
        self, trainer: pl.Trainer, fraction: float | None, words: list[str], description: str = "Training"
    ) -> None:
        """Refresh the bar or print a line, and set the time of the next refresh."""
        self._next_refresh = time.monotonic() + self._intervals[self._bar is None]
        if self._bar is None:
            print(description.lower() + ": " + "  ".join(words), flush=True)
            return
        total = None if fraction is None else 1.0
        completed = fraction or 0.0
        self._bar.update(self._task, description=description, total=total, completed=completed, text="  ".join(words))
        self._bar.refresh()

    def _show_evaluation(
        self, trainer: pl.Trainer, description: str, index: int, batches: int | float | list[int | float]
    ) -> None:
        """Show how many views of a validation or a test are done."""
        if not self._enabled or trainer.sanity_checking or time.monotonic() < self._next_refresh:
            return
        self._open(description)
        total = sum(batches) if isinstance(batches, list) else batches
        self._show(trainer, index / total if total else None, [f"view {index + 1} / {total:g}"], description)

    def _pace(self, trainer: pl.Trainer) -> list[str]:
        """Describe the step, the speed and the time left."""
        (before, first, known), (now, step, rendered) = self._history[0], self._history[-1]
        rate = (step - first) / (now - before) if now > before else 0.0
        steps = _total_steps(trainer)
        words = [f"step {step:,}" + (f" / {steps:,}" if steps else ""), f"{rate:.1f} it/s"]
        if _rendered(trainer) is not None:
            words.append(f"{(rendered - known) / (now - before) if now > before else 0.0:.1f} views/s")
        remaining = [(steps - step) / rate] if steps and rate > 0 else []
        timer = _timer(trainer)
        if timer is not None:
            remaining.append(timer.time_remaining() or 0.0)
        return [*words, f"left {_clock(min(remaining))}"] if remaining else words


def _metrics(trainer: pl.Trainer, outputs: Any) -> list[str]:
    """Read the loss and the PSNRs, which synchronizes with the device."""
    loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
    words = [f"loss {float(loss):.4g}"] if isinstance(loss, torch.Tensor) and loss.numel() == 1 else []
    known = trainer.callback_metrics
    return words + [f"{name} {float(known[name]):.2f}" for name in ("train/psnr", "val/psnr") if name in known]


def _rendered(trainer: pl.Trainer) -> float | None:
    """The number of views that a teacher has rendered online for this training; None for stored views."""
    return getattr(getattr(trainer, "datamodule", None), "rendered", None)


def _timer(trainer: pl.Trainer) -> Timer | None:
    """The callback by which Lightning implements ``max_time``, or None."""
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    timers = [callback for callback in callbacks if isinstance(callback, Timer)]
    return next((timer for timer in timers if timer.time_remaining() is not None), None)


def _total_steps(trainer: pl.Trainer) -> int | None:
    """Return the step at which the training ends, or None if only time ends it."""
    steps = trainer.estimated_stepping_batches
    return int(steps) if 0 < steps < float("inf") else None


def _fraction(trainer: pl.Trainer) -> float | None:
    """Return the progress of the training in [0, 1], by steps or by time, the larger one."""
    done = []
    steps = _total_steps(trainer)
    if steps:
        done.append(trainer.global_step / steps)
    timer = _timer(trainer)
    if timer is not None:
        elapsed = timer.time_elapsed()
        done.append(elapsed / max(elapsed + (timer.time_remaining() or 0.0), 1e-9))
    return min(max(done), 1.0) if done else None


def _results(trainer: pl.Trainer) -> str:
    """Describe where the results and the checkpoints are."""
    root = trainer.default_root_dir
    checkpoint = getattr(trainer.checkpoint_callback, "dirpath", None)
    if checkpoint and Path(checkpoint).is_dir():
        return f"Results: {root}  Checkpoints: {checkpoint}"
    return f"Results: {root}"


def _clock(seconds: float) -> str:
    """Write a duration as h:mm:ss."""
    return str(timedelta(seconds=max(round(seconds), 0)))
