"""Weights that are shared: safetensors, with what describes their network in the header.

Loading one never runs a stranger's code: the header may only name networks of nelf itself.
"""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

import nelf
from nelf.errors import UserError, atomic_path

__all__ = ["load", "save"]

_HOMES = ("nelf.fields.", "nelf.lightfields.")


def save(network: nn.Module, path: Path | str, config: dict[str, Any], scene: str) -> Path:
    """Write a network's weights.

    Args:
        network: its parameters and buffers are written as they are, but for those that it names in
            ``training_state``: nothing but further training needs them.
        path: the file, ``.safetensors``.
        config: ``_target_`` and the arguments of its constructor, plain values.
        scene: the digest of the scene that it has learned.

    Returns:
        The file.

    Raises:
        UserError: the directory cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _shared_state(network).items()}
    header = {"nelf": nelf.__version__, "config": json.dumps(config), "scene": scene}
    with atomic_path(path) as partial:
        partial.write_bytes(safetensors.torch.save(tensors, header))
    return Path(path)


def load(path: str | os.PathLike[str], network: nn.Module | None = None, device: str = "cpu") -> Any:
    """Load a network, ready to render.

    Args:
        path: ``model.safetensors`` of a run, or the folder that holds it.
        network: a network of your own to fill; None builds the one that the file describes.
        device: where to put it.

    Returns:
        The network, in evaluation mode.

    Raises:
        UserError: no such file, not a whole safetensors file, a network that is not one of nelf's, or
        weights that
            do not fit it (the names are given).
    """
    file = Path(path) / "model.safetensors" if Path(path).is_dir() else Path(path)
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            header = opened.metadata() or {}
        tensors = safetensors.torch.load_file(file)
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; a trained stage has a model.safetensors.") from None
    except safetensors.SafetensorError as error:
        raise UserError(f"{file}: is not a whole safetensors file ({error}).") from None
    if network is None:
        network = _describe(file, header)
    _check_fit(file, network, tensors)
    network.load_state_dict(tensors, strict=False)
    return network.to(device).eval()


def _describe(file: Path, header: dict[str, str]) -> nn.Module:
    """Build the network that a header names."""
    config = json.loads(header.get("config", "{}"))
    target = str(config.pop("_target_", ""))
    if not target.startswith(_HOMES):
        raise UserError(f"{file}: describes {target or 'no network'!r}, which is not one of nelf's; pass network=.")
    module, _, name = target.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError:
        kind = None
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise UserError(f"{file}: describes {target!r}, which this version of nelf does not have.")
    return kind(**config)


def _shared_state(network: nn.Module) -> dict[str, torch.Tensor]:
    """What a file of weights holds: the network's state without what only training needs."""
    left_out = getattr(network, "training_state", ())
    return {name: tensor for name, tensor in network.state_dict().items() if name not in left_out}


def _check_fit(file: Path, network: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Refuse weights of another network, with the names that differ."""
    expected = {name: tuple(tensor.shape) for name, tensor in _shared_state(network).items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    names = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
    if names:
        listed = ", ".join(f"{name} is {found.get(name)}, not {expected.get(name)}" for name in names[:3])
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise UserError(f"{file}: does not fit {type(network).__name__}: {listed}{more}.")
