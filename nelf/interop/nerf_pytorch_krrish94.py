"""Checkpoints of krrish94's nerf-pytorch (``checkpointNNNNN.ckpt``, in PyTorch's legacy format).

Their ``config.yml`` states another width than the weights have, so only the weights are used.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nelf.interop.conversion import Conversion, unknown_layout
from nelf.interop.nerf_layers import Layer, Options, Parts, convert_parts, take, without_directions
from nelf.interop.torch_file import Checkpoint

__all__ = ["convert", "recognizes"]

_NAME = "nerf-pytorch (krrish94)"
_LAYER = re.compile(r"layers_xyz\.\d+\.weight")


def recognizes(content: Any) -> bool:
    """Whether the content of a file is one of its checkpoints."""
    return isinstance(content, dict) and "model_coarse_state_dict" in content


def convert(checkpoint: Checkpoint, **options: Any) -> Conversion:
    """Convert a checkpoint.

    Args:
        checkpoint: the file.
        **options: those of ``nelf.interop.nerf_layers.Options``.

    Raises:
        UserError: layers are missing or do not fit; the message lists what exists.

    Source:
        github.com/krrish94/nerf-pytorch, ``nerf/models.py``. ``FlexibleNeRFModel``: the first layer has no activation,
        the feature has one, and a skip connection appends the position. ``PaperNeRFModel``: there is no ``layer1``, the
        feature has no activation, density is computed from it, and three of the four stored direction layers are used.
    """
    content = checkpoint.content
    states = {"coarse": content["model_coarse_state_dict"], "fine": content.get("model_fine_state_dict")}
    loaded = {key: checkpoint.tensors(state) for key, state in states.items() if state}
    if "coarse" not in loaded:
        raise unknown_layout(checkpoint.path, _NAME, content, "a state dict as model_coarse_state_dict")
    flexible = "layer1.weight" in loaded["coarse"]
    parts_of = _flexible if flexible else _paper
    parts = {key: parts_of(checkpoint.path, state) for key, state in loaded.items()}
    options = {"fine_samples": 64, **options}
    branch = flexible and "fc_out.weight" not in loaded["coarse"]
    return convert_parts(
        checkpoint.path, _NAME, parts, Options(**options), first_activation=not flexible, feature_activation=branch
    )


def _flexible(path: Path, state: dict[str, Tensor]) -> Parts:
    depth = sum(bool(_LAYER.fullmatch(name)) for name in state)
    first, *later = take(path, _NAME, state, ["layer1", *(f"layers_xyz.{index}" for index in range(depth))])
    width = first.weight.shape[0]
    layers = [first, *(Layer(_position_first(layer.weight, width), layer.bias) for layer in later)]
    if "fc_out.weight" in state:
        return without_directions(path, layers, *take(path, _NAME, state, ["fc_out"]))
    density, feature, direction, color = take(path, _NAME, state, ["fc_alpha", "fc_feat", "layers_dir.0", "fc_rgb"])
    return Parts(layers, density, feature, [direction], color)


def _position_first(weight: Tensor, width: int) -> Tensor:
    """The columns of a layer with a skip connection, reordered so that those of the position are first."""
    return torch.cat([weight[:, width:], weight[:, :width]], 1)


def _paper(path: Path, state: dict[str, Tensor]) -> Parts:
    if "layers_xyz.7.weight" not in state:
        expected = "layer1.weight (FlexibleNeRFModel) or layers_xyz.7.weight (PaperNeRFModel)"
        raise unknown_layout(path, _NAME, state, expected)
    names = ["fc_feat", "fc_alpha", "fc_rgb", *(f"layers_dir.{index}" for index in range(3))]
    layers = take(path, _NAME, state, [f"layers_xyz.{index}" for index in range(8)])
    feature, alpha, color, *directions = take(path, _NAME, state, names)
    if alpha.weight.shape[1] == len(feature.bias):  # two linear layers in sequence are merged into one
        alpha = Layer(alpha.weight @ feature.weight, alpha.weight @ feature.bias + alpha.bias)
    return Parts(layers, alpha, feature, directions, color)
