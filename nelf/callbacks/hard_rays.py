"""Hard rays: rays with large errors are trained on again."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from nelf.data.hard_rays import HardRayPool
from nelf.errors import UserError

__all__ = ["HardRays"]


class HardRays(pl.Callback):
    """Give a student that is trained on rays a pool of hard ones, see ``nelf.data.hard_rays.HardRayPool``.

    The pool is in the callback's state in a checkpoint, 40 bytes per ray and 4 per control. Each of several processes
    has its own; the checkpoint has that of the first one, and the others start empty when training is resumed.

    The callback does nothing for a teacher.

    Args:
        ratio_in: rays that enter the pool in each step, as a fraction of the batch.
        ratio_out: rays that are drawn from the pool and added to the batch, as a fraction of the batch.
        mul: size of the pool, in batches.
        seed: of the random draws.

    Raises:
        ValueError: an argument is out of range.
        UserError: when training begins, the student is trained on views.
    """

    def __init__(self, ratio_in: float = 0.2, ratio_out: float = 0.2, mul: float = 20.0, seed: int = 0) -> None:
        self.pool = HardRayPool(ratio_in, ratio_out, mul, seed)
        self._resumed = False

    def state_dict(self) -> dict[str, Any]:
        """The pool: plain tensors and numbers."""
        return self.pool.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the pool of a checkpoint."""
        self.pool.load_state_dict(state_dict)
        self._resumed = True

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the student its pool."""
        if not hasattr(pl_module, "hard_rays"):
            return
        if getattr(pl_module, "batch", None) != "rays":
            network = type(pl_module.network).__name__
            raise UserError(f"callbacks.hard_rays: {network} learns from whole views; allowed: light fields of rays.")
        self.pool.rank = trainer.global_rank
        if self._resumed and trainer.global_rank > 0:
            self.pool.clear()
        self._resumed = False
        pl_module.hard_rays = self.pool  # type: ignore[assignment]

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Remove the pool from the student, however the training ended."""
        if hasattr(pl_module, "hard_rays"):
            pl_module.hard_rays = None  # type: ignore[assignment]
