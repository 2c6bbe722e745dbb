"""Fit a system: the Trainer of a run, checkpoints that survive a kill, weights at the end."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from nelf.errors import UserError
from nelf.pipeline.checkpoints import last_good_checkpoint
from nelf.pipeline.quiet import quiet_lightning
from nelf.pipeline.run import PLACES, Run
from nelf.storage import save

__all__ = ["check_trainer", "device", "fit"]


@quiet_lightning()
def fit(
    run: Run,
    folder: Path,
    name: str = "student",
    data: Any = None,
    *,
    system: Any = None,
    begin: Callable[[Any], None] | None = None,
    end: Callable[[Any], None] | None = None,
    callbacks: Sequence[Any] = (),
    max_steps: int | None = None,
    max_time: str | None = None,
) -> tuple[Any, dict[str, Any]]:
    """Train one of a run's systems in a folder, from its last good checkpoint where there is one.

    Args:
        run: what to train with.
        folder: gets ``checkpoints/``, ``logs/``, ``samples/`` and at the end ``model.safetensors``.
        name: ``teacher`` or ``student``.
        data: a datamodule; None for that of the scene.
        system: what to train, if it is not a new one; a light field of another size than the run's is described by
            its own ``arguments``.
        begin: called with the system before it is trained, unless it goes on from a checkpoint.
        end: called with the trained system before it is validated and saved.
        callbacks: beside those of the configuration.
        max_steps: instead of the Trainer's.
        max_time: instead of the Trainer's, days:hours:minutes:seconds.

    Returns:
        The trained system, on the Trainer's device, and its metrics on the validation views.

    Raises:
        UserError: checkpoints of another architecture, or a device that is not there.
        KeyboardInterrupt: Ctrl-C; the state is saved.
    """
    pl.seed_everything(run.config.get("seed", 0), verbose=False)
    system = run.system(name) if system is None else system
    data = run.data(system) if data is None else data
    trainer = _trainer(run, folder, _limits(max_steps, max_time), callbacks)
    checkpoint = last_good_checkpoint(folder / "checkpoints", system)
    if checkpoint is not None:
        print(f"{folder}: goes on from {checkpoint.name}", flush=True)
    elif begin is not None:
        begin(system)
    _uninterrupted(trainer, system, data, checkpoint)
    if end is not None:
        end(system)
    validated = trainer.validate(system, datamodule=data, verbose=False)
    if trainer.is_global_zero:
        config = {**run.model_config(name), **getattr(system.network, "arguments", {})}
        save(system.network, folder / "model.safetensors", config, data.scene.digest)
    metrics = {**(validated[0] if validated else {}), "steps": trainer.global_step}
    return system.to(trainer.strategy.root_device), metrics


@quiet_lightning()
def check_trainer(config: dict[str, Any], stages: dict[str, Any], build: Callable[..., Any]) -> None:
    """Refuse a Trainer that cannot run here, before anything is read or written.

    Args:
        config: the node ``trainer``.
        stages: the nodes of the stages, whose limits take the place of the Trainer's.
        build: makes the Trainer.

    Raises:
        UserError: a GPU is asked for and none is there, training would never end, or the Trainer refuses a
        value.
    """
    if config.get("accelerator") in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError("trainer.accelerator: gpu is asked for, but none is here; allowed: trainer=cpu.")
    nodes: list[dict[str, Any]] = [*stages.values()] or [{}]
    for stage in nodes:
        merged = {**config, **_limits(stage.get("max_steps"), stage.get("max_time"))}
        if merged.get("max_steps", -1) in (-1, None) and merged.get("max_time") is None:
            raise UserError("trainer.max_steps: is -1, and trainer.max_time is null; one of them has to end it.")
        build(merged, logger=False, enable_checkpointing=False, enable_progress_bar=False)


def _limits(max_steps: int | None, max_time: str | None) -> dict[str, Any]:
    """What takes the place of the Trainer's own limits."""
    limits = {"max_steps": max_steps, "max_time": max_time}
    return {key: value for key, value in limits.items() if value is not None}


def device(run: Run) -> str:
    """Where a run's models are rendered: ``cuda`` if its Trainer would use it, else ``cpu``."""
    wanted = run.config["trainer"].get("accelerator", "auto")
    return "cuda" if wanted in ("auto", "gpu", "cuda") and torch.cuda.is_available() else "cpu"


def _trainer(run: Run, folder: Path, limits: dict[str, Any], more: Sequence[Any]) -> pl.Trainer:
    """Build the Trainer with its callbacks and logger; what writes, writes into the folder."""
    callbacks = [run.build(node, **_places(node, folder)) for node in run.config["callbacks"].values() if node]
    logger = run.config.get("logger")
    return run.build(
        run.config["trainer"],
        **limits,
        callbacks=[*callbacks, *more],
        logger=run.build(logger, **_places(logger, folder)) if logger else False,
        default_root_dir=str(folder),
    )


def _places(node: dict[str, Any], folder: Path) -> dict[str, str]:
    """The arguments of a callback or logger that say where to write and are left open (null)."""
    places = dict(zip(PLACES, (folder / "checkpoints", folder), strict=True))
    return {key: str(place) for key, place in places.items() if key in node and node[key] is None}


def _uninterrupted(trainer: pl.Trainer, system: Any, data: Any, checkpoint: Path | None) -> None:
    """Fit; Lightning turns Ctrl-C into an exit, which is turned back."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(system, datamodule=data, ckpt_path=checkpoint and str(checkpoint), weights_only=True)
    except SystemExit:
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise
    finally:
        signal.signal(signal.SIGINT, handler)
