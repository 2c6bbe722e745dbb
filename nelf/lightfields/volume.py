"""A sparse volume: learned densities and features at those corners of a grid that a ray can read."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool3d

from nelf.kernels.ray_features import RayFeatures, occupied_cells, ray_features

__all__ = ["SparseVolume"]

INITIAL_DENSITY = -4.6  # an alpha of 0.01: a ray through a hundred voxels keeps a third of its light


class SparseVolume(nn.Module):
    """A box divided into voxels, with one row of numbers for each corner that exists.

    Its state is the rows, one bit for each corner of the grid, and the grid's shape; the index from corners to rows is
    made anew from them. All corners exist until ``keep`` says otherwise.

    Args:
        shape: (D, H, W) corners along z, y, x.
        channels: features of each corner, beside its density.
    """

    density: Tensor
    features: Tensor
    corners: Tensor
    shape: Tensor

    def __init__(self, shape: tuple[int, int, int], channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.density = nn.Parameter(torch.empty(0))
        self.features = nn.Parameter(torch.empty(0, channels))
        self.register_buffer("corners", torch.empty(0, dtype=torch.uint8))
        self.register_buffer("shape", torch.zeros(3, dtype=torch.int32))
        self._index: Tensor | None = None
        self.resize(torch.ones(shape, dtype=torch.bool))

    @property
    def exists(self) -> Tensor:
        """(D, H, W) bool: which corners have a row."""
        d, h, w = self.shape.tolist()
        bits = np.unpackbits(self.corners.cpu().numpy(), count=d * h * w)
        return torch.from_numpy(bits.astype(bool)).view(d, h, w)

    @property
    def index(self) -> Tensor:
        """(D, H, W) int32 on the device of the rows: the row of each corner, -1 where it has none."""
        if self._index is None or self._index.device != self.density.device:
            exists = self.exists
            rows = exists.flatten().cumsum(0, dtype=torch.int32).view(exists.shape) - 1
            self._index = rows.masked_fill(~exists, -1).to(self.density.device)
        return self._index

    @torch.no_grad()
    def resize(self, exists: Tensor) -> None:
        """Begin anew with these corners: little density everywhere, and random features.

        Args:
            exists: (D, H, W) bool.
        """
        rows, device = int(exists.sum()), self.density.device
        self.density = nn.Parameter(torch.full((rows,), INITIAL_DENSITY, device=device))
        self.features = nn.Parameter(0.1 * torch.randn(rows, self.channels, device=device))
        self._note(exists)

    @torch.no_grad()
    def keep(self, cells: Tensor) -> None:
        """Drop the corners that touch none of these cells.

        Args:
            cells: (D - 1, H - 1, W - 1) bool.
        """
        exists = self.exists & corners_of(cells.cpu())
        if not exists.any():  # a volume of nothing still has a row, so that its networks have an input
            exists.view(-1)[self.exists.flatten().nonzero()[0]] = True
        rows = self.index.cpu()[exists].long().to(self.density.device)
        self.density = nn.Parameter(self.density[rows])
        self.features = nn.Parameter(self.features[rows])
        self._note(exists)

    def _note(self, exists: Tensor) -> None:
        device = self.density.device
        self.corners = torch.from_numpy(np.packbits(exists.cpu().numpy())).to(device)
        self.shape = torch.tensor(exists.shape, dtype=torch.int32, device=device)
        self._index = None

    @property
    def cells(self) -> Tensor:
        """(D - 1, H - 1, W - 1) bool: those whose corners all exist; nothing else is ever read."""
        return occupied_cells(self.index.cpu())

    def composite(
        self, rays_o: Tensor, rays_d: Tensor, aabb: Tensor, jitter: Tensor, step: float, min_alpha: float
    ) -> RayFeatures:
        """Look up rays (N, 3), see ``nelf.kernels.ray_features``."""
        return ray_features(
            self.density, self.features, self.index, rays_o, rays_d, aabb, jitter, step, min_alpha
        )

    def positions(self, aabb: Tensor) -> Tensor:
        """(K, 3) xyz of the corners that exist, in the order of their rows, scene unit."""
        places = self.exists.nonzero().flip(-1).to(aabb)
        sides = (self.shape.flip(0) - 1).to(aabb)
        return aabb[:3] + places / sides * (aabb[3:] - aabb[:3])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take the number of rows from the state, after checking that its parts agree."""
        names = ("density", "features", "corners", "shape")
        parts = [state_dict.get(prefix + name) for name in names]
        if all(part is not None for part in parts):
            density, features, corners, shape = parts
            d, h, w = shape.tolist()
            bits = np.unpackbits(corners.cpu().numpy())
            fits = min(d, h, w) >= 2 and len(corners) == -(-d * h * w // 8) and int(bits.sum()) == len(density)
            if not fits or features.shape != (len(density), self.channels):
                raise ValueError(
                    f"{prefix}corners: {len(corners)} bytes of a grid {d} x {h} x {w} with {int(bits.sum())} corners do "
                    f"not belong to {len(density)} rows of {tuple(features.shape[1:])} features."
                )
            device = self.density.device
            self.density = nn.Parameter(density.new_empty(density.shape, device=device, dtype=torch.float32))
            self.features = nn.Parameter(features.new_empty(features.shape, device=device, dtype=torch.float32))
            self.corners = torch.empty_like(corners, device=device)
            self._index = None
        super()._load_from_state_dict(state_dict, prefix, *args)


def corners_of(cells: Tensor) -> Tensor:
    """The corners (D, H, W) of cells (D - 1, H - 1, W - 1), bool."""
    return max_pool3d(cells[None].float(), 2, stride=1, padding=1)[0] > 0
