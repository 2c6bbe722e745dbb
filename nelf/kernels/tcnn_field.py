"""Hash-grid encoding by tiny-cuda-nn, if ``tinycudann`` is built for the GPU.

It orders parameters as ``HashGrid`` does, level by level, entry by entry, feature by feature, so tables are exchanged
without conversion. They are in float32, as for the other backends.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from nelf.kernels import HashGrid, implementation

_FEATURES = (1, 2, 4, 8)  # per level, as tiny-cuda-nn is compiled for


@lru_cache
def _encoding(grid: HashGrid, device: torch.device) -> Any:
    """The encoding module, without parameters of its own: each call passes a table in their place."""
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
    module = tinycudann.Encoding(3, config, dtype=torch.float32)
    expected = grid.entries * grid.features
    if module.params.numel() != expected:
        raise RuntimeError(f"this grid has {module.params.numel()} parameters there, {expected} here")
    module.params = torch.nn.Parameter(module.params.new_empty(0))
    return module


def hash_encode(positions: Tensor, table: Tensor, grid: HashGrid) -> Tensor:
    """See ``nelf.kernels.hash_encode``; float32."""
    if grid.features not in _FEATURES or not len(positions):
        return implementation("hash_encode", positions.device, without="tcnn")(positions, table, grid)  # type: ignore[no-any-return]
    with torch.cuda.device_of(positions):
        module = _encoding(grid, positions.device)
        return torch.func.functional_call(module, {"params": table.reshape(-1)}, (positions,))


def probe(device: torch.device) -> None:
    """Encode one point; raises if tinycudann does not run on a device."""
    import tinycudann  # noqa: F401 - for its own error message

    grid = HashGrid(levels=1, features=2, log2_table=3, base_resolution=2, per_level_scale=1.0)
    hash_encode(torch.zeros(1, 3, device=device), torch.zeros(8, 2, device=device), grid).cpu()
