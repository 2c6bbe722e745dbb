"""Read and write checkpoints of R2L's own code.

Its conventions: OpenGL cameras, z-depths, and rays through the upper left corners of pixels (``ray_shift`` of
``nelf.lightfields.R2L``: half a pixel of the training images). Files of R2L-quant hold the same layers with rounded
weights, which are read.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from nelf.errors import UserError
from nelf.files import LARGEST, quoted
from nelf.interop.conversion import Conversion, prepared, strip_prefix, unknown_layout
from nelf.interop.inert import Stub
from nelf.interop.tar import write_tar
from nelf.interop.torch_file import Checkpoint
from nelf.lightfields import LightField

__all__ = ["block_scale", "convert", "recognizes", "save_tar", "stored_options", "trial_options"]

_BLOCK = re.compile(r"body\.\d+\.body\.0\.weight")
_MULTIRES, _POINTS, _PLUCKER = 10, 16, 6  # two defaults of the original's commands; number of Plücker coordinates


def recognizes(content: Any) -> bool:
    """Whether the content of a file is one of its checkpoints."""
    return len(getattr(_state(content).get("head.0.weight"), "shape", ())) == 2


def convert(
    checkpoint: Checkpoint, width: int = 400, near: float = 2.0, far: float = 6.0, residual: bool | None = None
) -> Conversion:
    """Convert a checkpoint.

    Args:
        checkpoint: the file.
        width: of the images that it was trained with, pixels (its commands halve Blender's to 400).
        near: z-depth of the first point of a ray.
        far: z-depth of the last point.
        residual: whether it was trained with ``--use_residual``, which the weights do not show; None for the value in
            the stored options.

    Raises:
        UserError: ``residual`` is unknown, nelf's R2L does not support the stored options, or layers are missing or do
            not fit.

    Source:
        github.com/snap-research/R2L, ``model/nerf_raybased.py``.
    """
    path = checkpoint.path
    state = {name: values.float() for name, values in checkpoint.tensors(_state(checkpoint.content)).items()}
    options = stored_options(checkpoint.content)
    lacking = [name for name in ("head.0.bias", "tail.0.weight", "tail.0.bias") if name not in state]
    if lacking:
        raise unknown_layout(path, "R2L", state, ", ".join(lacking))
    residual = options.get("use_residual", residual) if residual is None else residual
    if residual is None:
        raise UserError(
            f"{path}: does not tell whether it was trained with --use_residual, as its documented commands do; "
            "say --residual yes or --residual no."
        )
    columns = state["head.0.weight"].shape[1]
    multires = options.get("multires", _MULTIRES)
    each = 2 * multires + 1 if isinstance(multires, int) and 0 <= multires < 64 else 0
    plucker = options.get("plucker", columns == _PLUCKER * each)
    points = _PLUCKER // 3 if plucker else columns // (3 * each) if each else 0
    if columns != 3 * points * each:
        raise UserError(f"{path}: head.0.weight has {columns} columns; expected 63 for each point of a ray, or 126.")
    blocks = sum(bool(_BLOCK.fullmatch(name)) for name in state)
    arguments = {
        "width": state["head.0.weight"].shape[0],
        "depth": 2 * blocks + 2,
        "inputs": "plucker" if plucker else "points",
        "points": _POINTS if plucker else points,
        "multires": multires,
        "skip": bool(residual),
        "block_scale": block_scale(path, options),
        "ray_shift": 0.5 / width,
    }
    parameters = sum(values.numel() for values in state.values())
    seen = "Plücker coordinates" if plucker else f"{points} points"
    line = (
        f"R2L, {blocks} blocks of width {arguments['width']}, from {seen}, {'with' if residual else 'without'} the "
        f"long skip, {parameters} parameters; trained at {width} px"
    )
    return Conversion("student", "R2L", arguments, {**state, **prepared(near, far)}, line)


def save_tar(network: LightField, path: Path | str, resume: bool = False) -> Path:
    """Write a checkpoint that R2L's code reads.

    Args:
        network: an ``R2L``; its options are not stored, since the original takes them from its command line.
        path: the file, ``.tar``; tensors and numbers only.
        resume: for resuming training (``--resume``), which needs names with a prefix; else for ``--render_only``.

    Raises:
        UserError: another network, or the directory cannot be written.
    """
    check_original(network)
    return write_tar(network, path, resume, optimizer="Adam")


def check_original(network: LightField) -> None:
    """Refuse a network that the original does not have.

    Raises:
        UserError: it is not an ``R2L``.
    """
    if type(network).__name__ != "R2L":
        raise UserError(f"tar: R2L's code has no {type(network).__name__}, only r2l.")


def _state(content: Any) -> dict[str, Any]:
    """The state dict in a checkpoint, without prefix."""
    content = content if isinstance(content, dict) else {}
    state = content.get("network_fn_state_dict", content)
    return strip_prefix(state) if isinstance(state, dict) and all(isinstance(name, str) for name in state) else {}


def stored_options(content: Any) -> dict[str, Any]:
    """The options of its training, if the network is pickled as a module: ``network_fn.args``."""
    network = content.get("network_fn")
    args = network.state.get("args") if isinstance(network, Stub) else None
    return args.state if isinstance(args, Stub) else {}


def trial_options(options: dict[str, Any]) -> dict[str, Any]:
    """The options under ``trial``."""
    trial = options.get("trial")
    return trial.state if isinstance(trial, Stub) else {}


def block_scale(path: Path, options: dict[str, Any]) -> float:
    """The factor of a block's residual branch; checks that nelf supports the residual blocks.

    Args:
        path: the file, for errors.
        options: from ``stored_options``.

    Raises:
        UserError: the options describe other blocks.
    """
    stated = trial_options(options)
    for key, allowed in (("body_arch", "resmlp"), ("inact", "relu"), ("outact", "none"), ("n_learnable", 2)):
        if stated.get(key, allowed) != allowed:
            raise UserError(f"{path}: was trained with --trial.{key} {quoted(stated[key])}; nelf has only {allowed}.")
    scale = stated.get("res_scale", 1.0)
    if not isinstance(scale, int | float) or not abs(scale) <= LARGEST:
        raise UserError(f"{path}: states --trial.res_scale {quoted(scale)}; expected a number.")
    return float(scale)
