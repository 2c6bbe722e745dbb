"""The cases of a format, in processes of their own: one that ends is started again behind its case."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence


def run_cases(name: str, first: int, count: int, *options: str) -> tuple[Counter[str], dict[str, list[int]]]:
    """Run cases of a format.

    Args:
        name: of the format, or ``commands``.
        first: the number of the first case.
        count: how many.
        options: further words for ``python -m tests.fuzz``.

    Returns:
        How many were read, refused, or are findings; and the numbers of the cases by what was found.
    """
    told: Counter[str] = Counter()
    found: dict[str, list[int]] = {}
    end = first + count
    while first < end:
        last, code, reason = _process([name, "--first", str(first), "--count", str(end - first), *options], told, found)
        if last is None and code:
            raise RuntimeError(f"{name}: no case could be run: {reason}")
        if last is None:
            break
        told["finding"] += 1
        found.setdefault(f"the process ended with {code}: {reason}", []).append(last)
        first = last + 1
    return told, found


def _process(words: Sequence[str], told: Counter[str], found: dict[str, list[int]]) -> tuple[int | None, int, str]:
    """Run one process; return the case that it ended in, its exit status, and the last line of its errors."""
    last = None
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}  # a process with OpenMP's threads must not be forked
    with tempfile.TemporaryFile("w+") as log:
        command = [sys.executable, "-m", "tests.fuzz", *words, "--one"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=alone) as process:
            assert process.stdout is not None
            for line in process.stdout:
                number, kind, *rest = json.loads(line)
                last = number if kind == "begun" else None
                if kind != "begun":
                    told[kind] += 1
                if kind == "finding":
                    found.setdefault(rest[0], []).append(number)
                    print(f"  {number}: {rest[0]}", file=sys.stderr, flush=True)
        log.seek(0)
        reasons = [line for line in log.read().splitlines() if line.strip()]
    return last, process.returncode, reasons[-1][:120] if reasons else "no error was written"
