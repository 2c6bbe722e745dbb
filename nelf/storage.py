"""Weight files: safetensors, with a description of the network in the header.

Files are untrusted. Loading one never runs foreign code, since the header may name only public networks of nelf itself,
and takes no more memory than the file's size justifies, since the network is first built on the meta device.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import register_module_parameter_registration_hook

import nelf
from nelf.arguments import parameters, refusal
from nelf.compression.fold import fold_batch_norm
from nelf.compression.quantization import activation_ranges, quantize_network
from nelf.compression.storage import Scheme, pack, unpack
from nelf.errors import UserError, atomic_path
from nelf.files import is_dir, is_file, parse_json, quoted, reason_of, short

__all__ = ["described", "differences", "load", "save"]

_HOMES = ("nelf.fields", "nelf.lightfields")
_TARGET = re.compile(r"(?:nelf\.(?:fields|lightfields)\.(?:\w+\.)?)?(\w+)")
#: Types of the numbers in a file: of parameters and of buffers.
_KINDS = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)
_LARGEST = 2**20  # of the integers in a network's description, some of which are loop counts
#: A network may have so many parameters for each tensor of its file, and so many numbers for each number in it, and
#: some more: norms are folded before a file is written, and what only training needs is not in it.
_PARAMETERS, _NUMBERS = (4, 100), (2, 2**20)


def save(network: nn.Module, path: Path | str, config: dict[str, Any], scene: str, scheme: Scheme = "fp32") -> Path:
    """Write a network's weights, and the ranges of its activations if it has fake quantization.

    Equal networks make equal files.

    Args:
        network: its parameters and buffers are written, except those that it names in ``training_state``, which only
            further training needs.
        path: the file, ``.safetensors``.
        config: ``_target_`` and the arguments of its constructor, plain values.
        scene: the digest of the scene that it was trained on.
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
    with atomic_path(path) as partial, partial.open("wb") as file:
        file.writelines(_in_one_order(safetensors.torch.save(tensors, header)))
    return Path(path)


def _in_one_order(content: bytes) -> list[bytes | memoryview]:
    """The parts of a safetensors file whose header is sorted: the library has what describes a network in any order."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    text = json.dumps(header, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors stay aligned
    return [len(text).to_bytes(8, "little"), text, memoryview(content)[start:]]


def load(path: str | os.PathLike[str], network: nn.Module | None = None, device: str = "cpu") -> Any:
    """Load a network, ready to render.

    It computes in float32, whatever the file's format. If the file has ranges of activations, it computes with fake
    quantization, as int8 kernels would; ``nelf.compression.quantization.restore_network`` removes that.

    Args:
        path: ``model.safetensors`` of a run, or the folder that holds it.
        network: a network of your own to load the weights into; None builds the one that the file describes.
        device: where to put it.

    Returns:
        The network, in evaluation mode.

    Raises:
        UserError: the file is missing or not a whole safetensors file, its network is not one of nelf's, or its weights
            do not fit (the names are given).
    """
    file = _file(path)
    if not is_file(file):
        raise UserError(f"{file}: no such file; a trained stage has a model.safetensors.")
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            header = opened.metadata() or {}
            shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118  # no dict
        network = _describe(file, header, shapes) if network is None else network
        tensors = safetensors.torch.load_file(file)
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{file}: is not a whole safetensors file ({reason_of(error)}).") from None
    odd = [name for name, values in tensors.items() if values.dtype not in _KINDS]
    if odd:
        raise UserError(f"{file}: {odd[0]} holds {tensors[odd[0]].dtype}, of which nelf writes none.")
    try:
        tensors = unpack(tensors, header.get("scheme", "fp32"))
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    norms = [name for name, module in network.named_modules() if isinstance(module, _BatchNorm)]
    if not any(f"{name}.running_mean" in tensors for name in norms):  # the file's norms are folded
        fold_batch_norm(network, inplace=True)
    _check_fit(file, network, tensors)
    infinite = [name for name, values in tensors.items() if not bool(values.isfinite().all())]
    if infinite:
        raise UserError(f"{file}: {infinite[0]} holds numbers that are not finite.")
    try:
        network.load_state_dict(tensors, strict=False)
    except (ValueError, RuntimeError) as error:  # inconsistent parts
        raise UserError(f"{file}: {reason_of(error)}") from None
    if "activation_ranges" in header:
        try:
            quantize_network(network, _ranges(header["activation_ranges"]))
        except ValueError as error:
            raise UserError(f"{file}: has ranges of activations that do not fit ({reason_of(error)}).") from None
    return network.to(device).eval()


def described(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A file's description of its network: ``_target_`` and the arguments of its constructor; empty without one.

    Args:
        path: see ``load``.

    Raises:
        UserError: the file is missing or not a whole safetensors file.
    """
    file = _file(path)
    if not is_file(file):
        raise UserError(f"{file}: no such file; a trained stage has a model.safetensors.")
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            config = parse_json((opened.metadata() or {}).get("config", "{}"))
    except (safetensors.SafetensorError, ValueError, OSError) as error:
        raise UserError(f"{file}: is not a whole safetensors file ({reason_of(error)}).") from None
    return config if isinstance(config, dict) else {}


