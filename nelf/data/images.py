"""Image files to uint8 arrays: checked by their headers, downsampled by area averaging, in RAM or memory-mapped.

Conventions: (H, W, 3|4) uint8, row 0 at the top, alpha not premultiplied. Images are downsampled by exact area
averaging of premultiplied colors, so transparent pixels never bleed into the edges of an object.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from nelf.data.decoding import image_header, read_image
from nelf.errors import UserError, atomic_path
from nelf.files import encoded, open_array, own_temporary_folder
from nelf.kernels.numba_tools import njit

__all__ = [
    "MEMORY_LIMIT",
    "ImageFiles",
    "area_average",
    "cache_directory",
    "cached_array",
    "check_width",
    "fingerprint",
    "for_each",
    "image_header",
    "image_headers",
    "load_images",
    "progress_bar",
    "read_image",
]

MEMORY_LIMIT = 2 * 2**30
"""Bytes of images of one split that are kept in RAM; a larger split is memory-mapped from a cache file."""


@contextmanager
def progress_bar(text: str, total: int) -> Iterator[Progress]:
    """A progress bar with count, elapsed time and ETA on stderr; call ``advance(progress.task_ids[0])`` per item.

    With several processes (``RANK`` in the environment) only the first one shows it.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    silent = os.environ.get("RANK", "0") != "0"
    with Progress(*columns, console=Console(stderr=True), disable=silent) as progress:
        progress.add_task(text, total=total)
        yield progress


def track(count: int, text: str) -> Iterator[int]:
    """Iterate over ``range(count)`` with a ``progress_bar``."""
    with progress_bar(text, count) as progress:
        for index in range(count):
            yield index
            progress.advance(progress.task_ids[0])


def image_headers(paths: Sequence[Path], kind: str) -> list[tuple[tuple[int, int], bool]]:
    """``image_header`` of several images, which must have the same size.

    Args:
        paths: one or more files.
        kind: the word for the data set in messages, such as ``scene``.

    Raises:
        UserError: see ``image_header``; or their sizes differ.
    """
    headers = [image_header(path) for path in paths]
    width, height = headers[0][0]
    for path, (size, _) in zip(paths, headers, strict=True):
        if size != (width, height):
            raise UserError(
                f"{path}: is {size[0]}x{size[1]}, but {paths[0].name} is {width}x{height}; "
                f"allowed: one size for all views of a {kind}."
            )
    return headers


def check_width(width: int, path: Path, own: int) -> None:
    """Refuse to enlarge images.

    Args:
        width: the requested width, pixels.
        path: the image, for messages.
        own: its width.

    Raises:
        UserError: ``width`` is larger, or below 1.
    """
    if not 0 < width <= own:
        raise UserError(f"data.width: is {width}, but {path} is {own} pixels wide; allowed: 1 to {own}.")


