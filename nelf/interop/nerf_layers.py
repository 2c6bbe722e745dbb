"""Common parts of the NeRF codes, whose networks have the same layers under different names.

Their conventions: OpenGL cameras, colors on the background of the data, and rays through the upper left corners of
pixels (``ray_shift`` of ``nelf.fields.NeRF``: half a pixel of the training images). Positions are in scene units,
encoded without a factor pi, densities are per scene unit, and the interval of a ray's last sample is infinite.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nelf.errors import UserError
from nelf.interop.conversion import Conversion, depth_range, unknown_layout

__all__ = [
    "Layer",
    "Options",
    "Parts",
    "convert_parts",
    "layout",
    "named",
    "scene_state",
    "take",
    "without_directions",
]


_OUTPUTS = (4, 5)  # color and density; nerf-pytorch with fine samples has another row, which it does not use
_NARROWEST, _WIDEST = 6, 2**13  # columns of the layer before them


class Layer(NamedTuple):
    """A linear layer: weight (out, in) and bias (out,)."""

    weight: Tensor
    bias: Tensor


class Parts(NamedTuple):
    """The layers of one network, in the order in which nelf's ``RadianceMLP`` applies them.

    A later layer with a skip connection has the encoded position in its first columns.
    """

    layers: Sequence[Layer]
    density: Layer
    feature: Layer
    directions: Sequence[Layer]
    color: Layer


class Options(NamedTuple):
    """Properties that NeRF checkpoints do not state.

    Attributes:
        width: width of the images that it was trained with, pixels.
        near: smallest z-depth of samples, scene units; for nerf_pl, whose rays have unit length, smallest distance.
        far: largest z-depth or distance.
        background: ``white`` or ``black``.
        samples: coarse samples per ray.
        fine_samples: fine samples per ray.
    """

    width: int = 400
    near: float = 2.0
    far: float = 6.0
    background: str = "white"
    samples: int = 64
    fine_samples: int = 128


def take(path: Path, name: str, state: Mapping[str, Tensor], layers: Sequence[str]) -> list[Layer]:
    """Get layers by name.

    Args:
        path: the file, for errors.
        name: its format, for errors.
        state: its tensors.
        layers: names of layers, without ``.weight`` and ``.bias``.

    Raises:
        UserError: some are missing, or have wrong shapes; the message lists them, and what exists.
    """
    keys = [f"{layer}.{part}" for layer in layers for part in ("weight", "bias")]
    lacking = [key for key in keys if key not in state]
    if lacking:
        raise unknown_layout(path, name, state, ", ".join(lacking[:6]))
    found = [Layer(state[f"{layer}.weight"].float(), state[f"{layer}.bias"].float()) for layer in layers]
    for layer, (weight, bias) in zip(layers, found, strict=True):
        if weight.ndim != 2 or bias.shape != weight.shape[:1] or not weight.numel():
            shapes = f"{tuple(weight.shape)} and {tuple(bias.shape)}"
            raise UserError(f"{path}: {layer} has weight and bias of shapes {shapes}; expected (out, in) and (out,).")
    return found


def without_directions(path: Path, layers: Sequence[Layer], output: Layer) -> Parts:
    """A network whose last layer gives color and density at once, as one with a branch that ignores directions.

    The feature is the color and its negative, and what the ReLU behind it leaves of both is put together again.

    Args:
        path: the file, for errors.
        layers: those before the last one.
        output: the last one.

    Raises:
        UserError: it gives something else, or is too narrow or too wide.
    """
    outputs, width = output.weight.shape
    if outputs not in _OUTPUTS or not _NARROWEST <= width <= _WIDEST:
        raise UserError(
            f"{path}: its last layer has shape {(outputs, width)}; expected 4 or 5 rows, and {_NARROWEST} to "
            f"{_WIDEST} columns."
        )
    weight, bias = torch.zeros(width, width), torch.zeros(width)
    weight[:6] = torch.cat([output.weight[:3], -output.weight[:3]])
    bias[:6] = torch.cat([output.bias[:3], -output.bias[:3]])
    passed = Layer(torch.eye(6, width + 3), torch.zeros(6))
    color = Layer(torch.cat([torch.eye(3), -torch.eye(3)], 1), torch.zeros(3))
    return Parts(layers, Layer(output.weight[3:4], output.bias[3:4]), Layer(weight, bias), [passed], color)


def convert_parts(path: Path, name: str, parts: Mapping[str, Parts], options: Options, **arguments: Any) -> Conversion:
    """Convert networks to a ``NeRF``.

    Args:
        path: the file, for errors.
        name: its format.
        parts: ``coarse``, and ``fine`` if there is one.
        options: properties that the file does not state.
        **arguments: arguments of ``NeRF`` in which the format differs from its defaults.

    Raises:
        UserError: layers that do not follow each other, networks that differ, or no coarse one.
    """
    if "coarse" not in parts:
        raise UserError(f"{path}: has no coarse network; expected one.")
    described = {key: layout(path, each) for key, each in parts.items()}
    if len(parts) == 2 and described["coarse"] != described["fine"]:
        raise UserError(f"{path}: its coarse and its fine network differ: {described['coarse']}, {described['fine']}.")
    found = described["coarse"]
    state = scene_state(options)
    for key, each in parts.items():
        state |= named(key, each)
    chosen = {
        "density_activation": "relu",
        "infinite_end": True,
        "samples": options.samples,
        "fine_samples": options.fine_samples if "fine" in parts else 0,
        "ray_shift": 0.5 / options.width,
    }
    parameters = sum(values.numel() for key, values in state.items() if "." in key)
    line = (
        f"{name}, {' and '.join(parts)} network, {found['depth']} layers of {found['width']}, skips "
        f"{found['skips'] or 'none'}, {found['frequencies']} and {found['direction_frequencies']} frequencies, "
        f"{parameters} parameters; trained at {options.width} px"
    )
    return Conversion("teacher", "NeRF", {**found, **chosen, **arguments}, state, line)


def scene_state(options: Options) -> dict[str, Tensor]:
    """The buffers of a field in scene coordinates.

    Raises:
        UserError: the depth range is empty.
    """
    return {
        "background": torch.full((3,), 1.0 if options.background == "white" else 0.0),
        "center": torch.zeros(3),
        "unit": torch.ones(()),
        **depth_range(options.near, options.far),
    }


def named(prefix: str, parts: Parts) -> dict[str, Tensor]:
    """The weights of a network by the names in ``RadianceMLP``, with a prefix."""
    layers = {f"layers.{index}": layer for index, layer in enumerate(parts.layers)}
    layers |= {"density_layer": parts.density, "feature_layer": parts.feature, "color_layer": parts.color}
    layers |= {f"direction_layers.{index}": layer for index, layer in enumerate(parts.directions)}
    state: dict[str, Tensor] = {}
    for place, layer in layers.items():
        state |= {f"{prefix}.{place}.weight": layer.weight, f"{prefix}.{place}.bias": layer.bias}
    return state


def layout(path: Path, parts: Parts) -> dict[str, Any]:
    """The arguments of ``RadianceMLP`` that follow from the shapes of the layers.

    Args:
        path: the file, for errors.
        parts: the network.

    Raises:
        UserError: no layers, or columns that no encoding fills.
    """
    if not parts.layers:
        raise UserError(f"{path}: has no layers of the position; expected one or more.")
    width, position = parts.layers[0].weight.shape
    widths = [layer.weight.shape[1] for layer in parts.layers]
    skips = [index for index, columns in enumerate(widths) if index and columns == width + position]
    return {
        "depth": len(parts.layers),
        "width": width,
        "skips": skips,
        "frequencies": _frequencies(path, "position", position),
        "direction_frequencies": _frequencies(path, "direction", parts.directions[0].weight.shape[1] - width),
        "direction_depth": len(parts.directions),
        "direction_width": parts.directions[0].weight.shape[0],
    }


def _frequencies(path: Path, name: str, columns: int) -> int:
    """The number of frequencies of a positional encoding with ``columns`` columns."""
    if columns < 3 or columns % 6 != 3:
        raise UserError(
            f"{path}: has {columns} columns for the encoded {name}; expected 3 (2 L + 1), such as 63 or 27."
        )
    return (columns // 3 - 1) // 2
