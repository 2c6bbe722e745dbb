"""Scaling of distributed training: steps a second of one process and of several; a table and JSON.

    python benchmarks/ddp.py [--model ngp_small] [--processes 2] [--steps 60] [--width 64] [--set KEY=VALUE ...]
        [--out PATH]

Each process takes its own rays at every step, so perfect scaling is the same number of steps a second as one process.
``--set trainer=ddp`` uses one GPU for each process; otherwise processes share the cores and communicate by gloo: each
process, a single one as well, has ``--threads`` threads, and the machine should have a core for each thread. The cost
of starting, mostly compilation, cancels: the time is the difference between a long and a short training.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from _machine import RESULTS, write
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
#: A fixed number of rays at each step, independent of the samples on them, so that both do equal work.
ALONE = ["trainer=cpu", "system.samples_per_step=null", "system.batch_size=1024"]


def trained(words: list[str], run: Path, processes: int, steps: int, threads: int) -> float:
    """Seconds of a training, as reported in its metrics.json."""
    command = [sys.executable, str(ROOT / "train.py"), *words, f"trainer.devices={processes}", f"run={run}"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [*command, f"trainer.max_steps={steps}", "trainer.limit_val_batches=0"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode:
        raise SystemExit(ended.stderr.strip() or f"train.py ended with {ended.returncode}")
    return float(json.loads((run / "metrics.json").read_text(encoding="utf-8"))["train_seconds"])


def main() -> None:
    """Train with one process and with several, two lengths each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ngp_small")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--width", type=int, default=64, help="of the built-in scene")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--set", nargs="*", default=ALONE, metavar="KEY=VALUE", help="more overrides of train.py")
    parser.add_argument("--out", type=Path, default=RESULTS / "ddp.json")
    options = parser.parse_args()

    words = ["data=demo", f"data.width={options.width}", f"model={options.model}", *options.set]
    rows = []
    with TemporaryDirectory() as folder:
        for count in (1, options.processes):
            lengths = (max(1, options.steps // 3), options.steps + max(1, options.steps // 3))
            short, long = (
                trained(words, Path(folder) / f"{count}_{length}", count, length, options.threads) for length in lengths
            )
            taken = max(long - short, 1e-9)
            rows.append({"processes": count, "steps/s": round(options.steps / taken, 3)})
    one = rows[0]["steps/s"]
    for row in rows:
        row["efficiency, %"] = round(100 * row["steps/s"] / one, 1)
    table = Table(*rows[0], title=f"{options.model}, {options.steps} steps, {options.threads} threads a process")
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(width=100).print(table)
    settings = {key: getattr(options, key) for key in ("model", "steps", "width", "threads", "set")}
    write(options.out, settings=settings, rows=rows)


if __name__ == "__main__":
    main()
