"""Ray batches from sets of views that are larger than memory: one file of all pixels in random order.

Reading random pixels from a file of many gigabytes would read a page for each. So pixels are shuffled once, when the
file is written, and batches are read from it in blocks. The permutation is computed, not stored: the file holds colors
only, and rays are made from the poses.

The file is an array (M, C) uint8, where M is the number of pixels of all views. The pixels of each view are permuted
and distributed evenly to buckets; then the pixels of each bucket, which come from all views, are shuffled. So any block
is a random sample of all views. Neither writing nor reading needs more memory than a bucket or a few views.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nelf.data.images import cache_directory, cached_array, for_each
from nelf.errors import alone_in, atomic_path
from nelf.kernels.numba_tools import njit
from nelf.rays import Rays
from nelf.scene import Split

__all__ = ["ShuffledSplit", "shuffled"]

BLOCK = 4096  # pixels that are read together, as many as in one of R2L's files
BUCKET = 2**21  # pixels that are shuffled together when the file is written

_ROUNDS = 3
_FIRST, _SECOND = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)
_HALF, _ONE = np.uint64(33), np.uint64(1)


class PixelFile:
    """The pixels of N views in random order, memory-mapped. It is pickled as its path.

    Args:
        path: a file made by ``write``.
        shape: (N, H, W, C) of the views.

    Raises:
        ValueError: there is no such file, or it has another shape.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int, int]) -> None:
        views, height, width, channels = shape
        self.path, self.shape = path, shape
        colors = cached_array(path, (views * height * width, channels))
        if colors is None:
            raise ValueError("there is no such file, or it has another shape")
        self.colors = colors

    def __reduce__(self) -> tuple[Callable[..., PixelFile], tuple[object, ...]]:
        """Pickle the path, so that a worker process opens the file itself."""
        return PixelFile, (self.path, self.shape)

    def read(self, first: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Read pixels ``first`` to ``first + count - 1`` of an endless sequence.

        Each pass has every pixel once: the blocks of the file in a new order, with a new offset.

        Args:
            first: position in the sequence.
            count: number of pixels, P.
            seed: seed of the sequence.

        Returns:
            Views, rows and columns (P,) int64, and rgba (P, 4) float32 in [0, 1], alpha 1 if the views have none.
        """
        views, height, width, _ = self.shape
        found = np.empty((2, count), np.int64)
        rgba = np.ones((count, 4), np.float32)
        _read(self.colors, first, np.uint64(seed), views, height * width, found, rgba)
        return found[0], found[1] // width, found[1] % width, rgba

    @staticmethod
    def write(path: Path, split: Split, text: str) -> None:
        """Write the file of a split, with only a few views in memory at a time.

        Args:
            path: the file.
            split: the views.
            text: label of the progress bar.

        Raises:
            UserError: an image cannot be decoded, or the file cannot be written.
        """
        views, height, width, channels = split.images.shape
        area = height * width
        with atomic_path(path) as partial:
            out = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=(views * area, channels))
            for_each(views, lambda view: _deal(split.images[view].reshape(area, -1), view, views, out), text)
            size = views * _share(views, area)
            for start in range(0, len(out), size):
                own = out[start : start + size]
                _shuffle(np.array(own), start // size, own)
            out.flush()


@dataclass(eq=False)
class ShuffledSplit(Split):
    """Views with a file of their pixels in random order, from which ray batches are read.

    Attributes:
        file: the file.
    """

    file: PixelFile

    def rays(self, first: int, count: int, seed: int) -> tuple[Rays, Tensor]:
        """Rays ``first`` to ``first + count - 1`` of an endless sequence in which each pass has every pixel once.

        Args:
            first: position in the sequence.
            count: number of rays, P.
            seed: seed of the sequence.

        Returns:
            Rays (P,) through the centers of pixels, and their colors (P, 4) in [0, 1], not premultiplied. Masked pixels
            are replaced by unmasked ones among these P, or, if all are masked, by the next P.
        """
        views, rows, columns, rgba = self.file.read(first, count, seed)
        seen = self.seen(views, rows, columns)
        if not seen.all():
            good = np.flatnonzero(seen)
            if not len(good):
                return self.rays(first + count, count, seed)
            chosen = np.where(seen, np.arange(count), good[np.arange(count) % len(good)])
            views, rows, columns, rgba = (values[chosen] for values in (views, rows, columns, rgba))
        rays = self.camera[torch.from_numpy(views)].pixel_rays(torch.from_numpy(columns), torch.from_numpy(rows))
        return rays, torch.from_numpy(rgba)


def shuffled(split: Split, root: Path, state: str, mark: str = "") -> ShuffledSplit:
    """Add the pixel file to a split; it is written if it does not exist.

    When it is written, outdated pixel files in the set's directory are deleted.

    Args:
        split: the views. They are decoded at most once.
        root: the set's directory; the file is in its ``.nelf_cache``, or, if that is not writable, in the system's
            temporary directory.
        state: fingerprint of the set's files, see ``nelf.data.images.fingerprint``.
        mark: distinguishes different views with the same fingerprint.

    Returns:
        The same views with the file.

    Raises:
        UserError: an image cannot be decoded, or the file cannot be written.
    """
    shape: tuple[int, int, int, int] = split.images.shape  # type: ignore[assignment]
    name = hashlib.sha256(f"{mark} {shape} {BLOCK} {BUCKET}".encode()).hexdigest()[:16]
    path = cache_directory(root) / f"rays_{state}_{name}.npy"
    with alone_in(path.parent):
        file = _opened(path, shape)
        if file is None:
            PixelFile.write(path, split, f"shuffling the pixels of {len(split)} views (to {path.parent})")
            file = PixelFile(path, shape)
            _remove_outdated(path.parent, root, state)
    return ShuffledSplit(split.camera, split.images, split.names, file, masks=split.masks)


def _remove_outdated(folder: Path, root: Path, state: str) -> None:
    """Delete files of earlier fingerprints, only in the set's own directory: others hold files of other sets, too."""
    for path in folder.glob("rays_*.npy") if folder.parent == root else ():
        if not path.name.startswith(f"rays_{state}_"):
            with suppress(OSError):
                path.unlink()


def _opened(path: Path, shape: tuple[int, int, int, int]) -> PixelFile | None:
    """The file, or None if it does not exist or has another shape."""
    with suppress(ValueError):
        return PixelFile(path, shape)
    return None


def _share(views: int, area: int) -> int:
    """The number of pixels of each view in a bucket; the last bucket may have fewer."""
    return max(min(BUCKET // views, area), 1)


@njit(nogil=True, cache=True)
def _mix(value: np.uint64) -> np.uint64:
    """Mix 64 bits: the finalizer of MurmurHash3."""
    value = (value ^ (value >> _HALF)) * _FIRST
    value = (value ^ (value >> _HALF)) * _SECOND
    return value ^ (value >> _HALF)


@njit(nogil=True, cache=True)
def _bits(size: int) -> int:
    """The number of bits of the numbers below ``size``, at least one."""
    bits = 1
    while (1 << bits) < size:
        bits += 1
    return bits


@njit(nogil=True, cache=True)
def _place(index: int, size: int, bits: int, key: np.uint64) -> int:
    """The image of ``index`` under a pseudo-random permutation of ``size`` numbers.

    A Feistel network permutes the numbers of ``bits`` bits; it is applied again while its result is not below ``size``
    (Black and Rogaway 2002, cycle walking).
    """
    right = np.uint64(bits // 2)
    low = (_ONE << right) - _ONE
    high = (_ONE << np.uint64(bits - bits // 2)) - _ONE
    place = np.uint64(index)
    while True:
        left, rest = place >> right, place & low
        for turn in range(_ROUNDS):
            left ^= _mix(rest ^ (key + np.uint64(2 * turn))) & high
            rest ^= _mix(left ^ (key + np.uint64(2 * turn + 1))) & low
        place = (left << right) | rest
        if place < np.uint64(size):
            return np.int64(place)


@njit(nogil=True, cache=True)
def _view_key(view: int) -> np.uint64:
    return _mix(np.uint64(2 * view + 1))


@njit(nogil=True, cache=True)
def _bucket_key(bucket: int) -> np.uint64:
    return _mix(np.uint64(2 * bucket + 2))


_share_of = njit(nogil=True, cache=True)(_share)


@njit(nogil=True, cache=True)
def _deal(image: np.ndarray, view: int, views: int, out: np.ndarray) -> None:
    """Distribute the pixels (A, C) of one view to the buckets of the file (M, C')."""
    area = len(image)
    share, bits, key = _share_of(views, area), _bits(area), _view_key(view)
    for index in range(area):
        bucket = index // share
        own = min(share, area - bucket * share)
        to = bucket * share * views + view * own + index - bucket * share
        out[to] = image[_place(index, area, bits, key)]


@njit(nogil=True, cache=True)
def _shuffle(pixels: np.ndarray, bucket: int, out: np.ndarray) -> None:
    """Write the pixels of a bucket in shuffled order."""
    size, bits, key = len(pixels), _bits(len(pixels)), _bucket_key(bucket)
    for index in range(size):
        out[index] = pixels[_place(index, size, bits, key)]


@njit(nogil=True, cache=True)
def _read(
    colors: np.ndarray, first: int, seed: np.uint64, views: int, area: int, found: np.ndarray, rgba: np.ndarray
) -> None:
    """Fill views and pixels (2, P) and rgba (P, 4), see ``PixelFile.read``."""
    total, channels = colors.shape
    share, pixel_bits, whole = _share_of(views, area), _bits(area), total // BLOCK
    done = 0
    while done < len(rgba):
        # From the sequence to the file: a run of consecutive pixels of the file.
        turn, at = divmod(first + done, total)
        key = _mix(_mix(seed) + np.uint64(turn))
        run = total - at
        if at < whole * BLOCK:
            run = BLOCK - at % BLOCK
            at = _place(at // BLOCK, whole, _bits(whole), key) * BLOCK + at % BLOCK
        at = (at + np.int64(_mix(key) % np.uint64(total))) % total
        # From the file to the pixels, see _deal and _shuffle.
        bucket = at // (share * views)
        begin = bucket * share
        own = min(share, area - begin)
        size, at_first = own * views, at - begin * views
        run = min(run, size - at_first, len(rgba) - done)
        bits, bucket_key = _bits(size), _bucket_key(bucket)
        for step in range(run):
            dealt = _place(at_first + step, size, bits, bucket_key)
            view = dealt // own
            found[0, done + step] = view
            found[1, done + step] = _place(begin + dealt - view * own, area, pixel_bits, _view_key(view))
            for channel in range(channels):
                rgba[done + step, channel] = colors[at + step, channel] / np.float32(255.0)
        done += run
