"""Checkpoints of ngp_pl, slim or full: an Instant-NGP in tiny-cuda-nn's memory layout.

Its conventions: OpenCV cameras (the world's axes are the scene's own), pixel centers at +0.5, unnormalized directions
with camera z = 1. Steps and densities are measured along these, and a sample is at the beginning of its step:
``z_steps`` of ``nelf.fields.NGP``. ngp_pl scales Blender scenes so that their cameras are 1.5 from the origin, but does
not store the scale, so the original distance has to be given.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nelf.errors import UserError
from nelf.interop.conversion import Conversion, unknown_layout
from nelf.interop.torch_file import Checkpoint
from nelf.kernels import HashGrid

__all__ = ["convert", "recognizes"]

_KEYS = ("xyz_max", "density_bitfield", "xyz_encoder.params", "rgb_net.params")
_GRID, _SAMPLES, _DISTANCE = 128, 1024, 1.5  # cells per side of a cascade; samples of a ray; a camera's distance
#: (rows, columns) of the matrices by layer; the last one is padded to 16 rows.
_DENSITY, _COLOR = ((64, 32), (16, 64)), ((64, 32), (64, 64), (16, 64))


def recognizes(content: Any) -> bool:
    """Whether what a file holds is a checkpoint of ngp_pl."""
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    return isinstance(state, dict) and "model.density_bitfield" in state


def convert(checkpoint: Checkpoint, radius: float | None = None) -> Conversion:
    """Convert a checkpoint.

    Args:
        checkpoint: the file.
        radius: distance of the scene's cameras from its origin, scene units, which ngp_pl scaled to 1.5 (4.031 for the
            Blender scenes).

    Returns:
        The arguments and tensors of an ``NGP``.

    Raises:
        UserError: ``radius`` is missing, the network was trained with exposure, or tensors are missing or do not fit
            the scale in the file.

    Source:
        ngp_pl (github.com/kwea123/ngp_pl), ``models/networks.py``; tiny-cuda-nn, ``network_with_input_encoding.h``:
        the matrices of a network, row-major, precede the parameters of its encoding.
    """
    path, state = checkpoint.path, checkpoint.content.get("state_dict", checkpoint.content)
    if any(str(name).startswith("tonemapper_net") for name in state):
        raise UserError(f"{path}: was trained with --use_exposure; its colors are radiances, which nelf does not draw.")
    lacking = [f"model.{name}" for name in _KEYS if f"model.{name}" not in state]
    if lacking:
        raise unknown_layout(path, "ngp_pl", state, ", ".join(lacking))
    if radius is None or not 0 < radius < math.inf:
        raise UserError(
            f"{path}: ngp_pl moved the cameras to distance 1.5 and did not note from where; say the distance of "
            "the scene's cameras from its origin: --radius 4.031128857 for the Blender scenes."
        )
    found = checkpoint.tensors({name: state[f"model.{name}"] for name in _KEYS})
    if odd := [name for name in _KEYS if name not in found]:
        raise UserError(f"{path}: model.{odd[0]} is no tensor; expected one.")
    scale = float(found["xyz_max"].flatten()[0]) if found["xyz_max"].numel() == 3 else math.nan
    if not 0.5 <= scale <= 64:
        raise UserError(
            f"{path}: model.xyz_max is {found['xyz_max'].tolist()}; allowed: a cube of half-size 0.5 to 64."
        )

    growth = (2048 * scale / 16) ** (1 / 15)
    grid = HashGrid(16, 2, 19, 16, growth)
    cascades = max(1 + math.ceil(math.log2(2 * scale)), 1)
    expected = {
        "xyz_encoder.params": _size(_DENSITY) + grid.entries * grid.features,
        "rgb_net.params": _size(_COLOR),
        "density_bitfield": cascades * _GRID**3 // 8,
    }
    for name, size in expected.items():
        if found[name].shape != (size,):
            raise UserError(
                f"{path}: model.{name} has shape {tuple(found[name].shape)}; expected ({size},) at scale {scale:g}."
            )
    if found["density_bitfield"].dtype != torch.uint8:
        raise UserError(f"{path}: model.density_bitfield is {found['density_bitfield'].dtype}; expected torch.uint8.")

    density, table = found["xyz_encoder.params"].float().split((_size(_DENSITY), grid.entries * grid.features))
    tensors = {
        "background": torch.full((3,), 1.0 if scale <= 0.5 else 0.0),
        "center": torch.zeros(3),
        "unit": torch.tensor(radius / _DISTANCE),
        "near": torch.tensor(2.0),
        "far": torch.tensor(6.0),
        "sampler.grid.occupied": _unpack(found["density_bitfield"], cascades),
        "encoding.table": table.view(grid.entries, grid.features),
        **_matrices("density_net", density, _DENSITY, 16),
        **_matrices("color_net", found["rgb_net.params"].float(), _COLOR, 3),
    }
    arguments = {"scale": scale, "max_samples": _SAMPLES, "z_steps": True}
    line = f"ngp_pl, scale {scale:g}, {grid.entries * grid.features} parameters in the hash grid"
    return Conversion("teacher", "NGP", arguments, tensors, line)


def _size(layers: tuple[tuple[int, int], ...]) -> int:
    return sum(rows * columns for rows, columns in layers)


def _matrices(net: str, packed: Tensor, layers: tuple[tuple[int, int], ...], outputs: int) -> dict[str, Tensor]:
    """The weights of a network without biases, and without the padding rows of its last layer."""
    parts = packed.split([rows * columns for rows, columns in layers])
    matrices = [part.view(size) for part, size in zip(parts, layers, strict=True)]
    matrices[-1] = matrices[-1][:outputs]
    return {f"{net}.{2 * index}.weight": matrix.clone() for index, matrix in enumerate(matrices)}


def _unpack(bitfield: Tensor, cascades: int) -> Tensor:
    """(C, G, G, G) bool, indexed [cascade, x, y, z], from bits in Morton order with x lowest, lowest bit first."""
    bits = np.unpackbits(bitfield.numpy(), bitorder="little").reshape(cascades, -1)
    axis = np.arange(_GRID)
    spread = np.zeros_like(axis)
    for bit in range(_GRID.bit_length() - 1):
        spread |= (axis >> bit & 1) << 3 * bit
    morton = spread[:, None, None] | spread[None, :, None] << 1 | spread[None, None, :] << 2
    return torch.from_numpy(bits[:, morton].astype(bool))
