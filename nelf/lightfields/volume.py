"""A sparse volume: learned densities and features at some of the corners of a voxel grid."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool3d

from nelf.kernels.lookup import RayFeatures, occupied_cells, ray_features

__all__ = ["MOST_CORNERS", "SparseVolume", "around", "cells_at", "corners_of", "index_of"]

INITIAL_DENSITY = -4.6  # an alpha of 0.01: a ray through a hundred voxels keeps a third of its light
MOST_CORNERS = 2**27  # limit for a grid, whose index takes four bytes per corner


class SparseVolume(nn.Module):
    """A box divided into cubic voxels, with one row of values for each corner that exists.

    Its state is the rows, one bit for each corner of the grid, and the grid's shape; the index from corners to rows is
    derived. Loading a state also sets the number of rows.

    Args:
        channels: features of each corner, beside its density.
    """

    #: Parts of the state whose size is that of the state that is loaded.
    sized_by_state = ("density", "features", "corners")
    #: Parameters that are stored in 8 bits with a single scale.
    single_scale = ("density",)

    density: Tensor
    features: Tensor
    corners: Tensor
    shape: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.density = nn.Parameter(torch.empty(0))
        self.features = nn.Parameter(torch.empty(0, channels))
        self.register_buffer("corners", torch.empty(0, dtype=torch.uint8))
        self.register_buffer("shape", torch.zeros(3, dtype=torch.int32))
        self._index: Tensor | None = None
        self.resize(torch.ones(8, 8, 8, dtype=torch.bool, device="cpu"))

    @property
    def exists(self) -> Tensor:
        """Which corners have a row: (D, H, W) bool, on the CPU."""
        depth, height, width = self.shape.tolist()
        bits = np.unpackbits(self.corners.cpu().numpy(), count=depth * height * width)
        return torch.from_numpy(bits.astype(bool)).view(depth, height, width)

    @property
    def index(self) -> Tensor:
        """The row of each corner, -1 where it has none: (D, H, W) int32, on the device of the rows."""
        if self._index is None or self._index.device != self.density.device:
            with torch.inference_mode(False):  # cached during validation, but used in training, too
                self._index = index_of(self.exists).to(self.density.device)
        return self._index

    @property
    def cells(self) -> Tensor:
        """The occupied cells, whose eight corners all exist: (D - 1, H - 1, W - 1) bool, on the CPU."""
        return occupied_cells(self.index.cpu())

    def cells_at(self, rows: Tensor) -> Tensor:
        """The occupied cells with a corner among ``rows`` (K,) bool: (D - 1, H - 1, W - 1) bool, on the CPU."""
        return cells_at(self.index, rows)

    @torch.no_grad()
    def resize(self, exists: Tensor) -> None:
        """Replace the corners, with low density and random features at all of them.

        Args:
            exists: (D, H, W) bool.
        """
        rows, device = int(exists.sum()), self.density.device
        self.density = nn.Parameter(torch.full((rows,), INITIAL_DENSITY, device=device))
        self.features = nn.Parameter(0.1 * torch.randn(rows, self.channels, device=device))
        self._note(exists)

    @torch.no_grad()
    def keep(self, cells: Tensor) -> None:
        """Drop the corners that touch none of these cells; the first is kept if all would be dropped.

        Args:
            cells: (D - 1, H - 1, W - 1) bool.
        """
        old = self.exists
        exists = old & corners_of(cells.cpu())
        if not exists.any():
            exists.view(-1)[old.flatten().nonzero()[0]] = True
        rows = index_of(old)[exists].long().to(self.density.device)
        self.density, self.features = nn.Parameter(self.density[rows]), nn.Parameter(self.features[rows])
        self._note(exists)

    @torch.no_grad()
    def extend(self, corners: Tensor) -> Tensor:
        """Add corners, initialized as in ``resize``.

        Args:
            corners: (D, H, W) bool; those that exist already stay as they are.

        Returns:
            (K,) bool: which rows of the extended volume are new.
        """
        old, density, features = self.exists, self.density, self.features
        exists = old | corners.cpu()
        kept = old[exists].to(density.device)
        self.resize(exists)
        self.density[kept], self.features[kept] = density, features
        return ~kept

    def _note(self, exists: Tensor) -> None:
        """Store which corners exist, and drop the index."""
        device = self.density.device
        self.corners = torch.from_numpy(np.packbits(exists.cpu().numpy())).to(device)
        self.shape = torch.tensor(exists.shape, dtype=torch.int32, device=device)
        self._index = None

    def composite(
        self, rays_o: Tensor, rays_d: Tensor, aabb: Tensor, jitter: Tensor, step: float, min_alpha: float
    ) -> RayFeatures:
        """Composite the volume along rays (N, 3), see ``nelf.kernels.lookup``."""
        return ray_features(self.density, self.features, self.index, rays_o, rays_d, aabb, jitter, step, min_alpha)

    def positions(self, aabb: Tensor) -> Tensor:
        """Positions of the corners that exist, in the order of their rows: (K, 3) xyz, scene unit."""
        sides = (self.shape.flip(0) - 1).to(aabb)
        return aabb[:3] + self.exists.nonzero().flip(-1).to(aabb) / sides * (aabb[3:] - aabb[:3])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Resize to the number of rows in the state, after checking that its parts are consistent."""
        names = [prefix + name for name in ("density", "features", "corners", "shape")]
        if all(name in state_dict for name in names):
            density, features, corners, shape = (state_dict[name] for name in names)
            _check(prefix, density, features, corners, shape, self.channels)
            device = self.density.device
            self.density = nn.Parameter(torch.empty(density.shape, device=device))
            self.features = nn.Parameter(torch.empty(features.shape, device=device))
            self.corners = torch.empty_like(corners, device=device)
            self._index = None
        super()._load_from_state_dict(state_dict, prefix, *args)


