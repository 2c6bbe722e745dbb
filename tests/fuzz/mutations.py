"""Ways to damage a file, or to lie in it: each a function of random numbers and of the file's bytes."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from random import Random

from tests.fuzz.arrays import array
from tests.fuzz.pictures import picture
from tests.fuzz.plain import json_file, json_text, lines, other_text, words
from tests.fuzz.weights import onnx_graph, poisoned, safetensors, torch_file

__all__ = ["mutate"]


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


def counted(random: Random, content: bytes) -> bytes:
    """A binary file whose beginning, where its counts stand, has another number; or with a double that is none."""
    if len(content) < 16:
        return content * 2
    if random.random() < 0.6:
        at = random.choice([0, 0, 0, *range(0, min(len(content) - 8, 200), 4)])
        number = random.choice([0, 1, 2, 2**31 - 1, 2**32, 2**40, 2**63 - 1, 2**64 - 1, 2**64 - 5])
        return content[:at] + struct.pack("<Q", number) + content[at + 8 :]
    at = random.randrange(len(content) - 8)
    double = random.choice([float("nan"), float("inf"), -1e300, 1e16, 0.0, 1e-310])
    return content[:at] + struct.pack("<d", double) + content[at + 8 :]


def gz(random: Random, content: bytes) -> bytes:
    """A gzip file of damaged content, or of more."""
    inner = gzip.decompress(content)
    return gzip.compress(random.choice([flipped(random, inner), inner + b"\0" * 50_000_000, inner[:-1]]), 1)


#: By the ending of a file's name: what may be done to it, beside flipped bytes.
BY_SUFFIX: dict[str, list[Callable[[Random, bytes], bytes]]] = {
    ".json": [json_file] * 8 + [json_text, other_text],
    ".txt": [words, words, lines, other_text],
    ".yaml": [words, words, words, lines, other_text],
    ".csv": [words, lines, other_text],
    ".ply": [words, lines, other_text, counted],
    ".bin": [counted] * 3,
    ".npy": [array] * 4,
    **dict.fromkeys((".png", ".jpg", ".webp"), [picture] * 4),
    ".safetensors": [safetensors] * 5,
    **dict.fromkeys((".tar", ".ckpt", ".pth"), [torch_file] * 5),
    ".gz": [gz],
    ".onnx": [poisoned, onnx_graph, onnx_graph],
}


def mutate(random: Random, name: str, content: bytes) -> bytes:
    """Damage the content of a file in one way."""
    suffix = "." + name.rpartition(".")[2]
    return random.choice([*BY_SUFFIX.get(suffix, []), flipped, random.choice([flipped, flipped, replaced])])(
        random, content
    )