def area_average(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Downsample an image: each new pixel is the mean of the area that it covers, fractions of pixels included.

    With alpha, the mean of the premultiplied color is divided by the mean alpha; a fully transparent pixel is black.

    Args:
        image: (H, W, 3|4) uint8, alpha not premultiplied.
        width: new width, at most W.
        height: new height, at most H.

    Returns:
        (height, width, 3|4) uint8, rounded to nearest.

    Raises:
        ValueError: the new size is larger than the image, or not positive.

    Example:
        A transparent green pixel leaves no green in its opaque red neighbor.

        >>> pair = np.array([[[255, 0, 0, 255], [0, 255, 0, 0]]], dtype=np.uint8)
        >>> area_average(pair, 1, 1).tolist()
        [[[255, 0, 0, 128]]]
    """
    if not (0 < width <= image.shape[1] and 0 < height <= image.shape[0]):
        raise ValueError(f"Expected a size within {image.shape[1]}x{image.shape[0]}, but got {width}x{height}.")
    out = np.empty((height, width, image.shape[2]), dtype=np.uint8)
    _area_average(np.ascontiguousarray(image), out)
    return out


@njit(nogil=True, cache=True)
def _area_average(image: np.ndarray, out: np.ndarray) -> None:
    """Loop of ``area_average``; releases the GIL so that a thread pool downsamples several images at once."""
    rows, columns, channels = image.shape
    height, width = out.shape[0], out.shape[1]
    step_y, step_x = rows / height, columns / width
    for y in range(height):
        top, bottom = y * step_y, (y + 1) * step_y
        for x in range(width):
            left, right = x * step_x, (x + 1) * step_x
            red = green = blue = weight = area = 0.0
            for i in range(int(top), min(int(np.ceil(bottom)), rows)):
                weight_y = min(i + 1.0, bottom) - max(float(i), top)
                for j in range(int(left), min(int(np.ceil(right)), columns)):
                    cover = weight_y * (min(j + 1.0, right) - max(float(j), left))
                    area += cover
                    if channels == 4:
                        cover *= image[i, j, 3]
                    weight += cover
                    red += cover * image[i, j, 0]
                    green += cover * image[i, j, 1]
                    blue += cover * image[i, j, 2]
            if channels == 4:
                out[y, x, 3] = np.uint8(weight / area + 0.5)
            inverse = 1.0 / weight if weight > 0.0 else 0.0
            out[y, x, 0] = np.uint8(red * inverse + 0.5)
            out[y, x, 1] = np.uint8(green * inverse + 0.5)
            out[y, x, 2] = np.uint8(blue * inverse + 0.5)


class ImageFiles:
    """Images on disk with the interface of an array, decoded on access.

    Args:
        paths: N files, each at least as large as the target size.
        width: target width in pixels.
        height: target height.
        channels: 3 or 4.
    """

    def __init__(self, paths: Sequence[Path], width: int, height: int, channels: int) -> None:
        self.paths = paths
        self.shape = (len(paths), height, width, channels)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        """Image ``index``, (H, W, C) uint8.

        Raises:
            UserError: the file is missing, truncated or not an image.
        """
        _, height, width, channels = self.shape
        image = read_image(self.paths[index], channels)
        return image if image.shape[:2] == (height, width) else area_average(image, width, height)


def load_images(
    paths: Sequence[Path],
    width: int,
    height: int,
    channels: int,
    cache_root: Path,
    text: str = "reading images",
    memory_limit: int = MEMORY_LIMIT,
) -> np.ndarray:
    """Decode and downsample the images of one split.

    Args:
        paths: N files, each at least as large as the target size.
        width: target width in pixels.
        height: target height.
        channels: 3 or 4.
        cache_root: the scene's directory. A split over ``memory_limit`` is written once to ``.nelf_cache`` in it (or,
            if that is not writable, in the system's temporary directory) and memory-mapped from there.
        text: label of the progress bar.
        memory_limit: bytes of images that are kept in RAM.

    Returns:
        (N, height, width, channels) uint8 array or read-only memory map.

    Raises:
        UserError: a file is missing, truncated or not an image, or the cache cannot be written.
    """
    shape = (len(paths), height, width, channels)
    if np.prod(shape, dtype=np.int64) <= memory_limit:
        images = np.empty(shape, dtype=np.uint8)
        _decode(paths, images, text)
        return images
    cache = cache_directory(cache_root) / f"{width}x{height}x{channels}_{fingerprint(paths)}.npy"
    found = cached_array(cache, shape)
    if found is None:
        with atomic_path(cache) as partial:
            mapped = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
            _decode(paths, mapped, f"{text} (to {cache.parent})")
            mapped.flush()
        found = np.lib.format.open_memmap(cache, mode="r")
    return found


def cached_array(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """Open a cache file, which may be untrusted, since it may have come with the scene.

    Args:
        path: the file.
        shape: the expected shape.

    Returns:
        (shape) uint8, read-only; None if there is no complete file of this shape, or if it is a link.
    """
    if path.is_symlink():
        return None
    try:
        found = open_array(path, (None,) * len(shape), "u")
    except UserError:
        return None
    return found if found.shape == shape and found.dtype == np.uint8 else None


def _decode(paths: Sequence[Path], images: np.ndarray, text: str) -> None:
    """Fill ``images`` from ``paths`` in threads, since decoding and downsampling both release the GIL."""
    files = ImageFiles(paths, images.shape[2], images.shape[1], images.shape[3])

    def decode(index: int) -> None:
        images[index] = files[index]

    for_each(len(paths), decode, text)


def for_each(count: int, work: Callable[[int], None], text: str) -> None:
    """Call ``work`` for each of ``range(count)``, in threads, with a ``progress_bar``; the first error ends it."""
    with progress_bar(text, count) as progress, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        try:
            for _ in pool.map(work, range(count)):
                progress.advance(progress.task_ids[0])
        except BaseException:  # including Ctrl-C
            pool.shutdown(cancel_futures=True)
            raise


def fingerprint(paths: Sequence[Path]) -> str:
    """Hash of the files' paths, sizes and modification times, so that changed images get another cache file."""
    state = hashlib.sha256()
    for path in paths:
        stat = path.stat()
        state.update(encoded(f"{path.absolute()} {stat.st_size} {stat.st_mtime_ns}\n"))
    return state.hexdigest()[:16]


def cache_directory(root: Path) -> Path:
    """A writable cache directory: ``.nelf_cache`` in the scene, else one in the temporary directory.

    Raises:
        UserError: see ``nelf.files.own_temporary_folder``.
    """
    cache = root / ".nelf_cache"
    try:
        if cache.is_symlink():  # an untrusted scene may have a link to any place
            raise PermissionError
        cache.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            return cache
    except OSError:
        return own_temporary_folder("nelf_cache")
