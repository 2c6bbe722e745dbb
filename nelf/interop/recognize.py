"""Recognize the format of a file, and convert it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from nelf.errors import UserError
from nelf.files import exists, is_dir, quoted
from nelf.interop import (
    dnerf,
    dylin,
    mobile_r2l,
    mobile_r2l_pseudo,
    nerf_pl,
    nerf_pytorch,
    nerf_pytorch_krrish94,
    ngp_pl,
    r2l,
)
from nelf.interop.conversion import Conversion, unknown_layout
from nelf.interop.nerf_layers import Options
from nelf.interop.torch_file import read

__all__ = ["FORMATS", "conversion", "convert"]

#: The modules that read the formats, by name.
FORMATS: dict[str, ModuleType] = {
    "ngp_pl": ngp_pl,
    "MobileR2L": mobile_r2l,
    "DyLiN": dylin,  # before R2L, since its trunk looks like an R2L
    "R2L": r2l,
    "D-NeRF": dnerf,
    "nerf-pytorch (yenchenlin)": nerf_pytorch,
    "nerf-pytorch (krrish94)": nerf_pytorch_krrish94,
    "nerf_pl": nerf_pl,
}
_KEYS = (
    "model.density_bitfield (ngp_pl), head.0.weight (R2L, MobileR2L), network_fn_offset (DyLiN), pts_linears.0.weight "
    "or model_coarse_state_dict (nerf-pytorch), _time_out.weight (D-NeRF), nerf_coarse.xyz_encoding_1.0.weight "
    "(nerf_pl)"
)


def conversion(path: Path, options: Mapping[str, Any]) -> Conversion:
    """Convert a checkpoint of any of ``FORMATS``.

    Args:
        path: the file.
        options: arguments of the format's ``convert``.

    Raises:
        UserError: an unknown format, an option that the format does not take, or an error of its ``convert``.
    """
    checkpoint = read(path)
    for name, module in FORMATS.items():
        if module.recognizes(checkpoint.content):
            _check(name, module.convert, options)
            return module.convert(checkpoint, **options)  # type: ignore[no-any-return]
    content = checkpoint.content
    found = _leaves(content) if isinstance(content, dict) else {f"a {type(content).__name__}": None}
    raise unknown_layout(path, "a program that nelf knows", found, _KEYS)


def convert(path: Path, out: Path, options: Mapping[str, Any]) -> str:
    """Convert a checkpoint to a file of nelf, or a pseudo set to a Blender data set.

    Args:
        path: the file or the folder.
        out: a run directory, or the folder to write.
        options: as in ``conversion``.

    Returns:
        A description of the file, and how to use the result.

    Raises:
        UserError: see ``conversion``; or the output exists, or the directory cannot be written.
    """
    if is_dir(path):
        if not mobile_r2l_pseudo.recognizes(path):
            raise UserError(f"{path}: is no pseudo set of MobileR2L, which has hwf/dataset_info.json.")
        _check("MobileR2L's pseudo data", mobile_r2l_pseudo.convert, options)
        folder = mobile_r2l_pseudo.convert(path, out, **options)
        return f"{folder}: a Blender data set\nUse it as stage.pseudo.root={folder}"
    found = conversion(path, options)
    there = out / found.role / "model.safetensors"
    if exists(there):
        raise UserError(f"{there}: is in the way; choose another directory by --to, or delete it.")
    file = found.save(path, out)
    shown = json.dumps({key: value for key, value in found.arguments.items() if value is not None})
    return f"{path}: {found.found}\n{file}: {found.kind} {shown}\nUse it as stage.{found.role}.file={file}"


def _check(name: str, function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Refuse options that a format does not take."""
    signature = inspect.signature(function).parameters.values()
    allowed = {each.name for each in signature if each.kind is not each.VAR_KEYWORD and each.default is not each.empty}
    if any(each.kind is each.VAR_KEYWORD for each in signature):
        allowed |= set(Options._fields)
    for key in options:
        if key not in allowed:
            flags = ", ".join(f"--{word.replace('_', '-')}" for word in sorted(allowed)) or "none"
            raise UserError(f"--{key.replace('_', '-')}: is no option of {name}; allowed: {flags}.")


def _leaves(content: Mapping[Any, Any]) -> dict[str, Any]:
    """The keys of a checkpoint, and those of the state dicts in it."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        name = _name(key)
        found |= {f"{name}.{_name(inner)}": None for inner in value} if isinstance(value, dict) else {name: None}
    return found


def _name(key: Any) -> str:
    return key if isinstance(key, str) else quoted(key)
