"""Masks: which pixels of a view count, as ``transforms.json`` names them.

A mask of nerfstudio's (``mask_path``) has 0 where a view is ignored and anything else where it counts; instant-ngp's
(``dynamic_mask_NAME.png`` beside the image ``NAME``) is the other way round. A mask of another size than its image is
brought to it by nearest neighbor. Where images are reduced, a pixel counts if all of the pixels that it is made of do.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from nelf.data.images import area_average, image_header, read_image
from nelf.errors import UserError

__all__ = ["MaskFile", "load_masks"]


class MaskFile(NamedTuple):
    """A mask on disk.

    Attributes:
        path: the image file.
        ignores: it marks what does not count, not what does.
    """

    path: Path
    ignores: bool = False


def load_masks(
    files: Sequence[MaskFile | None], own: tuple[int, int], size: tuple[int, int]
) -> list[np.ndarray | None] | None:
    """Read the masks of some views; a file that several share is read once.

    Args:
        files: of each of N views, or None where all of it counts.
        own: width and height of the images on disk.
        size: width and height that they are reduced to.

    Returns:
        As of ``Split.masks``: N arrays (H, W) bool, or None where all of a view counts; None if that is so of all.

    Raises:
        UserError: a file is missing, truncated or not an image, or leaves no pixel of its view.
    """
    read: dict[MaskFile, np.ndarray | None] = {}
    scaled = []
    for file in files:
        if file is None or file in read:
            continue
        stored = image_header(file.path)[0]
        if stored != own:
            scaled.append((file.path, stored))
        read[file] = _load(file, own, size)
    if scaled:
        path, stored = scaled[0]
        words = f"{path}: is {stored[0]}x{stored[1]}, its image {own[0]}x{own[1]}; scaled to it by nearest neighbor"
        others = f" ({len(scaled)} masks)" if len(scaled) > 1 else ""
        warnings.warn(f"{words}{others}.", stacklevel=2)
    masks = [None if file is None else read[file] for file in files]
    return masks if any(mask is not None for mask in masks) else None


def _load(file: MaskFile, own: tuple[int, int], size: tuple[int, int]) -> np.ndarray | None:
    """One mask at the size of the reduced images; None where it leaves everything."""
    counts: np.ndarray = np.any(read_image(file.path, 3), axis=-1) ^ file.ignores
    if counts.shape[::-1] != own:
        counts = np.asarray(Image.fromarray(counts).resize(own, Image.Resampling.NEAREST))
    if size != own:
        shares = area_average(np.repeat(counts[..., None] * np.uint8(255), 3, axis=2), *size)
        counts = shares[..., 0] == 255
    if not counts.any():
        raise UserError(f"{file.path}: leaves no pixel of its view; allowed: masks that leave some, or no such frame.")
    return None if counts.all() else counts
