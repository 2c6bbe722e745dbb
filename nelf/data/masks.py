"""Masks of ``transforms.json``, which exclude pixels of a view from training and evaluation.

In nerfstudio's masks (``mask_path``), 0 excludes a pixel; in instant-ngp's (``dynamic_mask_NAME.png`` beside the image
``NAME``), any other value does. A mask of another size than its image is resized by nearest neighbor. If images are
downsampled, a pixel is used only if all of the pixels that it averages are.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from nelf.data.images import area_average, image_header, read_image
from nelf.errors import UserError

__all__ = ["MaskFile", "load_masks", "tell_scaled"]


class MaskFile(NamedTuple):
    """A mask on disk.

    Attributes:
        path: the image file.
        ignores: nonzero pixels are excluded, instead of zero ones.
    """

    path: Path
    ignores: bool = False


def load_masks(
    files: Sequence[MaskFile | None], own: tuple[int, int], size: tuple[int, int]
) -> list[np.ndarray | None] | None:
    """Read the masks of some views; a file that several views share is read once.

    Args:
        files: the mask of each of N views, or None.
        own: width and height of the images on disk.
        size: width and height to which they are downsampled.

    Returns:
        As ``Split.masks``: N arrays (H, W) bool, or None for a view that is used whole; None if all views are.

    Raises:
        UserError: a file is missing, truncated or not an image, or leaves no pixel of its view.
    """
    read: dict[MaskFile, np.ndarray | None] = {}
    for file in files:
        if file is not None and file not in read:
            read[file] = _load(file, own, size)
    masks = [None if file is None else read[file] for file in files]
    return masks if any(mask is not None for mask in masks) else None


def tell_scaled(files: Iterable[tuple[MaskFile | None, tuple[int, int]]]) -> None:
    """Warn once if masks have another size than their images.

    Args:
        files: masks, or None, with width and height of their images on disk.

    Raises:
        UserError: a file is missing or not an image.
    """
    sizes = {file.path: own for file, own in files if file is not None}
    stored = {path: image_header(path)[0] for path in sizes}
    scaled = [path for path, own in sizes.items() if stored[path] != own]
    if scaled:
        (width, height), own = stored[scaled[0]], sizes[scaled[0]]
        words = f"{scaled[0]}: is {width}x{height}, its image {own[0]}x{own[1]}; scaled to it by nearest neighbor"
        others = f" ({len(scaled)} masks)" if len(scaled) > 1 else ""
        warnings.warn(f"{words}{others}.", stacklevel=2)


def _load(file: MaskFile, own: tuple[int, int], size: tuple[int, int]) -> np.ndarray | None:
    """One mask at the size of the downsampled images; None if it excludes nothing."""
    counts: np.ndarray = np.any(read_image(file.path, 3), axis=-1) ^ file.ignores
    if counts.shape[::-1] != own:
        counts = np.asarray(Image.fromarray(counts).resize(own, Image.Resampling.NEAREST))
    if size != own:
        shares = area_average(np.repeat(counts[..., None] * np.uint8(255), 3, axis=2), *size)
        counts = shares[..., 0] == 255
    if not counts.any():
        raise UserError(f"{file.path}: leaves no pixel of its view; allowed: masks that leave some, or no such frame.")
    return None if counts.all() else counts
