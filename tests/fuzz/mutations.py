"""Ways to damage a file, or to lie in it: each a function of random numbers and of the file's bytes."""

from __future__ import annotations

import copy
import gzip
import io
import json
import re
import struct
import zlib
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
from PIL import Image

HUGE, DEEP = "@huge@", "@deep@"  # what no JSON library writes stands for itself until the text is made
_NUMBERS: list[Any] = [
    *(0, -1, 1, 7, 10**9, -(10**9), 2**31, 2**63, 10**400, HUGE, 1e39, -1e39, 1e308, -1e308, 1e19, 1e-45, 1e-320),
    *(float("nan"), float("inf"), -float("inf"), 0.5, 1e6, 1e12, True),
]
_OTHERS: list[Any] = [
    *(None, "", "x", [], {}, [[]], [1, [2]], {"a": {"b": 1}}, DEEP, "a" * 300, "b" * 5000, "a\nb", "\0", "\ud800"),
    *("../../etc/passwd", "/etc/passwd", ".", "..", "~", "C:\\x", "é" * 200, "/dev/zero", "\x1b[2J", "nan", "1e5"),
]
_WORDS = [
    b"",
    b"nan",
    b"inf",
    b"-1",
    b"0",
    b"1e39",
    b"1e308",
    b"x",
    b"9" * 30,
    b"9" * 5000,
    b"#",
    b"\0",
    b"\xff",
    b"\n",
]


def flipped(random: Random, content: bytes) -> bytes:
    """Some bytes changed, cut out, doubled, or the end cut off."""
    if not content:
        return b"\0"
    kind = random.randrange(6)
    at = random.randrange(len(content))
    if kind == 0:
        return content[:at]
    if kind == 1:
        return content[:at] + content[at + random.randrange(1, 9) :]
    if kind == 2:
        return content[:at] + content[at : at + 40] + content[at:]
    if kind == 3 and len(content) > 8:
        at = random.randrange(len(content) - 8)
        number = random.choice([0, -1, 1, 2**31 - 1, 2**40, 2**63 - 1, 10**9])
        return content[:at] + struct.pack("<q", number) + content[at + 8 :]
    changed = bytearray(content)
    for _ in range(random.choice([1, 1, 2, 8])):
        changed[random.randrange(len(changed))] = random.randrange(256)
    return bytes(changed)


def replaced(random: Random, content: bytes) -> bytes:
    """Something else altogether."""
    return random.choice(
        [b"", b"\0" * 100, b"{}", b"[]", b"null", b"\xff\xfe{\0}\0", b"x" * 10000, b"[" * 100_000, content * 2]
    )


def tree(random: Random, content: Any) -> Any:
    """Plain values, of which a few are others, or missing, or there twice."""
    content = copy.deepcopy(content)
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        places: list[tuple[Any, Any]] = []
        left = [content]
        while left:
            node = left.pop()
            keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else []
            places += [(node, key) for key in keys]
            left += [node[key] for key in keys]
        if not places:
            return random.choice(_OTHERS)
        # Long lists of numbers would hide all else: a key's name is drawn first, then one of its places.
        names = sorted({str(key) for _, key in places})
        name = random.choice(names)
        node, key = random.choice([place for place in places if str(place[1]) == name])
        kind = random.randrange(8)
        if kind == 0:
            del node[key]
        elif kind == 1 and isinstance(node, list):
            node.insert(key, copy.deepcopy(node[key]))
        elif kind == 1:
            node[random.choice(names)] = node[key]
        elif kind == 2 and isinstance(node[key], int | float):
            node[key] = node[key] * random.choice([1e20, 1e-20, -1, 1e38, 0])
        elif kind == 3:
            node[key] = [node[key]]
        else:
            node[key] = random.choice(_NUMBERS if kind < 6 else _OTHERS)
    return content


def dumped(content: Any) -> bytes:
    """JSON, with what no JSON library writes."""
    text = json.dumps(content)
    text = text.replace(f'"{HUGE}"', "1" * 5000).replace(f'"{DEEP}"', "[" * 3000 + "]" * 3000)
    return text.encode("utf-8", "surrogatepass")


def json_file(random: Random, content: bytes) -> bytes:
    return dumped(tree(random, json.loads(content)))


def words(random: Random, content: bytes) -> bytes:
    """A text in which a word is another, or missing."""
    found = list(re.finditer(rb"[^\s,:\[\]{}]+", content))
    for match in random.sample(found, min(len(found), random.choice([1, 1, 2]))):
        word = random.choice(_WORDS)
        return content[: match.start()] + word + content[match.end() :]
    return content


