"""Trilinear interpolation of a sparse grid, by which deformed points read a canonical volume.

One signature and several backends with the same results, as in ``nelf.kernels``. Notation as in
``nelf.kernels.lookup``: a grid of corners (D, H, W), of which K have a row of values.
"""

from __future__ import annotations

from torch import Tensor

from nelf.kernels import implementation

__all__ = ["trilinear"]


def trilinear(values: Tensor, index: Tensor, positions: Tensor, aabb: Tensor, missing: Tensor) -> Tensor:
    """Interpolate the rows of a sparse grid, linearly along each axis.

    Args:
        values: (K, C) rows of the corners that exist.
        index: (D, H, W) int32, the row of each corner, -1 where a corner does not exist; two or more along each side.
        positions: (N, 3) xyz, clamped to the box.
        aabb: (6,) smallest xyz, largest xyz of the box; the outermost corners lie on its faces.
        missing: (C,) values of a corner that does not exist; without gradient.

    Returns:
        (N, C). Differentiable in ``values`` and ``positions``.

    Raises:
        ValueError: the shapes do not fit together.

    Example:
        Half-way between a corner of 1 and one of 3, where all others are missing and count as 0.

        >>> index = torch.full((2, 2, 2), -1, dtype=torch.int32)
        >>> index[0, 0] = torch.tensor([0, 1])  # along x
        >>> box = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 1.0])
        >>> trilinear(torch.tensor([[1.0], [3.0]]), index, torch.tensor([[0.5, 0.0, 0.0]]), box, torch.zeros(1))
        tensor([[2.]])
    """
    if values.ndim != 2 or missing.shape != values.shape[1:]:
        raise ValueError(
            f"Expected `values` (K, C) and `missing` (C,), but got {tuple(values.shape)} and {tuple(missing.shape)}."
        )
    if index.ndim != 3 or min(index.shape) < 2:
        raise ValueError(f"Expected `index` (D, H, W), each 2 or more, but got {tuple(index.shape)}.")
    if positions.ndim != 2 or positions.shape[1] != 3:
        raise ValueError(f"Expected `positions` (N, 3), but got {tuple(positions.shape)}.")
    run = implementation("trilinear", values.device)
    return run(values, index, positions, aabb, missing)  # type: ignore[no-any-return]
