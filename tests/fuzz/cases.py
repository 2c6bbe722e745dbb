"""One case: an example with a damaged file is read, and what comes of it is judged."""

from __future__ import annotations

import contextlib
import io
import os
import random
import resource
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from PIL import Image

from nelf.errors import UserError
from tests.fuzz.formats import FORMATS, each
from tests.fuzz.mutations import mutate

MEMORY, SECONDS, ENDLESS, LONGEST = 10**9, 5.0, 300, 1500


def limit_memory() -> None:
    """Let this process have ``MEMORY`` more bytes than it has."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 4 * MEMORY, resource.RLIM_INFINITY))


def _endless(number: int, frame: object) -> None:
    """Of the alarm: what waits, such as for a pipe that nobody writes into, is a finding."""
    raise TimeoutError(f"did not end in {ENDLESS} s")


class Fuzzer:
    """A folder with an example of a format.

    Args:
        name: one of ``FORMATS``.
        keep: a folder that the damaged example is copied to.
    """

    def __init__(self, name: str, keep: Path | None = None) -> None:
        self.name, self.format, self._keep = name, FORMATS[name], keep
        self.root = Path(tempfile.mkdtemp(prefix="fuzz_")) / "example"
        self.root.mkdir()
        with quiet():
            self.format.make(self.root)
        files = [path for path in sorted(self.root.rglob("*")) if path.is_file()]
        self._content = {path: path.read_bytes() for path in files}
        self.files = sorted(
            {path for pattern in self.format.files for path in self.root.rglob(pattern) if path.is_file()}
        )
        with quiet():
            self._read_all(self.files)
        self._restore()

    def __enter__(self) -> Fuzzer:
        return self

    def __exit__(self, *error: object) -> None:
        shutil.rmtree(self.root.parent, ignore_errors=True)

    def case(self, number: int) -> tuple[str, str]:
        """Damage and read the example.

        Args:
            number: of the case; the same one does the same.

        Returns:
            ``read``, ``refused`` or ``finding``, and what was said.
        """
        draw = random.Random(f"{self.name} {number}")
        damaged = draw.sample(self.files, min(len(self.files), draw.choice([1, 1, 1, 2])))
        for path in damaged:
            self._damage(draw, path)
        if self._keep:
            shutil.copytree(self.root, self._keep, dirs_exist_ok=True)
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        begin = time.process_time()
        before = signal.signal(signal.SIGALRM, _endless)
        signal.alarm(ENDLESS)
        with warnings.catch_warnings(record=True) as caught, quiet():
            warnings.simplefilter("always")
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # as nelf says when it is imported
            outcome = self._read(damaged)
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        seconds = time.process_time() - begin
        grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident)
        self._restore()
        if seconds > SECONDS:
            outcome = "finding", f"took {seconds:.0f} s ({outcome})"
        if grown > MEMORY:
            outcome = "finding", f"took {grown / 1e9:.1f} GB ({outcome[1][:80]})"
        for warning in caught:
            if warning.category is not UserWarning or "\n" in str(warning.message):
                where = f"{Path(warning.filename).name}:{warning.lineno}"
                outcome = "finding", f"{warning.category.__name__}: {str(warning.message)[:80]} at {where}"
        return outcome

    def _damage(self, draw: random.Random, path: Path) -> None:
        """Write a damaged file, or put something else in its place."""
        kind = draw.randrange(60)
        if kind < 4:
            path.unlink()
        if kind == 4:  # beside it, under a name that few files have
            name = draw.choice(["a\nb{}", "\udcff{}", " {}", ".{}", "\u202e{}", "'{}", "%s{}", "é" * 80 + "{}", "{}~"])
            path.with_name(name.format(path.name)).write_bytes(self._content[path])
        if kind == 1:
            path.mkdir()
        elif kind == 2:
            path.symlink_to(draw.choice(["/nowhere", path.name, "/dev/zero", "/etc/hostname", "..", "/proc/self/mem"]))
        elif kind == 3:
            os.mkfifo(path)
        elif kind not in (0, 4):
            path.write_bytes(mutate(draw, path.name, self._content[path]))

    def _read_all(self, files: Sequence[Path]) -> None:
        each(partial(self.format.read, path) for path in (files if self.format.alone else [self.root]))

    def _read(self, damaged: Sequence[Path]) -> tuple[str, str]:
        try:
            self._read_all(damaged)
        except UserError as error:
            text = str(error)
            if not text.isprintable():
                return "finding", "a message that is no single printable line"
            return ("finding", "a message that is too long") if len(text) > LONGEST else ("refused", text)
        except Exception as error:
            frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/nelf/" in frame.filename]
            where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno} {frames[-1].name}" if frames else "the check"
            return (
                "finding",
                f"{type(error).__name__} in {where}: {str(error).splitlines()[0][:80] if str(error) else ''}",
            )
        return "read", ""

    def _restore(self) -> None:
        for path in sorted(self.root.rglob("*"), reverse=True):
            if path not in self._content and (path.is_file() or path.is_symlink() or path.is_fifo()):
                path.unlink()
        for path, content in self._content.items():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.is_symlink() or path.is_fifo() or not path.exists():
                path.unlink(missing_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists() or path.read_bytes() != content:
                path.write_bytes(content)


@contextlib.contextmanager
def quiet():  # type: ignore[no-untyped-def]
    """Keep progress bars and lines off the terminal."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
