"""Teacher: how a radiance field learns from rays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import mse_loss, smooth_l1_loss
from torch.optim.lr_scheduler import LambdaLR

from nelf.rendering import distortion
from nelf.scene import background_color, composite_background
from nelf.systems.schedule import cosine_decay, training_progress
from nelf.systems.system import System

if TYPE_CHECKING:
    from pytorch_lightning.utilities.types import OptimizerLRScheduler

    from nelf.data.batches import RayBatch
    from nelf.fields import NGP

__all__ = ["Teacher"]

LOSSES = ("mse", "huber")
BACKGROUNDS = ("random", "scene")
COSINE_END = 1 / 30
HUBER_DELTA = 0.1


class Teacher(System):
    """Fits a radiance field to the pixels of the training views.

    Each step takes as many of the batch's rays as make about ``samples_per_step`` samples: many once the empty
    space is known, few before. The learning rate falls along half a cosine to a thirtieth at the end of the
    Trainer's ``max_steps`` or ``max_time``.

    Args:
        network: the field.
        lr: learning rate of the first step.
        loss: ``mse``, or ``huber`` (quadratic below a difference of 0.1, linear above).
        opacity_loss: weight of the entropy ``-o log(o)`` that pushes each ray's opacity to 0 or 1.
        distortion_loss: weight of Mip-NeRF 360's loss against floating matter; 0 leaves it out.
        background: ``random`` lays both sides over one random color per ray, so that opacity is learned from
            images with alpha; ``scene`` lays them over the scene's own background. So does ``random`` where all
            images are opaque: else their background would be learned as matter.
        samples_per_step: samples that a step composites, held constant by the number of rays.
        occupancy_every: steps between two updates of the occupancy grid.
        occupancy_warmup: for so many steps an update looks at all cells.

    Raises:
        ValueError: ``loss`` or ``background`` is not one of the words above.

    Source:
        ngp_pl, ``train.py`` and ``losses.py``; Mip-NeRF 360, eq. 15 (arXiv 2111.12077).
    """

    batch_kind = "rays"
    network: NGP

    def __init__(
        self,
        network: NGP,
        lr: float = 1e-2,
        loss: Literal["mse", "huber"] = "mse",
        opacity_loss: float = 1e-3,
        distortion_loss: float = 0.0,
        background: Literal["random", "scene"] = "random",
        samples_per_step: int = 2**18,
        occupancy_every: int = 16,
        occupancy_warmup: int = 256,
    ) -> None:
        super().__init__(network)
        if loss not in LOSSES:
            raise ValueError(f"Expected argument `loss` to be one of {LOSSES}, but got {loss!r}.")
        if background not in BACKGROUNDS:
            raise ValueError(f"Expected argument `background` to be one of {BACKGROUNDS}, but got {background!r}.")
        self.save_hyperparameters(ignore=["network"])
        self.samples_per_ray = float(network.max_samples)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the number of rays that fill a step."""
        checkpoint["samples_per_ray"] = self.samples_per_ray

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the number of rays that filled a step."""
        self.samples_per_ray = checkpoint["samples_per_ray"]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build Adam, with Instant-NGP's constants, and its per-step schedule."""
        optimizer = torch.optim.Adam(
            self.network.parameters(), lr=self.hparams["lr"], betas=(0.9, 0.99), eps=1e-15, fused=True
        )
        scheduler = LambdaLR(optimizer, lambda step: cosine_decay(training_progress(self.trainer), COSINE_END))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Keep the occupancy grid up with the field."""
        if self.global_step % self.hparams["occupancy_every"] == 0:
            self.network.update_occupancy(warm_up=self.global_step < self.hparams["occupancy_warmup"])

    def training_step(self, batch: RayBatch, batch_idx: int) -> Tensor:
        """Fit as many rays of the batch as make a full step."""
        n_rays = int(min(max(self.hparams["samples_per_step"] / self.samples_per_ray, 64), len(batch.rays_o)))
        rgba = batch.rgba[:n_rays]
        out, samples = self.network.render_rays(batch.rays_o[:n_rays], batch.rays_d[:n_rays])
        self.samples_per_ray = max(0.8 * self.samples_per_ray + 0.2 * len(samples.t_starts) / n_rays, 1.0)

        if self.hparams["background"] == "random" and self.has_alpha:
            background = torch.rand_like(rgba[:, :3])
        else:
            background = background_color(self.background).to(rgba).expand(n_rays, 3)
        rgb = out.rgb + (1.0 - out.opacity)[:, None] * background
        target = composite_background(rgba, background)
        loss = self._color_loss(rgb, target)
        if self.hparams["opacity_loss"] > 0:
            opacity = out.opacity + 1e-10
            loss = loss - self.hparams["opacity_loss"] * (opacity * opacity.log()).mean()
        if self.hparams["distortion_loss"] > 0:
            loss = loss + self.hparams["distortion_loss"] * distortion(out.weights, *samples, n_rays).mean()
        self.log("train/psnr", -10.0 * mse_loss(rgb.detach(), target).log10(), prog_bar=True)
        self.log("train/rays", float(n_rays))
        self.log("train/samples_per_ray", len(samples.t_starts) / n_rays)
        return loss

    def _color_loss(self, rgb: Tensor, target: Tensor) -> Tensor:
        if self.hparams["loss"] == "mse":
            return mse_loss(rgb, target)
        # In the units of the squared error, so that the other weights mean the same.
        return 2 * HUBER_DELTA * smooth_l1_loss(rgb, target, beta=HUBER_DELTA)
