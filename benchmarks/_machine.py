"""The context of a figure: the machine, the versions and the command, without absolute paths."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nelf.cli.threads import let_idle_threads_sleep

let_idle_threads_sleep()  # as nelf's commands do, when PyTorch is not loaded yet

RESULTS = Path(__file__).parent / "results"

#: Instruction sets that determine how fast, and for int8 how accurately, a processor multiplies.
_SETS = (
    *("avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_bf16", "amx_int8", "asimd", "asimddp", "i8mm", "bf16", "sve"),
)
_PACKAGES = ("torch", "pytorch-lightning", "numpy", "numba", "onnxruntime")


def seconds(call: Callable[[], Any]) -> float:
    """Wall-clock time of a call, s."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def facts(command: Sequence[str] | None = None, names: Sequence[str] = ()) -> dict[str, Any]:
    """The machine, the date, the versions and the command.

    Args:
        command: the words of the command line; None: that of this process.
        names: words that are paths; only their last component is kept.

    Returns:
        Plain JSON: ``machine``, ``date``, ``versions``, ``command``.
    """
    words = ["python", *sys.argv] if command is None else list(command)
    return {
        "machine": machine(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(),
        "command": shlex.join(without_place(word, word in names) for word in words),
    }


def write(path: Path, **content: Any) -> None:
    """Write a benchmark's figures as JSON, with the machine, versions and command."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**facts(), **content}, indent=1) + "\n", encoding="utf-8")
    print(f"written to {path}")


def machine() -> dict[str, Any]:
    """The processor's model, its logical cores and instruction sets, and the operating system."""
    told = _cpuinfo()
    flags = set((told.get("flags") or told.get("Features") or "").split())
    return {
        "processor": told.get("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "instruction_sets": [name for name in _SETS if name in flags],
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    """The commit of this checkout, and the versions of Python and the main packages."""
    packages = {name: version(name) for name in _PACKAGES}
    return {"nelf": _commit(), "python": platform.python_version(), **packages}


def _cpuinfo() -> dict[str, str]:
    """The first processor in ``/proc/cpuinfo``; nothing on other systems."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _commit() -> str:
    """The commit, marked if files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]
    try:
        return subprocess.check_output(command, cwd=Path(__file__).parent, text=True, stderr=subprocess.DEVNULL).strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def without_place(word: str, name_only: bool = False) -> str:
    """A word of a command with an absolute path, or ``KEY=PATH``, reduced to the file's name."""
    key, equals, value = word.rpartition("=")
    path = Path(value)
    return f"{key}{equals}{path.name}" if name_only or path.is_absolute() else word
