"""Frames of a dynamic volume: which corners each has, and how their values are read from a canonical volume.

A corner of a frame reads the canonical volume at its position plus a displacement. Displacements are stored on a coarse
grid over space and each control and interpolated linearly; the grids of several controls are summed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from nelf.kernels.trilinear import trilinear
from nelf.lightfields.volume import MOST_CORNERS, index_of

__all__ = ["EMPTY", "MOST_WINDOWS", "Frame", "FrameGrid", "grid_at", "motion_at", "see_through", "window_at"]

EMPTY = -10.0  # density, before its sigmoid, of a corner that does not exist: below every threshold of alpha
MOST_WINDOWS = 64


class Frame(NamedTuple):
    """The volume of a moment: ``density`` (M,), ``features`` (M, C), and ``index`` (D, H, W) int32 of its corners."""

    density: Tensor
    features: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index


class FrameGrid(nn.Module):
    """Which corners of a grid exist in each window of the first control, the time.

    Its state is one bit for each corner and window, and the grid's shape. Loading a state also sets the number of
    windows.
    """

    #: Parts of the state whose size is that of the state that is loaded.
    sized_by_state = ("masks",)

    masks: Tensor
    shape: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("masks", torch.empty(0, 0, dtype=torch.uint8))
        self.register_buffer("shape", torch.zeros(3, dtype=torch.int32))
        self._windows: dict[int, tuple[Tensor, Tensor]] = {}
        self.resize(torch.ones(1, 8, 8, 8, dtype=torch.bool, device="cpu"))

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.masks)

    @property
    def exists(self) -> Tensor:
        """Which corners exist: (windows, D, H, W) bool, on the CPU."""
        return torch.stack([self._exists(window) for window in range(len(self))])

    def _exists(self, window: int) -> Tensor:
        sides = self.shape.tolist()
        bits = np.unpackbits(self.masks[window].cpu().numpy(), count=int(np.prod(sides)))
        return torch.from_numpy(bits.astype(bool)).view(*sides)

    @torch.no_grad()
    def resize(self, exists: Tensor) -> None:
        """Set which corners exist; a window without any gets the first corner.

        Args:
            exists: (windows, D, H, W) bool.
        """
        device, exists = self.masks.device, exists.cpu().clone()
        exists.flatten(1)[~exists.flatten(1).any(1), 0] = True
        self.masks = torch.from_numpy(np.packbits(exists.flatten(1).numpy(), axis=1)).to(device)
        self.shape = torch.tensor(exists.shape[1:], dtype=torch.int32, device=device)
        self._windows.clear()

    @property
    def largest(self) -> int:
        """The largest number of corners of a window."""
        return max(len(self.window(window)[1]) for window in range(len(self)))

    def window(self, window: int) -> tuple[Tensor, Tensor]:
        """The ``index`` (D, H, W) int32 of a window's corners, and their positions (M, 3) xyz in the unit cube."""
        known = self._windows.get(window)
        if known is None or known[0].device != self.masks.device:
            with torch.inference_mode(False):  # cached during validation, but used in training, too
                exists = self._exists(window)
                sides = (self.shape.flip(0) - 1).cpu()
                places = exists.nonzero().flip(-1) / sides
                known = index_of(exists).to(self.masks.device), places.float().to(self.masks.device)
            self._windows[window] = known
        return known

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Resize to the number of windows in the state, after checking that its parts are consistent."""
        names = [prefix + name for name in ("masks", "shape")]
        if all(name in state_dict for name in names):
            masks, shape = (state_dict[name] for name in names)
            _check(prefix, masks, shape)
            self.masks = torch.empty_like(masks, device=self.masks.device)
            self._windows.clear()
        super()._load_from_state_dict(state_dict, prefix, *args)


def _check(prefix: str, masks: Tensor, shape: Tensor) -> None:
    """Refuse a state whose parts are inconsistent, before memory is allocated for its grids."""
    sides = shape.tolist() if shape.dtype is torch.int32 and shape.shape == (3,) else [0]
    total = int(np.prod(np.array(sides, dtype=object)))
    good = min(sides) >= 2 and masks.dtype is torch.uint8 and masks.ndim == 2 and 1 <= len(masks) <= MOST_WINDOWS
    if not good or total * len(masks) > MOST_CORNERS or masks.shape[1] != -(-total // 8):
        raise ValueError(f"{prefix}masks: {tuple(masks.shape)} bytes do not describe grids of {sides} corners.")
    if not all(np.unpackbits(mask, count=total).any() for mask in masks.cpu().numpy()):
        raise ValueError(f"{prefix}masks: a window has no corner.")


def window_at(time: float, windows: int) -> int:
    """The index of the window that a time lies in, of ``windows`` equal parts of [0, 1]."""
    return min(max(int(time * windows), 0), windows - 1)


def grid_at(values: Tensor, controls: Tensor) -> Tensor:
    """The motion grid at given controls.

    Args:
        values: (K, T, Z, Y, X, C), node ``i`` of ``T`` at ``i / (T - 1)`` of its control.
        controls: (K,) in [0, 1].

    Returns:
        (Z, Y, X, C): each control's grid, interpolated linearly along the control, summed over the controls.
    """
    last = values.shape[1] - 1
    at = controls.to(values).clamp(0.0, 1.0) * last
    low = at.long().clamp(max=last - 1)
    share, each = (at - low)[:, None, None, None, None], torch.arange(len(values), device=values.device)
    return ((1 - share) * values[each, low] + share * values[each, low + 1]).sum(0)


def motion_at(grid: Tensor, aabb: Tensor, positions: Tensor) -> Tensor:
    """Interpolate a grid (Z, Y, X, C) over a box (6,) trilinearly at positions (N, 3): (N, C)."""
    nodes = torch.arange(grid[..., 0].numel(), dtype=torch.int32, device=grid.device).view(grid.shape[:3])
    return trilinear(grid.reshape(-1, grid.shape[-1]), nodes, positions, aabb, grid.new_zeros(grid.shape[-1]))


def see_through(
    motion: Tensor, positions: Tensor, density: Tensor, features: Tensor, index: Tensor, aabb: Tensor, empty: float
) -> tuple[Tensor, Tensor]:
    """Read density and features of a frame's corners from the canonical volume, at their displaced positions.

    Args:
        motion: (M, 4) displacement xyz of each corner, scene unit, and the value added to its density.
        positions: (M, 3) of the frame's corners, scene unit.
        density: (K,) of the canonical volume, before the sigmoid.
        features: (K, C) of the canonical volume.
        index: (D, H, W) int32, its row of each corner, -1 where a corner does not exist.
        aabb: (6,) the box that it fills.
        empty: the density of its corners that do not exist; their features are 0.

    Returns:
        ``density`` (M,) and ``features`` (M, C) of the frame.
    """
    values = torch.cat([density[:, None], features], 1)
    missing = torch.cat([values.new_full((1,), empty), values.new_zeros(features.shape[1])])
    read = trilinear(values, index, positions + motion[:, :3], aabb, missing)
    return read[:, 0] + motion[:, 3], read[:, 1:]
