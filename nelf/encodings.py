"""Encodings of positions and directions, as modules over the kernels."""

import math

import torch
from torch import Tensor, nn

from nelf.kernels import HashGrid, hash_encode


class HashEncoding(nn.Module):
    """Learned features on a multi-resolution hash grid over the unit cube.

    Args:
        grid: the geometry of the levels.

    Source:
        Instant-NGP, section 3 (Müller et al. 2022, arXiv 2201.05989). Initial values U(-1e-4, 1e-4).
    """

    def __init__(self, grid: HashGrid) -> None:
        super().__init__()
        self.grid = grid
        self.out_features = grid.levels * grid.features
        self.table = nn.Parameter(torch.empty(grid.entries, grid.features).uniform_(-1e-4, 1e-4))

    def forward(self, positions: Tensor) -> Tensor:
        """Encode positions (N, 3) in [0, 1] as (N, levels * features)."""
        return hash_encode(positions, self.table, self.grid)


def spherical_harmonics(directions: Tensor) -> Tensor:
    """The 16 real spherical harmonics of degree 0 to 3, in tiny-cuda-nn's order and signs.

    Args:
        directions: (N, 3), unit length.

    Returns:
        (N, 16); orthonormal over the sphere.

    Source:
        tiny-cuda-nn, ``encodings/spherical_harmonics.h`` (degree 4 there counts the bands).
    """
    x, y, z = directions.unbind(-1)
    xx, yy, zz = x * x, y * y, z * z
    return torch.stack(
        [
            torch.full_like(x, math.sqrt(1 / (4 * math.pi))),
            -math.sqrt(3 / (4 * math.pi)) * y,
            math.sqrt(3 / (4 * math.pi)) * z,
            -math.sqrt(3 / (4 * math.pi)) * x,
            math.sqrt(15 / (4 * math.pi)) * x * y,
            -math.sqrt(15 / (4 * math.pi)) * y * z,
            math.sqrt(5 / (16 * math.pi)) * (3 * zz - 1),
            -math.sqrt(15 / (4 * math.pi)) * x * z,
            math.sqrt(15 / (16 * math.pi)) * (xx - yy),
            math.sqrt(35 / (32 * math.pi)) * y * (yy - 3 * xx),
            math.sqrt(105 / (4 * math.pi)) * x * y * z,
            math.sqrt(21 / (32 * math.pi)) * y * (1 - 5 * zz),
            math.sqrt(7 / (16 * math.pi)) * z * (5 * zz - 3),
            math.sqrt(21 / (32 * math.pi)) * x * (1 - 5 * zz),
            math.sqrt(105 / (16 * math.pi)) * z * (xx - yy),
            math.sqrt(35 / (32 * math.pi)) * x * (3 * yy - xx),
        ],
        dim=-1,
    )
