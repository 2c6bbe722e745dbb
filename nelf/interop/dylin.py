"""Checkpoints of DyLiN's own code.

Its conventions: OpenGL cameras, z-depths, and rays through the upper left corners of pixels (``ray_shift`` of
``nelf.lightfields.DyLiN``: half a pixel of the training images). A file has a state dict of the trunk only; the two
other networks are pickled modules, which are read without running their code. A file with three state dicts named
``trunk``, ``offset`` and ``hyper`` is read, too.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from nelf.errors import UserError
from nelf.files import LARGEST
from nelf.interop.conversion import Conversion, prepared, strip_prefix, unknown_layout
from nelf.interop.inert import Stub, module_state
from nelf.interop.r2l import block_scale, stored_options, trial_options
from nelf.interop.torch_file import Checkpoint

__all__ = ["convert", "recognizes"]

_NAME = "DyLiN"
_KEYS = {
    "trunk": ("network_fn_state_dict", "trunk"),
    "offset": ("network_fn_offset", "offset"),
    "hyper": ("network_fn_hyper", "hyper"),
}
_BLOCK = re.compile(r"body\.\d+\.body\.0\.weight")
_LAYER = re.compile(r"pts_linears\.\d+\.weight")
_RAY = 7  # numbers: origin, direction, time
_NEEDED = {
    "trunk": ("head.0.weight", "head.0.bias", "tail.0.weight", "tail.0.bias"),
    "offset": ("pts_linears.0.weight", "output_linear_o.weight", "output_linear_d.weight"),
    "hyper": ("pts_linears.0.weight", "output_linear.weight"),
}


def recognizes(content: Any) -> bool:
    """Whether the content of a file is one of its checkpoints."""
    return isinstance(content, dict) and any(key in content for key in (*_KEYS["offset"], *_KEYS["hyper"]))


def convert(
    checkpoint: Checkpoint, width: int = 400, near: float | None = None, far: float | None = None
) -> Conversion:
    """Convert a checkpoint.

    Args:
        checkpoint: the file.
        width: of the images that it was trained with, pixels (its commands halve D-NeRF's to 400).
        near: z-depth of the first point of a ray; None for that in the options stored with the trunk, else 2.
        far: z-depth of the last point; None for that in the stored options, else 6.

    Raises:
        UserError: a network is missing, layers are missing or do not fit, or nelf's DyLiN does not support the stored
            options.

    Source:
        github.com/Heng14/DyLiN, ``model/nerf_raybased.py`` and ``main.py``. Earlier versions have one layer,
        ``output_linear``, for the offsets of both origin and direction.
    """
    path = checkpoint.path
    parts = {part: _tensors(checkpoint, part) for part in _KEYS}
    for part, needed in _NEEDED.items():
        lacking = [f"{part}: {name}" for name in needed if name not in parts[part]]
        if lacking:
            raise unknown_layout(path, _NAME, parts[part], ", ".join(lacking))
        flat = [f"{part}: {name}" for name in needed if parts[part][name].ndim != 2 - name.endswith("bias")]
        if flat:
            raise UserError(f"{path}: {flat[0]} has not the dimensions of a linear layer's.")
    options = stored_options(checkpoint.content)
    if options.get("use_residual", True) is not True:
        raise UserError(f"{path}: was trained without --use_residual; nelf's DyLiN has only the network with it.")
    if block_scale(path, options) != 1.0:
        raise UserError(f"{path}: was trained with another --trial.res_scale than 1; nelf's DyLiN has only that.")
    head, ray, lifted = (
        parts[part][name]
        for part, name in (
            ("trunk", "head.0.weight"),
            ("offset", "pts_linears.0.weight"),
            ("hyper", "output_linear.weight"),
        )
    )
    each, rest = divmod(ray.shape[-1], _RAY)
    points, odd = divmod(head.shape[-1] // each - len(lifted) if each else 0, 3)
    if rest or odd or each % 2 == 0 or points < 1 or head.shape[-1] % each:
        raise UserError(
            f"{path}: a ray has {ray.shape[-1]} columns and the trunk {head.shape[-1]}; expected 7 (2 L + 1), such as "
            f"147, and (3 P + {len(lifted)}) (2 L + 1), such as 1176."
        )
    arguments = {
        "width": len(head),
        "depth": 2 * sum(bool(_BLOCK.fullmatch(name)) for name in parts["trunk"]) + 2,
        "points": points,
        "multires": (each - 1) // 2,
        "offset_width": len(ray),
        "offset_depth": sum(bool(_LAYER.fullmatch(name)) for name in parts["offset"]),
        "hyper_width": len(parts["hyper"]["pts_linears.0.weight"]),
        "hyper_depth": sum(bool(_LAYER.fullmatch(name)) for name in parts["hyper"]),
        "hyper_dim": len(lifted),
        "ray_shift": 0.5 / width,
    }
    state = {f"{part}.{name}": values for part, own in parts.items() for name, values in own.items()}
    parameters = sum(values.numel() for values in state.values())
    line = (
        f"DyLiN, {(arguments['depth'] - 2) // 2} blocks of width {len(head)}, from {points} points and {len(lifted)} "
        f"coordinates of hyperspace, {parameters} parameters; trained at {width} px"
    )
    trial = trial_options(options)
    depths = (_depth(trial.get("near"), near, 2.0), _depth(trial.get("far"), far, 6.0))
    return Conversion("student", "DyLiN", arguments, {**state, **prepared(*depths)}, line)


def _tensors(checkpoint: Checkpoint, part: str) -> dict[str, Tensor]:
    """The tensors of one network, in 32 bits, without prefix."""
    content = checkpoint.content
    stored = next((content[key] for key in _KEYS[part] if key in content), None)
    if stored is None:
        raise unknown_layout(checkpoint.path, _NAME, content, " or ".join(_KEYS[part]))
    state = checkpoint.tensors(module_state(stored) if isinstance(stored, Stub) else stored)
    found = {name: values.float() for name, values in strip_prefix(state).items()}
    if part == "offset" and "output_linear_o.weight" not in found:
        for kind in [kind for kind in ("weight", "bias") if f"output_linear.{kind}" in found]:
            both = found.pop(f"output_linear.{kind}")
            found |= {f"output_linear_{moved}.{kind}": both.clone() for moved in "od"}
    return found


def _depth(stored: Any, chosen: float | None, default: float) -> float:
    """A z-depth: the chosen one, else that in the original's options if it is set (above 0), else the default."""
    if chosen is not None:
        return chosen
    return float(stored) if isinstance(stored, int | float) and 0 < stored <= LARGEST else default
