"""Read damaged files, and run wrong commands: ``python -m tests.fuzz FORMAT ... [--count N] [--first N]``.

Each format has a process of its own, which is started again behind a case that ends it. What is found is printed by
kind, with the number of a case; ``--first N --count 1 --keep FOLDER`` leaves its files there.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tests.fuzz.processes import run_cases

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
    words = ["--keep", str(options.keep)] if options.keep else []
    told, found = run_cases(name, options.first, options.count, *words)
    print(f"{name}: {dict(told)}", flush=True)
    for kind, numbers in sorted(found.items(), key=lambda item: -len(item[1])):
        print(f"  {len(numbers):5d}  {kind}  (cases {', '.join(map(str, numbers[:4]))})", flush=True)


if __name__ == "__main__":
    main()
