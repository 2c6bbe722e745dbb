"""The base class of both systems: scene, batches, optimizer and schedule, validation and test."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from nelf.errors import UserError
from nelf.metrics import psnr, ssim
from nelf.scene import background_color, compared

if TYPE_CHECKING:
    from pytorch_lightning.utilities.types import OptimizerLRScheduler

    from nelf.cameras import Camera
    from nelf.rendering import Rendering
    from nelf.scene import Scene, View

__all__ = ["System"]

log = logging.getLogger(__name__)

_MOVING = "Models that take the time: model=dnerf_ngp as a teacher, model=grid_dylin as a student."


class System(pl.LightningModule):
    """The training of a network on a scene.

    Args:
        network: has ``prepare(geometry)`` and ``render(camera)``.
        batch_size: rays, or views, of a training batch, per process.

    Raises:
        ValueError: ``batch_size`` is below one.
    """

    #: What a training batch consists of.
    batch: Literal["rays", "views"] = "rays"
    #: (3,) color of ``background``, on the device of the module.
    background_rgb: Tensor

    def __init__(self, network: Any, batch_size: int) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"Expected argument `batch_size` to be 1 or more, but got {batch_size}.")
        self.network = network
        self.batch_size = batch_size
        self.background = "white"
        self.register_buffer("background_rgb", background_color("white"), persistent=False)
        self.has_alpha = True

    @property
    def batches(self) -> dict[str, Any]:
        """The arguments for a datamodule that define its batches."""
        return {"batch": self.batch, "batch_size": self.batch_size, "ray_shift": self.network.ray_shift}

    def setup(self, stage: str) -> None:
        """Take background, box and depth range from the scene of the datamodule.

        Raises:
            UserError: the network takes more controls than the scene's training views have.
        """
        scene: Scene = self.trainer.datamodule.scene  # type: ignore[attr-defined]
        self.background = scene.background
        self.background_rgb.copy_(scene.background_color)
        if stage == "fit":
            _check_controls(self.network, scene)
            self.has_alpha = scene.has_alpha
            self.prepare(scene)

    def prepare(self, scene: Scene) -> None:
        """Prepare the network for the scene."""
        self.network.prepare(scene.geometry)

    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer of the network's parameters."""
        raise NotImplementedError

    def lr_factor(self, step: int) -> float:
        """The learning rate after ``step`` steps, as a multiple of the optimizer's own."""
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
        rgb, target, mask = self._pictures(view)
        for name, value in (("psnr", psnr(rgb, target, mask)), ("ssim", ssim(rgb, target))):
            self.log(f"test/{name}", value.mean(), batch_size=1, sync_dist=True)

    def _pictures(self, view: View) -> tuple[Tensor, Tensor, Tensor | None]:
        """The rendered image of a view and the ground truth, (1, 3, H, W) each, and the mask (1, H, W) or None."""
        rgb = self.render(view.camera).rgb.clamp(0.0, 1.0)
        return compared(rgb, view, self.background)

    def render(self, camera: Camera) -> Rendering:
        """Render one camera with the network."""
        return self.network.render(camera)  # type: ignore[no-any-return]


def _check_controls(network: Any, scene: Scene) -> None:
    """Refuse a scene with too few controls for a network, and warn about controls that are ignored or constant.

    Args:
        network: to be trained; takes ``controls`` of them.
        scene: its training views may have controls.

    Raises:
        UserError: the network takes more controls than the training views have.
    """
    kind, takes = type(network).__name__, network.controls
    values = scene.train.camera.controls
    has = 0 if values is None else values.shape[-1]
    if takes > has:
        found = f"only {', '.join(scene.controls[:has])}" if has else "no time"
        raise UserError(
            f"{scene.name}: its training views have {found}, but {kind} takes {_in_words(takes)}; "
            "allowed: a scene that states them for each view, or a model of static scenes, such as model=ngp."
        )
    if len(scene.controls) > takes:
        ignored = ", ".join(scene.controls[takes:])
        advice = "" if takes else f" {_MOVING}"
        log.warning("%s: its cameras have %s, which %s does not take and ignores.%s", scene.name, ignored, kind, advice)
    for index in range(takes if values is not None else 0):
        low, high = values[:, index].aminmax()  # type: ignore[index]
        if low == high:
            name, value = scene.controls[index], float(low)
            log.warning("%s: all training views have %s %g; %s learns no other.", scene.name, name, value, kind)


def _in_words(count: int) -> str:
    return "a time" if count == 1 else f"{count} controls, the time first"
