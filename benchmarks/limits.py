"""Compare kernels and networks with the machine's peak rates; a table and JSON. ``limits.md`` derives the counts.

    python benchmarks/limits.py [--megabytes 512] [--size 2048] [--pixels 200] [--rounds 7] [--out PATH]

Everything runs on one thread and is timed in CPU seconds, which exclude other programs. The machine's peak rates are
measured in turns with the kernels: bytes by copying more than the caches hold, operations by multiplying matrices. The
lower bound on a kernel's time is the larger of its operations and its bytes at these rates; the share is this bound
divided by the measured time. For a GPU there is only the bound by its data sheet.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _machine import RESULTS, write  # before torch, since it says how idle threads wait

# isort: split
import torch
from kernels import POINTS, RAYS, compositing, hash_grid, marching
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nelf import paths
from nelf.cameras import Camera
from nelf.kernels import HashGrid, multiplies_bfloat16
from nelf.lightfields import R2L, GridR2L, LightField, MobileR2L

#: NVIDIA's data sheet of the H100 SXM: bytes/s, float32 operations/s outside the tensor cores, dense bfloat16.
H100 = {"bytes": 3.35e12, "float32": 67e12, "bfloat16": 989e12}
FLOAT = 4  # bytes


@dataclass(frozen=True)
class Work:
    """The cost of a call: operations (additions and multiplications, including integer ones), and bytes moved."""

    unit: str
    units: int
    operations: float
    bytes: float


def of_hash_grid(points: int, grid: HashGrid) -> Work:
    """Forward and table gradient, see ``limits.md``."""
    corners, features = 8, grid.features
    level = 9 + 3 + 2 * corners + 5 * corners  # position in the cell, weights, entries
    once = level + 2 * corners * features
    read = FLOAT * (3 + grid.levels * corners * features)
    forward = read + FLOAT * grid.levels * features
    backward = FLOAT * (3 + grid.levels * features + 2 * grid.levels * corners * features)
    cleared = FLOAT * grid.entries * features
    return Work("point", points, 2 * points * grid.levels * once, points * (forward + backward) + cleared)


def of_march(rays: int, looked_at: int, kept: int) -> Work:
    """Both passes: lattice points in occupied blocks, and the samples that are written."""
    return Work("ray", rays, 2 * 30 * looked_at, 2 * rays * 8 * FLOAT + 2 * 2 * looked_at + 16 * kept)


def of_composite(samples: int, rays: int) -> Work:
    """Forward and backward."""
    forward = samples * (6 * FLOAT + 8 + FLOAT) + rays * 5 * FLOAT
    backward = samples * (7 * FLOAT + 8 + 4 * FLOAT) + rays * 5 * FLOAT
    return Work("sample", samples, samples * (18 + 30), forward + backward)


def of_network(call: Callable[[], Tensor], network: nn.Module, pixels: int) -> Work:
    """Two operations for each multiply-add; bytes of the weights, and of each layer's input and output."""
    moved = [0.0]
    handles = [
        layer.register_forward_hook(
            lambda _, given, out: moved.__setitem__(0, moved[0] + FLOAT * (given[0].numel() + out.numel()))
        )
        for layer in network.modules()
        if isinstance(layer, nn.modules.conv._ConvNd | nn.Linear)
    ]
    with FlopCounterMode(display=False) as counter:
        call()
    for handle in handles:
        handle.remove()
    weights = FLOAT * sum(each.numel() for each in network.parameters())
    return Work("pixel", pixels**2, counter.get_total_flops(), moved[0] + weights)


def shell(step: float, near: float, far: float) -> tuple[int, int]:
    """Lattice points of ``kernels.marching``'s rays in occupied blocks, and in occupied cells."""
    from nelf.kernels import march

    torch.manual_seed(0)
    origins = nn.functional.normalize(torch.randn(RAYS, 3), dim=-1) * 1.5
    directions = nn.functional.normalize(torch.randn(RAYS, 3) * 0.2 - origins, dim=-1)
    axis = torch.linspace(-1, 1, 128)
    radius = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).norm(dim=0)
    occupied = ((radius > 0.75) & (radius < 0.8))[None]
    blocks = nn.functional.max_pool3d(occupied.float(), 8)
    coarse = nn.functional.interpolate(blocks[None], scale_factor=8)[0] > 0
    bounds = torch.full((RAYS,), near), torch.full((RAYS,), far)
    counts = [len(march(origins, directions, *bounds, each, step=step).ray_indices) for each in (coarse, occupied)]
    return counts[0], counts[1]


