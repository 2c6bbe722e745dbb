"""The sparse volume beside a graph: its rows rounded to 8 or 16 bits, its file, and reading it again.

The file is gzip of one bit for each corner of the grid (``numpy.packbits`` of (D, H, W)), then the densities (K,) and
the features (K, C) of the corners that exist, in their order; 16-bit numbers are little-endian. In 8 bits, a number is
``low + step * q`` in 64-bit arithmetic, rounded to 32 bits, with a low and a step for the density and for each channel.
"""

from __future__ import annotations

import gzip
import hashlib
import math
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from nelf.errors import UserError, atomic_path
from nelf.export.files import check_digest, check_packed, check_volume, gunzip
from nelf.export.motion import rounded_motion, write_motion
from nelf.kernels.lookup import MIN_TRANSMITTANCE
from nelf.lightfields.grid_r2l import MIN_ALPHA_RENDERING
from nelf.lightfields.volume import SparseVolume, index_of
from nelf.report.evaluation import evaluate

if TYPE_CHECKING:
    from nelf.lightfields import GridDyLiN, GridR2L, LightField
    from nelf.scene import Scene

__all__ = ["DTYPES", "Dtype", "Volume", "choose_dtype", "read_volume", "rounded", "stored", "write_volume"]

Dtype = Literal["uint8", "float16"]
DTYPES: dict[str, np.dtype[Any]] = {"uint8": np.dtype("u1"), "float16": np.dtype("<f2")}
WORTH = 0.1  # dB that 8 bits may cost against 16
_LARGEST_DENSITY = 12.0  # before its sigmoid: an alpha within 1e-5 of 0 or 1; beyond it 8 bits would be wasted


class Volume(NamedTuple):
    """What a volume file holds: ``density`` (K,), ``features`` (K, C), float32, and ``index`` (D, H, W) int32."""

    density: Tensor
    features: Tensor
    index: Tensor  # type: ignore[assignment]  # a tuple's own method is not wanted here


class Stored(NamedTuple):
    """Rows as a file holds them: ``density`` (K,), ``features`` (K, C), and for 8 bits (1 + C,) each, density first."""

    density: np.ndarray
    features: np.ndarray
    low: list[float] | None
    step: list[float] | None


def stored(volume: SparseVolume, dtype: Dtype) -> Stored:
    """Round the rows of a volume to what a file holds: the only place where they are rounded.

    Args:
        volume: any.
        dtype: of the rows.

    Returns:
        Rows, low and step. A zero among the numbers of a channel stays exactly zero.
    """
    density, features = (rows.detach().float().cpu().numpy() for rows in (volume.density, volume.features))
    if dtype == "float16":
        largest = np.finfo(np.float16).max
        halves = [rows.clip(-largest, largest).astype(DTYPES[dtype]) for rows in (density, features)]
        return Stored(halves[0], halves[1], None, None)
    numbers = np.concatenate([density.clip(-_LARGEST_DENSITY, _LARGEST_DENSITY)[:, None], features], 1).astype(float)
    low, high = numbers.min(0), numbers.max(0)
    # A step of 32 bits, so that a multiple of it is exact in 64.
    step = np.maximum((high - low) / 255, np.finfo(np.float32).tiny).astype(np.float32).astype(float)
    crosses = (low < 0) & (high > 0)
    low = np.where(crosses, -np.rint(-low / step) * step, low)
    whole = np.rint((numbers - low) / step).clip(0, 255).astype(DTYPES[dtype])
    return Stored(whole[:, 0], whole[:, 1:], low.tolist(), step.tolist())


def _restored(rows: Stored) -> tuple[Tensor, Tensor]:
    """The numbers (K,) and (K, C) that stored rows stand for, float32."""
    density, features = np.empty(rows.density.shape, np.float32), np.empty(rows.features.shape, np.float32)
    channels = zip([rows.density, *rows.features.T], [density, *features.T], strict=True)
    for channel, (stated, out) in enumerate(channels):  # 64 bits of one channel at a time
        if rows.low is None or rows.step is None:
            out[:] = stated
        else:
            out[:] = rows.low[channel] + rows.step[channel] * stated.astype(np.float64)
    return torch.from_numpy(density), torch.from_numpy(features)


