"""The peak memory of a stage, and errors that mean too little of it."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

from nelf.files import reason_of

__all__ = ["lacks_memory", "memory_line", "peak_memory", "reset_peak_memory"]


def lacks_memory(error: BaseException) -> bool:
    """Whether something failed for lack of memory; some of PyTorch's errors say so only in their message.

    Example:
        >>> lacks_memory(MemoryError()), lacks_memory(RuntimeError("CUDA out of memory.")), lacks_memory(ValueError())
        (True, True, False)
    """
    words = ("allocate memory", "out of memory", "not enough memory")
    return isinstance(error, MemoryError) or any(each in str(error).lower() for each in words)


def memory_line(error: BaseException) -> str | None:
    """The line that tells the user that there was too little memory; None for any other error."""
    if not lacks_memory(error):
        return None
    reason = f" ({reason_of(error)})" if str(error) else ""
    return f"There is not enough memory here{reason}. Choose a smaller model, batch or image, or fewer views."


def peak_memory() -> int:
    """The peak resident memory of this process since ``reset_peak_memory`` (or its start), in bytes."""
    try:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak_memory() -> None:
    """Start a new measurement, so that each stage has its own peak; only on Linux."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return
