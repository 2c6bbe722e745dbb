"""Checkpoints of D-NeRF's own code (``NNNNNN.tar``).

Its conventions are those of ``nelf.interop.nerf_layers``; one network evaluates both coarse and fine samples.
"""

from __future__ import annotations

import re
from typing import Any

from nelf.errors import UserError
from nelf.interop.conversion import Conversion, strip_prefix, unknown_layout
from nelf.interop.nerf_layers import Options, layout, named, scene_state, take
from nelf.interop.nerf_pytorch import network_parts
from nelf.interop.torch_file import Checkpoint

__all__ = ["convert", "recognizes"]

_NAME = "D-NeRF"
_LAYER = re.compile(r"_time\.\d+\.weight")
_CANONICAL = "_occ."


def recognizes(content: Any) -> bool:
    """Whether the content of a file is one of its checkpoints."""
    state = content.get("network_fn_state_dict") if isinstance(content, dict) else None
    return isinstance(state, dict) and any(str(name).removeprefix("module.").startswith("_time") for name in state)


def convert(checkpoint: Checkpoint, zero_canonical: bool = True, **options: Any) -> Conversion:
    """Convert a checkpoint.

    Args:
        checkpoint: the file.
        zero_canonical: nothing is displaced at time 0; the original's default, which the weights do not show.
        **options: those of ``nelf.interop.nerf_layers.Options``.

    Raises:
        UserError: layers are missing or do not fit, or there is a second network for the fine samples.

    Source:
        github.com/albertpumarola/D-NeRF, ``run_dnerf_helpers.py``: ``_time`` and ``_time_out`` map a position to the
        canonical space of ``_occ``, the network of nerf-pytorch, whose skip connection is after the fifth layer.
    """
    path, content = checkpoint.path, checkpoint.content
    if content.get("network_fine_state_dict"):
        raise UserError(f"{path}: has a second network for the fine samples; nelf's DNeRF has one for both.")
    state = strip_prefix(checkpoint.tensors(content["network_fn_state_dict"]))
    canonical = {name.removeprefix(_CANONICAL): values for name, values in state.items() if name.startswith(_CANONICAL)}
    if not canonical:
        raise unknown_layout(path, _NAME, state, "_occ.pts_linears.0.weight")
    parts = network_parts(path, _NAME, canonical)
    found = layout(path, parts)
    depth = sum(bool(_LAYER.fullmatch(name)) for name in state)
    *layers, displacement = take(path, _NAME, state, [*(f"_time.{index}" for index in range(depth)), "_time_out"])
    time = (layers[0].weight.shape[1] if layers else 0) - parts.layers[0].weight.shape[1]
    if time < 1 or time % 2 == 0:
        raise UserError(f"{path}: has {time} columns for the encoded time; expected 2 L + 1, such as 21.")
    chosen = Options(**options)
    weights = {**scene_state(chosen), **named("canonical", parts)}
    moving = {f"layers.{index}": layer for index, layer in enumerate(layers)} | {"displacement_layer": displacement}
    for name, layer in moving.items():
        weights |= {f"deformation.{name}.weight": layer.weight, f"deformation.{name}.bias": layer.bias}
    del found["direction_depth"]  # always one
    arguments = {
        **found,
        "time_frequencies": (time - 1) // 2,
        "zero_canonical": zero_canonical,
        "samples": chosen.samples,
        "fine_samples": chosen.fine_samples,
        "ray_shift": 0.5 / chosen.width,
    }
    parameters = sum(values.numel() for key, values in weights.items() if "." in key)
    line = (
        f"{_NAME}, {found['depth']} layers of {found['width']}, skips {found['skips'] or 'none'}, "
        f"{found['frequencies']} frequencies of the position, {(time - 1) // 2} of the time, {parameters} parameters; "
        f"trained at {chosen.width} px"
    )
    return Conversion("teacher", "DNeRF", arguments, weights, line)
