"""Read and write checkpoints of MobileR2L's own code.

Its conventions are nelf's: OpenGL cameras, pixel centers at +0.5, z-depths along directions of camera z -1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nelf.errors import UserError
from nelf.interop.conversion import Conversion, prepared, strip_prefix, unknown_layout
from nelf.interop.inert import Stub
from nelf.interop.tar import write_tar
from nelf.interop.torch_file import Checkpoint
from nelf.lightfields import LightField, MobileR2L

__all__ = ["check_original", "convert", "recognizes", "save_tar"]

_BLOCK = re.compile(r"body\.\d+\.conv_block\.0\.weight")
_TRANSPOSED = re.compile(r"tail\.(\d+)\.weight")
_FACTORS = {(): 1, (2,): 2, (2, 2): 4, (2, 2, 2): 8, (2, 2, 3): 12}
_FEWEST = 2  # smallest factor of a tail in the original


def recognizes(content: Any) -> bool:
    """Whether the content of a file is one of its checkpoints."""
    return len(getattr(_state(content).get("head.0.weight"), "shape", ())) == 4


def convert(
    checkpoint: Checkpoint, near: float = 2.0, far: float = 6.0, multires: int = 6, activation: str | None = None
) -> Conversion:
    """Convert a checkpoint.

    Args:
        checkpoint: the file; its names may have the prefix ``module.``.
        near: z-depth of the first point of a ray.
        far: z-depth of the last point.
        multires: frequencies of the embedding.
        activation: ``gelu`` or ``relu``; None for that of the stored network, or, if there is none, gelu, the
            original's default.

    Raises:
        UserError: layers are missing or do not fit, or nelf's ``MobileR2L`` does not support the tail.

    Source:
        github.com/snap-research/MobileR2L, ``model/R2L.py``.
    """
    path = checkpoint.path
    state = checkpoint.tensors(_state(checkpoint.content))
    columns = state["head.0.weight"].shape[1]
    points, rest = divmod(columns, 3 * (2 * multires + 1))
    if rest:
        each = 3 * (2 * multires + 1)
        raise UserError(f"{path}: head.0.weight has {columns} columns; expected {each} for each point of a ray.")
    numbered = {int(match[1]): state[name] for name in state if (match := _TRANSPOSED.fullmatch(name))}
    upsampling = [numbered[place] for place in sorted(numbered)][:-1]  # the last one makes colors
    factors = tuple({4: 2, 3: 3}.get(weight.shape[-1], 0) if weight.ndim == 4 else 0 for weight in upsampling)
    if not numbered or factors not in _FACTORS:
        raise unknown_layout(path, "MobileR2L", state, "a tail that enlarges 1, 2, 4, 6, 8 or 12 times (tail.N.weight)")
    blocks = sum(bool(_BLOCK.fullmatch(name)) for name in state)
    arguments = {
        "width": state["head.0.weight"].shape[0],
        "depth": 2 * blocks + 2,
        "points": points,
        "multires": multires,
        "activation": activation or _activation(checkpoint.content),
        "sr_factor": _FACTORS[factors],
        "sr_kernels": [weight.shape[1] for weight in upsampling],
    }
    parameters = sum(values.numel() for name, values in state.items() if name.endswith(("weight", "bias")))
    line = (
        f"MobileR2L, {blocks} blocks of width {arguments['width']}, {points} points, {arguments['activation']}, "
        f"enlarges {arguments['sr_factor']} times, {parameters} parameters"
    )
    return Conversion("student", "MobileR2L", arguments, {**state, **prepared(near, far)}, line)


def check_original(network: LightField) -> None:
    """Refuse a network that the original does not have, or cannot build.

    The original takes three widths for its tail: each transposed convolution except the last has equal input and output
    widths, and the last one maps the second width to the third. So with three of them, the first two widths must be
    equal.

    Raises:
        UserError: the original cannot build it; the message says what it can.
    """
    if not isinstance(network, MobileR2L):
        raise UserError(f"tar: MobileR2L's code has no {type(network).__name__}, only mobile_r2l.")
    arguments = network.arguments
    if arguments["upsampling"] != "transposed":
        raise UserError(f"tar: MobileR2L's code has no tail {arguments['upsampling']!r}, only 'transposed'.")
    if network.sr_factor < _FEWEST:
        raise UserError("tar: MobileR2L's code has no sr_factor 1, only 2, 4, 8 and 12.")
    kernels = list(arguments["sr_kernels"])
    if network.sr_factor >= 8 and kernels[0] != kernels[1]:
        raise UserError(f"tar: MobileR2L's code cannot build sr_kernels {kernels}; the first two have to be equal.")


def save_tar(network: LightField, path: Path | str, resume: bool = False) -> Path:
    """Write a checkpoint that MobileR2L's code reads.

    Args:
        network: a network of the original's architecture (its options are not stored, since the original takes them
            from its command line).
        path: the file, ``.tar``; tensors and numbers only, so it loads with ``weights_only=True``.
        resume: for resuming training (``--run_train --resume``, without ``--amp``), which needs names with a prefix;
            else for ``--run_render`` and ``--export_onnx``.

    Returns:
        The file.

    Raises:
        UserError: a network that the original does not have, or the directory cannot be written.

    Source:
        github.com/snap-research/MobileR2L, ``model/engine.py``.
    """
    check_original(network)
    return write_tar(network, path, resume, optimizer="AdamW")


def _state(content: Any) -> dict[str, Any]:
    """The state dict in a checkpoint, without prefix."""
    content = content if isinstance(content, dict) else {}
    state = content.get("network_fn_state_dict", content)
    return strip_prefix(state) if isinstance(state, dict) and all(isinstance(name, str) for name in state) else {}


def _activation(content: Any) -> str:
    """The activation in the head of the pickled network."""
    head = next(_children(content.get("network_fn")), None)
    names = {part.name.rpartition(".")[2].lower() for part in _children(head)}
    return "relu" if "relu" in names else "gelu"


def _children(module: Any) -> Iterator[Stub]:
    """The submodules of a pickled module, in order."""
    parts = module.state.get("_modules") if isinstance(module, Stub) else None
    yield from (part for part in (parts if isinstance(parts, dict) else {}).values() if isinstance(part, Stub))
