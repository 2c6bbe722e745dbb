"""Train a model on a scene for a number of steps, and tabulate the results of several seeds."""

from __future__ import annotations

import statistics
import time
from datetime import timedelta
from typing import Any

from _machine import seconds  # before torch, since it says how idle threads wait

# isort: split
import pytorch_lightning as pl
from hydra.utils import instantiate
from pytorch_lightning.callbacks import Timer
from rich.console import Console
from rich.table import Table

import nelf
from nelf.data import SceneDataModule
from nelf.report.evaluation import evaluate
from nelf.scene import Scene
from nelf.systems.system import System

Row = dict[str, Any]


class ProcessorTimer(Timer):
    """A limit on the CPU time of a training, which does not depend on other programs.

    Args:
        seconds: CPU time that may be spent after construction, on training or anything else.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(timedelta(seconds=seconds), verbose=False)
        self._seconds, self._from = seconds, time.process_time()

    def time_elapsed(self, stage: Any = None) -> float:
        """CPU time spent so far, s."""
        return time.process_time() - self._from

    def time_remaining(self, stage: Any = None) -> float:
        """CPU time left, s."""
        return self._seconds - self.time_elapsed()


def fit(
    scene: Scene, words: list[str], steps: int, seed: int, teacher: Any = None, timer: Timer | None = None
) -> tuple[Row, System]:
    """Train a model by its recipe; a student starts from its teacher.

    Args:
        scene: the training data.
        words: overrides of train.py, including the model.
        steps: number of steps; -1 for no limit.
        seed: for all random numbers.
        teacher: the network from which a student starts.
        timer: an additional limit.

    Returns:
        PSNR and SSIM of the held-out views and the seconds that training took; and the trained system.
    """
    pl.seed_everything(seed, verbose=False)
    config = nelf.config("train", words)
    system = instantiate(config.system, network=instantiate(config.model))
    if teacher is not None:
        system.network.prepare(scene.geometry, scene.train.silhouettes(), teacher)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = pl.Trainer(max_steps=steps, max_epochs=-1, accelerator="cpu", limit_val_batches=0, **quiet)
    trainer.callbacks += [] if timer is None else [timer]  # type: ignore[attr-defined]
    data = SceneDataModule(scene, seed=seed, **system.batches)
    took = seconds(lambda: trainer.fit(system, data))
    figures = evaluate(system, scene.test, scene.background)
    return {"psnr": round(figures["psnr"], 3), "ssim": round(figures["ssim"], 4), "seconds": round(took, 1)}, system


def show(rows: list[Row], title: str, **by: str) -> None:
    """Print the mean and the spread of rows that differ only in their seed.

    Args:
        rows: figures of ``fit``, and keys that identify what was fitted.
        title: of the table.
        **by: these keys, and the titles of their columns.
    """
    table = Table(*by.values(), "PSNR", "lowest", "highest", "SSIM", "seconds", title=title)
    for kind in dict.fromkeys(tuple(row[key] for key in by) for row in rows):
        own = [row for row in rows if tuple(row[key] for key in by) == kind]
        psnr = [row["psnr"] for row in own]
        ssim, took = (statistics.mean(row[key] for row in own) for key in ("ssim", "seconds"))
        decibels = [f"{value:.2f}" for value in (statistics.mean(psnr), min(psnr), max(psnr))]
        table.add_row(*kind, *decibels, f"{ssim:.3f}", f"{took:.0f}")
    Console(width=110).print(table)
