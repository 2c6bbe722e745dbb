"""StopTogether: Ctrl-C in a training of several processes."""

from __future__ import annotations

import signal
import threading
from typing import Any

import pytorch_lightning as pl

__all__ = ["StopTogether"]

EVERY = 10  # steps between reductions over processes; each costs a message, and on a GPU a synchronization


class StopTogether(pl.Callback):
    """Let Ctrl-C in any process stop all of them after the same step, so that the saved state is consistent.

    Without it, each process is interrupted at a different point, and waits for gradients that no other sends any more.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record Ctrl-C from now on instead of being interrupted."""
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._ask)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Raise KeyboardInterrupt in all processes if one of them has been asked to stop."""
        if trainer.global_step % EVERY == 0 and trainer.strategy.reduce_boolean_decision(self.asked, all=False):
            raise KeyboardInterrupt

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the previous handler of Ctrl-C."""
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None

    def _ask(self, *_: Any) -> None:
        self.asked = True