def _file(path: str | os.PathLike[str]) -> Path:
    return Path(path) / "model.safetensors" if is_dir(Path(path)) else Path(path)


def _describe(file: Path, header: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> nn.Module:
    """Build the network that a header describes, after checking that the file is large enough for it."""
    try:
        config = parse_json(header.get("config", "{}"))
        target = str(config.pop("_target_", ""))
        large = [key for key, value in config.items() for number in _whole(value) if abs(number) > _LARGEST]
    except (ValueError, AttributeError, TypeError):
        raise UserError(f"{file}: holds no description of a network that can be read; pass network=.") from None
    kind = _public(target)
    if kind is None:
        raise UserError(
            f"{file}: describes {quoted(target or 'no network')}, which is not one of nelf's; pass network=."
        )
    known = parameters(kind)
    for key, value in config.items():
        if key in known and (reason := refusal(known[key].annotation, value)):
            raise UserError(f"{file}: describes a {kind.__name__} whose {key} {reason}.")
    if large:
        raise UserError(f"{file}: describes a {kind.__name__} whose {short(large[0])} is beyond {_LARGEST}.")
    try:
        most = _PARAMETERS[0] * len(shapes) + _PARAMETERS[1]
        with torch.device("meta"), _at_most(most), warnings.catch_warnings():
            warnings.simplefilter("error")  # such as one about a number beyond 32 bits
            numbers = sum(tensor.numel() for tensor in kind(**config).state_dict().values())
    except Exception as error:  # constructors may raise anything for arbitrary arguments
        raise UserError(f"{file}: describes a {kind.__name__} that cannot be built ({reason_of(error)}).") from None
    held = sum(map(math.prod, shapes.values()))
    if numbers > _NUMBERS[0] * held + _NUMBERS[1]:
        raise UserError(f"{file}: describes a {kind.__name__} of {numbers} numbers, but holds {held}.")
    return kind(**config)


def _public(target: str) -> type[nn.Module] | None:
    """The public class of nelf that a header names, with or without its module; None if there is none."""
    name = _TARGET.fullmatch(target)
    for package in map(importlib.import_module, _HOMES if name else ()):
        kind = getattr(package, name[1]) if name and name[1] in package.__all__ else None
        if isinstance(kind, type) and issubclass(kind, nn.Module):
            return kind
    return None


def _whole(value: Any) -> Iterator[int]:
    """Yield the integers in an argument."""
    if isinstance(value, int):
        yield value
    elif isinstance(value, list):
        for inner in value:
            yield from _whole(inner)


@contextmanager
def _at_most(parameters: int) -> Iterator[None]:
    """Stop a constructor that registers more parameters than this, as one with a huge depth does."""
    left = iter(range(parameters))

    def count(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        if next(left, None) is None:
            raise ValueError("it has more parameters than the file has tensors")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _ranges(text: str) -> Any:
    """The ranges of activations in a header, see ``nelf.compression.quantization``."""
    ranges = parse_json(text)
    if ranges == "dynamic":
        return ranges
    if not isinstance(ranges, dict):
        raise ValueError("they are not by layer")
    for name, limits in ranges.items():
        if not isinstance(limits, list) or [type(limit) for limit in limits] not in ([float] * 2, [int] * 2):
            raise ValueError(f"{short(name)} has no two limits")
    return ranges


def _shared_state(network: nn.Module) -> dict[str, torch.Tensor]:
    """The state that is written to a weight file: without ``training_state``."""
    left_out = getattr(network, "training_state", ())
    return {name: tensor for name, tensor in network.state_dict().items() if name not in left_out}


def _check_fit(file: Path, network: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Refuse weights that do not fit, naming the tensors that differ."""
    left_out = getattr(network, "training_state", ())
    differing = [line for name, line in differences(network, tensors).items() if name not in left_out]
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise UserError(f"{file}: does not fit {type(network).__name__}: {', '.join(differing[:3])}{more}.")


def differences(network: nn.Module, tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Compare the shapes of weights with those of a network; returns the differences by name, in words.

    For tensors that a submodule names in ``sized_by_state``, only the number of dimensions is compared.
    """
    free = {
        f"{path}.{name}".lstrip(".")
        for path, part in network.named_modules()
        for name in getattr(part, "sized_by_state", ())
    }
    expected: dict[str, tuple[int, ...]] = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    return {
        name: f"{name} is {found.get(name)}, not {expected.get(name)}"
        for name in {**expected, **found}
        if expected.get(name) != found.get(name)
        and not (name in free and len(found.get(name, ())) == len(expected[name]))
    }
