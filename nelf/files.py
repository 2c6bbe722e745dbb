"""Reading untrusted files: sizes are limited, values are checked, and quotations in messages are shortened."""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import reprlib
import stat
import sys
import tempfile
import tokenize
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np

from nelf.errors import UserError

__all__ = [
    "LARGEST",
    "SMALLEST",
    "ArgumentParser",
    "array",
    "encoded",
    "escape_output",
    "exists",
    "finite",
    "is_dir",
    "is_file",
    "number",
    "numbers",
    "open_array",
    "own_temporary_folder",
    "parse_json",
    "quoted",
    "read_json",
    "read_object",
    "reason_of",
    "short",
    "widened",
]

LARGEST, SMALLEST = 1e15, 1e-15
"""Largest and smallest magnitude that a file may state: squares, and squares of quotients, are finite in float32."""

_MOST_BYTES = 2**26  # of a JSON file; parsed, it may take 24 times as much memory
_QUOTED = 60  # characters
#: Exceptions that NumPy raises for malformed data.
_BROKEN = (
    *(ValueError, TypeError, SyntaxError, OverflowError, MemoryError, RecursionError, EOFError),
    tokenize.TokenError,
)


class _Short(reprlib.Repr):
    """``repr`` in bounded time, whatever the length of the value."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 4, 2 * _QUOTED, 2 * _QUOTED
        self.maxlist = self.maxdict = self.maxtuple = 20

    def repr_int(self, x: int, level: int) -> str:
        """A whole number, or a description if it has too many digits."""
        return repr(x) if abs(x) < 10**_QUOTED else "a whole number of very many digits"


_SHORT = _Short()


def quoted(value: object) -> str:
    """A value from an untrusted file, shortened for a message.

    Args:
        value: any plain value.

    Example:
        >>> quoted("a" * 100), quoted(10**9999)
        ("'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa...", 'a whole number of very many digits')
    """
    text = _SHORT.repr(value)
    return text if len(text) <= _QUOTED else f"{text[: _QUOTED - 3]}..."


def short(text: str) -> str:
    """A name from an untrusted file, truncated if it is long."""
    return text if len(text) <= 2 * _QUOTED else f"{text[: 2 * _QUOTED - 3]}..."


def reason_of(error: BaseException) -> str:
    """The first line of another library's error message, truncated if it is long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return short(lines[0] if lines else type(error).__name__)


def escape_output() -> None:
    """Let a command print names of files that are no text, or that the terminal has no letters for: escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class ArgumentParser(argparse.ArgumentParser):
    """argparse's, which quotes a wrong argument in printable characters."""

    def error(self, message: str) -> NoReturn:
        """See ``argparse.ArgumentParser.error``."""
        super().error(str(UserError(message)))


def encoded(text: str) -> bytes:
    """A file name in bytes, even if it is not valid UTF-8."""
    return text.encode("utf-8", "surrogateescape")


def exists(path: Path) -> bool:
    """Whether there is something; a name that nothing may have is nothing."""
    return os.path.exists(path)


def is_file(path: Path) -> bool:
    """Whether a path is a file; False for an invalid name."""
    return os.path.isfile(path)


def is_dir(path: Path) -> bool:
    """Whether a path is a directory; False for an invalid name."""
    return os.path.isdir(path)


def own_temporary_folder(name: str) -> Path:
    """This user's own folder in the system's temporary directory; it is created if it does not exist.

    Another user may have put a link or a folder there before, so it is checked.

    Args:
        name: the same for every user.

    Raises:
        UserError: it is not a folder, belongs to another user, or others may write into it.
    """
    folder = Path(tempfile.gettempdir()) / f"{name}_{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    state = folder.lstat()
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid() or state.st_mode & 0o022:
        raise UserError(f"{folder}: is not a folder that only you can write into. Delete it, or set another TMPDIR=.")
    return folder


# ------------------------------------------------------------------------------------------------ JSON


def read_json(path: Path, allowed: str = "a JSON file") -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        allowed: what it should be, in words.

    Raises:
        UserError: it is missing, cannot be read, is too large, or no JSON.
    """
    try:
        if not path.exists():
            raise UserError(f"{path}: no such file; allowed: {allowed}.")
        if not path.is_file():
            raise UserError(f"{path}: is no file; allowed: {allowed}.")
        if path.stat().st_size > _MOST_BYTES:
            raise UserError(f"{path}: has more than {_MOST_BYTES} bytes; allowed: {allowed}.")
        return parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); allowed: {allowed}.") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({reason_of(error)}); allowed: {allowed}.") from None


def parse_json(text: str) -> Any:
    """Parse JSON.

    Raises:
        ValueError: it is not JSON, a number has thousands of digits, or values are nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("lists or objects lie too deep in others") from None


