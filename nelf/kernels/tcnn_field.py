"""Hash-grid encoding and small networks by tiny-cuda-nn, if ``tinycudann`` is built for the GPU.

Its modules keep no parameters of their own here: each call passes ours, so checkpoints are the same with and without
it. It orders a grid as ``HashGrid`` does, level by level, entry by entry, feature by feature. A network is its matrices
one after the other, row-major, the last one filled up to a multiple of 16 rows. All are in float32, as for the other
backends; the networks compute in float16.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from nelf.kernels import HashGrid, implementation

_FEATURES = (1, 2, 4, 8)  # per level, as tiny-cuda-nn is compiled for
_WIDTHS = (16, 32, 64, 128)  # of the hidden layers of its fused networks
_MULTIPLE = 16  # of the inputs and of the outputs


@lru_cache
def _encoding(grid: HashGrid, device: torch.device) -> Any:
    """The encoding module, without parameters."""
    import tinycudann

    config = {
        "otype": "Grid",
        "type": "Hash",
        "n_levels": grid.levels,
        "n_features_per_level": grid.features,
        "log2_hashmap_size": grid.log2_table,
        "base_resolution": grid.base_resolution,
        "per_level_scale": grid.per_level_scale,
        "interpolation": "Linear",
    }
    return _emptied(tinycudann.Encoding(3, config, dtype=torch.float32), "grid", grid.entries * grid.features)


@lru_cache
def _network(sides: tuple[int, ...], device: torch.device) -> Any:
    """The network from ``sides[0]`` inputs to ``sides[-1]`` outputs, without parameters."""
    import tinycudann

    config = {
        "otype": "FullyFusedMLP",
        "activation": "ReLU",
        "output_activation": "None",
        "n_neurons": sides[1],
        "n_hidden_layers": len(sides) - 2,
    }
    outputs = -(-sides[-1] // _MULTIPLE) * _MULTIPLE
    expected = sum(a * b for a, b in pairwise([*sides[:-1], outputs]))
    return _emptied(tinycudann.Network(sides[0], sides[-1], config), "network", expected)


def _emptied(module: Any, kind: str, expected: int) -> Any:
    """Take a module's own parameters away, whose number is checked."""
    if module.params.numel() != expected:
        raise RuntimeError(f"this {kind} has {module.params.numel()} parameters there, {expected} here")
    module.params = torch.nn.Parameter(module.params.new_empty(0))
    return module


def hash_encode(positions: Tensor, table: Tensor, grid: HashGrid) -> Tensor:
    """See ``nelf.kernels.hash_encode``; float32."""
    if grid.features not in _FEATURES or not len(positions):
        return implementation("hash_encode", positions.device, without="tcnn")(positions, table, grid)  # type: ignore[no-any-return]
    with torch.cuda.device_of(positions):
        module = _encoding(grid, positions.device)
        return torch.func.functional_call(module, {"params": table.reshape(-1)}, (positions,))


def mlp(inputs: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """See ``nelf.kernels.mlp.mlp``; float16."""
    sides = (inputs.shape[1], *(len(each) for each in weights))
    if len(set(sides[1:-1])) > 1 or sides[1] not in _WIDTHS or sides[0] % _MULTIPLE or not len(inputs):
        return implementation("mlp", inputs.device, without="tcnn")(inputs, weights)  # type: ignore[no-any-return]
    with torch.cuda.device_of(inputs):
        module = _network(sides, inputs.device)
        return torch.func.functional_call(module, {"params": flattened(weights)}, (inputs,))


def flattened(weights: Sequence[Tensor]) -> Tensor:
    """The parameters (P,) of a network from the weights (out, in) of its layers."""
    *others, last = weights
    return torch.cat([*(each.flatten() for each in others), pad(last, (0, 0, 0, -len(last) % _MULTIPLE)).flatten()])


def probe(device: torch.device) -> None:
    """Encode one point; raises if tinycudann does not run on a device."""
    import tinycudann  # noqa: F401 - for its own error message

    grid = HashGrid(levels=1, features=2, log2_table=3, base_resolution=2, per_level_scale=1.0)
    hash_encode(torch.zeros(1, 3, device=device), torch.zeros(8, 2, device=device), grid).cpu()
