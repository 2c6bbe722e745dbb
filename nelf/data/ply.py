"""Read the points of a PLY file, ASCII or binary; other elements and properties are ignored.

Source: Turk 1994, "The PLY Polygon File Format".
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np

from nelf.errors import UserError
from nelf.files import LARGEST, is_file, quoted, reason_of, short, widened

__all__ = ["read_ply"]

_TYPES = {
    **{"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"},
    **{"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4"},
    **{"float": "f4", "double": "f8", "float32": "f4", "float64": "f8"},
}
_ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
_LONGEST = 1024  # maximum bytes of a header line
_LINES = 1000  # maximum header lines
_DIGITS = 18  # maximum digits of the number of vertices


def read_ply(path: Path) -> np.ndarray:
    """Read the points of a file.

    Args:
        path: the file.

    Returns:
        (N, 3) float64, x y z of the element ``vertex``.

    Raises:
        UserError: the file is missing, truncated or not a PLY file, or its vertices are not points.
    """
    if not is_file(path):
        raise UserError(f"{path}: no such file; allowed: a PLY file.")
    try:
        with path.open("rb") as file:
            order, count, properties = _header(path, file)
            points = _vertices(path, file, order, count, properties)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); allowed: a PLY file.") from None
    if not (np.abs(points) <= LARGEST).all():
        raise UserError(f"{path}: a vertex has NaN, infinity or numbers beyond {LARGEST:g}; allowed: finite numbers.")
    return points


def _header(path: Path, file: BinaryIO) -> tuple[str, int, dict[str, str]]:
    """Format, number of vertices, and the types of their properties by name."""
    if file.readline(_LONGEST).strip() != b"ply":
        raise UserError(f"{path}: does not begin with 'ply'; allowed: a PLY file.")
    lines = []
    for _ in range(_LINES):
        lines.append(file.readline(_LONGEST).decode("latin-1").split())
        if lines[-1] == ["end_header"]:
            break
    else:
        raise UserError(f"{path}: header has no 'end_header'; allowed: a PLY file.")
    order = [words[1] for words in lines if words[:1] == ["format"] and words[2:] == ["1.0"]]
    if len(order) != 1 or order[0] not in _ORDERS:
        raise UserError(f"{path}: is of no format or another one; allowed: {', '.join(_ORDERS)}, version 1.0.")
    starts = [place for place, words in enumerate(lines) if words[:1] == ["element"]]
    element, *own = lines[starts[0] : [*starts, len(lines) - 1][1]] if starts else [[]]
    if element[1:2] != ["vertex"] or len(element) != 3 or not element[2].isdecimal():
        raise UserError(f"{path}: its first element is {short(' '.join(element[1:])) or 'none'}; allowed: vertex.")
    if len(element[2]) > _DIGITS:
        raise UserError(f"{path}: states {short(element[2])} vertices; allowed: as many as it holds.")
    return order[0], int(element[2]), _properties(path, own)


def _properties(path: Path, lines: list[list[str]]) -> dict[str, str]:
    """The types of an element's properties by name, from its part of the header."""
    found: dict[str, str] = {}
    for words in lines:
        if words[:1] in (["comment"], ["obj_info"]):
            continue
        if len(words) != 3 or words[0] != "property" or words[1] not in _TYPES or words[2] in found:
            raise UserError(f"{path}: header has {quoted(' '.join(words))}; allowed: single numbers for a vertex.")
        found[words[2]] = _TYPES[words[1]]
    if not {"x", "y", "z"} <= found.keys():
        raise UserError(f"{path}: its vertices have {short(', '.join(found)) or 'nothing'}; allowed: with x, y and z.")
    return found


def _vertices(path: Path, file: BinaryIO, order: str, count: int, properties: dict[str, str]) -> np.ndarray:
    """(N, 3) float64; the file's length is checked against its header before memory is allocated."""
    if count < 1:
        raise UserError(f"{path}: has no points; allowed: one or more.")
    row = np.dtype([(name, _ORDERS[order] + kind) for name, kind in properties.items()])
    left = path.stat().st_size - file.tell()
    least = 2 * len(properties) if order == "ascii" else row.itemsize  # a digit and a space
    if count * least > left + (order == "ascii"):  # the last line may lack a newline
        raise UserError(f"{path}: is cut off, {count} vertices take more than its {left} bytes; allowed: a whole file.")
    if order != "ascii":
        table = np.frombuffer(file.read(count * row.itemsize), row)
        return np.stack([widened(table[axis]) for axis in "xyz"], axis=-1)
    columns = [list(properties).index(axis) for axis in "xyz"]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a file without data
            points = np.loadtxt(file, comments=None, usecols=columns, max_rows=count, ndmin=2, encoding="latin-1")
    except ValueError as error:
        raise UserError(f"{path}: a vertex is no numbers ({reason_of(error)}); allowed: x y z.") from None
    if len(points) < count:
        raise UserError(f"{path}: is cut off, {len(points)} of {count} vertices; allowed: a whole file.")
    return points
