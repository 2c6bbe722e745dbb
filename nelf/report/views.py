"""Views in the report: each artifact's image beside the ground truth, with a crop and the error."""

from __future__ import annotations

import base64
import html
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import imageio.v3 as iio
import numpy as np
import torch

from nelf.data.images import read_image
from nelf.errors import UserError
from nelf.metrics import psnr
from nelf.report.pictures import ERROR_SCALE, block_mean, error_map, file_stem

__all__ = ["Comparison", "comparisons", "data_uri", "html_view"]

_PICTURE_WIDTH = 400  # of the overview; the crop below it shows full resolution


class Comparison(NamedTuple):
    """One view: the ground truth and each artifact's image, all (H, W, 3) uint8; its time, if it has one."""

    view: str
    truth: np.ndarray
    predictions: dict[str, np.ndarray]
    time: float | None = None


def comparisons(
    folders: Mapping[str, str | os.PathLike[str]], times: Mapping[str, float] | None = None
) -> list[Comparison]:
    """Read the sample images that :func:`nelf.report.evaluation.evaluate` wrote for several models.

    Args:
        folders: ``samples`` folders by artifact name.
        times: times by view name, for a scene with a time.

    Returns:
        One item for each view that all folders have, sorted by time and name.
    """
    ending = "_prediction_truth_error.png"
    found = [{path.name for path in Path(folder).glob(f"*{ending}")} for folder in folders.values()]
    moments = {file_stem(name): time for name, time in (times or {}).items()}
    result = []
    for name in sorted(set.intersection(*found)) if found else []:
        panels = {artifact: _panels(Path(folder) / name) for artifact, folder in folders.items()}
        predictions = {artifact: parts[0] for artifact, parts in panels.items()}
        truth = next(iter(panels.values()))[1]
        if all(picture.shape == truth.shape for picture in predictions.values()):
            view = name.removesuffix(ending)
            result.append(Comparison(view, truth, predictions, moments.get(view)))
    return sorted(result, key=lambda each: 0.0 if each.time is None else each.time)


def _panels(path: Path) -> list[np.ndarray]:
    """Prediction, ground truth and error, which are side by side in a file."""
    pixels = read_image(path, 3)
    if pixels.shape[1] % 3:
        raise UserError(f"{path}: is {pixels.shape[1]} pixels wide; allowed: three pictures side by side.")
    return np.split(pixels, 3, axis=1)


def html_view(view: Comparison) -> str:
    """Show one view: a column for the ground truth and one per artifact, with image, crop and error.

    Args:
        view: what to show.

    Returns:
        HTML with embedded images.
    """
    rows, columns = _worst_window(view)
    height, width = view.truth.shape[:2]
    box = (
        f"left:{100 * columns.start / width:.2f}%;top:{100 * rows.start / height:.2f}%;"
        f"width:{100 * (columns.stop - columns.start) / width:.2f}%;"
        f"height:{100 * (rows.stop - rows.start) / height:.2f}%"
    )

    def column(name: str, note: str, image: np.ndarray, last: str) -> str:
        label = html.escape(name)
        return (
            f'<figure><figcaption><strong>{label}</strong><br>{note}</figcaption><div class="whole">'
            f'{_img(_small(image), label)}<i style="{box}"></i></div>'
            f"{_img(image[rows, columns], label + ', detail', 'crop')}{last}</figure>"
        )

    scale = (
        '<figcaption>mean absolute error</figcaption><div class="scale"></div>'
        f'<div class="ends"><span>0</span><span>{ERROR_SCALE} and more</span></div>'
    )
    figures = [column("Ground truth", "test view", view.truth, scale)]
    for name, image in view.predictions.items():
        errors = _small(error_map(_unit(image), _unit(view.truth)))
        value = float(psnr(_unit(image).permute(2, 0, 1)[None], _unit(view.truth).permute(2, 0, 1)[None]))
        figures.append(column(name, f"{min(value, 100.0):.2f} dB", image, _img(errors, f"{html.escape(name)}, error")))
    panels = "\n".join(figures)
    title = html.escape(view.view) + ("" if view.time is None else f", time {view.time:.2f}")
    return f'<div class="card view"><h3>{title}</h3><div class="panels">{panels}</div></div>'


def _worst_window(view: Comparison) -> tuple[slice, slice]:
    """The window, a quarter of the image along each side, in which the error of the last artifact is largest."""
    height, width = view.truth.shape[:2]
    rows, columns = max(height // 4, 1), max(width // 4, 1)
    last = list(view.predictions.values())[-1] if view.predictions else view.truth
    error = np.abs(last.astype(np.float64) - view.truth).sum(axis=-1)
    sums = np.pad(error, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    windows = sums[rows:, columns:] - sums[:-rows, columns:] - sums[rows:, :-columns] + sums[:-rows, :-columns]
    top, left = np.unravel_index(windows.argmax(), windows.shape)
    return slice(int(top), int(top) + rows), slice(int(left), int(left) + columns)


def _unit(image: np.ndarray) -> torch.Tensor:
    """Convert bytes to [0, 1]."""
    return torch.from_numpy(np.array(image)).float() / 255


def _small(image: np.ndarray) -> np.ndarray:
    """Downsample a wide image by an integer factor."""
    return block_mean(image, math.ceil(image.shape[1] / _PICTURE_WIDTH))


def _img(image: np.ndarray, words: str, kind: str = "full") -> str:
    """Embed a (H, W, 3) uint8 image."""
    source = data_uri("image/png", iio.imwrite("<bytes>", image, extension=".png"))
    return f'<img class="{kind}" src="{source}" alt="{words}">'


def data_uri(kind: str, data: bytes) -> str:
    """The data URI of embedded data; ``kind`` is its media type."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
