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
from torch.nn.modules.batchnorm import _BatchNorm

import nelf
from nelf.compression.fold import fold_batch_norm
from nelf.compression.quantization import activation_ranges, quantize_network
from nelf.compression.storage import Scheme, pack, unpack
from nelf.errors import UserError, atomic_path

__all__ = ["load", "save"]

_HOMES = ("nelf.fields.", "nelf.lightfields.")


def save(network: nn.Module, path: Path | str, config: dict[str, Any], scene: str, scheme: Scheme = "fp32") -> Path:
    """Write a network's weights; and the ranges of its activations, if it has fake quantisation.

    Args:
        network: its parameters and buffers are written as they are, but for those that it names in
            ``training_state``: nothing but further training needs them.
        path: the file, ``.safetensors``.
        config: ``_target_`` and the arguments of its constructor, plain values.
        scene: the digest of the scene that it has learned.
        scheme: how its parameters are stored, see ``nelf.compression.storage``.

    Returns:
        The file.

    Raises:
        UserError: the directory cannot be written.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in _shared_state(network).items()}
    tensors = pack(network, state, scheme)
    header = {"nelf": nelf.__version__, "config": json.dumps(config), "scene": scene, "scheme": scheme}
    if ranges := activation_ranges(network):
        header["activation_ranges"] = json.dumps(ranges)
    with atomic_path(path) as partial:
        partial.write_bytes(safetensors.torch.save(tensors, header))
    return Path(path)


def load(path: str | os.PathLike[str], network: nn.Module | None = None, device: str = "cpu") -> Any:
    """Load a network, ready to render.

    It computes in 32 bits, from whatever the file holds. Where the file has ranges of activations, it computes with
    fake quantisation, as its int8 kernels would; ``nelf.compression.quantization.restore_network`` takes that off.

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
    try:
        tensors = unpack(tensors, header.get("scheme", "fp32"))
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    if network is None:
        network = _describe(file, header)
    norms = [name for name, module in network.named_modules() if isinstance(module, _BatchNorm)]
    if not any(f"{name}.running_mean" in tensors for name in norms):  # they were folded before it was written
        fold_batch_norm(network, inplace=True)
    _check_fit(file, network, tensors)
    network.load_state_dict(tensors, strict=False)
    if "activation_ranges" in header:
        quantize_network(network, json.loads(header["activation_ranges"]))
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
