"""Pictures that are damaged, or of kinds that few programs write."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from random import Random

import numpy as np
from PIL import Image

__all__ = ["encoded", "picture", "png"]


def picture(random: Random, content: bytes) -> bytes:
    """A picture of another format, size or kind, or one that ends early or lies about itself."""
    size = Image.open(io.BytesIO(content)).size
    return random.choice(_KINDS)(random, *size)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def png(
    width: int, height: int, rows: bytes, color: int = 2, depth: int = 8, interlace: int = 0, between: bytes = b""
) -> bytes:
    """A PNG of scan lines, whatever its header says of them; other chunks between header and data."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlace)
    parts = [_chunk(b"IHDR", header), between, _chunk(b"IDAT", zlib.compress(rows)), _chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _plain(width: int, height: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def _eps(random: Random, width: int, height: int) -> bytes:
    return f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 {width} {height}\nshowpage\n%%EOF\n".encode()


def _other_format(random: Random, width: int, height: int) -> bytes:
    return encoded(_plain(width, height), random.choice(["GIF", "TIFF", "BMP", "PPM", "ICO", "TGA", "JPEG2000"]))


def _bomb(random: Random, width: int, height: int) -> bytes:
    side = random.choice([30_000, 9_000, 2**31 - 1])
    return png(side, side, b"\0" * 10_000_000)


def _packed_text(random: Random, width: int, height: int) -> bytes:
    """Text, or a color profile, that unpacks to much more than it takes."""
    kind, words = random.choice([(b"zTXt", b"a\0\0"), (b"iTXt", b"a\0\1\0\0\0"), (b"iCCP", b"a\0\0")])
    between = _chunk(kind, words + zlib.compress(b"x" * 50_000_000, 1))
    return png(width, height, b"\0" * height * (1 + 3 * width), between=between)


def _short_data(random: Random, width: int, height: int) -> bytes:
    return png(width, height, b"\0\x7f\x7f\x7f" * 3)


def _any_header(random: Random, width: int, height: int) -> bytes:
    """Any color type, depth and interlacing, with rows of the right size for one of them."""
    color, depth, interlace = (
        random.choice([0, 2, 3, 4, 6, 1, 7]),
        random.choice([1, 2, 4, 8, 16, 0, 3]),
        random.choice([0, 1, 2]),
    )
    side = random.choice([width, 0, 1])
    palette = _chunk(b"PLTE", bytes(range(random.choice([3, 30, 4])))) if random.random() < 0.5 else b""
    transparent = _chunk(b"tRNS", bytes(random.choice([0, 1, 2, 6, 300]))) if random.random() < 0.5 else b""
    rows = b"\0" * random.choice([height * (1 + 8 * width), 4 * height * (1 + 8 * width)])
    return png(side, height, rows, color, depth, interlace, palette + transparent)


def _wrong_sum(random: Random, width: int, height: int) -> bytes:
    """The checksum of a chunk is another."""
    content = bytearray(encoded(_plain(width, height)))
    content[random.choice([29, len(content) - 13, len(content) - 1])] ^= 0x55
    return bytes(content)


def _other_mode(random: Random, width: int, height: int) -> bytes:
    modes = {"PNG": ["L", "LA", "P", "1", "I;16", "RGBA"], "JPEG": ["CMYK", "L", "YCbCr"], "WEBP": ["RGBA"]}
    kind = random.choice(list(modes))
    mode = random.choice(modes[kind])
    image = _plain(width, height)
    return encoded((image.convert("I") if mode.startswith("I") else image).convert(mode), kind)


def _animated(random: Random, width: int, height: int) -> bytes:
    kind = random.choice(["WEBP", "PNG", "GIF"])
    more = [_plain(width, height).rotate(90 * turn) for turn in range(1, 4)]
    content = encoded(_plain(width, height), kind, save_all=True, append_images=more, duration=100)
    return content if random.random() < 0.6 else content[: random.randrange(len(content))]


def _turned(random: Random, width: int, height: int) -> bytes:
    """With EXIF data: turned, or broken."""
    exif = Image.Exif()
    exif[0x0112] = random.choice([1, 3, 6, 8, 99])
    broken = random.choice([exif.tobytes(), b"Exif\0\0" + b"II*\0" + b"\xff" * 40, b"Exif\0\0"])
    return encoded(_plain(width, height), random.choice(["JPEG", "WEBP", "PNG"]), exif=broken)


def _progressive(random: Random, width: int, height: int) -> bytes:
    content = encoded(_plain(width, height), "JPEG", progressive=True)
    return content[: random.randrange(20, len(content))]


def _large_jpeg(random: Random, width: int, height: int) -> bytes:
    """A JPEG whose header says another size."""
    content = encoded(_plain(width, height), "JPEG")
    at = content.find(b"\xff\xc0") + 5
    size = random.choice([(65535, 65535), (0, width), (height, 0), (height + 1, width), (16000, 6000)])
    return content[:at] + struct.pack(">HH", *size) + content[at + 4 :]


def _other_size(random: Random, width: int, height: int) -> bytes:
    size = random.choice([(width + 1, height), (1, 1), (height, width), (2 * width, 2 * height), (width, 1)])
    return encoded(Image.new("RGB", size))


def _turned_bytes(random: Random, width: int, height: int) -> bytes:
    """A picture with one byte changed anywhere."""
    content = bytearray(encoded(_plain(width, height), random.choice(["PNG", "JPEG", "WEBP"])))
    content[random.randrange(len(content))] = random.randrange(256)
    return bytes(content)


_KINDS: list[Callable[[Random, int, int], bytes]] = [
    *(_eps, _other_format, _bomb, _packed_text, _short_data, _any_header, _any_header, _wrong_sum, _other_mode),
    *(_animated, _turned, _progressive, _large_jpeg, _other_size, _turned_bytes),
]
