"""Student: how a light field learns from views."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn.functional import mse_loss
from torch.optim.lr_scheduler import LambdaLR

from nelf.data.scene import composite_background
from nelf.systems.schedule import cosine_decay, exponential_decay, training_progress, warmup
from nelf.systems.system import System

if TYPE_CHECKING:
    from pytorch_lightning.utilities.types import OptimizerLRScheduler

    from nelf.data.sampling import ImageBatch
    from nelf.lightfields import LightField

__all__ = ["Student"]

OPTIMIZERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}
SCHEDULES = ("exponential", "cosine")
COSINE_END = 0.02


class Student(System):
    """Fits a light field to whole views by the mean squared error of their pixels.

    The ray grid of each view is shifted by a random number of pixels, at most ``sr_factor``, and the view cut to
    match, so that every pixel is seen in every place of a block.

    Args:
        network: the light field.
        lr: learning rate after the warm-up.
        warmup_lr: learning rate of the first step.
        warmup_steps: steps of the linear rise from ``warmup_lr`` to ``lr``.
        schedule: ``exponential`` falls to a tenth every ``decay_steps`` steps, as R2L and MobileR2L do;
            ``cosine`` falls to a fiftieth at the end of the Trainer's ``max_steps`` or ``max_time``.
        decay_steps: see ``schedule``; ``cosine`` does not look at it.
        optimizer: ``adamw`` or ``adam``.
        weight_decay: AdamW's decoupled decay, or Adam's L2 term.
        shift: shift the ray grid at random.

    Raises:
        ValueError: ``schedule`` or ``optimizer`` is not one of the words above.

    Source:
        Schedule, loss and optimiser: MobileR2L's training code; R2L's schedule is the same.
    """

    batch_kind = "views"
    network: LightField

    def __init__(
        self,
        network: LightField,
        lr: float = 5e-4,
        warmup_lr: float = 1e-4,
        warmup_steps: int = 200,
        schedule: Literal["exponential", "cosine"] = "exponential",
        decay_steps: int = 500_000,
        optimizer: Literal["adamw", "adam"] = "adamw",
        weight_decay: float = 0.01,
        shift: bool = True,
    ) -> None:
        super().__init__(network)
        if schedule not in SCHEDULES:
            raise ValueError(f"Expected argument `schedule` to be one of {SCHEDULES}, but got {schedule!r}.")
        if optimizer not in OPTIMIZERS:
            raise ValueError(f"Expected argument `optimizer` to be one of {tuple(OPTIMIZERS)}, but got {optimizer!r}.")
        self.save_hyperparameters(ignore=["network"])

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimiser over the network's parameter groups and its per-step schedule."""
        options = self.hparams
        groups = self.network.parameter_groups(options["lr"], options["weight_decay"])
        optimizer = OPTIMIZERS[options["optimizer"]](groups, lr=options["lr"])
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": LambdaLR(optimizer, self._lr_factor), "interval": "step"},
        }

    def _lr_factor(self, step: int) -> float:
        """The learning rate after ``step`` steps, as a multiple of ``lr``."""
        options = self.hparams
        steps = options["warmup_steps"]
        rise = warmup(step, steps, options["warmup_lr"] / options["lr"])
        if options["schedule"] == "cosine":
            return rise * cosine_decay(training_progress(self.trainer), COSINE_END)
        return rise * exponential_decay(max(step - steps, 0), options["decay_steps"])

    def training_step(self, batch: ImageBatch, batch_idx: int) -> Tensor:
        """Fit the views of one batch."""
        rays_o, rays_d, target = self._rays_and_target(batch)
        loss = mse_loss(self.network(rays_o, rays_d).float(), target)
        self.log("train/psnr", -10.0 * loss.detach().log10(), prog_bar=True)
        return loss

    def _rays_and_target(self, batch: ImageBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Ray grids (B, h, w, 3) twice and the pixels (B, 3, h * s, w * s) of their blocks."""
        stride = self.network.sr_factor
        target = composite_background(batch.rgba.float() / 255, self.background).permute(0, 3, 1, 2)
        if not self.hparams["shift"] or stride == 1:
            rays = batch.camera.rays(stride)
            return rays.rays_o, rays.rays_d, target
        offset = torch.randint(stride + 1, (len(target), 2))
        rays = batch.camera.rays(stride, offset)
        # A shifted grid reaches over the right and lower edge, so its last column and row go. A shift by a whole block
        # drops the first ones instead: else no grid would ever reach those edges.
        height, width = target.shape[2] - stride, target.shape[3] - stride
        cut = [
            view[:, dy : dy + height, dx : dx + width] for view, (dx, dy) in zip(target, offset.tolist(), strict=True)
        ]
        return rays.rays_o[:, :-1, :-1], rays.rays_d[:, :-1, :-1], torch.stack(cut)
