"""Run: a directory of finished and unfinished stages, which knows what is left to do.

    runs/NAME/
      config.yaml overrides.yaml scene.json
      teacher/ pseudo/ student/ report/     per stage: config.yaml, metrics.json, checkpoints/, ..., done.json

A stage is done when ``done.json`` holds the hash of its configuration and the marks of its inputs. It is written last,
by rename, so a killed run never looks finished. When a run is repeated, a stage that is done is skipped, an unfinished
one resumes, and a changed one is redone, as are the stages after it, because the mark of their input has changed. What
would discard a trained model, namely another architecture or another scene, is refused.
"""

from __future__ import annotations

import json
import secrets
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nelf
from nelf.errors import UserError, did_you_mean, remove_leftovers
from nelf.files import is_file, quoted, short
from nelf.pipeline.documents import hash_of, read_done, read_record, read_settings, write_json, write_yaml
from nelf.pipeline.lock import Lock
from nelf.pipeline.memory import peak_memory, reset_peak_memory
from nelf.pipeline.processes import agree
from nelf.pipeline.recipe import Recipe
from nelf.pipeline.settings import with_new_defaults

__all__ = ["Run", "check_stages", "refuse_other_architecture"]


#: When this process started: temporary files that are older are left over from killed processes.
_BEGIN = time.time()

# Of the sections trainer and data, only what affects the result counts: a run may move to another machine, or its scene
# to another folder (the scene's digest is compared instead).
_TRAINER_KEYS = ("max_steps", "max_time", "precision", "accumulate_grad_batches", "gradient_clip_val")
_TRAINER_SWITCHES = ("sync_batchnorm",)  # off in runs that are older than the switch
_DATA_PLACES = ("root", "num_workers")


