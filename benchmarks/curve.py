"""Seconds of training until a run reached a given PSNR, from its CSV logs; writes a table and JSON.

    python benchmarks/curve.py runs/lego_cpu [--stages teacher student] [--decibels 20 25 28 30] [--out PATH]

Training PSNR is that of a batch, so the median of the last five entries is used; validation PSNR is used as logged. The
time of a step is the whole training's, validation included, divided by the number of steps, which assumes that all
steps take equally long.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _machine import RESULTS, write
from rich.console import Console
from rich.table import Table

#: Number of logged training PSNR values in the median.
NEIGHBORS = 5


def curve(stage: Path) -> dict[str, list[tuple[int, float]]]:
    """Points (step, dB) of a training for ``train`` and ``val``; several logs are joined in order."""
    found: dict[str, dict[int, float]] = {"train": {}, "val": {}}
    for path in sorted(stage.glob("logs/version_*/metrics.csv"), key=lambda path: int(path.parent.name.split("_")[1])):
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                for kind, points in found.items():
                    if row.get(f"{kind}/psnr"):
                        points[int(row["step"])] = float(row[f"{kind}/psnr"])
    return {kind: sorted(points.items()) for kind, points in found.items()}


def smoothed(points: Sequence[tuple[int, float]], neighbors: int = NEIGHBORS) -> list[tuple[int, float]]:
    """The median of each entry and the ``neighbors`` - 1 before it."""
    return [
        (step, statistics.median(value for _, value in points[max(0, index + 1 - neighbors) : index + 1]))
        for index, (step, _) in enumerate(points)
    ]


def reached(points: Sequence[tuple[int, float]], decibels: float) -> int | None:
    """The first step at which a curve reaches ``decibels``; None if it never does."""
    return next((step for step, value in points if value >= decibels), None)


def main() -> None:
    """Read, show, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--stages", nargs="+", default=["teacher", "student"])
    parser.add_argument("--decibels", type=float, nargs="+", default=[20, 22, 24, 26, 28, 30, 32, 34])
    parser.add_argument("--out", type=Path, default=RESULTS / "curve.json")
    options = parser.parse_args()

    rows: list[dict[str, Any]] = []
    curves: dict[str, Any] = {}
    for name in options.stages:
        stage = options.run / name
        if not (stage / "metrics.json").is_file():
            raise SystemExit(f"{stage}: has no metrics.json; the stage has to be done.")
        about = json.loads((stage / "metrics.json").read_text(encoding="utf-8"))
        per_step = about["seconds"] / about["steps"]
        curves[name] = curve(stage)
        for kind, points in curves[name].items():
            if len(points) < 2:  # one validation at the end is not a curve
                continue
            shown = smoothed(points) if kind == "train" else points
            for decibels in options.decibels:
                step = reached(shown, decibels)
                # Steps count from 0; after step n, n + 1 have been taken.
                took = None if step is None else round((step + 1) * per_step, 1)
                rows.append({"stage": name, "PSNR of": kind, "dB": decibels, "step": step, "seconds": took})
    if not rows:
        raise SystemExit(f"{options.run}: its logs have fewer than two entries; see trainer.log_every_n_steps.")
    table = Table(*rows[0], title=str(options.run))
    for row in rows:
        table.add_row(*("never" if value is None else str(value) for value in row.values()))
    Console(width=100).print(table)
    write(options.out, run=options.run.name, rows=rows, curves=curves)


if __name__ == "__main__":
    main()
