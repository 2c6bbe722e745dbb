"""Files of NumPy, as memory maps; nothing in them is unpickled."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nelf.errors import UserError

__all__ = ["finite", "open_npy"]


def open_npy(path: Path, shape: tuple[int | None, ...]) -> np.ndarray:
    """Open a file of floats as a memory map.

    Args:
        path: the file.
        shape: what its shape has to be; None for a side of any length but 0.

    Raises:
        UserError: no such file, one that is not whole, that holds something else or has another shape.
    """
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError, SyntaxError) as error:
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"{path}: is not a whole .npy file of numbers ({reason}).") from None
    fits = len(shape) == values.ndim and all(
        side == wanted if wanted is not None else side > 0 for side, wanted in zip(values.shape, shape, strict=True)
    )
    if not fits or values.dtype.kind != "f":
        expected = tuple("any" if side is None else side for side in shape)
        raise UserError(f"{path}: has shape {values.shape} of {values.dtype}; expected {expected} of floats.")
    return values  # type: ignore[no-any-return]


def finite(path: Path, values: np.ndarray) -> np.ndarray:
    """A copy in 32 bits of numbers of a file, which have to be finite.

    Raises:
        UserError: they are not.
    """
    copied = np.array(values, np.float32)
    if not np.isfinite(copied).all():
        raise UserError(f"{path}: holds numbers that are not finite.")
    return copied
