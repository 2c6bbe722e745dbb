"""How the idle threads of a command wait for work."""

from __future__ import annotations

import os

__all__ = ["let_idle_threads_sleep"]


def let_idle_threads_sleep() -> None:
    """Let OpenMP's idle threads sleep after some microseconds of spinning.

    GNU's library, which comes with PyTorch and serves Numba too, else lets them spin for milliseconds. Where other
    programs compute on the same cores, that takes the cores from those who have work, and a training step several times
    as long; on cores of one's own it saves waking them. So a command, which may run beside others, is careful, and
    whoever imports nelf has what the environment says.

    The library reads the environment once, when it is loaded with PyTorch: call this before. What stands in the
    environment already holds, and processes that are started inherit it.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