@torch.no_grad()
def networks(pixels: int) -> dict[str, tuple[Callable[[], Tensor], nn.Module]]:
    """Calls of the part of each network after the encoding of rays."""
    camera = Camera.from_fov(paths.orbit(1, 4.0, 20.0), 0.69, pixels, pixels)[0]
    made: dict[str, LightField] = {
        "GridR2L, decoder": GridR2L(resolution=32),
        "MobileR2L, small": MobileR2L(128, 8, activation="relu", sr_factor=4, upsampling="shuffle"),
        "R2L, width 64, depth 8": R2L(64, 8),
    }
    calls: dict[str, tuple[Callable[[], Tensor], nn.Module]] = {}
    for name, network in made.items():
        inputs = network.eval().encode(network.rays(camera)[None])
        calls[name] = (lambda network=network, inputs=inputs: network.decode(inputs)), network
    return calls


def main() -> None:
    """Measure the machine and the kernels in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=512, help="size of the copy; more than all caches hold")
    parser.add_argument("--size", type=int, default=2048, help="of the matrices")
    parser.add_argument("--pixels", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS / "limits.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["NELF_KERNELS"] = "cpu"

    source = torch.ones(options.megabytes * 250_000)
    target = torch.empty_like(source)
    kinds = [torch.float32, *([torch.bfloat16] if multiplies_bfloat16(torch.device("cpu")) else [])]
    matrices = {kind: torch.randn(options.size, options.size, dtype=kind) for kind in kinds}
    calls: dict[str, Callable[[], Any]] = {"copy": lambda: target.copy_(source)}
    calls |= {str(kind).split(".")[1]: (lambda each=each: each @ each) for kind, each in matrices.items()}
    grid = HashGrid(levels=16, features=2, log2_table=19, base_resolution=16, per_level_scale=64 ** (1 / 15))
    work = {
        "hash grid, forward and backward": of_hash_grid(POINTS, grid),
        "march": of_march(RAYS, *shell(3**0.5 / 1024, 0.6, 2.4)),
        "composite, forward and backward": of_composite(POINTS, RAYS),
    }
    calls |= dict(zip(work, (hash_grid(POINTS), marching(RAYS), compositing(POINTS, RAYS)), strict=True))
    with torch.no_grad():
        for name, (call, network) in networks(options.pixels).items():
            work[name], calls[name] = of_network(call, network, options.pixels), torch.no_grad()(call)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(options.rounds + 1):
        for name, call in calls.items():
            taken = busy(call)
            if turn:  # the first one compiles
                times[name].append(taken)
    took = {name: statistics.median(each) for name, each in times.items()}
    machine = {
        "bytes": 2 * source.numel() * FLOAT / took["copy"],
        **{name: 2 * options.size**3 / took[name] for name in ("float32", "bfloat16") if name in took},
    }
    rows = [row(name, each, took[name], machine) for name, each in work.items()]
    told = ", ".join(f"{name} {value / 1e9:.1f} G/s" for name, value in machine.items())
    table = Table(*rows[0], title=f"one thread: {told}")
    for each in rows:
        table.add_row(*map(str, each.values()))
    Console(width=150).print(table)
    rates = {name: round(value / 1e9, 2) for name, value in machine.items()}
    write(options.out, threads=1, rounds=options.rounds, giga_per_second=rates, rows=rows)


def busy(call: Callable[[], Any]) -> float:
    """CPU time of a call, s."""
    start = time.process_time()
    call()
    return time.process_time() - start


def row(name: str, work: Work, taken: float, machine: dict[str, float]) -> dict[str, Any]:
    """A line of the table."""
    least = {"operations": work.operations / machine["float32"], "bytes": work.bytes / machine["bytes"]}
    bound = max(least, key=lambda key: least[key])
    sheet = max(work.operations / H100["float32"], work.bytes / H100["bytes"])
    return {
        **{"": name, "unit": work.unit, "operations": round(work.operations / work.units, 1)},
        **{"bytes": round(work.bytes / work.units, 1), "bound by": bound, "at least, ms": round(1e3 * least[bound], 3)},
        **{"measured, ms": round(1e3 * taken, 3), "share, %": round(100 * least[bound] / taken, 1)},
        "H100 by its data sheet, at least, us": round(1e6 * sheet, 2),
    }


if __name__ == "__main__":
    main()
