"""Decode untrusted image files: check format, size and completeness."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from nelf.errors import UserError
from nelf.files import is_file, short

__all__ = ["FORMATS", "check_whole", "image_header", "open_image", "read_image"]

#: Allowed formats, whatever a file's name says: Pillow knows many more, and runs Ghostscript for one of them.
FORMATS = ("PNG", "JPEG", "WEBP")

_MOST_SIDE, _MOST_PIXELS = 2**14, 2**26 + 2**25  # of a picture: a hundred million
_WITHOUT_ALPHA = ("RGB", "L", "P", "CMYK", "YCbCr", "1")
_WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa")
_DIRECT = ("RGB", "RGBA", "L", "LA")  # 0 is black
#: Exceptions that Pillow raises for damaged files.
_BROKEN = (
    *(OSError, SyntaxError, ValueError, TypeError, IndexError, KeyError, OverflowError, EOFError, struct.error),
    *(zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning),
)
# Sizes are checked here; an image that is too large is refused with a message of its own.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by PNG color type
#: First column, first row, column step and row step of the seven passes of an interlaced PNG.
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_PART = 2**20  # bytes that are decompressed at a time


def image_header(path: Path) -> tuple[tuple[int, int], bool]:
    """Size of an image, and whether it has transparency, without decoding it.

    Returns:
        ``(width, height)`` in pixels, and whether it has transparency.

    Raises:
        UserError: see ``open_image``.
    """
    with open_image(path) as image:
        alpha = image.mode in _WITH_ALPHA or "transparency" in image.info
        return image.size, alpha


@contextmanager
def open_image(path: Path, formats: tuple[str, ...] = FORMATS) -> Iterator[Image.Image]:
    """Open an image and check its header; pixels are not decoded yet.

    Args:
        path: the file.
        formats: the allowed formats, by Pillow's names.

    Yields:
        The image, of an allowed size and kind. Errors while decoding it in the block become a ``UserError``.

    Raises:
        UserError: the file is missing, damaged, of another format, too large, or has more than 8 bits per channel.
    """
    if not is_file(path):
        raise UserError(f"{path}: no such image file.")
    try:
        # Pillow does not close a file whose header it refuses.
        with path.open("rb") as file, Image.open(file, formats=formats) as image:
            width, height = image.size
            if max(width, height) > _MOST_SIDE or width * height > _MOST_PIXELS or min(width, height) < 1:
                raise UserError(
                    f"{path}: is {width}x{height}; allowed: sides up to {_MOST_SIDE} and {_MOST_PIXELS} pixels."
                )
            if image.mode not in _WITHOUT_ALPHA + _WITH_ALPHA:
                raise UserError(f"{path}: pixels are of kind {image.mode}; allowed: 8 bits per channel.")
            yield image
    except UnidentifiedImageError:
        raise UserError(f"{path}: not a readable image; allowed: {', '.join(formats)}.") from None
    except _BROKEN as error:
        raise UserError(f"{path}: cannot be decoded ({_reason(error)}); the file is truncated or damaged.") from None


def read_image(path: Path, channels: int) -> np.ndarray:
    """Decode one image.

    Args:
        path: the file.
        channels: 3, or 4 with alpha (255 if the file has none).

    Returns:
        (H, W, channels) uint8.

    Raises:
        UserError: see ``open_image``.
    """
    with open_image(path) as image:
        pixels = np.asarray(image.convert("RGBA" if channels == 4 else "RGB"))
        # Pillow leaves missing rows zero. Decompressing again takes time, so it is done only if the last row is zero,
        # or if zero may not mean black.
        if image.info.get("interlace") or image.mode not in _DIRECT or not pixels[-1, :, :3].any():
            check_whole(path, image)
        return pixels


def check_whole(path: Path, image: Image.Image) -> None:
    """Refuse a truncated PNG, whose missing rows Pillow fills with zeros.

    Args:
        path: the file.
        image: from ``open_image``.

    Raises:
        UserError: the file is truncated.

    Source:
        W3C, "Portable Network Graphics (PNG) Specification", second edition, parts 5, 7 and 8.
    """
    if image.format == "PNG" and not _is_whole(path):
        raise UserError(f"{path}: cannot be decoded (its pixels end early); the file is truncated or damaged.")


def _is_whole(path: Path) -> bool:
    """Whether the decompressed data of a PNG is as long as its header requires.

    Args:
        path: a file with the signature of a PNG.
    """
    needed, unpacked, stream = 0, 0, zlib.decompressobj()
    with path.open("rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            content = file.read(length)
            file.seek(4, 1)
            if kind == b"IHDR" and len(content) == 13:
                needed = _bytes(*struct.unpack(">IIBBBBB", content))
            elif kind == b"IDAT":
                try:
                    unpacked += _unpacked(stream, content)
                except zlib.error:
                    return False
            elif kind == b"IEND":
                break
    return unpacked >= needed > 0


def _unpacked(stream: zlib._Decompress, content: bytes) -> int:
    """The number of bytes that compressed data expands to."""
    count = 0
    while content and not stream.eof:
        count += len(stream.decompress(content, _PART))
        content = stream.unconsumed_tail
    return count


def _bytes(width: int, height: int, depth: int, color: int, packing: int, filtering: int, interlace: int) -> int:
    """The number of bytes of all scan lines, each with its filter byte."""
    bits = depth * _CHANNELS.get(color, 0)
    if not interlace:
        return height * (1 + -(-width * bits // 8))
    sizes = [(-(-(width - x) // across), -(-(height - y) // down)) for x, y, across, down in _PASSES]
    return sum(rows * (1 + -(-columns * bits // 8)) for columns, rows in sizes if columns > 0 and rows > 0)


def _reason(error: BaseException) -> str:
    """First line of one of Pillow's exceptions, without the path that it repeats."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return short(text.split(" '")[0].split(": ")[0])
