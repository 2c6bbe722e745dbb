"""Peak memory of each stage of a run; a table and JSON.

    python benchmarks/memory.py runs/lego_cpu [--out PATH]

Every stage records its own peak of main memory on Linux, where the peak can be reset. The memory that a model takes to
be opened and to render a view is in the report.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from _machine import RESULTS, write
from rich.console import Console
from rich.table import Table


def stages(run: Path) -> list[dict[str, Any]]:
    """The finished stages in the order in which they ended: seconds and peak megabytes."""
    rows = []
    for mark in sorted(run.glob("*/done.json"), key=lambda path: path.stat().st_mtime):
        path = mark.with_name("metrics.json")
        told = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        peak, seconds = told.get("peak_memory_bytes"), told.get("seconds")
        rows.append(
            {
                "stage": mark.parent.name,
                "seconds": None if seconds is None else round(seconds, 1),
                "peak MB": None if peak is None else round(peak / 1e6, 1),
            }
        )
    return rows


def models(run: Path) -> list[dict[str, Any]]:
    """Memory of the report's models; empty without a report."""
    path = run / "report.json"
    report = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"rows": []}
    return [{"model": row["name"], "MB": round(row["memory_mb"], 1)} for row in report["rows"] if "memory_mb" in row]


def main() -> None:
    """Read, show, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS / "memory.json")
    options = parser.parse_args()
    found = {"stages": stages(options.run), "models": models(options.run)}
    if not found["stages"]:
        raise SystemExit(f"{options.run}: no stage is finished there.")
    for rows in filter(None, found.values()):
        table = Table(*rows[0], title=str(options.run))
        for row in rows:
            table.add_row(*("" if value is None else str(value) for value in row.values()))
        Console(width=100).print(table)
    write(options.out, run=options.run.name, **found)


if __name__ == "__main__":
    main()
