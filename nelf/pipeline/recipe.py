"""Recipe: builds the scene, networks, LightningModules and Trainers that a configuration describes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nelf.pipeline.processes import environment, world
from nelf.pipeline.stage import Declaration, declarations

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from nelf.data import SceneDataModule
    from nelf.scene import Scene
    from nelf.systems.system import System

__all__ = ["PLACES", "Recipe", "bare_trainer", "limits"]

#: Arguments of callbacks and loggers that say where to write; if null, they are set to folders of the run.
PLACES = ("dirpath", "save_dir")


class Recipe:
    """Builds objects from a configuration. It knows no run directory.

    Args:
        config: plain, resolved values: ``data``, ``model``, ``system``, ``trainer``, ``callbacks``, ``logger``,
            ``seed`` and, for a chain, ``teacher`` and ``stage``.
        build: instantiates a node of the configuration (``_target_`` and arguments), with additional keyword arguments.
    """

    def __init__(self, config: dict[str, Any], build: Callable[..., Any]) -> None:
        self.config, self.build = config, build

    @cached_property
    def stages(self) -> dict[str, Declaration]:
        """The declaration of each stage by name, in the order of the configuration."""
        return declarations(self.config.get("stage", {}))

    def stage(self, name: str) -> Callable[..., dict[str, Any]]:
        """The function of a stage, with its options bound."""
        return self.build(self.config["stage"][name])  # type: ignore[no-any-return]

    @property
    def seed(self) -> int:
        """The seed of networks, poses and training."""
        return int(self.config.get("seed", 0))

    # ------------------------------------------------------------------------------------- the scene

    @cached_property
    def source(self) -> SceneDataModule:
        """The datamodule as the configuration describes it."""
        return self.build(self.config["data"])  # type: ignore[no-any-return]

    @property
    def scene(self) -> Scene:
        """The scene; read when it is first asked for."""
        return self.source.scene

    def data(self, system: System, scene: Scene | None = None, stream: int = 0) -> SceneDataModule:
        """The datamodule for training a system.

        Args:
            system: the LightningModule to train; it determines the kind and size of its batches.
            scene: replaces the configuration's scene.
            stream: number of an independent random stream, so that several trainings on the same views draw different
                batches.
        """
        return self.source.drawing(**system.batches, scene=scene, stream=stream)

    # ------------------------------------------------------------------------------------- networks

    def model_config(self, name: str = "student") -> dict[str, Any]:
        """The description of the network of ``system(name)``, which is stored with the weights."""
        return dict(self._part(name)["model"])

    def network(self, name: str = "student") -> Any:
        """A new network of the teacher or the student (in ``train``: the model), initialized from the seed."""
        import pytorch_lightning as pl

        pl.seed_everything(self.seed, verbose=False)
        return self.build(self._part(name)["model"])

    def system(self, name: str = "student", network: Any = None, **changes: Any) -> Any:
        """A LightningModule around a new network, or around a given one.

        Args:
            name: ``teacher`` or ``student``.
            network: the network; None for a new one. Its size may differ from the configuration's.
            **changes: replace arguments of the configuration.
        """
        network = self.network(name) if network is None else network
        return self.build({**self._part(name)["system"], **changes}, network=network)

    def load(self, path: Path, name: str = "student", device: str = "cpu") -> Any:
        """Load a network as its file describes it; a class from outside nelf has to be that of the configuration.

        Args:
            path: the weights, or the folder of their stage; or an exported file.
            name: whose network it is, ``teacher`` or ``student``.
            device: where to put it.

        Returns:
            The network, in evaluation mode.

        Raises:
            UserError: see ``nelf.load``.
        """
        from nelf.export.loading import EXPORTED, load
        from nelf.storage import described

        if path.suffix in EXPORTED:
            return load(path)
        own = self.model_config(name)["_target_"]
        stated = described(path)
        # A class from outside nelf is built only if the configuration names it, too.
        foreign = stated.get("_target_") == own and not own.startswith("nelf.")
        return load(path, self.build(stated) if foreign else None, device)

    def _part(self, name: str) -> dict[str, Any]:
        return self.config["teacher"] if name == "teacher" else self.config  # type: ignore[no-any-return]

    # ------------------------------------------------------------------------------------- training

    @property
    def device(self) -> str:
        """The device for rendering: this process's GPU if the Trainer would use it, else ``cpu``."""
        import torch

        wanted = self.config["trainer"].get("accelerator", "auto")
        if wanted not in ("auto", "gpu", "cuda") or not torch.cuda.is_available():
            return "cpu"
        return f"cuda:{os.environ['LOCAL_RANK']}" if world() > 1 else "cuda"

    def callbacks(self, folder: Path) -> list[pl.Callback]:
        """The callbacks of the configuration, which write into a folder unless it names another."""
        return [self.build(node, **_places(node, folder)) for node in self.config["callbacks"].values() if node]

    def trainer(
        self,
        folder: Path,
        callbacks: Sequence[Any] = (),
        max_steps: int | None = None,
        max_time: str | None = None,
    ) -> pl.Trainer:
        """A Trainer whose callbacks and logger write into a folder, unless the configuration names another.

        Args:
            folder: receives ``checkpoints/`` and ``logs/``.
            callbacks: in addition to those of the configuration.
            max_steps: replaces the configuration's.
            max_time: replaces the configuration's, days:hours:minutes:seconds.
        """
        from nelf.callbacks import StopTogether

        own = self.callbacks(folder)
        if world() > 1:
            own.append(StopTogether())
        logger = self.config.get("logger")
        return self.build(  # type: ignore[no-any-return]
            self.config["trainer"],
            **limits(max_steps, max_time),
            callbacks=[*own, *callbacks],
            logger=self.build(logger, **_places(logger, folder)) if logger else False,
            default_root_dir=str(folder),
            plugins=environment(),
            use_distributed_sampler=False,  # every process validates all views, so that all have the same metrics
        )


def bare_trainer(config: dict[str, Any], build: Callable[..., Any]) -> pl.Trainer:
    """A Trainer that writes and shows nothing, for checking its arguments.

    Args:
        config: the node ``trainer``.
        build: as in ``Recipe``.
    """
    from pytorch_lightning.plugins.environments import LightningEnvironment

    silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return build(config, **silent, plugins=LightningEnvironment())  # type: ignore[no-any-return]


def limits(max_steps: int | None, max_time: str | None) -> dict[str, Any]:
    """The arguments that replace the Trainer's own limits; those that are None are left out."""
    both = {"max_steps": max_steps, "max_time": max_time}
    return {key: value for key, value in both.items() if value is not None}


def _places(node: dict[str, Any], folder: Path) -> dict[str, str]:
    """Values for the arguments of a callback or logger that say where to write and are null."""
    places = dict(zip(PLACES, (folder / "checkpoints", folder), strict=True))
    return {key: str(place) for key, place in places.items() if key in node and node[key] is None}
