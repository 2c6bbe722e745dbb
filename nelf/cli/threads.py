"""How idle OpenMP threads of a command wait for work."""

from __future__ import annotations

import os

__all__ = ["let_idle_threads_sleep"]


def let_idle_threads_sleep() -> None:
    """Let idle OpenMP threads sleep after some microseconds of spinning.

    By default, GNU's OpenMP library, which PyTorch ships and Numba uses too, lets them spin for milliseconds. That is
    fastest on idle cores, but if other programs compute on the same cores, spinning takes the cores from threads that
    have work, and a training step takes several times as long. So commands, which may run beside others, call this;
    importing nelf changes nothing.

    The library reads the environment once, when PyTorch is loaded, so call this before. Variables that are already set
    are kept, and child processes inherit them.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
