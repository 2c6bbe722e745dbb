"""Teacher: how a radiance field learns from rays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import mse_loss, smooth_l1_loss

from nelf.scene import background_color, composite_background
from nelf.systems.schedule import cosine_decay, training_progress
from nelf.systems.system import System

if TYPE_CHECKING:
    from nelf.data.batches import RayBatch
    from nelf.fields import RadianceField

__all__ = ["Teacher"]

LOSSES = ("mse", "huber")
BACKGROUNDS = ("random", "scene")
COSINE_END = 1 / 30
HUBER_DELTA = 0.1
REGULARIZERS = {"opacity": 1e-3, "distortion": 0.0}


class Teacher(System):
    """Fits a radiance field to the pixels of the training views.

    The loss is that of the colors of each of the field's passes, and its regularizers, weighted.

    Each step takes as many of the batch's rays as make about ``samples_per_step`` samples: many once the empty
    space is known, few before. The learning rate falls along half a cosine to a thirtieth at the end of the
    Trainer's ``max_steps`` or ``max_time``.

    Args:
        network: the field.
        lr: learning rate of the first step.
        loss: ``mse``, or ``huber`` (quadratic below a difference of 0.1, linear above).
        regularizers: weight of each of the field's loss terms, by name; those that are left out have none. None for
            ngp_pl's weights, opacity 1e-3. Every field has ``opacity``, the entropy that pushes each ray's opacity to 0
            or 1, and ``distortion``, Mip-NeRF 360's loss against floaters.
        background: ``random`` composites both sides over one random color per ray, so that opacity is learned from
            images with alpha; ``scene`` composites them over the scene's own background. So does ``random`` where all
            images are opaque: else their background would be learned as matter.
        batch_size: rays of a batch, per process.
        samples_per_step: samples that a step composites, held constant by the number of rays.

    Raises:
        ValueError: ``loss`` or ``background`` is not one of the words above, or there is no such regularizer.

    Source:
        ngp_pl, ``train.py`` and ``losses.py``; Mip-NeRF 360, eq. 15 (arXiv 2111.12077).
    """

    network: RadianceField

    def __init__(
        self,
        network: RadianceField,
        lr: float = 1e-2,
        loss: Literal["mse", "huber"] = "mse",
        regularizers: Mapping[str, float] | None = None,
        background: Literal["random", "scene"] = "random",
        batch_size: int = 8192,
        samples_per_step: int = 2**18,
    ) -> None:
        super().__init__(network, batch_size)
        if loss not in LOSSES:
            raise ValueError(f"Expected argument `loss` to be one of {LOSSES}, but got {loss!r}.")
        if background not in BACKGROUNDS:
            raise ValueError(f"Expected argument `background` to be one of {BACKGROUNDS}, but got {background!r}.")
        known = network.regularizers
        weights = REGULARIZERS if regularizers is None else dict(regularizers)
        for name in weights:
            if name not in known:
                allowed = ", ".join(known)
                raise ValueError(f"Expected argument `regularizers` to name some of {allowed}, but got {name!r}.")
        self._regularizers = {name: (known[name], weight) for name, weight in weights.items() if weight}
        self.save_hyperparameters(ignore=["network"])
        self.samples_per_ray = network.sampler.samples_per_ray

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the number of rays that fill a step."""
        checkpoint["samples_per_ray"] = self.samples_per_ray

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the number of rays that filled a step."""
        self.samples_per_ray = checkpoint["samples_per_ray"]

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam, with Instant-NGP's constants."""
        return torch.optim.Adam(
            self.network.parameters(), lr=self.hparams["lr"], betas=(0.9, 0.99), eps=1e-15, fused=True
        )

    def lr_factor(self, step: int) -> float:
        """See ``System.lr_factor``."""
        return cosine_decay(training_progress(self.trainer), COSINE_END)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Let the field keep its occupancy grid, or whatever it has, up to date."""
        self.network.before_step(self.global_step)

    def training_step(self, batch: RayBatch, batch_idx: int) -> Tensor:
        """Fit as many rays of the batch as make a full step."""
        n_rays = int(min(max(self.hparams["samples_per_step"] / self.samples_per_ray, 64), len(batch.rays)))
        rgba = batch.rgba[:n_rays]
        passes = self.network.render_rays(batch.rays[:n_rays])
        samples = sum(len(each.samples.t_starts) for each in passes) / n_rays
        self.samples_per_ray = max(0.8 * self.samples_per_ray + 0.2 * samples, 1.0)

        if self.hparams["background"] == "random" and self.has_alpha:
            background = torch.rand_like(rgba[:, :3])
        else:
            background = background_color(self.background).to(rgba).expand(n_rays, 3)
        target = composite_background(rgba, background)
        loss = torch.zeros((), device=rgba.device)
        for each in passes:
            rgb = each.rgb + (1.0 - each.opacity)[:, None] * background
            loss = loss + self._color_loss(rgb, target)
            for name, (term, weight) in self._regularizers.items():
                value = term(each).mean()
                loss = loss + weight * value
                self.log(f"train/{name}", value.detach())
        self.log("train/psnr", -10.0 * mse_loss(rgb.detach(), target).log10(), prog_bar=True)
        self.log("train/rays", float(n_rays))
        self.log("train/samples_per_ray", samples)
        return loss

    def _color_loss(self, rgb: Tensor, target: Tensor) -> Tensor:
        if self.hparams["loss"] == "mse":
            return mse_loss(rgb, target)
        # In the units of the squared error, so that the other weights mean the same.
        return 2 * HUBER_DELTA * smooth_l1_loss(rgb, target, beta=HUBER_DELTA)