def read_object(path: Path, allowed: str = "a JSON object") -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Args:
        path: the file.
        allowed: what it should be, in words.

    Raises:
        UserError: as for ``read_json``, or it holds something else.
    """
    content = read_json(path, allowed)
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}; allowed: {allowed}.")
    return content


# ------------------------------------------------------------------------------------------------ numbers


def number(where: object, key: str, value: Any, low: float = -LARGEST, high: float = LARGEST) -> float:
    """A number that a file states.

    Args:
        where: the file, and perhaps the place in it.
        key: what is read.
        value: its value.
        low: the smallest that is allowed.
        high: the largest.

    Raises:
        UserError: it is none, or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        if (low, high) == (-LARGEST, LARGEST):
            raise UserError(f"{where}: {key} is {quoted(value)}; allowed: a finite number, up to {LARGEST:g}.")
        raise UserError(f"{where}: {key} is {quoted(value)}; allowed: {low:g} to {high:g}.")
    return float(value)


def numbers(where: object, key: str, value: Any, count: int) -> list[float]:
    """A list of numbers that a file states.

    Args:
        where: the file, and perhaps the place in it.
        key: what is read.
        value: its value.
        count: how many there have to be.

    Raises:
        UserError: it is not a list of ``count`` numbers.
    """
    if not isinstance(value, list) or len(value) != count:
        raise UserError(f"{where}: {key} is {quoted(value)}; allowed: {count} numbers.")
    return [number(where, key, each) for each in value]


def array(where: object, key: str, value: Any, shapes: tuple[tuple[int, ...], ...]) -> np.ndarray:
    """Nested lists of numbers that a file states, float64.

    Args:
        where: the file, and perhaps the place in it.
        key: what is read.
        value: its value.
        shapes: those that are allowed.

    Raises:
        UserError: it is not an array, has another shape, or its numbers are not finite or too large.
    """
    what = " or ".join("x".join(map(str, shape)) if len(shape) > 1 else str(math.prod(shape)) for shape in shapes)
    try:
        values = np.array(value, dtype=np.float64)
    except _BROKEN:
        values = np.empty(0)
    if values.ndim > 1 and values.shape not in shapes:
        raise UserError(f"{where}: {key} has shape {values.shape}; allowed: {what} numbers.")
    if values.shape not in shapes or not (np.abs(values) <= LARGEST).all():
        raise UserError(f"{where}: {key} is {quoted(value)}; allowed: {what} numbers, finite, up to {LARGEST:g}.")
    return values


# ------------------------------------------------------------------------------------------------ arrays of NumPy


def open_array(path: Path, shape: tuple[int | None, ...], kind: Literal["f", "u"] = "f") -> np.ndarray:
    """Open a file in NumPy's format as a memory map; nothing is unpickled.

    Args:
        path: the file.
        shape: the required shape; None for a dimension of any length except 0.
        kind: of its numbers: ``f`` floating-point, ``u`` unsigned integers.

    Raises:
        UserError: the file is missing or incomplete, holds something else, or has another shape.
    """
    sides = ", ".join("N" if side is None else str(side) for side in shape)
    what = {"f": "floating-point", "u": "unsigned whole"}[kind]
    allowed = f"({sides}) {what} numbers in NumPy's format"
    if not is_file(path):
        raise UserError(f"{path}: no such file; allowed: {allowed}.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # such as of a header that Python 2 wrote
            values = np.lib.format.open_memmap(path, mode="r")
    except (*_BROKEN, OSError, Warning) as error:
        raise UserError(f"{path}: is not whole, or no array ({reason_of(error)}); allowed: {allowed}.") from None
    fits = len(shape) == values.ndim and all(
        side == wanted if wanted is not None else side > 0 for side, wanted in zip(values.shape, shape, strict=True)
    )
    if not fits or values.dtype.kind != kind:
        raise UserError(f"{path}: holds {short(values.dtype.name)} of shape {values.shape}; allowed: {allowed}.")
    return values


def widened(values: np.ndarray) -> np.ndarray:
    """A float64 copy, made without warnings about signaling NaNs."""
    with np.errstate(invalid="ignore"):
        return values.astype(np.float64)


def finite(path: Path, values: np.ndarray) -> np.ndarray:
    """A float32 copy of a file's numbers, which have to be finite.

    Raises:
        UserError: they are not, or too large.
    """
    values = widened(values)  # 16 bits do not reach as far as what they are compared with
    if not (np.abs(values) <= LARGEST).all():
        raise UserError(f"{path}: holds numbers that are not finite, or beyond {LARGEST:g}.")
    return np.array(values, np.float32)
