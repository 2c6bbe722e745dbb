"""Depth pictures as files: to look at (PNG), and to compute with (NumPy, PFM)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nelf.errors import atomic_path
from nelf.report.pictures import depth_map, write_png

__all__ = ["write_depth"]


def write_depth(stem: Path, depth: np.ndarray, formats: Sequence[str], near: float, far: float) -> None:
    """Write one depth picture.

    Args:
        stem: where, without extension.
        depth: (H, W) float32 z-depth, scene unit.
        formats: some of ``nelf.render.DEPTH_FORMATS``. ``png`` is colored with "turbo" from ``near`` to ``far``;
            ``npy`` and ``pfm`` hold the numbers.
        near: see ``formats``.
        far: likewise.

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
    """A gray picture of floats; its rows run from bottom to top.

    Source:
        Paul Debevec, "The PFM format".
    """
    height, width = depth.shape
    return f"Pf\n{width} {height}\n-1.0\n".encode("ascii") + np.ascontiguousarray(depth[::-1], dtype="<f4").tobytes()
