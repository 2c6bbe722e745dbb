"""Teacher: the training of a radiance field on rays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import mse_loss, smooth_l1_loss

from nelf.errors import Count, CountOrZero, NonNegative, Positive, Rate, Share
from nelf.fields.samplers import OccupancySampler
from nelf.kernels import gpu
from nelf.scene import composite_background
from nelf.systems.schedule import cosine_decay, polynomial_decay, step_decay, training_progress, warmup
from nelf.systems.system import System

if TYPE_CHECKING:
    from nelf.data.batches import RayBatch
    from nelf.fields import RadianceField
    from nelf.fields.volume import Pass

__all__ = ["Teacher"]

LOSSES = ("mse", "huber")
BACKGROUNDS = ("random", "scene")
SCHEDULES = ("cosine", "exponential", "steplr", "poly")
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "ngp": partial(torch.optim.Adam, betas=(0.9, 0.99), eps=1e-15, fused=True),
    "ngp_pl": partial(torch.optim.Adam, eps=1e-15, fused=True),
    "adam": partial(torch.optim.Adam, fused=True),
    "radam": torch.optim.RAdam,
    "sgd": torch.optim.SGD,
}
HUBER_DELTA = 0.1
REGULARIZERS = {"opacity": 1e-3, "distortion": 0.0}


class Teacher(System):
    """Fits a radiance field to the pixels of the training views.

    The loss is the sum of the color losses of the field's passes and of its weighted regularizers.

    Each step takes as many of the batch's rays as have about ``samples_per_step`` samples together: few at first, more
    as the occupancy grid excludes empty space. Their number follows the average of the steps before, of samples that
    light reaches. On a GPU, with an occupancy grid, it is exact, found there while the host runs ahead, and samples
    behind surfaces count, too, since they cost as much there.

    Schedules depend on the fraction of the Trainer's ``max_steps`` or ``max_time`` that has passed. nerf_pl changes its
    learning rate once per epoch, a pass over all pixels; its decay after 2, 4 and 8 of 16 epochs corresponds to
    ``milestones`` of 1/8, 1/4 and 1/2.

    Args:
        network: the field.
        lr: learning rate of the first step, or after the warm-up.
        optimizer: ``ngp`` is Adam with Instant-NGP's constants (betas 0.9 and 0.99, eps 1e-15), without its weight
            decay and its moving average of the weights; ``ngp_pl`` with ngp_pl's (0.9 and 0.999, 1e-15). ``adam``,
            ``radam`` and ``sgd`` have torch's defaults. (nerf_pl's fourth, Ranger, is in no maintained library.)
        momentum: of ``sgd``.
        weight_decay: an L2 term of the gradient.
        schedule: ``cosine`` decays along half a cosine to ``lr_end``, ``exponential`` as ``lr_end ** progress``,
            ``steplr`` by the factor ``gamma`` at each of the ``milestones``, ``poly`` to zero as
            ``(1 - progress) ** power``.
        lr_end: final learning rate of ``cosine`` and ``exponential``, as a fraction of ``lr``.
        milestones: fractions of the training.
        gamma: see ``schedule``.
        power: see ``schedule``.
        warmup_steps: steps of a linear rise of the learning rate from 0.
        rate_every: steps between changes of the learning rate by ``schedule``, with ``max_steps``; ngp_pl's epochs have
            1000. No effect if only time is limited.
        loss: ``mse``, or ``huber`` (quadratic below a difference of 0.1, linear above).
        regularizers: weights of the field's loss terms, by name; 0 for those left out. None for ngp_pl's weights,
            opacity 1e-3. Every field has ``opacity``, the entropy that pushes each ray's opacity to 0 or 1, and
            ``distortion``, Mip-NeRF 360's loss against floaters.
        background: ``random`` composites rendering and ground truth over one random color per ray, so that opacity is
            learned from images with alpha; ``scene`` composites them over the scene's own background. If all images
            are opaque, ``random`` does so, too.
        batch_size: rays of a batch, per process.
        samples_per_step: samples per step, kept constant by the number of rays; None takes all rays of the batch.

    Raises:
        ValueError: ``optimizer``, ``schedule``, ``loss`` or ``background`` is none of the above, or the field has no
            such regularizer.

    Source:
        ngp_pl, ``train.py`` and ``losses.py``; nerf_pl, ``opt.py`` and ``utils/__init__.py``; Mip-NeRF 360, eq. 15
        (arXiv 2111.12077).
    """

    network: RadianceField

    def __init__(
        self,
        network: RadianceField,
        lr: Rate = 1e-2,
        optimizer: Literal["ngp", "ngp_pl", "adam", "radam", "sgd"] = "ngp",
        momentum: Share = 0.9,
        weight_decay: NonNegative = 0.0,
        schedule: Literal["cosine", "exponential", "steplr", "poly"] = "cosine",
        lr_end: Share = 1 / 30,
        milestones: Sequence[float] = (0.125, 0.25, 0.5),
        gamma: Share = 0.5,
        power: Positive = 0.9,
        warmup_steps: CountOrZero = 0,
        rate_every: Count = 1,
        loss: Literal["mse", "huber"] = "mse",
        regularizers: Mapping[str, NonNegative] | None = None,
        background: Literal["random", "scene"] = "random",
        batch_size: Count = 8192,
        samples_per_step: Count | None = 2**18,
    ) -> None:
        super().__init__(network, batch_size)
        for name, word, allowed in (
            ("optimizer", optimizer, tuple(OPTIMIZERS)),
            ("schedule", schedule, SCHEDULES),
            ("loss", loss, LOSSES),
            ("background", background, BACKGROUNDS),
        ):
            if word not in allowed:
                raise ValueError(f"Expected argument `{name}` to be one of {allowed}, but got {word!r}.")
        known = network.regularizers
        weights = REGULARIZERS if regularizers is None else dict(regularizers)
        for name in weights:
            if name not in known:
                names = ", ".join(known)
                raise ValueError(f"Expected argument `regularizers` to name some of {names}, but got {name!r}.")
        self._regularizers = {name: (known[name], weight) for name, weight in weights.items() if weight}
        self.save_hyperparameters(ignore=["network"])
        self.samples_per_ray = network.sampler.samples_per_ray

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the average number of samples per ray."""
        checkpoint["samples_per_ray"] = self.samples_per_ray

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the average number of samples per ray."""
        self.samples_per_ray = checkpoint["samples_per_ray"]

    def optimizer(self) -> torch.optim.Optimizer:
        """See ``System.optimizer``."""
        options = self.hparams
        more = {"momentum": options["momentum"]} if options["optimizer"] == "sgd" else {}
        make = OPTIMIZERS[options["optimizer"]]
        rates = {"lr": options["lr"], "weight_decay": options["weight_decay"]}
        return make(self.network.parameter_groups(**rates), **rates, **more)

    def lr_factor(self, step: int) -> float:
        """See ``System.lr_factor``."""
        options, progress = self.hparams, training_progress(self.trainer, self.hparams["rate_every"])
        rise = warmup(step, options["warmup_steps"], 0.0)
        if options["schedule"] == "steplr":
            return rise * step_decay(progress, options["milestones"], options["gamma"])
        if options["schedule"] == "poly":
            return rise * polynomial_decay(progress, options["power"])
        if options["schedule"] == "exponential":
            return float(rise * options["lr_end"] ** progress)
        return rise * cosine_decay(progress, options["lr_end"])

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Let the field update its occupancy grid, if it has one."""
        self.network.before_step(self.global_step)

    def training_step(self, batch: RayBatch, batch_idx: int) -> Tensor:
        """Fit as many rays of the batch as have ``samples_per_step`` samples."""
        passes, rgba, fitted = self._rendered(batch)
        if self.hparams["background"] == "random" and self.has_alpha:
            background = torch.rand_like(rgba[:, :3])
        else:
            background = self.background_rgb.to(rgba).expand(len(rgba), 3)
        target = composite_background(rgba, background)
        loss = torch.zeros((), device=rgba.device)
        samples = torch.zeros((), device=rgba.device)
        for each in passes:
            rgb = each.rgb + (1.0 - each.opacity)[:, None] * background
            loss = loss + _mean(self._color_loss(rgb, target), fitted)
            for name, (term, weight) in self._regularizers.items():
                value = term(each)
                value = _mean(value, fitted) if value.ndim else value
                loss = loss + weight * value
                self.log(f"train/{name}", value.detach())
            samples += (each.samples.ray_indices < len(rgba)).sum()
        self.log("train/psnr", -10.0 * _mean((rgb.detach() - target).square().mean(-1), fitted).log10(), prog_bar=True)
        self.log("train/rays", fitted)
        self.log("train/samples_per_ray", samples / fitted)
        return loss

    def _rendered(self, batch: RayBatch) -> tuple[list[Pass], Tensor, Tensor]:
        """Render the first rays of a batch, as many as a step takes.

        Returns:
            The passes of N rays, their pixels (N, 4), and how many of them, from the first on, are to be fitted: ().
        """
        count, wanted = len(batch.rays), self.hparams["samples_per_step"]
        by_grid = isinstance(self.network.sampler, OccupancySampler)
        if wanted is not None and by_grid and gpu.asynchronous(batch.rgba.device):
            # Reading the number of samples would wait for the GPU, so all rays of the batch remain.
            one, fitted = self.network.render_within(batch.rays, wanted)
            return [one], batch.rgba, fitted.float()
        if wanted is not None:
            count = int(min(max(wanted / self.samples_per_ray, 64), count))
        passes = self.network.render_rays(batch.rays[:count])
        samples = sum(len(each.samples.t_starts) for each in passes) / count
        self.samples_per_ray = max(0.8 * self.samples_per_ray + 0.2 * samples, 1.0)
        # A tensor filled on the device: copying a number there would synchronize.
        return passes, batch.rgba[:count], batch.rgba.new_full((), count)

    def _color_loss(self, rgb: Tensor, target: Tensor) -> Tensor:
        """The loss (N,) of colors (N, 3)."""
        if self.hparams["loss"] == "mse":
            return mse_loss(rgb, target, reduction="none").mean(-1)
        # Scaled to equal the squared error near 0, so that the regularizers' weights keep their meaning.
        return 2 * HUBER_DELTA * smooth_l1_loss(rgb, target, beta=HUBER_DELTA, reduction="none").mean(-1)


def _mean(values: Tensor, count: Tensor) -> Tensor:
    """The mean of the first ``count`` () of some values (N,)."""
    first = torch.arange(len(values), device=values.device) < count
    return torch.where(first, values, 0.0).sum() / count
