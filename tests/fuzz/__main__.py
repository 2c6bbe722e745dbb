"""Read damaged files, and run wrong commands: ``python -m tests.fuzz FORMAT ... [--count N] [--first N]``.

Each format has a process of its own, which is started again behind a case that ends it. What is found is printed by
kind, with the number of a case; ``--first N --count 1 --keep FOLDER`` leaves its files there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

COMMANDS = "commands"  # no files: what somebody types


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("formats", nargs="*", help="all, if none is named")
    parser.add_argument("--count", type=int, default=1000, help="cases of each format")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--keep", type=Path, help="a folder for the files of the last case")
    parser.add_argument("--one", action="store_true", help="in this process, a JSON line for each case")
    options = parser.parse_args()
    if options.one:
        _cases(options.formats[0], options)
        return
    for name in options.formats or _all_formats():
        _format(name, options)


def _all_formats() -> list[str]:
    from tests.fuzz.formats import FORMATS  # torch, for which the process that starts others need not wait

    return [*FORMATS, COMMANDS]


def _cases(name: str, options: argparse.Namespace) -> None:
    from tests.fuzz.cases import Fuzzer, limit_memory
    from tests.fuzz.commands import CommandFuzzer

    if name != COMMANDS:
        limit_memory()
    with (CommandFuzzer if name == COMMANDS else Fuzzer)(name, options.keep) as fuzzer:
        for number in range(options.first, options.first + options.count):
            print(json.dumps([number, "begun"]), flush=True)
            print(json.dumps([number, *fuzzer.case(number)]), flush=True)


def _format(name: str, options: argparse.Namespace) -> None:
    found: dict[str, list[int]] = {}
    told: Counter[str] = Counter()
    first, end = options.first, options.first + options.count
    while first < end:
        words = [name, "--one", "--first", str(first), "--count", str(end - first)]
        words += ["--keep", str(options.keep)] if options.keep else []
        last = None
        with tempfile.TemporaryFile("w+") as log:
            command = [sys.executable, "-m", "tests.fuzz", *words]
            alone = {**os.environ, "OMP_NUM_THREADS": "1"}  # a process with OpenMP's threads must not be forked
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
            error = log.read()
        if last is None:
            if process.returncode:
                print(error[-2000:])
            break
        told["finding"] += 1
        reason = next((line for line in reversed(error.splitlines()) if line.strip()), "")
        found.setdefault(f"the process ended with {process.returncode}: {reason[:120]}", []).append(last)
        first = last + 1
    print(f"{name}: {dict(told)}", flush=True)
    for kind, numbers in sorted(found.items(), key=lambda item: -len(item[1])):
        print(f"  {len(numbers):5d}  {kind}  (cases {', '.join(map(str, numbers[:4]))})", flush=True)


if __name__ == "__main__":
    main()