@torch.no_grad()
def rounded(network: LightField, dtype: Dtype) -> GridR2L:
    """Copy a light field with the rows that a file of its volume would give: what a reader of the bundle draws."""
    copy = cast("GridR2L", deepcopy(network))
    density, features = _restored(stored(copy.volume, dtype))
    copy.volume.density.copy_(density)
    copy.volume.features.copy_(features)
    if copy.controls:
        rounded_motion(cast("GridDyLiN", copy))
    return copy


def choose_dtype(network: LightField, scene: Scene) -> tuple[Dtype, str]:
    """Find out whether 8 bits for each number of a volume are enough, on the validation views.

    Args:
        network: trained, with a volume.
        scene: what it has learned.

    Returns:
        ``uint8``, unless it costs 0.1 dB or more against ``float16``; and a line that says so.
    """
    psnr = {
        dtype: evaluate(
            rounded(network, cast(Dtype, dtype)), scene.val, scene.background, description=f"Volume in {dtype}"
        )["psnr"]
        for dtype in DTYPES
    }
    chosen: Dtype = "float16" if psnr["float16"] - psnr["uint8"] >= WORTH else "uint8"
    found = f"{psnr['uint8']:.2f} dB in 8 bits, {psnr['float16']:.2f} dB in 16"
    return chosen, f"volume: {found}; written in {8 * DTYPES[chosen].itemsize}"


def write_volume(network: LightField, path: Path, dtype: Dtype = "uint8") -> dict[str, Any]:
    """Write the volume of a light field, and what makes it move in another file beside it.

    Args:
        network: trained.
        path: the file, ``.bin.gz``.
        dtype: of the rows.

    Returns:
        Its description, see ``nelf.export.bundle``.

    Raises:
        UserError: the directory cannot be written.
    """
    network = cast("GridR2L", network)
    volume = network.volume
    density, features, low, step = stored(volume, dtype)
    content = volume.corners.cpu().numpy().tobytes() + density.tobytes() + features.tobytes()
    with atomic_path(path) as partial:
        packed = gzip.compress(content, mtime=0)
        partial.write_bytes(packed)
    return {
        "file": path.name,
        "sha256": hashlib.sha256(packed).hexdigest(),
        "resolution": volume.shape.tolist(),
        "rows": len(density),
        "features": volume.channels,
        "dtype": dtype,
        "scale": None if low is None else {"low": low, "step": step},
        "step": network.voxel,
        "min_alpha": MIN_ALPHA_RENDERING,
        "min_transmittance": MIN_TRANSMITTANCE,
        "motion": write_motion(cast("GridDyLiN", network), _beside(path)) if network.controls else None,
    }


def _beside(path: Path) -> Path:
    """The file of the motion of a volume in ``path``."""
    return path.with_name(f"{path.name.removesuffix('.bin.gz')}_motion.bin.gz")


def read_volume(folder: Path, about: dict[str, Any], aabb: list[float]) -> Volume:
    """Read the volume that a bundle describes.

    Args:
        folder: the bundle.
        about: of ``write_volume``.
        aabb: the box that the volume fills, smallest and largest xyz.

    Returns:
        Its rows and the index of its corners.

    Raises:
        UserError: the file is missing, damaged, of another size, or too large.
    """
    path = folder / about["file"]
    check_volume(path, about, aabb)
    shape, rows, channels = about["resolution"], about["rows"], about["features"]
    dtype, corners = DTYPES[about["dtype"]], math.prod(shape)
    mask = -(-corners // 8)
    check_packed(path, corners)
    content = gunzip(path, mask + rows * (1 + channels) * dtype.itemsize)
    check_digest(path, about)
    bits = np.unpackbits(np.frombuffer(content, np.uint8, mask), count=corners)
    if np.count_nonzero(bits) != rows:
        raise UserError(f"{path}: has {np.count_nonzero(bits)} corners, but bundle.json describes {rows} rows.")
    density = np.frombuffer(content, dtype, rows, mask)
    features = np.frombuffer(content, dtype, rows * channels, mask + density.nbytes).reshape(rows, channels)
    scale = about["scale"] or {"low": None, "step": None}
    restored = _restored(Stored(density, features, scale["low"], scale["step"]))
    if not all(bool(each.isfinite().all()) for each in restored):
        raise UserError(f"{path}: holds numbers that are not finite.")
    return Volume(*restored, index_of(torch.from_numpy(bits.astype(bool)).view(*shape)))
