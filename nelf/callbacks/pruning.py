"""Iterative magnitude pruning with fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Timer
from pytorch_lightning.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nelf.compression.pruning import apply_masks, choose_weights, find_masks, sparsities, sparsity_after
from nelf.errors import Rate
from nelf.systems.schedule import training_progress

__all__ = ["IterativePruning"]


class IterativePruning(pl.Callback):
    """Set the smallest weights to zero, in rounds, and keep them at zero while the others are fine-tuned.

    A round begins by zeroing the weights of smallest absolute value among all chosen layers together; after every
    optimizer step the masks are applied again, so momentum and weight decay do not revive them. Nothing is
    reparametrized, so checkpoints and saved weights have the keys and the sizes of the dense network. The masks are
    in the callback's state in a checkpoint, so that a resumed training keeps them.

    The features of a volume are ranked separately, see ``nelf.compression.pruning.find_masks``.

    The sparsity of each layer is logged at the beginning of each round (``sparsity/LAYER`` and
    ``sparsity/total``).

    Args:
        amount: final fraction of zeros among the chosen weights, between 0 and 1.
        rounds: number of rounds.
        steps: optimizer steps of each round; training ends after the last. None spreads the rounds evenly over
            the Trainer's own budget of steps, epochs or time.
        lr: learning rate of the fine-tuning, of the optimizer's first parameter group; the other groups keep
            their ratio to it, schedules their shape. None keeps the module's own.
        layers: which weights, see ``nelf.compression.pruning.choose_weights``.
        schedule: sparsity by round, see ``nelf.compression.pruning.sparsity_after``.

    Raises:
        ValueError: an argument is out of range; when training begins, ``layers`` match nothing or the Trainer
            has no limit to spread the rounds over.

    Source:
        The pruning extension of MobileR2L (3 rounds of 50,000 steps at 5e-6), where pruned weights were revived.
    """

    def __init__(
        self,
        amount: float = 0.3,
        rounds: int = 3,
        steps: int | None = 50_000,
        lr: Rate | None = 5e-6,
        layers: Sequence[str] = ("head", "body", "norms"),
        schedule: Literal["geometric", "uniform", "cubic", "constant"] = "geometric",
    ) -> None:
        for key, value in {"rounds": rounds, "steps": steps}.items():
            if value is not None and value < 1:
                raise ValueError(f"{key}: is {value}; allowed: 1 or more.")
        if lr is not None and lr <= 0:
            raise ValueError(f"lr: is {lr}; allowed: a positive number.")
        self._targets = [sparsity_after(number, rounds, amount, schedule) for number in range(1, rounds + 1)]
        self.rounds, self.steps, self.lr, self.layers = rounds, steps, lr, tuple(layers)
        self.round = 0
        self.masks: dict[str, Tensor] = {}
        self._first_step: int | None = None
        self._weights: dict[str, nn.Parameter] = {}
        self._hooks: list[RemovableHandle] = []

    @property
    def sparsity(self) -> dict[str, float]:
        """Fraction of exact zeros in each chosen layer and, under ``"total"``, in all of them together."""
        return sparsities(self._weights)

    def state_dict(self) -> dict[str, Any]:
        """The masks, the current round and the first step: plain tensors and numbers."""
        return {"masks": self.masks, "round": self.round, "first_step": self._first_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        self.masks, self.round = state_dict["masks"], state_dict["round"]
        self._first_step = state_dict["first_step"]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the weights, and apply the masks of a resumed training, even one without a step left."""
        self._weights = choose_weights(pl_module, self.layers)
        self.masks = {name: mask.to(self._weights[name].device) for name, mask in self.masks.items()}
        self._hold()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set the learning rates, register hooks with the optimizers and begin the round that is due."""
        if self._first_step is None:
            self._first_step = trainer.global_step
        self._check_budget(trainer)
        if self.lr is not None:
            _set_learning_rates(trainer, self.lr)
        self._hooks = [optimizer.register_step_post_hook(self._hold) for optimizer in trainer.optimizers]
        self._begin_due_rounds(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin a round if it is due."""
        self._begin_due_rounds(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop the training after the last round's steps."""
        if self.steps is not None and trainer.global_step - (self._first_step or 0) >= self.rounds * self.steps:
            trainer.should_stop = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Warn if the training ended before the last round."""
        if self.round < self.rounds:
            rank_zero_warn(f"IterativePruning: training ended in round {self.round} of {self.rounds}.")

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Remove the hooks from the optimizers, however the training ended."""
        while self._hooks:
            self._hooks.pop().remove()

    def _check_budget(self, trainer: pl.Trainer) -> None:
        """Refuse a Trainer without a limit, over which rounds cannot be spread."""
        timed = any(isinstance(callback, Timer) for callback in trainer.callbacks)  # type: ignore[attr-defined]
        if self.steps is None and trainer.estimated_stepping_batches == float("inf") and not timed:
            raise ValueError("Expected `steps`, or a Trainer with max_steps, max_epochs or max_time, but got neither.")

    def _due(self, trainer: pl.Trainer) -> int:
        """The number of the round that is due."""
        if self.steps is not None:
            return min(1 + (trainer.global_step - (self._first_step or 0)) // self.steps, self.rounds)
        share = max(training_progress(trainer), trainer.global_step / trainer.estimated_stepping_batches)
        return min(1 + int(share * self.rounds), self.rounds)

    def _begin_due_rounds(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.round >= self._due(trainer):
            return
        self.round = self._due(trainer)
        self.masks = find_masks(pl_module, self._weights, self._targets[self.round - 1])
        self._hold()
        for logger in trainer.loggers:
            logger.log_metrics(
                {f"sparsity/{name}": share for name, share in self.sparsity.items()}, trainer.global_step
            )

    def _hold(self, *_: Any) -> None:
        """Apply the masks; called after each optimizer step."""
        apply_masks(self._weights, self.masks)


def _set_learning_rates(trainer: pl.Trainer, lr: float) -> None:
    """Scale all learning rates and their schedules so that the first group's is ``lr``; idempotent."""
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    for optimizer in trainer.optimizers:
        factor = lr / optimizer.param_groups[0].get("initial_lr", optimizer.param_groups[0]["lr"])
        for group in optimizer.param_groups:
            group.update({key: group[key] * factor for key in ("lr", "initial_lr") if key in group})
        for scheduler in schedulers:
            if getattr(scheduler, "optimizer", None) is optimizer and hasattr(scheduler, "base_lrs"):
                scheduler.base_lrs = [base * factor for base in scheduler.base_lrs]
