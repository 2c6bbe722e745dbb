"""Checkpoints of yenchenlin's nerf-pytorch, and of R2L's teachers, which use the same class (``NNNNNN.tar``)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from nelf.interop.conversion import Conversion, strip_prefix
from nelf.interop.nerf_layers import Options, Parts, convert_parts, take, without_directions
from nelf.interop.torch_file import Checkpoint

__all__ = ["convert", "network_parts", "recognizes"]

_NAME = "nerf-pytorch (yenchenlin)"
_LAYER = re.compile(r"pts_linears\.\d+\.weight")


def recognizes(content: Any) -> bool:
    """Whether the content of a file is one of its checkpoints."""
    state = content.get("network_fn_state_dict") if isinstance(content, dict) else None
    return isinstance(state, dict) and "pts_linears.0.weight" in strip_prefix(state)


def convert(checkpoint: Checkpoint, **options: Any) -> Conversion:
    """Convert a checkpoint.

    Args:
        checkpoint: the file.
        **options: those of ``nelf.interop.nerf_layers.Options``.

    Raises:
        UserError: layers are missing or do not fit.

    Source:
        github.com/yenchenlin/nerf-pytorch, ``run_nerf_helpers.py``: the position is concatenated before the output of
        the fifth layer; the feature has no activation; density and feature have the same input.
    """
    content = checkpoint.content
    states = {"coarse": content["network_fn_state_dict"], "fine": content.get("network_fine_state_dict")}
    parts = {
        key: network_parts(checkpoint.path, _NAME, strip_prefix(checkpoint.tensors(state)))
        for key, state in states.items()
        if state
    }
    return convert_parts(checkpoint.path, _NAME, parts, Options(**options))


def network_parts(path: Path, name: str, state: Mapping[str, Tensor]) -> Parts:
    """The layers of one network.

    Args:
        path: the file, for errors.
        name: its format, for errors.
        state: its tensors, without prefix.

    Raises:
        UserError: layers are missing or do not fit.
    """
    depth = sum(bool(_LAYER.fullmatch(key)) for key in state)
    layers = take(path, name, state, [f"pts_linears.{index}" for index in range(depth)])
    if "output_linear.weight" in state:  # trained without view directions; its views_linears are not used
        return without_directions(path, layers, *take(path, name, state, ["output_linear"]))
    names = ["alpha_linear", "feature_linear", "views_linears.0", "rgb_linear"]
    density, feature, direction, color = take(path, name, state, names)
    return Parts(layers, density, feature, [direction], color)
