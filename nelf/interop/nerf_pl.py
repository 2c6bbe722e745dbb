"""Checkpoints of nerf_pl, Lightning's or of the weights alone.

Its near and far are distances along unit rays, see ``euclidean`` of ``nelf.fields.NeRF``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from nelf.interop.conversion import Conversion
from nelf.interop.nerf_layers import Options, Parts, convert_parts, take
from nelf.interop.torch_file import Checkpoint

__all__ = ["convert", "recognizes"]

_NAME = "nerf_pl"
_LAYER = re.compile(r"xyz_encoding_\d+\.0\.weight")


def recognizes(content: Any) -> bool:
    """Whether the content of a file is one of its checkpoints."""
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    return isinstance(state, dict) and "nerf_coarse.xyz_encoding_1.0.weight" in state


def convert(checkpoint: Checkpoint, **options: Any) -> Conversion:
    """Convert a checkpoint.

    Args:
        checkpoint: the file.
        **options: those of ``nelf.interop.nerf_layers.Options``.

    Raises:
        UserError: layers are missing or do not fit.

    Source:
        github.com/kwea123/nerf_pl, ``models/nerf.py``: the position is concatenated before the fifth layer's input.
    """
    content = checkpoint.content
    state = checkpoint.tensors(content.get("state_dict", content))
    parts = {}
    for key in ("coarse", "fine"):
        prefix = f"nerf_{key}."
        own = {name.removeprefix(prefix): values for name, values in state.items() if name.startswith(prefix)}
        if own:
            parts[key] = _parts(checkpoint.path, own)
    return convert_parts(checkpoint.path, _NAME, parts, Options(**options), euclidean=True)


def _parts(path: Path, state: dict[str, Tensor]) -> Parts:
    depth = sum(bool(_LAYER.fullmatch(name)) for name in state)
    layers = take(path, _NAME, state, [f"xyz_encoding_{index + 1}.0" for index in range(depth)])
    names = ["sigma", "xyz_encoding_final", "dir_encoding.0", "rgb.0"]
    density, feature, direction, color = take(path, _NAME, state, names)
    return Parts(layers, density, feature, [direction], color)
