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


def frequency_encoding(values: Tensor, frequencies: int, pi: bool = False, window: Tensor | None = None) -> Tensor:
    """Coordinates, and their sines and cosines at doubling frequencies.

    ``[x, sin x, cos x, sin 2x, cos 2x, ..., sin 2^(L-1) x, cos 2^(L-1) x]``, each term a block of all coordinates.

    Args:
        values: (..., C) positions or directions.
        frequencies: L, 0 or more.
        pi: multiply the phases by pi, for coordinates in [-1, 1], as the paper states it; without, the lowest frequency
            is one radian per unit, as in the code of the paper and of those that followed.
        window: (L,) factor on the sines and cosines of each frequency, or None; see ``coarse_to_fine``.

    Returns:
        (..., C (2 L + 1)).

    Source:
        NeRF, eq. 4 (arXiv 2003.08934); nerf_pl, ``models/nerf.py``.

    Example:
        >>> frequency_encoding(torch.tensor([[0.25, 0.0]]), 1, pi=True)
        tensor([[0.2500, 0.0000, 0.7071, 0.0000, 0.7071, 1.0000]])
    """
    octaves = 2.0 ** torch.arange(frequencies, dtype=values.dtype, device=values.device)
    phases = values[..., None, :] * (octaves * math.pi if pi else octaves)[:, None]  # (..., L, C)
    waves = torch.stack([phases.sin(), phases.cos()], -2)  # (..., L, 2, C)
    if window is not None:
        waves = waves * window[:, None, None]
    return torch.cat([values, waves.flatten(-3)], -1)


def coarse_to_fine(opened: Tensor, frequencies: int) -> Tensor:
    """Weights that enable frequencies one after the other: ``w_j = (1 - cos(pi clamp(opened - j, 0, 1))) / 2``.

    Args:
        opened: () number of enabled frequencies, from 0 to ``frequencies``.
        frequencies: L.

    Returns:
        (L,) in [0, 1], from disabled to enabled.

    Source:
        Nerfies (Park et al. 2021, arXiv 2011.12948).

    Example:
        >>> coarse_to_fine(torch.tensor(1.5), 3)
        tensor([1.0000, 0.5000, 0.0000])
    """
    bands = torch.arange(frequencies, dtype=opened.dtype, device=opened.device)
    return 0.5 * (1.0 - torch.cos(math.pi * (opened - bands).clamp(0.0, 1.0)))
