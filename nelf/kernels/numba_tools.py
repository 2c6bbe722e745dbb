"""Numba as this library uses it: decorators, threads, arrays, and a cache directory that can be written.

Whoever compiles imports ``njit`` and ``prange`` from here, so that the cache is set up before.
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
    """Say that the first compilation is one: it takes some seconds that no later run takes."""

    def on_start(self, event: event.Event) -> None:
        log.warning("Compiling the CPU kernels, once for this machine; later runs read them from disk.")
        numba.core.event.unregister("numba:compile", self)

    def on_end(self, event: event.Event) -> None:
        """Nothing to say at the end."""


def _use_writable_cache() -> None:
    """Give Numba a cache directory where neither the package's nor the user's own can be written."""
    candidates = [Path(__file__).parent / "__pycache__", Path.home() / ".cache"]
    if "NUMBA_CACHE_DIR" not in os.environ and not any(
        os.access(path if path.exists() else path.parent, os.W_OK) for path in candidates
    ):
        # What lies in it is run.
        numba.config.CACHE_DIR = str(own_temporary_folder("nelf_numba"))  # type: ignore[attr-defined]


_use_writable_cache()
event.register("numba:compile", _SayOnce())
jit = njit(parallel=True, fastmath={"contract", "nsz", "arcp", "reassoc"}, cache=True, nogil=True)
inline = njit(inline="always")
helper = njit(fastmath=True, nogil=True)


@njit
def in_turns(part, parts, number):  # type: ignore[no-untyped-def]
    """Indices below ``number`` for one of ``parts`` threads: 64 of them, then those after the other threads' 64.

    ``prange`` alone gives each thread one contiguous share, and the upper half of a picture is mostly empty.
    """
    for first in range(64 * part, number, 64 * parts):
        for n in range(first, min(first + 64, number)):  # noqa: UP028 (Numba has no `yield from`)
            yield n


def threads() -> int:
    """Follow torch's thread count, so that one setting rules both."""
    threads: int = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
    numba.set_num_threads(threads)
    return threads


def array(tensor: Tensor, dtype: torch.dtype = torch.float32) -> np.ndarray:
    """A tensor as a contiguous array, without a copy where it is one already."""
    return tensor.detach().to(dtype).contiguous().numpy()