class Run:
    """A run directory and its recipe.

    Args:
        root: the run's own directory.
        recipe: builds its scene, networks and Trainers.
        shared: further directories to search for finished stages: that of a sweep, whose jobs share a teacher, and
            another run of the same scene.
    """

    def __init__(self, root: Path | str, recipe: Recipe, shared: Sequence[Path | str] = ()) -> None:
        self.root, self.recipe, self.config = Path(root), recipe, recipe.config
        self.shared = [Path(root) for root in shared]
        self.lock = Lock(self.root)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *error: object) -> None:
        self.lock.release()

    def open(self) -> None:
        """Create the directory, lock it until this context exits, and write configuration and scene into it.

        Raises:
            UserError: it cannot be written, or another process writes into it.
        """
        self.lock.acquire()
        remove_leftovers(self.root, _BEGIN, recursive="stages" not in self.config)
        write_yaml(self.root / "config.yaml", self.config)
        if not is_file(self.root / "scene.json"):
            scene = self.recipe.scene
            noted = {"name": scene.name, "root": _place(self.recipe.source), "digest": scene.digest}
            write_json(self.root / "scene.json", noted)

    def check(self) -> None:
        """Refuse, before anything is written or trained, what would fail later.

        Raises:
            UserError: the scene cannot be read or is another one, an earlier stage is missing, there are weights of
                another architecture, or a network refuses its arguments.
        """
        earlier = read_settings(self.root / "config.yaml") or {}
        if "batch_rays" in _dig(earlier, ("data",)):
            raise UserError(
                f"{self.root}: was made by an earlier version of nelf, whose runs cannot go on. "
                "Choose another directory with run=, or delete this one."
            )
        self._check_scene()
        stages = self.config.get("stages")
        if stages is None:  # a single training in the root
            previous = read_settings(self.root / "config.yaml")
            if previous is not None:
                refuse_other_architecture(self.root, previous, self.config)
            _ = self.recipe.scene
            self.recipe.system()  # its classes check their arguments
            return
        for place, name in enumerate(stages):
            previous = read_settings(self.folder(name) / "config.yaml")
            if previous is not None:
                refuse_other_architecture(self.folder(name), previous, self._settings(name))
            self._check_inputs(name, stages[:place])
        if not self.complete(*stages):
            _ = self.recipe.scene  # reading it reports its errors
            for name in {"teacher", "student"} & set(stages):
                self.recipe.system(name)
        for name in stages:
            check = self.recipe.stages[name].check
            if check is not None:
                check(self.recipe)

    def _check_scene(self) -> None:
        """Compare the scene with those noted in this and the shared directories."""
        data = self.recipe.source
        for root in (self.root, *self.shared):
            noted = read_record(root / "scene.json")
            if noted is None:
                continue
            if not all(isinstance(noted.get(key), str) for key in ("name", "root", "digest")):
                raise UserError(f"{root / 'scene.json'}: says nothing of a scene; allowed: name, root and digest.")
            if noted["root"] == _place(data) and self.complete(*self.config.get("stages", ())):
                return  # no stage will read the scene, so its files may be gone
            digest = data.scene.digest
            if noted["digest"] != digest:
                other = f"{short(noted['name'])} from {short(noted['root'])}, digest {short(noted['digest'])}"
                raise UserError(
                    f"{root}: holds work on another scene ({other}), but {_place(data)} has digest {digest}. "
                    "Choose another with run=."
                )

    # ------------------------------------------------------------------------------------- stages

    def do(self, name: str, stage: Callable[[Run], dict[str, Any]]) -> dict[str, Any]:
        """Run a stage, or the rest of it.

        Args:
            name: one of ``recipe.stages``.
            stage: the function of that stage, with its options bound.

        Returns:
            The metrics of the stage, as in its ``metrics.json``.

        Raises:
            UserError: an earlier stage is not done, or its folder holds weights of another architecture.
        """
        done = agree(lambda: self._begin(name))
        if done is not None:
            return done
        reset_peak_memory()
        start = time.perf_counter()
        metrics = stage(self) if self.recipe.stages[name].spreads else agree(lambda: stage(self))
        metrics = {**metrics, "seconds": time.perf_counter() - start, "peak_memory_bytes": peak_memory()}
        return agree(lambda: self._finish(name, metrics))

    def _begin(self, name: str) -> dict[str, Any] | None:
        """Prepare the folder of a stage and return None; return its metrics if it is done."""
        done = self.find(name)
        if done is not None and self._is_current(name, done):
            print(f"{name}: done, {done}", flush=True)
            return read_record(done / "metrics.json") or {}
        self.lock.check()
        self._check_inputs(name)
        folder = self.prepare(name)
        print(f"{name}: {folder}", flush=True)
        return None

    def _finish(self, name: str, metrics: dict[str, Any]) -> dict[str, Any]:
        """Mark a stage as done."""
        self.lock.check()
        write_json(self.folder(name) / "metrics.json", metrics)
        write_json(self.folder(name) / "done.json", {**self._state(name), "mark": secrets.token_hex(8)})
        return metrics

    def fingerprint(self, name: str) -> str:
        """A hash of everything that a stage's result depends on: settings, marks of inputs, the version of nelf."""
        return hash_of({"settings": self._settings(name), "nelf": nelf.__version__})

    def complete(self, *names: str) -> bool:
        """Whether these stages (at least one) are done with the present configuration."""
        folders = [self.find(name) for name in names]
        return bool(names) and all(
            folder is not None and self._is_current(name, folder) for name, folder in zip(names, folders, strict=True)
        )

    def planned(self) -> str:
        """The time limits of the remaining stages, in words; an empty string if none of them has a ``max_time``."""
        left = [name for name in self.config.get("stages", ()) if not self.complete(name)]
        times = {name: self.config["stage"][name].get("max_time") for name in left}
        trained = {name: _minutes(time) for name, time in times.items() if isinstance(time, str)}
        if not trained:
            return ""
        others = [name for name in left if name not in trained]
        words = ", ".join(f"{name} {minutes:.3g} min" for name, minutes in trained.items())
        return words + (f"; and what {', '.join(others)} take" if others else "")

    def folder(self, name: str) -> Path:
        """The folder into which a stage of this run writes."""
        return self.root / name

    def find(self, name: str) -> Path | None:
        """The folder of a finished stage, in this run or else in a shared directory; None if there is none."""
        return next((root / name for root in (self.root, *self.shared) if is_file(root / name / "done.json")), None)

    def current(self, name: str) -> Path | None:
        """As ``find``; but if an input of the stage has been redone since, None, and a line says so."""
        folder, redone = self.find(name), self._redone_before(name)
        if folder is not None and redone is not None:
            print(f"{name}: left out, because it was made from an earlier {redone}", flush=True)
            return None
        return folder

    def _redone_before(self, name: str) -> str | None:
        """The input, direct or indirect, that has been redone since a stage finished; deleted inputs do not count."""
        made_from = read_done(self.find(name) or self.folder(name)).get("inputs", {})
        for needed, mark in self._marks(name).items():
            if made_from.get(needed, mark) != mark:
                return needed
            if (earlier := self._redone_before(needed)) is not None:
                return earlier
        return None

    def input(self, name: str, needed_by: str | None = None) -> Path:
        """The folder of a finished stage that the stage ``needed_by`` needs.

        Raises:
            UserError: it is not done.
        """
        folder = self.find(name)
        if folder is None:
            chain = ",".join(stage for stage in self.recipe.stages if stage in (name, needed_by))
            raise UserError(f"{self.root}: stage {name} is not done, and is needed here. Add it: stages=[{chain}].")
        return folder

    def prepare(self, name: str) -> Path:
        """Create the stage's folder, and empty it if its content was made with other settings.

        Raises:
            UserError: it holds a model of another architecture.
        """
        folder = self.folder(name)
        settings = self._settings(name)
        previous = read_settings(folder / "config.yaml")
        if previous is not None and with_new_defaults(previous, settings) != settings:
            refuse_other_architecture(folder, previous, settings)
            print(f"{name}: its settings or inputs have changed, so it is redone", flush=True)
            shutil.rmtree(folder)
        remove_leftovers(folder, _BEGIN)
        done = folder / "done.json"
        if done.is_dir():
            raise UserError(f"{done}: is a directory, but has to be a file. Delete it.")
        done.unlink(missing_ok=True)
        write_yaml(folder / "config.yaml", settings)
        return folder

    def _check_inputs(self, name: str, before: Sequence[str] = ()) -> None:
        """Refuse to start a stage if an input is neither done nor among the stages ``before`` it in this command."""
        link = self.recipe.stages[name]
        needed = link.inputs or link.optional
        missing = [one for one in needed if one not in before and self.find(one) is None]
        if missing and (link.inputs or len(missing) == len(needed)):
            self.input(missing[-1], name)

    def _is_current(self, name: str, folder: Path) -> bool:
        """Whether a finished stage was made with the present configuration and inputs."""
        done, settings = read_done(folder), self._settings(name)
        if done.get("inputs") != settings.pop("inputs"):
            return False
        if done.get("config") == hash_of(settings):
            return True
        earlier = read_settings(folder / "config.yaml") or {}
        earlier.pop("inputs", None)
        return done.get("config") == hash_of(earlier) and with_new_defaults(earlier, settings) == settings

    def _settings(self, name: str) -> dict[str, Any]:
        """Everything that the stage's result depends on, as in the stage's config.yaml."""
        sections = {key: self.config[key] for key in self.recipe.stages[name].sections if key in self.config}
        if "trainer" in sections:
            trainer = sections["trainer"]
            switched = {key: True for key in _TRAINER_SWITCHES if trainer.get(key)}
            sections["trainer"] = {**{key: trainer.get(key) for key in _TRAINER_KEYS}, **switched}
        left_out = {*_DATA_PLACES, *self.recipe.stages[name].without}
        sections["data"] = {key: value for key, value in sections["data"].items() if key not in left_out}
        settings = {"stage": self.config["stage"][name], **sections, "inputs": self._marks(name)}
        return json.loads(json.dumps(settings))

    def _marks(self, name: str) -> dict[str, str]:
        """The mark of each input that is done."""
        link = self.recipe.stages[name]
        found = {needed: self.find(needed) for needed in (*link.inputs, *link.optional)}
        return {needed: read_done(folder).get("mark", "") for needed, folder in found.items() if folder is not None}

    def _state(self, name: str) -> dict[str, Any]:
        settings = self._settings(name)
        inputs = settings.pop("inputs")
        return {"config": hash_of(settings), "inputs": inputs}


