"""Student: how a light field learns from views."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn.functional import mse_loss
from torch.optim.lr_scheduler import LambdaLR

from nelf.data.scene import background_color
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
    random_bg = 0.5
    window = None
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
        rays_o, rays_d, rgba = self._rays_and_target(batch)
        drawn = self.network(rays_o, rays_d).float()
        if drawn.shape[1] == 4:
            import random
            opaque = (batch.rgba[..., 3].amin((1, 2)) == 255)[:, None]
            scene = background_color(self.background).to(rgba)
            bg = torch.where(opaque | (torch.rand(len(rgba), 1) > self.random_bg), scene, torch.rand(len(rgba), 3).to(rgba))[..., None, None]
            drawn = drawn[:, :3] + (1 - drawn[:, 3:]) * bg
        else:
            bg = background_color(self.background).to(rgba)[:, None, None]
        target = rgba[:, :3] * rgba[:, 3:] + (1 - rgba[:, 3:]) * bg
        loss = mse_loss(drawn, target)
        self.log("train/psnr", -10.0 * loss.detach().log10(), prog_bar=True)
        return loss

    def _rays_and_target(self, batch: ImageBatch) -> tuple[Tensor, Tensor, Tensor]:
        rgba = (batch.rgba.float() / 255).permute(0, 3, 1, 2)
        network = self.network
        block = network.sr_factor
        height, width = (min(side - block, self.window or side) // block * block for side in rgba.shape[2:])
        boxes = [network.extent(batch.camera[i]) for i in range(len(rgba))]
        corners = [(_place(x0, x1, width, rgba.shape[3]), _place(y0, y1, height, rgba.shape[2])) for x0, y0, x1, y1 in boxes]
        camera = batch.camera.window(torch.tensor(corners), width, height)
        rays = camera.rays(block if network.block_rays else 1)
        target = torch.stack([view[:, y : y + height, x : x + width] for view, (x, y) in zip(rgba, corners)])
        return rays.rays_o, rays.rays_d, target


def _place(low: int, high: int, length: int, side: int) -> int:
    """Where a window begins, so that each pixel from ``low`` to ``high`` is about as likely in it."""
    first, last = max(min(low, high - length), 0), min(max(low, high - length), side - length)
    margin = length // 2 if high - low > length else 0
    if high - low <= length:
        first, last = max(high - length, 0), min(low, side - length)
        return int(torch.randint(min(first, last), max(first, last) + 1, ()))
    at = int(torch.randint(low - margin, high - margin + 1, ()))
    return min(max(at, low), high - length)
