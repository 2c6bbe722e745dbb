"""The checkpoint from which training resumes; it may be damaged or untrusted."""

from __future__ import annotations

import pickle
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from nelf.errors import UserError
from nelf.files import reason_of, short
from nelf.pipeline.memory import lacks_memory
from nelf.storage import differences

__all__ = ["last_good_checkpoint", "remove_superseded", "unfit"]

_DEEPEST = 50  # levels of nested values


def last_good_checkpoint(folder: Path, system: torch.nn.Module) -> Path | None:
    """Find the newest intact checkpoint; rename damaged ones to ``.damaged``, and print a line for each.

    Args:
        folder: the folder of the ``.ckpt`` files. Anything but a file, such as a broken link, is ignored.
        system: the LightningModule to resume.

    Returns:
        Its path, or None if there is none.

    Raises:
        UserError: it belongs to another network (the message names what differs), cannot be read, or holds more than
            plain data.
    """
    damaged: list[tuple[Path, str]] = []
    weights: Mapping[str, torch.Tensor] = {}
    good = None
    for path in _newest_first(folder):
        try:
            weights = _weights_of(path)
        except _DamagedError as error:
            damaged.append((path, str(error)))
            with suppress(FileNotFoundError):  # another process of the same training has renamed it
                path.rename(path.with_suffix(".damaged"))
            continue
        except FileNotFoundError:
            continue
        good = path
        break
    for index, (path, reason) in enumerate(damaged, 1):
        last = "training begins anew" if good is None else "the one before it is used"
        print(f"{path}: is damaged ({reason}); {last if index == len(damaged) else 'it is put aside'}", flush=True)
    if good is not None:
        _refuse_other_network(good, weights, system)
    return good


def remove_superseded(folder: Path, trainer: pl.Trainer) -> None:
    """Delete the checkpoint that Lightning had not deleted yet when it was killed after writing the next one.

    Args:
        folder: the folder of the ``.ckpt`` files.
        trainer: its ``ModelCheckpoint`` says how many are kept; unless it is the only one and keeps the newest, all
            files stay.
    """
    found = [each for each in trainer.checkpoint_callbacks if isinstance(each, ModelCheckpoint)]
    if len(found) == 1 and (found[0].monitor, found[0].mode, found[0].save_last) == ("step", "max", None):
        kept = found[0].save_top_k
        for path in _newest_first(folder)[kept:] if kept > 0 else ():
            path.unlink(missing_ok=True)


def unfit(path: Path, reason: str) -> UserError:
    """The line about a checkpoint that is whole, but that no training can go on from; says why."""
    return UserError(f"{path}: cannot be gone on from ({reason}). Delete it, or choose another directory with run=.")


class _DamagedError(Exception):
    """A file is not a checkpoint, or is a damaged one; the message says why."""


def _newest_first(folder: Path) -> list[Path]:
    files = [path for path in folder.glob("*.ckpt") if path.is_file()]
    return sorted(files, key=lambda path: path.stat().st_mtime_ns, reverse=True)


def _weights_of(path: Path) -> Mapping[str, torch.Tensor]:
    """The ``state_dict`` of a checkpoint, which is finite, as the optimizers' states are.

    Raises:
        _DamagedError: the file is damaged.
        UserError: it cannot be read, holds objects, or names files outside its folder, which Lightning would delete.
    """
    content = _read(path)
    weights = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(weights, Mapping) or not all(isinstance(each, torch.Tensor) for each in weights.values()):
        raise _DamagedError("it holds no weights by name")
    states = _leaves(content.get("optimizer_states"), "optimizer_states")
    tensors = [*weights.items(), *(each for each in states if isinstance(each[1], torch.Tensor))]
    for name, values in tensors:
        special = values.layout is not torch.strided or values.is_quantized or values.is_meta
        if special or values.numel() * values.itemsize > values.untyped_storage().nbytes():
            raise _DamagedError(f"its {short(name)} is no plain tensor")
        if values.is_floating_point() and not bool(values.double().isfinite().all()):
            raise _DamagedError(f"its {short(name)} holds numbers that are not finite")
    for name, value in _leaves(content.get("loops"), "loops"):
        if not isinstance(value, int | float | None):
            raise _DamagedError(f"its {short(name)} is no number")
    callbacks = content.get("callbacks")
    for _, text in _leaves(list(callbacks.values()) if isinstance(callbacks, dict) else [], "callbacks", keys=True):
        if isinstance(text, str) and (".." in Path(text).parts or "://" in text):
            raise UserError(f"{path}: names {text!r}, outside its folder. Delete it, or choose another run=.")
    return weights


def _read(path: Path) -> Any:
    """The content of a checkpoint; errors of the machine, such as too little memory, are raised unchanged."""
    if path.stat().st_size == 0:
        raise _DamagedError("it is empty")
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(record.file_size for record in archive.infolist()) > path.stat().st_size:
                raise _DamagedError("its parts are larger than the file")  # which PyTorch unpacks
        return torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, _DamagedError):
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). Fix that, or choose another run=.") from None
    except Exception as error:  # a truncated file can raise almost anything
        if lacks_memory(error):
            raise
        if (reason := _damage(path)) is not None:
            raise _DamagedError(reason) from None
        if not isinstance(error, pickle.UnpicklingError):
            raise unfit(path, f"{type(error).__name__}: {reason_of(error)}") from None
        # The rest of PyTorch's message suggests trusting the file.
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"objects ({found[1]})" if found else "objects"
        raise UserError(f"{path}: holds {what}, not only numbers. Delete it, or choose another run=.") from None


def _damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, which should be a zip file; None if it is intact."""
    if not zipfile.is_zipfile(path):
        return "it is not whole"
    try:
        with zipfile.ZipFile(path) as archive:
            torn = archive.testzip()
            named = any(name.endswith("data.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError):
        return "it is not whole"  # a damaged directory may name places before the file's start
    if torn is not None:
        return f"its part {torn} is not whole"
    return None if named else "it is no checkpoint"


def _leaves(value: Any, name: str, depth: int = 0, *, keys: bool = False) -> Iterator[tuple[str, Any]]:
    """All values in lists and dictionaries, and keys if wanted, with the path to each.

    Raises:
        _DamagedError: they are nested more deeply than in any checkpoint.
    """
    if depth > _DEEPEST:
        raise _DamagedError("it is nested too deeply")
    if isinstance(value, dict):
        for key, part in value.items():
            if keys:
                yield name, key
            yield from _leaves(part, f"{name}.{short(str(key))}", depth + 1, keys=keys)
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from _leaves(part, f"{name}.{index}", depth + 1, keys=keys)
    else:
        yield name, value


def _refuse_other_network(path: Path, weights: Mapping[str, torch.Tensor], system: torch.nn.Module) -> None:
    """Refuse weights of another network; the message names the tensors that differ."""
    differing = list(differences(system, weights).values())
    if differing:
        listed = ", ".join(differing[:3])
        raise UserError(f"{path}: is of another network: {listed}. Choose another directory with run=.")