def check_stages(names: list[str], allowed: Mapping[str, Any]) -> None:
    """Refuse stages that do not exist.

    Raises:
        UserError: a name is not among the allowed ones, or there is none.
    """
    words = ", ".join(allowed)
    if not names:
        raise UserError(f"stages: is empty; allowed: {words}.")
    for name in names:
        if name not in allowed:
            raise UserError(f"stages: there is no stage {name!r}; allowed: {words}.{did_you_mean(name, allowed)}")


def refuse_other_architecture(folder: Path, previous: dict[str, Any], settings: dict[str, Any]) -> None:
    """Refuse to resume or overwrite weights of another network.

    Args:
        folder: the folder that may hold checkpoints or a finished model.
        previous: the settings that they were made with.
        settings: the present ones.

    Raises:
        UserError: there are weights, and the networks differ; the message names the keys with both values.
    """
    weights = [*folder.glob("checkpoints/*.ckpt"), *folder.glob("model.safetensors")]
    previous = with_new_defaults(previous, settings)
    for path in (("model",), ("teacher", "model")):
        old, new = _dig(previous, path), _dig(settings, path)
        if not weights or old == new:
            continue
        keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        differing = ", ".join(
            f"{'.'.join((*path, key))} was {quoted(old.get(key))} and is {quoted(new.get(key))}" for key in keys
        )
        raise UserError(
            f"{folder}: was trained with another network: {differing}. "
            "Choose another directory with run=, or delete this one to train anew."
        )


def _minutes(time: str) -> float:
    """Minutes of days:hours:minutes:seconds."""
    days, hours, minutes, seconds = map(int, time.split(":"))
    return (days * 24 + hours) * 60 + minutes + seconds / 60


def _place(data: Any) -> str:
    """The absolute path of a datamodule's scene."""
    root = getattr(data, "root", None)
    return "" if root is None else str(Path(root).resolve())


def _dig(settings: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    for key in path:
        inner = settings.get(key)
        settings = inner if isinstance(inner, dict) else {}
    return settings
