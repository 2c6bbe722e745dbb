"""The file of a sparse volume: rounding its rows to 8 or 16 bits, writing, and reading.

The file is gzip of one bit per corner of the grid (``numpy.packbits`` of (D, H, W)), then the densities (K,) and the
features (K, C) of the existing corners, in their order; 16-bit floats are little-endian. In 8 bits, a number is
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
WORTH = 0.1  # dB: loss of 8 bits against 16 from which 16 bits are used
_LARGEST_DENSITY = 12.0  # before its sigmoid: alpha within 1e-5 of 0 or 1; a larger range would waste levels of 8 bits


class Volume(NamedTuple):
    """A volume as read from a file: ``density`` (K,), ``features`` (K, C), float32, and ``index`` (D, H, W) int32."""

    density: Tensor
    features: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index


class Stored(NamedTuple):
    """Rows as stored: ``density`` (K,), ``features`` (K, C); in 8 bits ``low``, ``step`` (1 + C,), density first."""

    density: np.ndarray
    features: np.ndarray
    low: list[float] | None
    step: list[float] | None


def stored(volume: SparseVolume, dtype: Dtype) -> Stored:
    """Round the rows of a volume as in its file; nothing else rounds them.

    Args:
        volume: the volume.
        dtype: data type of the rows.

    Returns:
        Rows, low and step. Zero stays exactly zero if a channel has both signs.
    """
    density, features = (rows.detach().float().cpu().numpy() for rows in (volume.density, volume.features))
    if dtype == "float16":
        largest = np.finfo(np.float16).max
        halves = [rows.clip(-largest, largest).astype(DTYPES[dtype]) for rows in (density, features)]
        return Stored(halves[0], halves[1], None, None)
    numbers = np.concatenate([density.clip(-_LARGEST_DENSITY, _LARGEST_DENSITY)[:, None], features], 1).astype(float)
    low, high = numbers.min(0), numbers.max(0)
    # The step is rounded to float32, so that its multiples are exact in float64.
    step = np.maximum((high - low) / 255, np.finfo(np.float32).tiny).astype(np.float32).astype(float)
    crosses = (low < 0) & (high > 0)
    low = np.where(crosses, -np.rint(-low / step) * step, low)
    whole = np.rint((numbers - low) / step).clip(0, 255).astype(DTYPES[dtype])
    return Stored(whole[:, 0], whole[:, 1:], low.tolist(), step.tolist())


def _restored(rows: Stored) -> tuple[Tensor, Tensor]:
    """The numbers (K,) and (K, C) of stored rows, float32."""
    density, features = np.empty(rows.density.shape, np.float32), np.empty(rows.features.shape, np.float32)
    channels = zip([rows.density, *rows.features.T], [density, *features.T], strict=True)
    for channel, (stated, out) in enumerate(channels):  # float64 for one channel at a time, to save memory
        if rows.low is None or rows.step is None:
            out[:] = stated
        else:
            out[:] = rows.low[channel] + rows.step[channel] * stated.astype(np.float64)
    return torch.from_numpy(density), torch.from_numpy(features)


@torch.no_grad()
def rounded(network: LightField, dtype: Dtype) -> GridR2L:
    """Copy a light field with its volume rounded as in its file, so that it renders as the bundle does."""
    copy = cast("GridR2L", deepcopy(network))
    density, features = _restored(stored(copy.volume, dtype))
    copy.volume.density.copy_(density)
    copy.volume.features.copy_(features)
    if copy.controls:
        rounded_motion(cast("GridDyLiN", copy))
    return copy


def choose_dtype(network: LightField, scene: Scene) -> tuple[Dtype, str]:
    """Choose the data type of a volume by the PSNR on the validation views.

    Args:
        network: a trained light field with a volume.
        scene: its scene.

    Returns:
        ``uint8``, unless it costs 0.1 dB or more against ``float16``; and a line with both PSNRs.
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
    """Write the volume of a light field and, in another file, its motion.

    Args:
        network: a trained light field with a volume.
        path: the file, ``.bin.gz``.
        dtype: data type of the rows.

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
    """The file of the motion that belongs to the volume file ``path``."""
    return path.with_name(f"{path.name.removesuffix('.bin.gz')}_motion.bin.gz")


def read_volume(folder: Path, about: dict[str, Any], aabb: list[float]) -> Volume:
    """Read a volume of a bundle.

    Args:
        folder: the bundle.
        about: its description from ``write_volume``.
        aabb: the box of the volume, smallest and largest xyz.

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
