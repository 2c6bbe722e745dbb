"""Write depth maps: for viewing (PNG), and as numbers (NumPy, PFM)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nelf.errors import atomic_path
from nelf.report.pictures import depth_map, write_png

__all__ = ["write_depth"]


def write_depth(stem: Path, depth: np.ndarray, formats: Sequence[str], near: float, far: float) -> None:
    """Write one depth map.

    Args:
        stem: path without extension.
        depth: (H, W) float32 z-depth, scene units.
        formats: some of ``nelf.render.DEPTH_FORMATS``. ``png`` is colored with "turbo" from ``near`` to ``far``;
            ``npy`` and ``pfm`` hold the numbers.
        near: depth of the first color.
        far: depth of the last color.

    Raises:
        UserError: the directory cannot be written.
    """
    if "png" in formats:
        write_png(stem.with_name(f"{stem.name}.png"), depth_map(depth, near, far))
    if "npy" in formats:
        with atomic_path(stem.with_name(f"{stem.name}.npy")) as partial, partial.open("wb") as file:
            np.save(file, depth.astype(np.float32), allow_pickle=False)
    if "pfm" in formats:
        with atomic_path(stem.with_name(f"{stem.name}.pfm")) as partial:
            partial.write_bytes(_pfm(depth))


def _pfm(depth: np.ndarray) -> bytes:
    """A grayscale image of floats, with rows from bottom to top.

    Source:
        Paul Debevec, "The PFM format".
    """
    height, width = depth.shape
    return f"Pf\n{width} {height}\n-1.0\n".encode("ascii") + np.ascontiguousarray(depth[::-1], dtype="<f4").tobytes()
