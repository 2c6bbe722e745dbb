"""Images for viewing: error and depth maps, side-by-side panels, PNG files."""

import re
from pathlib import Path

import imageio.v3 as iio
import matplotlib
import numpy as np
import torch
from torch import Tensor

from nelf.errors import atomic_path

__all__ = ["ERROR_SCALE", "block_mean", "comparison", "depth_map", "error_map", "file_stem", "to_uint8", "write_png"]

ERROR_SCALE = 0.25
"""The mean absolute error that has the brightest color in an error map."""


def to_uint8(rgb: Tensor) -> np.ndarray:
    """Round an image to bytes.

    Args:
        rgb: (..., 3), clamped to [0, 1], on any device.

    Returns:
        (..., 3) uint8; rounded, not truncated, so that an image that is written and read is unbiased.
    """
    return (rgb.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


def error_map(rgb: Tensor, target: Tensor) -> np.ndarray:
    """Color the absolute difference of two images, averaged over the channels.

    Args:
        rgb: (H, W, 3) in [0, 1].
        target: (H, W, 3) in [0, 1].

    Returns:
        (H, W, 3) uint8 in matplotlib's "inferno": black for no error, the brightest color for :data:`ERROR_SCALE` and
        more. The scale is fixed, so that maps of different models can be compared.
    """
    error = (rgb.detach().float() - target.to(rgb.device).float()).abs().mean(dim=-1).cpu().numpy()
    return _colors("inferno", error / ERROR_SCALE)


def depth_map(depth: np.ndarray, near: float, far: float) -> np.ndarray:
    """Color a depth map.

    Args:
        depth: (H, W), in the unit of `near` and `far`; NaN for background.
        near: the depth of the map's first color.
        far: the depth of its last color.

    Returns:
        (H, W, 3) uint8 in matplotlib's "turbo", white where `depth` is NaN.
    """
    seen = np.isfinite(depth)
    position = (depth.astype(np.float32) - near) / max(far - near, 1e-6)
    return np.where(seen[..., None], _colors("turbo", np.where(seen, position, 0.0)), np.uint8(255))


def comparison(rgb: Tensor, target: Tensor) -> np.ndarray:
    """Put prediction, ground truth and error map side by side.

    Args:
        rgb: (H, W, 3) prediction in [0, 1].
        target: (H, W, 3) ground truth in [0, 1].

    Returns:
        (H, 3 W, 3) uint8: prediction | ground truth | :func:`error_map`.
    """
    return np.concatenate([to_uint8(rgb), to_uint8(target), error_map(rgb, target)], axis=1)


def block_mean(image: np.ndarray, step: int) -> np.ndarray:
    """Downsample an image by averaging blocks of pixels.

    Args:
        image: (H, W, 3) uint8.
        step: the side of a block; incomplete blocks at the right and at the bottom are dropped.

    Returns:
        (H // step, W // step, 3) uint8.
    """
    if step == 1:
        return image
    height, width = (side // step for side in image.shape[:2])
    blocks = image[: height * step, : width * step].reshape(height, step, width, step, 3)
    return blocks.mean(axis=(1, 3)).round().astype(np.uint8)


def write_png(path: Path, image: np.ndarray) -> None:
    """Write a PNG file atomically; missing folders are created.

    Args:
        path: the file.
        image: (H, W, 3) uint8.

    Raises:
        UserError: the folder cannot be written to.
    """
    with atomic_path(path) as temporary:
        iio.imwrite(temporary, image)


def file_stem(name: str) -> str:
    """Convert a view's name, which may contain folders, to a file name without extension."""
    return re.sub(r"[^\w.-]+", "_", name).strip("_.")


def _colors(name: str, values: np.ndarray) -> np.ndarray:
    """Apply a color map to values in [0, 1]: (...) -> (..., 3) uint8."""
    return matplotlib.colormaps[name](np.clip(values, 0, 1), bytes=True)[..., :3]