def index_of(exists: Tensor) -> Tensor:
    """The row of each corner that exists, ascending in memory order: (D, H, W) int32, -1 elsewhere."""
    rows = exists.flatten().cumsum(0, dtype=torch.int32).view(exists.shape) - 1
    return rows.masked_fill(~exists, -1)


def corners_of(cells: Tensor) -> Tensor:
    """The corners (D, H, W) of cells (D - 1, H - 1, W - 1), bool."""
    return max_pool3d(cells[None].float(), 2, stride=1, padding=1)[0] > 0


def around(cells: Tensor) -> Tensor:
    """Dilate cells (D, H, W) by one: matter between the samples, and corners where the density falls to zero."""
    return max_pool3d(cells[None].float(), 3, 1, 1)[0] > 0


def cells_at(index: Tensor, rows: Tensor) -> Tensor:
    """The occupied cells of a grid with a corner among ``rows``.

    Args:
        index: (D, H, W) int32, the row of each corner, -1 where it has none.
        rows: (K,) bool.

    Returns:
        (D - 1, H - 1, W - 1) bool, on the CPU.
    """
    index = index.cpu()
    chosen = (index >= 0) & rows.cpu()[index.clamp(min=0).long()]
    return occupied_cells(index) & (max_pool3d(chosen[None].float(), 2, stride=1)[0] > 0)


def _check(prefix: str, density: Tensor, features: Tensor, corners: Tensor, shape: Tensor, channels: int) -> None:
    """Refuse a state whose parts are inconsistent, before memory is allocated for its grid."""
    sides = shape.tolist() if shape.dtype is torch.int32 and shape.shape == (3,) else [0]
    total = int(np.prod(np.array(sides, dtype=object)))
    if min(sides) < 2 or total > MOST_CORNERS or corners.dtype is not torch.uint8 or len(corners) != -(-total // 8):
        raise ValueError(f"{prefix}corners: {tuple(corners.shape)} bytes do not describe a grid of {sides} corners.")
    rows = int(np.unpackbits(corners.cpu().numpy(), count=total).sum())
    if density.shape != (rows,) or features.shape != (rows, channels) or rows == 0:
        raise ValueError(
            f"{prefix}corners: {rows} corners exist, but there are {tuple(density.shape)} densities and "
            f"{tuple(features.shape)} features."
        )
