"""Run a chain by the command that a user would type, and keep the figures of its report and the total time.

    python benchmarks/chain.py experiment=lego_cpu data.root=../data/lego [--out PATH]
    python benchmarks/chain.py --make-demo        # `make demo` in a fresh clone of this commit, including installation

The words are overrides of distill.py; the rows of a sweep's jobs follow one another. The run directory must not exist,
else finished stages in it would take no time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from _machine import RESULTS, write
from rich.console import Console
from rich.table import Table

import nelf
from nelf.cli.sweeps import first_job

ROOT = Path(__file__).parents[1]


def timed(command: Sequence[str], folder: Path | None = None) -> float:
    """Run a command in a folder; return its wall-clock time, s."""
    start = time.perf_counter()
    if code := subprocess.call(command, cwd=folder):
        raise SystemExit(code)
    return time.perf_counter() - start


def reports(run: Path) -> list[dict[str, Any]]:
    """The rows of a run's report, or of its sweep's jobs' reports with the overrides that differ between jobs."""
    jobs = sorted(path.parent for path in run.with_name(f"{run.name}_sweep").glob("*/report.json"))
    if not jobs and not (run / "report.json").is_file():
        raise SystemExit(f"{run}: has no report; stages has to hold report.")
    told = {job: yaml.safe_load((job / "overrides.yaml").read_text(encoding="utf-8")) for job in jobs}
    shared = set.intersection(*map(set, told.values())) if told else set()
    rows = []
    for folder in jobs or [run]:
        own = {"job": " ".join(text for text in told[folder] if text not in shared)} if jobs else {}
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        rows += [{**own, **row} for row in report["rows"]]
    return rows


def of_words(words: Sequence[str]) -> tuple[str, float, list[dict[str, Any]]]:
    """Run distill.py with these words; return the run's name, the seconds and the rows."""
    first = first_job(list(words))
    run = Path(nelf.config("distill", first).run)
    for folder in (run, run.with_name(f"{run.name}_sweep")):
        if folder.exists():
            raise SystemExit(f"{folder}: is there already; delete it, or pass run=ANOTHER.")
    several = ["--multirun"] if first != list(words) else []
    return run.name, timed([sys.executable, str(ROOT / "distill.py"), *several, *words]), reports(run)


def of_make_demo() -> tuple[str, float, list[dict[str, Any]]]:
    """Run ``make demo`` in a fresh clone; return the run's name, the seconds and the rows."""
    with TemporaryDirectory() as folder:
        clone = Path(folder) / "nelf"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        return "demo", timed(["make", "demo"], clone), reports(clone / "runs" / "demo")


def main() -> None:
    """Run, show, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--make-demo", action="store_true")
    parser.add_argument("--out", type=Path, help="the JSON file; default: results/RUN.json")
    options = parser.parse_args()
    if options.make_demo == bool(options.words):
        parser.error("give the words of a command, or --make-demo")

    name, seconds, rows = of_make_demo() if options.make_demo else of_words(options.words)
    titles = ["job"] if any("job" in row for row in rows) else []
    table = Table(
        *titles, "", "PSNR", "SSIM", "MB", "ms a view", "training, s", title=f"{name}: {seconds / 60:.1f} min"
    )
    for row in rows:
        training = row.get("train_seconds")
        table.add_row(
            *(row[key] for key in titles),
            *(row["name"], f"{row['psnr']:.2f}", f"{row['ssim']:.3f}", f"{row['bytes'] / 1e6:.2f}"),
            *(f"{row['latency_ms']:.1f}", f"{training:.0f}" if training else ""),
        )
    Console(width=140).print(table)
    write(options.out or RESULTS / f"{name}.json", seconds=round(seconds, 1), rows=rows)


if __name__ == "__main__":
    main()
