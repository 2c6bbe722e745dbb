"""Hard rays: those with large errors are trained on again."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from nelf.data.hard_rays import HardRayPool
from nelf.errors import UserError

__all__ = ["HardRays"]


class HardRays(pl.Callback):
    """Give a student of rays a pool of those that it finds hard, see ``nelf.data.hard_rays.HardRayPool``.

    The pool is in the callback's own part of a checkpoint, 40 bytes a ray and 4 for each control. Of several processes,
    each of which has its own, that is the first one's; the others fill theirs anew when training is resumed.

    A teacher is left as it is.

    Args:
        ratio_in: share of a batch that comes into the pool in each step.
        ratio_out: share of a batch that is drawn from it, beside the batch.
        mul: the pool has so many times the rays of a batch.
        seed: what is drawn.

    Raises:
        ValueError: an argument is out of range.
        UserError: when training begins, the student learns from views.
    """

    def __init__(self, ratio_in: float = 0.2, ratio_out: float = 0.2, mul: float = 20.0, seed: int = 0) -> None:
        self.pool = HardRayPool(ratio_in, ratio_out, mul, seed)
        self._resumed = False

    def state_dict(self) -> dict[str, Any]:
        """The pool: plain tensors and numbers."""
        return self.pool.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the pool of a checkpoint."""
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
        """Take it back, however the training ended."""
        if hasattr(pl_module, "hard_rays"):
            pl_module.hard_rays = None  # type: ignore[assignment]
