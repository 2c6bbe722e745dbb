"""The motion of a bundle's volume: its file, and the volume at given controls.

The file is gzip of one mask per time window, with one bit per corner of a frame's grid (``numpy.packbits`` of
(D, H, W), in whole bytes), then the motion grid (K, T, Z, Y, X, 4) in little-endian 16-bit floats: displacement xyz in
scene units, and an offset of the density. ``nelf.lightfields.frames`` computes frames from them.
"""

from __future__ import annotations

import gzip
import hashlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from nelf.errors import UserError, atomic_path
from nelf.export.files import check_digest, check_motion, check_packed, gunzip
from nelf.lightfields.frames import EMPTY, Frame, FrameGrid, grid_at, motion_at, see_through, window_at

if TYPE_CHECKING:
    from nelf.export.volume import Volume
    from nelf.lightfields import GridDyLiN

__all__ = ["MovingVolume", "read_motion", "rounded_motion", "write_motion"]

HALF = np.dtype("<f2")


def _stored(network: GridDyLiN) -> np.ndarray:
    """The motion grid as stored in a file."""
    largest = np.finfo(np.float16).max
    return network.displacements.detach().float().cpu().numpy().clip(-largest, largest).astype(HALF)


@torch.no_grad()
def rounded_motion(network: GridDyLiN) -> None:
    """Round the motion grid of a network as its file would."""
    network.set_displacements(torch.from_numpy(_stored(network).astype(np.float32)))


def write_motion(network: GridDyLiN, path: Path) -> dict[str, Any]:
    """Write the masks and the motion grid of a light field.

    Args:
        network: a trained light field.
        path: the file, ``.bin.gz``.

    Returns:
        Its description, see ``nelf.export.bundle``.

    Raises:
        UserError: the directory cannot be written.
    """
    content = network.frames.masks.cpu().numpy().tobytes() + _stored(network).tobytes()
    with atomic_path(path) as partial:
        packed = gzip.compress(content, mtime=0)
        partial.write_bytes(packed)
    return {
        "file": path.name,
        "sha256": hashlib.sha256(packed).hexdigest(),
        "resolution": network.frames.shape.tolist(),
        "windows": len(network.frames),
        "grid": list(network.motion.shape[:-1]),
        "aabb": network.motion_aabb.tolist(),
        "canonical_aabb": network.canonical_aabb.tolist(),
        "empty": EMPTY,
    }


class MovingVolume:
    """A moving volume of a bundle.

    Args:
        rest: the canonical volume.
        frames: the corners of each time window.
        values: (K, T, Z, Y, X, 4) the motion grid.
        about: the description from ``write_motion``.
        aabb: the box of the frames.
    """

    def __init__(
        self, rest: Volume, frames: FrameGrid, values: Tensor, about: dict[str, Any], aabb: list[float]
    ) -> None:
        self.rest, self.frames, self.values = rest, frames, values
        self._aabb, self._empty = torch.tensor(aabb), float(about["empty"])
        self._motion_aabb, self._rest_aabb = torch.tensor(about["aabb"]), torch.tensor(about["canonical_aabb"])
        self._last: tuple[list[float], Frame] | None = None

    @torch.no_grad()
    def at(self, controls: Tensor) -> Frame:
        """The volume at given controls; the last one is cached.

        Args:
            controls: (K,) in [0, 1].
        """
        moment = controls.tolist()
        if self._last is None or self._last[0] != moment:
            index, places = self.frames.window(window_at(moment[0], len(self.frames)))
            positions = self._aabb[:3] + places * (self._aabb[3:] - self._aabb[:3])
            motion = motion_at(grid_at(self.values, controls), self._motion_aabb, positions)
            rows = see_through(motion, positions, *self.rest, self._rest_aabb, self._empty)
            self._last = moment, Frame(*rows, index)
        return self._last[1]


def read_motion(folder: Path, about: dict[str, Any], rest: Volume, aabb: list[float], controls: int) -> MovingVolume:
    """Read the motion of a volume.

    Args:
        folder: the bundle.
        about: the description from ``write_motion``.
        rest: the canonical volume.
        aabb: the box of the frames, smallest and largest xyz.
        controls: number of the bundle's controls.

    Raises:
        UserError: the file is missing, damaged, of another size, or too large.
    """
    path = folder / about["file"]
    check_motion(path, about, controls)
    corners, windows, shape = math.prod(about["resolution"]), about["windows"], (*about["grid"], 4)
    mask = windows * -(-corners // 8)
    check_packed(path, windows * corners)
    content = gunzip(path, mask + math.prod(shape) * HALF.itemsize)
    check_digest(path, about)
    values = torch.from_numpy(np.frombuffer(content, HALF, offset=mask).astype(np.float32).reshape(shape))
    if not values.isfinite().all():
        raise UserError(f"{path}: holds numbers that are not finite.")
    masks = torch.from_numpy(np.frombuffer(content, np.uint8, mask).reshape(windows, -1).copy())
    frames = FrameGrid()
    try:
        frames.load_state_dict({"masks": masks, "shape": torch.tensor(about["resolution"], dtype=torch.int32)})
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    return MovingVolume(rest, frames, values, about, aabb)
