"""Fit a system with the Trainer of a recipe: resume from checkpoints, save the weights at the end."""

from __future__ import annotations

import signal
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from nelf.errors import UserError
from nelf.files import reason_of
from nelf.pipeline.checkpoints import last_good_checkpoint, remove_superseded, unfit
from nelf.pipeline.memory import lacks_memory
from nelf.pipeline.processes import agree, change_alike, is_first, leaving_with_others, rank, wait_for_all, world
from nelf.pipeline.quiet import quiet_lightning
from nelf.pipeline.recipe import Recipe, bare_trainer, limits
from nelf.storage import save

__all__ = ["check_trainer", "fit"]


@quiet_lightning()
def fit(
    recipe: Recipe,
    system: Any,
    data: Any,
    folder: Path,
    *,
    name: str = "student",
    begin: Callable[[Any], None] | None = None,
    end: Callable[[Any], None] | None = None,
    callbacks: Sequence[Any] = (),
    max_steps: int | None = None,
    max_time: str | None = None,
) -> dict[str, Any]:
    """Train a system in a folder, from its last intact checkpoint if there is one.

    Args:
        recipe: gives the Trainer and the seed.
        system: the LightningModule to train; at the end it is on the Trainer's device.
        data: its datamodule.
        folder: receives ``checkpoints/``, ``logs/``, ``samples/`` and at the end ``model.safetensors``.
        name: ``teacher`` or ``student``: whose ``model`` section is stored with the weights.
        begin: called with the system before training, unless training resumes from a checkpoint.
        end: called with the trained system before it is validated and saved; it changes the network's state only.
            Of several processes the first one calls it.
        callbacks: in addition to those of the configuration.
        max_steps: replaces the Trainer's.
        max_time: replaces the Trainer's, days:hours:minutes:seconds.

    Returns:
        Metrics on the validation views, and the number of steps.

    Raises:
        UserError: checkpoints of another architecture, or with the state of another training; or a missing device.
        KeyboardInterrupt: Ctrl-C; the state has been saved.
    """
    pl.seed_everything(recipe.seed, verbose=False)
    last = _LastValidation()
    checkpoint = agree(lambda: last_good_checkpoint(folder / "checkpoints", system))
    trainer = recipe.trainer(folder, [_SameDraws(), _OwnMoments(checkpoint), *callbacks, last], max_steps, max_time)
    if checkpoint is not None:
        print(f"{folder}: goes on from {checkpoint.name}", flush=True)
        if is_first():
            remove_superseded(folder / "checkpoints", trainer)
    elif begin is not None:
        begin(system)
    if not is_first():  # all processes build the same network, but draw different random numbers in training
        pl.seed_everything(recipe.seed + rank(), verbose=False)
    with leaving_with_others():
        _uninterrupted(trainer, system, data, checkpoint)
        metrics = last.metrics if last.step == trainer.global_step else None
        if end is not None:
            change_alike(system.network, partial(end, system))
        if end is not None or metrics is None:
            validated = trainer.validate(system, datamodule=data, verbose=False)
            metrics = dict(validated[0]) if validated else {}
    if trainer.is_global_zero:
        config = {**recipe.model_config(name), **getattr(system.network, "arguments", {})}
        save(system.network, folder / "model.safetensors", config, data.scene.digest)
    wait_for_all()  # no process reads the file before it exists
    system.to(trainer.strategy.root_device)
    return {**metrics, "steps": trainer.global_step}


class _SameDraws(pl.Callback):
    """Lets a training that goes on from a checkpoint draw the random numbers that it would have drawn uninterrupted.

    Of several processes only the first has its generator in the checkpoint; the others go on with streams of their own.
    """

    def __init__(self) -> None:
        self._after_step: dict[str, torch.Tensor] = {}
        self._kept: dict[str, torch.Tensor] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the generators: after the loader has begun, which draws, too, and before the first batch is cut."""
        kept, self._kept = self._kept, {}
        with suppress(RuntimeError, TypeError, AttributeError):  # states of another version of PyTorch
            if "cpu" in kept:
                torch.set_rng_state(kept["cpu"].cpu())
            if "cuda" in kept and pl_module.device.type == "cuda":
                torch.cuda.set_rng_state(kept["cuda"].cpu(), pl_module.device)
        self._after_step = _generators(pl_module.device)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Keep their states: an interruption, which saves a checkpoint, may come after the next batch has been cut."""
        self._after_step = _generators(pl_module.device)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the states after the last step."""
        checkpoint["random"] = self._after_step

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note them for the first batch."""
        kept = checkpoint.get("random")  # not in checkpoints of earlier versions
        self._kept = kept if isinstance(kept, dict) and trainer.is_global_zero else {}


