"""Time the kernels of each backend side by side, and write a table and JSON.

    python benchmarks/kernels.py [--repeats 7] [--out PATH]

Runs on a GPU if PyTorch finds one, else on the CPU. Backends and thread counts alternate within each round, so that
load on the machine affects all of them equally: compare ratios, not milliseconds. ``reference`` is the fastest plain
PyTorch (embedding gather, dense scatter).
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

from nelf.kernels import IMPLEMENTATIONS, HashGrid, composite, hash_encode, march
from nelf.kernels.gpu import runs
from nelf.kernels.lookup import ray_features
from nelf.kernels.mlp import mlp

POINTS = 32_768
RAYS = 4_096
GPU_TIMES = 8  # factor of both on a GPU, which fewer would not occupy


def hash_grid(points: int) -> Callable[[], None]:
    """Forward and backward, 16 levels of 2^19 entries and 2 features."""
    grid = HashGrid(levels=16, features=2, log2_table=19, base_resolution=16, per_level_scale=64 ** (1 / 15))
    positions, table = torch.rand(points, 3), torch.randn(grid.entries, grid.features, requires_grad=True)
    grad = torch.randn(points, grid.levels * grid.features)

    def run() -> None:
        table.grad = None
        hash_encode(positions, table, grid).backward(grad)

    return run


def network(rows: int) -> Callable[[], None]:
    """Forward and backward, two hidden layers of 64 units."""
    inputs, grad = torch.rand(rows, 32, requires_grad=True), torch.randn(rows, 16).bfloat16()
    weights = [torch.randn(shape, requires_grad=True) for shape in ((64, 32), (64, 64), (16, 64))]

    def run() -> None:
        out = mlp(inputs, weights)
        out.backward(grad.to(out.dtype))

    return run


def towards_the_middle(rays: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Origins around the unit cube, and directions, unit length."""
    origins = torch.nn.functional.normalize(torch.randn(rays, 3), dim=-1) * 1.5
    return origins, torch.nn.functional.normalize(torch.randn(rays, 3) * 0.2 - origins, dim=-1)


def shell(cells: int) -> torch.Tensor:
    """A twentieth of the cells: those of a ball's shell."""
    axis = torch.linspace(-1, 1, cells)
    radius = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).norm(dim=0)
    return (radius > 0.75) & (radius < 0.8)


def marching(rays: int) -> Callable[[], None]:
    """Rays through a 128^3 grid."""
    occupied = shell(128)[None]
    origins, directions = towards_the_middle(rays)
    near, far = torch.full((rays,), 0.6), torch.full((rays,), 2.4)

    def run() -> None:
        march(origins, directions, near, far, occupied, step=3**0.5 / 1024)

    return run


def compositing(points: int, rays: int) -> Callable[[], None]:
    """Forward and backward over 8 samples a ray."""
    indices = torch.arange(rays).repeat_interleave(points // rays)
    starts = torch.arange(points // rays).repeat(rays) * 0.1
    sigma, rgb = torch.rand(points, requires_grad=True), torch.rand(points, 3, requires_grad=True)

    def run() -> None:
        out = composite(sigma, rgb, starts, starts + 0.1, indices, rays)
        (out.rgb.sum() + out.opacity.sum()).backward()

    return run


def looking_up(rays: int) -> Callable[[], None]:
    """Forward and backward through a sparse volume of 100^3 corners, four features, half-opaque."""
    exists = shell(100)
    index = torch.where(exists, exists.flatten().cumsum(0).view_as(exists) - 1, -1).int()
    rows = int(exists.sum())
    density, features = torch.zeros(rows, requires_grad=True), torch.rand(rows, 4, requires_grad=True)
    origins, directions = towards_the_middle(rays)
    aabb, jitter = torch.tensor([-0.5, -0.5, -0.5, 0.5, 0.5, 0.5]), torch.full((rays,), 0.5)

    def run() -> None:
        out = ray_features(density, features, index, origins, directions, aabb, jitter, step=0.01, min_alpha=0.01)
        (out.features.sum() + out.opacity.sum()).backward()

    return run


def wait(device: torch.device) -> None:
    """Wait until a GPU has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Run all kernels on all backends and thread counts, in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS / "kernels.json")
    options = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda"
    times = GPU_TIMES if on_gpu else 1
    points, rays = POINTS * times, RAYS * times
    backends = (
        ["reference", *(name for name in ("triton", "tcnn") if runs(name, device))] if on_gpu else ["reference", "cpu"]
    )
    threads = [1] if on_gpu else sorted({1, torch.get_num_threads()})
    with device:
        kernels = {
            "hash grid": (hash_grid(points), "hash_encode", points),
            "network": (network(points), "mlp", points),
            "march": (marching(rays), "march", rays),
            "composite": (compositing(points, rays), "composite", points),
            "volume": (looking_up(rays), "ray_features", rays),
        }
    seconds: dict[tuple[str, str, int], list[float]] = {}
    for repeat in range(options.repeats + 1):
        for name, (run, operation, _) in kernels.items():
            for backend in backends:
                if backend != "reference" and backend not in IMPLEMENTATIONS[operation]:
                    continue  # it would fall back to the reference
                for count in threads:
                    os.environ["NELF_KERNELS"] = backend
                    torch.set_num_threads(count)
                    wait(device)
                    start = time.perf_counter()
                    run()
                    wait(device)
                    if repeat:  # the first round compiles
                        seconds.setdefault((name, backend, count), []).append(time.perf_counter() - start)

    rows = []
    for (name, backend, count), taken in seconds.items():
        reference = statistics.median(seconds[name, "reference", count])
        median = statistics.median(taken)
        rows.append(
            {
                "kernel": name,
                "backend": backend,
                "threads": count,
                "ms": round(median * 1e3, 2),
                "millions_per_second": round(kernels[name][2] / median / 1e6, 3),
                "times_reference": round(reference / median, 1),
            }
        )
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console().print(table)
    write(options.out, device=torch.cuda.get_device_name() if on_gpu else "cpu", rows=rows)


if __name__ == "__main__":
    main()
