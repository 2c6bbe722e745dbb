"""Time students in each precision, eager, compiled and as a CUDA graph; write a table and JSON.

    python benchmarks/students.py [--networks GridR2L MobileR2L ...] [--pixels 200] [--rounds 9] [--device cuda]
        [--out PATH]

A frame is the whole network, from the rays of a camera to colors. All ways take turns, so that load on the machine
affects them equally: compare ratios. The networks are untrained, which does not affect the times; GridR2L's volume is
full, with 64 corners a side. Ways that the device does not support have a reason instead of figures. Precisions below
32 bits use autocast; ``optimized`` is ``optimize_for_inference``.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from _machine import RESULTS, seconds, write  # before torch, since it says how idle threads wait

# isort: split
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from nelf import paths
from nelf.cameras import Camera
from nelf.compression.inference import optimize_for_inference
from nelf.lightfields import R2L, GridR2L, LightField, MobileR2L

NETWORKS: dict[str, Callable[[], LightField]] = {
    "GridR2L": lambda: GridR2L(resolution=64),
    "MobileR2L": MobileR2L,
    "MobileR2L, small": lambda: MobileR2L(128, 8, activation="relu", sr_factor=4, upsampling="shuffle"),
    "R2L": R2L,
}
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
Call = Callable[[], Tensor]


def ways(make: Callable[[], LightField], pixels: int, device: torch.device) -> dict[str, Call]:
    """A call for each way to render a frame."""
    network = make().to(device).eval()
    camera = Camera.from_fov(paths.orbit(1, 4.0, 20.0), 0.69, pixels, pixels)[0].to(device)
    rays = network.rays(camera)[None]

    def drawing(draw: Callable[..., Tensor], precision: torch.dtype | None) -> Call:
        def call() -> Tensor:
            with torch.autocast(device.type, precision) if precision else nullcontext():
                return draw(rays)

        return call

    compiled: nn.Module = torch.compile(network)  # type: ignore[assignment]
    calls = {f"eager {name}": drawing(network, kind) for name, kind in PRECISIONS.items()}
    calls["optimized"] = drawing(optimize_for_inference(network).network, None)
    calls |= {f"compiled {name}": drawing(compiled, kind) for name, kind in PRECISIONS.items()}
    calls |= {f"CUDA graph {name}": graph(drawing(network, kind)) for name, kind in PRECISIONS.items()}
    return calls


def graph(call: Call) -> Call:
    """The call as a CUDA graph, which is captured on the first call."""
    made: list[tuple[Any, Tensor]] = []

    def replay() -> Tensor:
        if not made:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(3):
                    call()
            torch.cuda.current_stream().wait_stream(stream)
            captured = torch.cuda.CUDAGraph()
            with torch.cuda.graph(captured):
                out = call()
            made.append((captured, out))
        made[0][0].replay()
        return made[0][1]

    return replay


def lacking(way: str, device: torch.device) -> str | None:
    """Why a way is not tried on this device; None if it is."""
    if way.startswith("CUDA graph") and device.type != "cuda":
        return "no CUDA device"
    if way.startswith("compiled") and device.type == "cpu" and shutil.which("g++") is None:
        return "no C++ compiler"
    return None


def main() -> None:
    """Build the networks, and time all ways in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--pixels", type=int, default=200, help="width and height of a frame")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--ways", nargs="+", help="only ways whose names start with one of these, such as eager")
    parser.add_argument("--out", type=Path, default=RESULTS / "students.json")
    options = parser.parse_args()

    device = torch.device(options.device)
    rows: list[dict[str, Any]] = []
    for name in options.networks:
        rows += measured(name, options.pixels, device, options.rounds, tuple(options.ways or [""]))
    table = Table(*rows[0], title=f"{options.pixels} x {options.pixels} pixels, {device}, medians of {options.rounds}")
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    Console(width=130).print(table)
    write(options.out, pixels=options.pixels, device=str(device), threads=torch.get_num_threads(), rows=rows)


@torch.no_grad()
def measured(
    name: str, pixels: int, device: torch.device, rounds: int, chosen: tuple[str, ...]
) -> list[dict[str, Any]]:
    """The rows of one network."""
    calls = {way: call for way, call in ways(NETWORKS[name], pixels, device).items() if way.startswith(chosen)}
    reasons = {way: reason for way in calls if (reason := lacking(way, device))}
    times: dict[str, list[float]] = {way: [] for way in calls}
    drawn: dict[str, Tensor] = {}
    for turn in range(rounds + 1):
        for way, call in calls.items():
            if way in reasons:
                continue
            try:
                taken = seconds(lambda call=call, way=way: drawn.update({way: ended(call(), device)}))
            except Exception as error:  # an operation without this precision, or a compiler failure
                reasons[way] = f"{type(error).__name__}: {str(error).splitlines()[0][:60] if str(error) else ''}"
                continue
            if turn:  # the first one compiles
                times[way].append(taken)
    ms = {way: 1e3 * statistics.median(each) for way, each in times.items() if way not in reasons}
    base, exact = ms.get("eager fp32"), drawn.get("eager fp32")
    rows = []
    for way in calls:
        told: dict[str, Any] = dict.fromkeys(("ms", "frames/s", "times eager fp32", "differs by, of 255"))
        if way in ms:
            told |= {"ms": round(ms[way], 3), "frames/s": round(1e3 / ms[way], 1)}
        if way in ms and base is not None and exact is not None:
            told["times eager fp32"] = round(base / ms[way], 2)
            told["differs by, of 255"] = round(255 * float((drawn[way].float() - exact.float()).abs().max()), 2)
        rows.append({"network": name, "way": way, **told, "reason": reasons.get(way)})
    return rows


def ended(out: Tensor, device: torch.device) -> Tensor:
    """A copy of the picture, after the device has finished it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return out.clone()


if __name__ == "__main__":
    main()
