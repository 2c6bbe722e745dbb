"""Numba as this library uses it: decorators, threads, arrays, and a writable cache directory.

Modules with kernels import ``njit`` and ``prange`` from here, so that the cache directory is set first.
"""

import logging
import os
from pathlib import Path

import numba
import numpy as np
import torch
from numba import njit, prange
from numba.core import event
from torch import Tensor

from nelf.files import own_temporary_folder

__all__ = ["array", "helper", "in_turns", "inline", "jit", "njit", "prange", "threads"]

log = logging.getLogger(__name__)


class _SayOnce(event.Listener):
    """Log the first compilation, which takes some seconds, once."""

    def on_start(self, event: event.Event) -> None:
        log.warning("Compiling the CPU kernels, once on this machine; later runs load them from disk.")
        numba.core.event.unregister("numba:compile", self)

    def on_end(self, event: event.Event) -> None:
        """Log nothing at the end."""


def _use_writable_cache() -> None:
    """Give Numba a temporary cache directory if neither the package's nor the user's own is writable."""
    candidates = [Path(__file__).parent / "__pycache__", Path.home() / ".cache"]
    if "NUMBA_CACHE_DIR" not in os.environ and not any(
        os.access(path if path.exists() else path.parent, os.W_OK) for path in candidates
    ):
        # Numba executes the code in it, so nobody else may be able to write there.
        numba.config.CACHE_DIR = str(own_temporary_folder("nelf_numba"))  # type: ignore[attr-defined]


_use_writable_cache()
event.register("numba:compile", _SayOnce())
jit = njit(parallel=True, fastmath={"contract", "nsz", "arcp", "reassoc"}, cache=True, nogil=True)
inline = njit(inline="always")
helper = njit(fastmath=True, nogil=True)


@njit
def in_turns(part, parts, number):  # type: ignore[no-untyped-def]
    """Indices below ``number`` for thread ``part`` of ``parts``: blocks of 64, dealt out to the threads in turn.

    ``prange`` alone gives each thread one contiguous range, an unequal load where parts of an image are empty.
    """
    for first in range(64 * part, number, 64 * parts):
        for n in range(first, min(first + 64, number)):  # noqa: UP028 (Numba has no `yield from`)
            yield n


def threads() -> int:
    """Set Numba's number of threads to torch's, as far as Numba has them, and return it."""
    threads: int = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
    numba.set_num_threads(threads)
    return threads


def array(tensor: Tensor, dtype: torch.dtype = torch.float32) -> np.ndarray:
    """A tensor as a contiguous array, copied only if it is not one already."""
    return tensor.detach().to(dtype).contiguous().numpy()
