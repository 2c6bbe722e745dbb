"""Lightning without its banners, tips, and warnings about what is intended here."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["quiet_lightning"]

_LOGGERS = ("pytorch_lightning", "lightning.pytorch", "pytorch_lightning.utilities.rank_zero")

#: Warnings of Lightning about what is intended in this library.
_EXPECTED = (
    ".*does not have many workers which may be a bottleneck.*",  # a scene in memory needs no loader processes
    "Checkpoint directory .* exists and is not empty.*",  # a resumed run
    "GPU available but not used.*",  # trainer=cpu asks for it
    "You're resuming from a checkpoint that ended before the epoch ended.*",  # there are no epochs
    ".*`IterableDataset` has `__len__` defined.*",
    "The `srun` command is available on your system but is not used.*",  # processes are started without it, too
    ".*LeafSpec.*",  # Lightning's use of what torch deprecates
)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Suppress expected messages of Lightning, as a context manager or a decorator.

    The previous warning filters and log levels are restored afterwards.
    """
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for message in _EXPECTED:
            warnings.filterwarnings("ignore", message=message)
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