def _generators(device: torch.device) -> dict[str, torch.Tensor]:
    """The states of the random number generators of the processor, and of a GPU that trains."""
    states = {"cpu": torch.get_rng_state()}
    return states | {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else states


class _OwnMoments(pl.Callback):
    """Refuses optimizer states that do not fit the parameters: a fused optimizer would read and write beyond them."""

    def __init__(self, checkpoint: Path | None) -> None:
        self._checkpoint = checkpoint

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare what has been restored with the parameters, before the first step."""
        if self._checkpoint is None:
            return
        for optimizer in trainer.optimizers:
            names = {key for state in optimizer.state.values() for key in state}
            for parameter, state in optimizer.state.items():
                sizes = {value.shape for value in state.values() if isinstance(value, torch.Tensor) and value.ndim}
                if (state and state.keys() != names) or sizes - {parameter.shape}:
                    raise unfit(self._checkpoint, "its optimizer's state is that of other parameters")


def _is_restoring(error: BaseException) -> bool:
    """Whether an error comes from where Lightning restores a training's state, of which a file may hold anything."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(Path(frame.filename).stem == "checkpoint_connector" for frame in frames)


class _LastValidation(pl.Callback):
    """Keeps the metrics and the step of the last validation, since training often ends with one."""

    def __init__(self) -> None:
        self.step: int | None = None
        self.metrics: dict[str, Any] = {}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note step and metrics, unless this is the sanity check before the first step."""
        if not trainer.sanity_checking:
            self.step = trainer.global_step
            found = trainer.callback_metrics.items()
            self.metrics = {name: float(value) for name, value in found if name.startswith("val/")}


@quiet_lightning()
def check_trainer(recipe: Recipe) -> None:
    """Refuse a Trainer that cannot run here, or callbacks with wrong arguments, before anything is read or written.

    Args:
        recipe: its Trainer is checked with the limits of each stage.

    Raises:
        UserError: a GPU is requested and there is none, gradients would be clipped before they are unscaled, the
            numbers of processes and devices differ, training would never end, or the Trainer or a callback refuses a
            value.
    """
    config = recipe.config["trainer"]
    if config.get("accelerator") in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError("trainer.accelerator: gpu is asked for, but none is here; allowed: trainer=cpu.")
    clipped = {
        "trainer.gradient_clip_val": config.get("gradient_clip_val"),
        "system.clip_norm": recipe.config.get("system", {}).get("clip_norm"),
    }
    for key in (key for key, limit in clipped.items() if limit and config.get("precision") == "16-mixed"):
        raise UserError(
            f"{key}: is {clipped[key]}, but with trainer.precision=16-mixed the optimizers take the scale off the "
            "gradients themselves; allowed: null, or trainer.precision=bf16-mixed."
        )
    nodes: list[dict[str, Any]] = [*recipe.config.get("stage", {}).values()] or [{}]
    for stage in nodes:
        merged = {**config, **limits(stage.get("max_steps"), stage.get("max_time"))}
        if merged.get("max_steps", -1) in (-1, None) and merged.get("max_time") is None:
            raise UserError("trainer.max_steps: is -1, and trainer.max_time is null; one of them has to end training.")
        trainer = bare_trainer(merged, recipe.build)
        if trainer.num_devices * trainer.num_nodes != world():
            asked = f"{trainer.num_devices} x {trainer.num_nodes}"
            raise UserError(
                f"trainer.devices x trainer.num_nodes: is {asked}, but there are {world()} processes; both have to be "
                "equal. Several nodes need torchrun or srun."
            )
    recipe.callbacks(Path())


def _uninterrupted(trainer: pl.Trainer, system: Any, data: Any, checkpoint: Path | None) -> None:
    """Fit; Lightning turns Ctrl-C into SystemExit, which becomes KeyboardInterrupt again."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(system, datamodule=data, ckpt_path=checkpoint and str(checkpoint), weights_only=True)
    except Exception as error:  # whatever Lightning makes of a file that says something else
        if checkpoint is None or isinstance(error, UserError) or lacks_memory(error) or not _is_restoring(error):
            raise
        raise unfit(checkpoint, f"{type(error).__name__}: {reason_of(error)}") from None
    except SystemExit:
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise
    finally:
        signal.signal(signal.SIGINT, handler)
