"""Errors as the scripts report them: one line for those that the user can fix."""

from __future__ import annotations

import os
import re
import sys
from typing import NoReturn

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from nelf.cli.sweeps import launcher_line
from nelf.errors import UserError, unwritable
from nelf.pipeline.memory import memory_line

__all__ = ["fail", "first_line", "line_of"]


def line_of(error: BaseException, run: str | None = None) -> str | None:
    """The line that tells the user about an error in this run directory; None if the user cannot fix it."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, HydraException | OmegaConfBaseException):
        return first_line(error)
    if line := memory_line(error) or launcher_line(error):
        return line
    # A missing or obstructing file that was not checked before is a bug; a full or read-only disk is not.
    place_is_wrong = isinstance(error, FileNotFoundError | FileExistsError | NotADirectoryError)
    refused = unwritable(error, error.filename or run) if isinstance(error, OSError) and not place_is_wrong else None
    return None if refused is None else str(refused)


def first_line(error: BaseException) -> str:
    """An error's message up to its first empty line, in one line."""
    return " ".join(re.split(r"\n\n|\nSee ", str(error))[0].split())


def fail(error: BaseException, run: str | None = None) -> NoReturn:
    """Print an error's line and exit, or raise the error itself if it has none."""
    if isinstance(error, BrokenPipeError):  # the reader of the output has gone, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains when it flushes
        sys.exit(1)
    line = line_of(error, run)
    if line is None:
        raise error
    print(line, file=sys.stderr, flush=True)
    sys.exit(2)
