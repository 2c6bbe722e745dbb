"""Arrays of NumPy with other numbers, of other kinds, or with headers that lie."""

from __future__ import annotations

import io
import re
import struct
import warnings
import zipfile
from random import Random

import numpy as np

__all__ = ["array"]

_NUMBERS = [np.nan, np.inf, -np.inf, 0, -1, 1e30, -1e30, 1e39, 1e300, 1e-300, 1e15, 1e-38]
_KINDS = [
    "f2",
    "f4",
    ">f4",
    "f8",
    ">f8",
    "f16",
    "c8",
    "c16",
    "i1",
    "i4",
    "i8",
    "u1",
    "u8",
    "?",
    "S3",
    "U2",
    "M8[s]",
    "m8[D]",
    "O",
    "V8",
]
_SHAPES = [
    *(
        b"(1000000000000, 17)",
        b"(-1, 17)",
        b"(" + b"9" * 40 + b",)",
        b"()",
        b"(1,)",
        b"(" * 50,
        b"(2**40,)",
        b"(True,)",
    ),
    *(b"(1.5,)", b"[3, 3]", b"(0, 0)", b"(4611686018427387904, 4)", b"'x'", b"None", b"(" + b"1," * 70 + b")"),
]
_DESCRIPTIONS = [
    *(b"'|O'", b"'<f16'", b"'<f3'", b"'|S2000000000'", b"'|V1000000'", b"'x'", b"None", b"'<f4' * 3", b"'>f8'", b"7"),
    *(b"[('a', '<f4', (1000000, 1000000))]", b"[('a', '<f4'), ('a', '<f4')]", b"('<f4', (17,))", b"'f4,f4'", b"'\xff'"),
]


def array(random: Random, content: bytes) -> bytes:
    """Damage an array."""
    values = np.load(io.BytesIO(content))
    kind = random.randrange(7)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind < 2:
            values = _other_numbers(random, values)
        elif kind == 2:
            values = _other_shape(random, values)
        elif kind == 3:
            values = _other_kind(random, values)
        elif kind == 4:
            return _archive(random, values)
        out = io.BytesIO()
        np.lib.format.write_array(out, values, random.choice([None, (2, 0), (3, 0)]), allow_pickle=True)
        return out.getvalue() if kind < 5 else _header(random, out.getvalue())


def _other_numbers(random: Random, values: np.ndarray) -> np.ndarray:
    values = values.copy()
    spots = values.reshape(-1)
    for _ in range(random.choice([1, 1, 3]) if spots.size else 0):
        spots[random.randrange(spots.size)] = random.choice(_NUMBERS)
    if random.random() < 0.15:
        values[...] = random.choice(_NUMBERS)
    return values


def _other_shape(random: Random, values: np.ndarray) -> np.ndarray:
    shapes = [
        values[:0],
        values[:1],
        values.T,
        values.ravel(),
        values[..., :-1],
        values[None],
        np.asfortranarray(values),
    ]
    return random.choice([*shapes, values[..., None], values[::-1], np.concatenate([values, values]), values[..., :0]])


def _other_kind(random: Random, values: np.ndarray) -> np.ndarray:
    if random.random() < 0.2:
        return np.zeros(random.choice([3, (3, 17)]), [("a", "f4"), ("b", "i2")])
    try:
        return values.astype(random.choice(_KINDS))
    except (TypeError, ValueError):
        return np.array([{"a": print}, None], dtype=object)


def _archive(random: Random, values: np.ndarray) -> bytes:
    """A zip file in its place, perhaps one that unpacks to much."""
    out = io.BytesIO()
    if random.random() < 0.5:
        np.savez(out, values)
        return out.getvalue()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("arr_0.npy", b"\0" * 30_000_000)
    return out.getvalue()


def _header(random: Random, content: bytes) -> bytes:
    """Another shape, type or order is stated, or the header has another length than it says."""
    kind = random.randrange(5)
    if kind == 0:
        return re.sub(rb"'shape': \([^)]*\)", lambda _: b"'shape': " + random.choice(_SHAPES), content, count=1)
    if kind == 1:
        return re.sub(rb"'descr': '[^']*'", lambda _: b"'descr': " + random.choice(_DESCRIPTIONS), content, count=1)
    if kind == 2:
        order = random.choice([b"True", b"None", b"7", b"'x'"])
        return content.replace(b"'fortran_order': False", b"'fortran_order': " + order, 1)
    if kind == 3:
        version = random.choice([(1, 0), (2, 0), (3, 0), (0, 0), (9, 9)])
        return content[:6] + bytes(version) + content[8:]
    length = random.choice([0, 1, 20, 65535])
    return content[:8] + struct.pack("<H", length) + content[10:]