def lines(random: Random, content: bytes) -> bytes:
    rows = content.splitlines(keepends=True)
    if rows:
        at = random.randrange(len(rows))
        rows[at : at + 1] = random.choice([[], [rows[at]] * 2, [rows[at][: len(rows[at]) // 2] + b"\n"]])
    return b"".join(rows)


def array(random: Random, content: bytes) -> bytes:
    """An array of NumPy with other numbers, of another shape or type, or with a lying header."""
    values = np.load(io.BytesIO(content))
    kind = random.randrange(8)
    if kind < 3 and values.size:
        values = values.copy()
        spots = values.reshape(-1)
        with np.errstate(over="ignore", invalid="ignore"):
            spots[random.randrange(spots.size)] = random.choice([np.nan, np.inf, 0, -1, 1e30, 1e39, 1e300, 1e-300])
    elif kind == 3:
        values = random.choice(
            [values[:0], values[:1], values.T, values.ravel(), values[..., :-1], values[None], values[0]]
        )
    elif kind == 4:
        with np.errstate(all="ignore"):
            values = values.astype(random.choice(["f2", ">f8", "c16", "i4", "?", "S3", "U2", "M8[s]"]))
    elif kind == 5:
        values = np.zeros(3, [("a", "f4"), ("b", "i2")])
    elif kind == 6:
        out = io.BytesIO()
        np.savez(out, values)
        return out.getvalue()
    out = io.BytesIO()
    np.save(out, values)
    content = out.getvalue()
    if kind == 7:
        shape = random.choice(
            [b"(1000000000000, 17)", b"(-1, 17)", b"(" + b"9" * 40 + b",)", b"()", b"(1,)", b"(" * 50]
        )
        content = re.sub(rb"'shape': \([^)]*\)", b"'shape': " + shape, content, count=1)
    return content


def picture(random: Random, content: bytes) -> bytes:
    """A picture of another format, size or kind, or one that ends early."""
    width, height = Image.open(io.BytesIO(content)).size
    make = random.choice([_eps, _as("GIF"), _as("TIFF"), _as("BMP"), _as("PPM"), _bomb, _short, _deep, _other_size])
    return make(width, height)


def _eps(width: int, height: int) -> bytes:
    return f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 {width} {height}\nshowpage\n%%EOF\n".encode()


def _as(kind: str) -> Callable[[int, int], bytes]:
    return lambda width, height: encoded(Image.new("RGB", (width, height), (9, 99, 199)), kind)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


def png(width: int, height: int, rows: bytes, color: int = 2, depth: int = 8, interlace: int = 0) -> bytes:
    """A PNG of scan lines, whatever its header says of them."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlace)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _bomb(width: int, height: int) -> bytes:
    return png(30_000, 30_000, b"\0" * 10_000_000)


def _short(width: int, height: int) -> bytes:
    return png(width, height, b"\0\x7f\x7f\x7f" * 3)


def _deep(width: int, height: int) -> bytes:
    return png(width, height, b"\0" * height * (1 + 6 * width), depth=16)


def _other_size(width: int, height: int) -> bytes:
    return encoded(Image.new("RGB", (width + 1, height)))


def safetensors(random: Random, content: bytes) -> bytes:
    """Weights with another header, or with numbers that are none."""
    (size,) = struct.unpack("<Q", content[:8])
    header, rest = json.loads(content[8 : 8 + size]), content[8 + size :]
    kind = random.randrange(4)
    if kind == 0:
        return content[: 8 + size] + _poisoned(random, rest)
    about = header["__metadata__"]
    if kind == 1:
        header = tree(random, header)
    else:
        key = random.choice([key for key in about if about[key][:1] in "{["] or list(about))
        try:
            about[key] = dumped(tree(random, json.loads(about[key]))).decode("utf-8", "replace")
        except ValueError:
            about[key] = random.choice(["", "x", "int8_per_channel", "fp16", "0"])
    text = dumped(header)
    return struct.pack("<Q", len(text)) + text + rest


def _poisoned(random: Random, content: bytes) -> bytes:
    at = 4 * random.randrange(max(len(content) // 4, 1))
    return content[:at] + struct.pack("<f", random.choice([float("nan"), float("inf"), 1e38])) + content[at + 4 :]


def gz(random: Random, content: bytes) -> bytes:
    """A gzip file of damaged content, or of more."""
    inner = gzip.decompress(content)
    return gzip.compress(random.choice([flipped(random, inner), inner + b"\0" * 50_000_000, inner[:-1]]), 1)


def poisoned(random: Random, content: bytes) -> bytes:
    return _poisoned(random, content)


#: By the ending of a file's name: what may be done to it, beside flipped bytes.
BY_SUFFIX: dict[str, list[Callable[[Random, bytes], bytes]]] = {
    ".json": [json_file] * 8,
    ".txt": [words, words, lines],
    ".yaml": [words, words, words, lines],
    ".csv": [words, lines],
    ".ply": [words, lines],
    ".npy": [array] * 3,
    ".png": [picture],
    ".safetensors": [safetensors] * 4,
    ".gz": [gz],
    ".onnx": [poisoned],
}


def mutate(random: Random, name: str, content: bytes) -> bytes:
    """Damage the content of a file in one way."""
    suffix = "." + name.rpartition(".")[2]
    return random.choice([*BY_SUFFIX.get(suffix, []), flipped, random.choice([flipped, flipped, replaced])])(
        random, content
    )
