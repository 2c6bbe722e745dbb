"""Command lines with a wrong word in them, each run in a forked process that is bounded in time and memory.

What is refused has to be refused in one line with exit code 2, soon, and before anything is written. What is not is
run, a chain with two steps of training a stage.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.words import BASES, Command, drawn

__all__ = ["CommandFuzzer"]

#: Seconds of processor time that a refusal, and a run of two steps, may take; bytes beyond those of this process.
SECONDS, LONGEST, MEMORY = 3.0, 60, 2 * 10**9
_WAIT = 900.0  # seconds of a clock, on a machine that others use, too
_LINE = 1500  # letters
_OK, _REFUSED = 0, 2
_TRACEBACK = "Traceback (most recent call last)"


class CommandFuzzer:
    """Scenes, models and checkpoints that commands name, and a folder to run commands in.

    Args:
        name: of the format, for ``Fuzzer``'s sake.
        keep: a folder that gets what the last case said.
    """

    def __init__(self, name: str = "commands", keep: Path | None = None) -> None:
        from tests.fuzz.formats import FORMATS

        self._keep = keep
        self.root = Path(tempfile.mkdtemp(prefix="fuzz_"))
        self.places: dict[str, str] = {}
        for each in (
            "blender",
            "dnerf",
            "capture",
            "llff",
            "colmap_text",
            "shards",
            "weights",
            "checkpoints",
            "bundle",
        ):
            folder = self.root / each
            folder.mkdir()
            FORMATS[each].make(folder)
            self.places[each.upper()] = str(folder)
        _import_all()

    def __enter__(self) -> CommandFuzzer:
        return self

    def __exit__(self, *error: object) -> None:
        shutil.rmtree(self.root, ignore_errors=True)

    def case(self, number: int) -> tuple[str, str]:
        """Run a command.

        Args:
            number: of the case; the first ones are the good commands, unchanged.

        Returns:
            ``read``, ``refused`` or ``finding``, and what was said.
        """
        good = number < len(BASES)
        command = BASES[number] if good else drawn(Random(f"commands {number}"), number)
        return self.judged(command, good)

    def judged(self, command: Command, good: bool = False) -> tuple[str, str]:
        """Run a command, and judge how it ends; a good one has to be obeyed."""
        here = Path(tempfile.mkdtemp(dir=self.root))
        words = [
            re.sub(r"[A-Z_]{4,}", lambda match: self.places.get(match[0], match[0]), word) for word in command.words
        ]
        begin = time.monotonic()
        status, seconds = _forked(command.program, words, here)
        said = (here / "stderr").read_text(errors="replace")
        if self._keep:
            self._keep.mkdir(parents=True, exist_ok=True)
            (self._keep / "said.txt").write_text(f"{command.program} {words}\n{status}\n{said}")
        written = sorted(path.name for path in here.iterdir() if path.name not in ("stderr", "stdout"))
        lines = [line for line in said.splitlines() if line.strip()]
        last = (lines[-1] if lines else "").replace(str(self.root), "")
        shown = f"{command.changed}: {last[:160]}"
        shutil.rmtree(here, ignore_errors=True)
        wrong = _wrong(status, seconds, said, last)
        if wrong is None and good and status != _OK:
            wrong = "a good command is not obeyed"
        if wrong is None and status == _REFUSED and written and not command.late:
            wrong = f"refused when {', '.join(written[:3])} had been written"
        if wrong is None and status == _OK and command.hopeless:
            wrong = "obeyed"
        if wrong is not None:
            return "finding", f"{wrong}: {shown} [{time.monotonic() - begin:.0f} s]"
        return ("refused" if status else "read"), shown


def _wrong(status: int, seconds: float, said: str, last: str) -> str | None:
    """What is wrong with how a command has ended."""
    if _TRACEBACK in said:
        frames = [line.strip() for line in said.splitlines() if line.startswith("  File") and "/nelf/" in line]
        return f"traceback at {re.sub('File .*/nelf/', '', frames[-1]) if frames else 'another place'}"
    if status == -signal.SIGXCPU:
        return f"did not end in {LONGEST} s"
    if status not in (_OK, _REFUSED):
        return f"ended with {status}"
    if status == _REFUSED and seconds > SECONDS:
        return f"refused after {seconds:.1f} s"
    quoted = ": error: " in last  # of Python's own parser, which quotes a word whole
    if status == _REFUSED and not (last and last.isprintable() and (len(last) <= _LINE or quoted)):
        return "refused in no single printable line"
    return None


def _import_all() -> None:
    """Load what commands load, once for all of them."""
    import onnx  # noqa: F401
    import onnxruntime  # noqa: F401
    import torch

    import nelf.cli.command
    import nelf.export.loading
    import nelf.interop.recognize
    import nelf.pipeline.fit
    import nelf.pipeline.stages
    import nelf.render.command
    import nelf.report.page
    import nelf.viewer.server

    torch.set_num_threads(1)
    for path in (Path(nelf.pipeline.stages.__file__ or "").parent).glob("[a-z]*.py"):
        __import__(f"nelf.pipeline.stages.{path.stem}")


def _forked(program: str, words: list[str], here: Path) -> tuple[int, float]:
    """Run a program in a copy of this process; its exit status, and the processor time that it took, s."""
    child = os.fork()
    if child == 0:
        try:
            code = _child(program, words, here)
        except BaseException:  # of the fuzzer itself
            traceback.print_exc()
            code = 70
        os._exit(code)
    end = time.monotonic() + _WAIT
    while True:
        done, status, used = os.wait4(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.02)


def _child(program: str, words: list[str], here: Path) -> int:
    """Bound this process, and run a program in it as its script would."""
    os.chdir(here)
    for name, number in (("stdout", 1), ("stderr", 2)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, errors="backslashreplace") for number in (1, 2))  # noqa: SIM115
    resource.setrlimit(resource.RLIMIT_CPU, (LONGEST, LONGEST + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, resource.RLIM_INFINITY))
    code: Any = 0
    with _small_runs():
        try:
            _program(program)(words)
        except SystemExit as leaving:
            code = leaving.code
        except BaseException:
            traceback.print_exc()
            code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code if isinstance(code, int) else 0 if code is None else 1


def _program(name: str) -> Callable[[list[str]], Any]:
    """What a command runs."""
    from nelf.interop.__main__ import main as interop
    from nelf.render.command import main as render
    from nelf.viewer.server import main as viewer

    return {"render": render, "viewer": viewer, "interop": interop}.get(name) or (lambda words: _script(name, words))


def _script(name: str, words: list[str]) -> None:
    """One of the two scripts, as ``runpy`` would run it."""
    from importlib import import_module

    from nelf import cli

    sys.argv = [f"{name}.py", *words]
    cli.main(name, getattr(import_module(name), name))


@contextlib.contextmanager
def _small_runs() -> Iterator[None]:
    """What has been checked is trained for two steps, and served to nobody."""
    from nelf import cli
    from nelf.viewer.server import Server

    start = cli.start

    def started(cfg: Any) -> Any:
        run = start(cfg)
        _shrink(run.recipe.config)
        return run

    cli.start = started
    Server.serve_forever = lambda self, *_: None  # type: ignore[assignment, method-assign]
    yield


#: Settings that say how long something takes, and how much of it is enough here.
_ENOUGH = {
    "max_steps": 2,
    "qat_steps": 1,
    "views": 2,
    "pool": 2,
    "frames": 2,
    "rounds": 2,
    "calibration_views": 2,
    "limit_val_batches": 1,
}
_CLOCKS = ("max_time", "qat_time")


def _shrink(node: Any) -> None:
    """Make a checked configuration one of little work; what is less already stays."""
    for key, value in list(node.items()) if isinstance(node, dict) else []:
        if key in _CLOCKS:
            node[key] = None
        elif key in _ENOUGH and isinstance(value, int) and not isinstance(value, bool):
            node[key] = min(value, _ENOUGH[key]) if value >= 0 else _ENOUGH[key]
        elif key == "max_steps":
            node[key] = _ENOUGH[key]
        _shrink(value)
