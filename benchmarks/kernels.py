"""Time the kernels of each backend side by side, and write a table and JSON.

    python benchmarks/kernels.py [--repeats 7] [--out PATH]

Backends and thread counts alternate within each round, so that a busy machine slows all of them alike: compare
ratios, not milliseconds. ``reference`` is the fastest plain PyTorch (embedding gather, dense scatter).
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from _machine import RESULTS, write  # before torch, since it says how idle threads wait

# isort: split
import torch
from rich.console import Console
from rich.table import Table

from nelf.kernels import HashGrid, composite, hash_encode, march

POINTS = 32_768
RAYS = 4_096


def hash_grid() -> Callable[[], None]:
    """Forward and backward, 16 levels of 2^19 entries and 2 features."""
    grid = HashGrid(levels=16, features=2, log2_table=19, base_resolution=16, per_level_scale=64 ** (1 / 15))
    positions, table = torch.rand(POINTS, 3), torch.randn(grid.entries, grid.features, requires_grad=True)
    grad = torch.randn(POINTS, grid.levels * grid.features)

    def run() -> None:
        table.grad = None
        hash_encode(positions, table, grid).backward(grad)

    return run


def marching() -> Callable[[], None]:
    """Rays through a 128^3 grid, a twentieth of it occupied (a ball's shell)."""
    axis = torch.linspace(-1, 1, 128)
    radius = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).norm(dim=0)
    occupied = ((radius > 0.75) & (radius < 0.8))[None]
    origins = torch.nn.functional.normalize(torch.randn(RAYS, 3), dim=-1) * 1.5
    directions = torch.nn.functional.normalize(torch.randn(RAYS, 3) * 0.2 - origins, dim=-1)
    near, far = torch.full((RAYS,), 0.6), torch.full((RAYS,), 2.4)

    def run() -> None:
        march(origins, directions, near, far, occupied, step=3**0.5 / 1024)

    return run


def compositing() -> Callable[[], None]:
    """Forward and backward over 8 samples a ray."""
    rays = torch.arange(RAYS).repeat_interleave(POINTS // RAYS)
    starts = torch.arange(POINTS // RAYS).repeat(RAYS) * 0.1
    sigma, rgb = torch.rand(POINTS, requires_grad=True), torch.rand(POINTS, 3, requires_grad=True)

    def run() -> None:
        out = composite(sigma, rgb, starts, starts + 0.1, rays, RAYS)
        (out.rgb.sum() + out.opacity.sum()).backward()

    return run


def main() -> None:
    """Run all kernels on all backends and thread counts, in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS / "kernels.json")
    options = parser.parse_args()

    threads = sorted({1, torch.get_num_threads()})
    kernels = {"hash grid": hash_grid(), "march": marching(), "composite": compositing()}
    items = {"hash grid": POINTS, "march": RAYS, "composite": POINTS}
    seconds: dict[tuple[str, str, int], list[float]] = {}
    for repeat in range(options.repeats + 1):
        for name, run in kernels.items():
            for backend in ("reference", "cpu"):
                for count in threads:
                    os.environ["NELF_KERNELS"] = backend
                    torch.set_num_threads(count)
                    start = time.perf_counter()
                    run()
                    if repeat:  # the first round compiles
                        seconds.setdefault((name, backend, count), []).append(time.perf_counter() - start)

    rows = []
    for (name, backend, count), times in seconds.items():
        reference = statistics.median(seconds[name, "reference", count])
        median = statistics.median(times)
        rows.append(
            {
                "kernel": name,
                "backend": backend,
                "threads": count,
                "ms": round(median * 1e3, 2),
                "millions_per_second": round(items[name] / median / 1e6, 3),
                "times_reference": round(reference / median, 1),
            }
        )
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console().print(table)
    write(options.out, rows=rows)


if __name__ == "__main__":
    main()
