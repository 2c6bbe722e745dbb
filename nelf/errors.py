"""The exception that is shown without a traceback, and atomic writing of files.

This module stands below everything else in nelf and imports nothing but the standard library.
"""

import difflib
import errno
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

try:
    import fcntl
except ImportError:  # not on every system
    fcntl = None  # type: ignore[assignment]

#: What the operating system says when an output directory cannot be written, in the words of an error line.
_UNWRITABLE = {
    errno.ENOSPC: "no space left on the device",
    errno.EFBIG: "a file would be larger than is allowed here",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.ENOTDIR: "a part of this path is a file, not a directory",
    errno.EISDIR: "a directory is in the way of a file",
    errno.EEXIST: "a file of this name is in the way",
    errno.ENOENT: "the directory cannot be created here",
    errno.ENAMETOOLONG: "the name is too long",
}


#: The names that ``atomic_path`` gives; between the file's name and its suffix stands what ``mkstemp`` has drawn.
_TEMPORARY = re.compile(r"\..*\.[a-z0-9_]{8}(\.\w+)?")


#: Letters of a message; lists of what is allowed have half as many.
_LONGEST = 1200


class UserError(Exception):
    """A mistake that the user can fix: *where: what is wrong, with the value; what is allowed*.

    The scripts print its text as one line and exit with code 2; any other exception keeps its traceback. Whatever the
    message quotes, the text is one line of printable characters and of limited length.

    Args:
        message: the text.

    Example:
        >>> str(UserError(f"a{chr(7)}.png: no such image file.")).isprintable()
        True
    """

    def __init__(self, message: str = "") -> None:
        text = message if len(message) <= _LONGEST else f"{message[: _LONGEST // 2]} ... {message[-_LONGEST // 3 :]}"
        super().__init__("".join(letter if letter.isprintable() else _escaped(letter) for letter in text))


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode()


@dataclass(frozen=True)
class Range:
    """The range of a numeric argument, stated in its annotation; configurations are checked against it.

    Attributes:
        low: the smallest.
        high: the largest.
        above: ``low`` itself is excluded.

    Example:
        >>> str(Range(0, above=True)), str(Range(1)), str(Range(0, 1))
        ('above 0', 'of 1 or more', 'from 0 to 1')
    """

    low: float
    high: float = math.inf
    above: bool = False

    def holds(self, value: float) -> bool:
        """Whether a number lies in it."""
        return (self.low < value if self.above else self.low <= value) and value <= self.high

    def __str__(self) -> str:
        """In words, to be appended to the kind of number."""
        if self.high < math.inf:
            return f"above {self.low}, at most {self.high}" if self.above else f"from {self.low} to {self.high}"
        return f"above {self.low}" if self.above else f"of {self.low} or more"


Count = Annotated[int, Range(1)]
CountOrZero = Annotated[int, Range(0)]
Positive = Annotated[float, Range(0, above=True)]
NonNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]
Rate = Annotated[float, Range(0, 1000, above=True)]  # of learning
ImageWidth = Annotated[int, Range(1, 2**14)]
# Of networks: many times what anybody trains, and little enough that one of them alone fills no machine.
Size = Annotated[int, Range(1, 2**12)]
SizeOrZero = Annotated[int, Range(0, 2**12)]
Depth = Annotated[int, Range(1, 2**10)]
DepthOrZero = Annotated[int, Range(0, 2**10)]
Frequencies = Annotated[int, Range(0, 2**6)]
Log2Size = Annotated[int, Range(1, 30)]


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """Suggest the closest allowed word, as the end of an error message.

    Args:
        word: What the user wrote.
        allowed: The words that would have been right.

    Returns:
        ``" Did you mean 'x'?"``, or an empty string if no word is close.

    Example:
        >>> did_you_mean("widht", ["width", "depth"])
        " Did you mean 'width'?"
        >>> did_you_mean("color", ["width", "depth"])
        ''
    """
    near = difflib.get_close_matches(str(word), list(allowed), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def unwritable(error: OSError, directory: Path | str | None = None) -> UserError | None:
    """Turn a failure to write, as the operating system reports it, into an error line for the user.

    Args:
        error: What was raised.
        directory: Where it was written; the error's own file name if None.

    Returns:
        The error to raise instead, or None if ``error`` is of another kind.
    """
    reason = _UNWRITABLE.get(error.errno or 0)
    place = directory or error.filename or "the output directory"
    if reason is None:
        return None
    return UserError(f"{place}: cannot be written: {reason}. Choose another place with run=DIRECTORY.")


def lies_in(folder: Path, name: object) -> bool:
    """Whether a name from an untrusted file is a plain file name in a folder, and not a link out of it.

    Args:
        folder: where the file should be.
        name: the stated name; any value.

    Example:
        >>> [lies_in(Path("bundle"), name) for name in ("model.onnx", "../model.onnx", "/model.onnx", "", 3)]
        [True, False, False, False, False]
    """
    if not isinstance(name, str) or name in ("", ".", "..") or "\0" in name or Path(name).name != name:
        return False
    try:
        return os.path.dirname(os.path.realpath(folder / name)) == os.path.realpath(folder)
    except (OSError, ValueError):  # a name that no file may have
        return False


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path in the same directory, and rename it to ``path`` once the block has succeeded.

    A reader never sees an incomplete file: it finds the old one, the new one, or none. The directory is created.

    Args:
        path: The file (or directory) to write.

    Yields:
        A path with the same suffix that does not exist yet.

    Raises:
        UserError: the directory is read-only, full, or cannot be created.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with atomic_path(Path(folder, "a.txt")) as temporary:
        ...         _ = temporary.write_text("whole")
        ...     Path(folder, "a.txt").read_text()
        'whole'
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        temporary.unlink()
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        elsewhere = error.filename is not None and not str(error.filename).startswith(str(path.parent))
        refused = None if elsewhere else unwritable(error, path.parent)
        if refused is None:
            raise
        raise refused from error
    finally:
        if temporary is not None:
            _remove(temporary)


def remove_leftovers(folder: Path, before: float, recursive: bool = True) -> None:
    """Delete what ``atomic_path`` left in a directory when its process was killed.

    Args:
        folder: where it wrote; may be absent.
        before: newer files are kept, since a running process may be writing them; seconds since the epoch.
        recursive: look into the folders in it, too.
    """
    for path in [*(folder.rglob(".*") if recursive else folder.glob(".*"))]:
        with suppress(OSError):
            if _TEMPORARY.fullmatch(path.name) and path.lstat().st_mtime < before:
                _remove(path)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold an exclusive lock on a folder among the processes of this machine, if the file system supports that.

    The lock ends with the block, or with the process.

    Args:
        folder: an existing directory.
    """
    handle = os.open(folder, os.O_RDONLY) if fcntl is not None else None
    try:
        if handle is not None:
            with suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _remove(path: Path) -> None:
    """Delete a file or directory if it exists."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        path.unlink()
