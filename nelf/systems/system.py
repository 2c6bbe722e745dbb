"""What both systems share: scene, batches, optimizer and schedule, validation and test."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from nelf.errors import UserError
from nelf.metrics import psnr, ssim

if TYPE_CHECKING:
    from pytorch_lightning.utilities.types import OptimizerLRScheduler

    from nelf.cameras import Camera
    from nelf.rendering import Rendering
    from nelf.scene import Scene, View

__all__ = ["System"]

log = logging.getLogger(__name__)


class System(pl.LightningModule):
    """A network that learns a scene.

    Args:
        network: has ``prepare(geometry)`` and ``render(camera)``.
        batch_size: rays, or views, of a training batch and process.

    Raises:
        ValueError: ``batch_size`` is below one.
    """

    #: What a training batch is made of.
    batch: Literal["rays", "views"] = "rays"

    def __init__(self, network: Any, batch_size: int) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"Expected argument `batch_size` to be 1 or more, but got {batch_size}.")
        self.network = network
        self.batch_size = batch_size
        self.background = "white"
        self.has_alpha = True

    @property
    def batches(self) -> dict[str, Any]:
        """The arguments ``batch`` and ``batch_size`` of a datamodule for it."""
        return {"batch": self.batch, "batch_size": self.batch_size}

    def setup(self, stage: str) -> None:
        """Take background, box and depth range from the scene of the datamodule.

        Raises:
            UserError: its training views lack a control that the network takes.
        """
        scene: Scene = self.trainer.datamodule.scene  # type: ignore[attr-defined]
        self.background = scene.background
        if stage == "fit":
            self._check_controls(scene)
            if len(scene.controls) > self.network.controls:
                ignored = ", ".join(scene.controls[self.network.controls :])
                kind = type(self.network).__name__
                log.warning("%s: its cameras have %s, which %s does not take and ignores.", scene.name, ignored, kind)
            self.has_alpha = scene.has_alpha
            self.prepare(scene)

    def _check_controls(self, scene: Scene) -> None:
        """Refuse training views that lack a control that the network takes.

        Raises:
            UserError: they do.
        """
        controls = scene.train.camera.controls
        found, taken = 0 if controls is None else controls.shape[-1], self.network.controls
        if found < taken:
            kind = type(self.network).__name__
            raise UserError(
                f"{scene.name}: its training views have {found or 'no'} controls, of which the first is the time, but "
                f"{kind} takes {taken}; allowed: a scene that moves, views of a teacher that does, or another network."
            )

    def prepare(self, scene: Scene) -> None:
        """Tell the network of the scene that it is to learn."""
        self.network.prepare(scene.geometry)

    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer of the network's parameters."""
        raise NotImplementedError

    def lr_factor(self, step: int) -> float:
        """The learning rate after ``step`` steps, as a multiple of the first one."""
        raise NotImplementedError

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer and its schedule by step."""
        optimizer = self.optimizer()
        schedule = {"scheduler": LambdaLR(optimizer, self.lr_factor), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}  # type: ignore[typeddict-item,return-value]

    def validation_step(self, view: View, batch_idx: int) -> None:
        """Log the PSNR of one view, dB."""
        self.log("val/psnr", psnr(*self._pictures(view)).mean(), prog_bar=True, batch_size=1, sync_dist=True)

    def test_step(self, view: View, batch_idx: int) -> None:
        """Log PSNR, dB, and SSIM of one view."""
        pictures = self._pictures(view)
        for name, metric in (("psnr", psnr), ("ssim", ssim)):
            self.log(f"test/{name}", metric(*pictures).mean(), batch_size=1, sync_dist=True)

    def _pictures(self, view: View) -> tuple[Tensor, Tensor]:
        """What the network draws of a view, and the view itself: (1, 3, H, W) each."""
        rgb = self.render(view.camera).rgb
        pair = rgb.clamp(0.0, 1.0), view.rgb(self.background).to(rgb)
        return pair[0].permute(2, 0, 1)[None], pair[1].permute(2, 0, 1)[None]

    def render(self, camera: Camera) -> Rendering:
        """Render one camera with the network."""
        return self.network.render(camera)  # type: ignore[no-any-return]
