"""Student: the training of a light field on views."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.functional import mse_loss, pad

from nelf.cameras import Camera
from nelf.data.batches import ImageBatch
from nelf.errors import Count, CountOrZero, NonNegative, Positive, Rate, UserError
from nelf.rays import moved
from nelf.scene import composite_background
from nelf.systems.schedule import cosine_decay, exponential_decay, training_progress, warmup
from nelf.systems.system import System

if TYPE_CHECKING:
    from nelf.data.batches import RayBatch
    from nelf.data.hard_rays import HardRayPool
    from nelf.lightfields import LightField
    from nelf.rays import Rays
    from nelf.scene import Scene

__all__ = ["Student"]

OPTIMIZERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}
SCHEDULES = ("exponential", "cosine")
COSINE_END = 0.02
RANDOM = 0.5  # fraction of the views that are composited over a random color
CHECKED, CHECKED_STEPS = 500, 100  # steps after the warm-up at which progress is checked, and over how many


class Windows(NamedTuple):
    """Windows of B views, all of one size; or whole views.

    Attributes:
        camera: a batch of B cameras, of the windows.
        rgba: (B, h, w, 4) uint8.
        mask: (B, h, w) bool, or None.
        transparent: (B,) bool, whether the view of a window has alpha.
    """

    camera: Camera
    rgba: Tensor
    mask: Tensor | None
    transparent: Tensor

    def to(self, device: torch.device | str) -> Windows:
        """Move all parts to a device."""
        camera, rgba, mask, transparent = self
        mask = None if mask is None else moved(mask, device)
        return Windows(camera.to(device), moved(rgba, device), mask, moved(transparent, device))


class Student(System):
    """Fits a light field to views by the mean squared error of their pixels.

    A light field with ``batch = "rays"`` is trained on rays, one with ``"views"`` on windows: a random crop of each
    view, in the part of the image that may have content (``LightField.extent``), so that every pixel occurs at every
    position in a block. A light field with opacity is composited over the scene's background or, in half of the views
    that have alpha, over a random color.

    Masked-out pixels (see ``Split.masks``) have no weight.

    Training stops with an error if after some hundred steps it is no better than a single color.

    Args:
        network: the light field.
        lr: learning rate after the warm-up.
        warmup_lr: learning rate of the first step.
        warmup_steps: steps of the linear rise from ``warmup_lr`` to ``lr``.
        schedule: ``exponential`` falls to a tenth every ``decay_steps`` steps, as R2L and MobileR2L do;
            ``cosine`` falls to a fiftieth at the end of the Trainer's ``max_steps`` or ``max_time``.
        decay_steps: see ``schedule``; unused by ``cosine``.
        optimizer: ``adamw`` or ``adam``.
        weight_decay: AdamW's decoupled decay, or Adam's L2 term.
        clip_norm: largest norm of the gradient; None for no limit. With a high learning rate, R2L and DyLiN need one:
            else they become white in scenes that are mostly background.
        batch_size: views, or rays, of a batch, per process.
        crop: pixels along the sides of a window; None for the image's sides less one block.
        whole_views: train on whole images in place of windows, so that blocks are always at the same positions, as in
            MobileR2L.

    Raises:
        ValueError: ``schedule`` or ``optimizer`` is none of the above, or ``crop`` is not positive.

    Source:
        Schedule, loss and optimizer: MobileR2L's training code; R2L's schedule is the same.
    """

    network: LightField
    #: Adds rays to batches of rays; the callback ``HardRays`` sets it.
    hard_rays: HardRayPool | None = None

    def __init__(
        self,
        network: LightField,
        lr: Rate = 5e-4,
        warmup_lr: NonNegative = 1e-4,
        warmup_steps: CountOrZero = 200,
        schedule: Literal["exponential", "cosine"] = "exponential",
        decay_steps: Count = 500_000,
        optimizer: Literal["adamw", "adam"] = "adamw",
        weight_decay: NonNegative = 0.01,
        clip_norm: Positive | None = None,
        batch_size: Count = 4,
        crop: Count | None = None,
        whole_views: bool = False,
    ) -> None:
        super().__init__(network, batch_size)
        self.batch = network.batch
        if schedule not in SCHEDULES:
            raise ValueError(f"Expected argument `schedule` to be one of {SCHEDULES}, but got {schedule!r}.")
        if optimizer not in OPTIMIZERS:
            raise ValueError(f"Expected argument `optimizer` to be one of {tuple(OPTIMIZERS)}, but got {optimizer!r}.")
        if crop is not None and crop < 1:
            raise ValueError(f"Expected argument `crop` to be 1 or more, or None, but got {crop}.")
        self.save_hyperparameters(ignore=["network"])
        self._errors: list[Tensor] = []  # mean squared errors of the rendering, and of a single color

    def prepare(self, scene: Scene) -> None:
        """Prepare the network with the scene's geometry and silhouettes, unless a teacher has been used for that."""
        if not self.network.prepared:
            self.network.prepare(scene.geometry, scene.train.silhouettes())

    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer over the network's parameter groups."""
        options = self.hparams
        groups = self.network.parameter_groups(options["lr"], options["weight_decay"])
        return OPTIMIZERS[options["optimizer"]](groups, lr=options["lr"], fused=True)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Limit the norm of the gradient to ``clip_norm``, unless the Trainer has a limit of its own."""
        limit = self.hparams["clip_norm"] if gradient_clip_val is None else gradient_clip_val
        self.clip_gradients(optimizer, limit, gradient_clip_algorithm)

    def lr_factor(self, step: int) -> float:
        """See ``System.lr_factor``."""
        options = self.hparams
        steps = options["warmup_steps"]
        rise = warmup(step, steps, options["warmup_lr"] / options["lr"])
        if options["schedule"] == "cosine":
            return rise * cosine_decay(training_progress(self.trainer), COSINE_END)
        return rise * exponential_decay(max(step - steps, 0), options["decay_steps"])

    def training_step(self, batch: ImageBatch | RayBatch, batch_idx: int) -> Tensor:
        """Fit the rays of a batch, or a window of each of its views."""
        mask = None
        if self.batch == "rays":
            fresh = cast("RayBatch", batch)
            rays, rgba = fresh if self.hard_rays is None else self.hard_rays.extend(fresh)
            colors = self._backgrounds(len(rgba), rgba[:, 3] < 1)
        else:
            windows = batch if isinstance(batch, Windows) else self._windows(cast("ImageBatch", batch))
            rays, rgba, mask = self._opened(windows)
            colors = self._backgrounds(len(rgba), windows.transparent.to(rgba.device))[:, None, None]
        drawn = self.network(rays).float()
        target = composite_background(rgba, colors)
        if drawn.shape[-1] == 4:
            drawn = drawn[..., :3] + (1 - drawn[..., 3:]) * colors
        loss = _squared_error(drawn, target, mask)
        if self.hard_rays is not None:
            self.hard_rays.update((drawn.detach() - target)[: len(fresh.rays)].square().mean(-1))
        self._check_progress(loss.detach(), target, mask)
        self.log("train/psnr", -10.0 * loss.detach().log10(), prog_bar=True)
        return loss

    @property
    def batches(self) -> dict[str, Any]:
        """See ``System.batches``; windows are cut on the device of the views, before they are moved."""
        return {**super().batches, "part": self._windows if self.batch == "views" else None}

    def _windows(self, batch: ImageBatch) -> Windows:
        """A random window of each of B views, or the whole views."""
        block, crop = self.network.sr_factor, self.hparams["crop"]
        transparent = (batch.rgba[..., 3] < 255).flatten(1).any(1)
        if self.hparams["whole_views"]:
            camera = batch.camera.padded(block)
            beyond = 0, camera.width - batch.camera.width, 0, camera.height - batch.camera.height
            pixels, mask = batch.rgba, batch.mask
            if any(beyond):
                pixels = pad(pixels.movedim(-1, 1).float(), beyond, mode="replicate").movedim(1, -1).byte()
                mask = None if mask is None else pad(mask[:, None].float(), beyond, mode="replicate")[:, 0] > 0
            return Windows(camera, pixels, mask, transparent)
        sides = batch.rgba.shape[2], batch.rgba.shape[1]  # width, height
        size = [max(min(crop or side, side - block), block) // block * block for side in sides]
        corners = []
        for camera in (batch.camera[index] for index in range(len(batch.rgba))):
            x0, y0, x1, y1 = self.network.extent(camera)
            corners.append([_place(x0, x1, size[0], sides[0]), _place(y0, y1, size[1], sides[1])])
        camera = batch.camera.window(torch.tensor(corners), *size)

        def cut(images: Tensor) -> Tensor:
            parts = [each[y : y + size[1], x : x + size[0]] for each, (x, y) in zip(images, corners, strict=True)]
            return torch.stack(parts)

        return Windows(camera, cut(batch.rgba), None if batch.mask is None else cut(batch.mask), transparent)

    def _opened(self, windows: Windows) -> tuple[Rays, Tensor, Tensor | None]:
        """Rays (B, h', w') of windows, their pixels (B, h, w, 4) in [0, 1], and the mask, on the module's device."""
        camera, pixels, mask, _ = windows.to(self.device)
        return camera.rays(self.network.stride), pixels.float() / 255, mask

    def _backgrounds(self, count: int, transparent: Tensor) -> Tensor:
        """A background color (B, 3) for each of B views or rays, random only where ``transparent`` (B,) is True."""
        color = self.background_rgb.to(transparent.device).expand(count, 3)
        if not self.has_alpha or self.network.background is None:  # a network without opacity learns the background
            return color
        free = transparent & (torch.rand(count, device=transparent.device) < RANDOM)
        return torch.where(free[:, None], torch.rand_like(color), color)

    def _check_progress(self, error: Tensor, target: Tensor, mask: Tensor | None = None) -> None:
        """Stop a training whose images are no better than a single color, such as the background.

        Raises:
            UserError: they are not, on average over the last steps before ``CHECKED``.
        """
        step = self.global_step - self.hparams["warmup_steps"]
        if not CHECKED - CHECKED_STEPS <= step < CHECKED:
            return
        seen, weight = target.flatten(0, -2), 1.0 if mask is None else mask.reshape(-1, 1).float()
        count = len(seen) if mask is None else mask.sum()
        mean = (seen * weight).sum(0) / count  # NaN if all pixels are masked out
        plain = ((seen - mean).square() * weight).mean(-1).sum() / count
        plain = plain.where(plain.isfinite(), error)
        self._errors.append(torch.stack([error, plain]))
        if step < CHECKED - 1 or len(self._errors) < CHECKED_STEPS // 2:
            return
        own, plain = self.trainer.strategy.reduce(torch.stack(self._errors).mean(0))  # of all processes
        if not own < plain:
            found, trivial = (-10 * value.log10() for value in (own, plain))
            raise UserError(
                f"student: after {self.global_step} steps its images ({found:.1f} dB) are no better than a single "
                f"color ({trivial:.1f} dB), so it is stopped. Lower system.lr (it is {self.hparams['lr']}), or set "
                "system.clip_norm=0.1."
            )


def _squared_error(drawn: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """The mean squared error of colors (..., C) over the pixels of a mask (...); zero if it has none."""
    if mask is None:
        return mse_loss(drawn, target)
    return ((drawn - target).square().mean(-1) * mask).sum() / mask.sum().clamp(min=1)


def _place(low: int, high: int, length: int, side: int) -> int:
    """Draw the start of a window along a side; pixels at both ends are covered half as often as those in the middle."""
    if high - low <= length:
        first, last = max(high - length, 0), min(low, side - length)
        return int(torch.randint(min(first, last), max(first, last) + 1, ()))
    at = int(torch.randint(low - length // 2, high - length // 2, ()))
    return min(max(at, low), high - length)
