"""Previews during training: renderings of one validation view."""

from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_warn

from nelf.rendering import evaluating
from nelf.report.pictures import comparison, write_png
from nelf.scene import View

__all__ = ["Previews"]


class Previews(pl.Callback):
    """Render one validation view every ``every_n_steps`` steps, beside the ground truth and the error.

    Writes ``DIR/samples/step_000500.png``, where DIR is the trainer's ``default_root_dir`` (the panels are
    those of :func:`nelf.report.pictures.comparison`), and passes the image to the trainer's loggers that
    support images (TensorBoard, Weights & Biases). The view comes from ``trainer.datamodule.scene.val`` or,
    without a scene, from the first validation batch; it is never a test view. Without validation views, there
    are no previews, but one warning.

    Args:
        every_n_steps: optimizer steps between previews.
        view: index of the validation view, modulo their number.
    """

    def __init__(self, every_n_steps: int = 500, view: int = 0) -> None:
        if every_n_steps < 1:
            raise ValueError(f"Expected `every_n_steps` to be at least 1, but got {every_n_steps}.")
        self.every_n_steps = every_n_steps
        self.view = view
        self._last_step = -1
        self._view: View | None = None
        self._background = "white"

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Choose the view, and start counting at the step of a resumed training."""
        self._last_step = trainer.global_step
        self._view, self._background = self._validation_view(trainer)
        if self._view is None:
            rank_zero_warn("Previews: there is no validation view to render; training goes on without.")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Render if a preview is due; with gradient accumulation, a step has several batches."""
        step = trainer.global_step
        due = step != self._last_step and step % self.every_n_steps == 0
        if not due or self._view is None or not trainer.is_global_zero:
            return
        self._last_step = step
        picture = comparison(_render(pl_module, self._view), self._view.rgb(self._background))
        write_png(Path(trainer.default_root_dir) / "samples" / f"step_{step:06d}.png", picture)
        _log(trainer, picture, step)

    def _validation_view(self, trainer: pl.Trainer) -> tuple[View | None, str]:
        """The validation view, or None, and the background that its scene is evaluated on."""
        scene = getattr(getattr(trainer, "datamodule", None), "scene", None)
        if scene is not None:
            view = scene.val[self.view % len(scene.val)] if len(scene.val) else None
            return view, scene.background
        loaders = trainer.val_dataloaders
        loader = loaders[0] if isinstance(loaders, list | tuple) and loaders else loaders
        batch = next(iter(loader), None) if loader else None
        return (batch if isinstance(batch, View) else None), "white"


def _render(model: Any, view: View) -> torch.Tensor:
    """Render in evaluation mode."""
    with evaluating(model), torch.no_grad():
        return model.render(view.camera).rgb.cpu()  # type: ignore[no-any-return]


def _log(trainer: pl.Trainer, picture: np.ndarray, step: int) -> None:
    """Pass the (H, W, 3) uint8 image to the loggers that support images."""
    for logger in trainer.loggers:
        experiment: Any = getattr(logger, "experiment", None)
        if hasattr(logger, "log_image"):
            logger.log_image("val/preview", [picture], step=step)
        elif hasattr(experiment, "add_image"):
            experiment.add_image("val/preview", picture, step, dataformats="HWC")
