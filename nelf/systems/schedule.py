"""Learning-rate schedules, by step or by the fraction of the Trainer's budget that has passed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pytorch_lightning.callbacks import Timer

if TYPE_CHECKING:
    from pytorch_lightning import Trainer

__all__ = ["cosine_decay", "exponential_decay", "polynomial_decay", "step_decay", "training_progress", "warmup"]


def training_progress(trainer: Trainer, every: int = 1) -> float:
    """The progress of a training: the fraction of ``max_steps`` or ``max_time`` that has passed, the larger one.

    Args:
        trainer: of the training.
        every: steps are rounded down to a multiple of it.

    Returns:
        A number in [0, 1]; 0 if the Trainer has neither limit.
    """
    shares, timed = [0.0], False
    if trainer.max_steps > 0:
        shares.append(trainer.global_step // every * every / trainer.max_steps)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Timer):
            elapsed, remaining = callback.time_elapsed(), callback.time_remaining()
            if remaining is not None:
                timed = True
                shares.append(elapsed / max(elapsed + remaining, 1e-9))
    share = min(max(shares), 1.0)
    # Clocks differ: processes with different learning rates would diverge.
    return float(trainer.strategy.broadcast(share)) if timed and trainer.world_size > 1 else share


def warmup(step: int, steps: int, start: float) -> float:
    """Rise linearly from ``start`` to 1 over ``steps`` steps, and stay at 1."""
    return start + (1.0 - start) * step / steps if step < steps else 1.0


def exponential_decay(step: int, steps: int) -> float:
    """Fall to a tenth every ``steps`` steps: ``0.1 ** (step / steps)``."""
    return 0.1 ** (step / steps)


def cosine_decay(progress: float, end: float) -> float:
    """Fall from 1 to ``end`` along half a cosine as ``progress`` goes from 0 to 1."""
    return end + (1.0 - end) * 0.5 * (1.0 + math.cos(math.pi * progress))


def step_decay(progress: float, milestones: Sequence[float], gamma: float) -> float:
    """Fall by the factor ``gamma`` as ``progress`` passes each of the milestones in [0, 1]."""
    return gamma ** sum(progress >= milestone for milestone in milestones)


def polynomial_decay(progress: float, power: float) -> float:
    """Fall from 1 to 0 as ``(1 - progress) ** power`` while ``progress`` goes from 0 to 1."""
    return (1.0 - progress) ** power
