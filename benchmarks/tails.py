"""Time the parts of MobileR2L with both of its tails, count their products, and write a table and JSON.

    python benchmarks/tails.py [--networks "as published" transposed shuffle] [--rounds 7] [--out PATH]

All parts of all networks take turns, so that load on the machine affects them equally: compare ratios, not
milliseconds. The networks are untrained, which does not affect the times. ``fast`` is ``optimize_for_inference``: batch
norms folded, channels last, bfloat16 if the processor has instructions for it.
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

from _machine import RESULTS, seconds, write  # before torch, since it says how idle threads wait

# isort: split
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nelf.compression.inference import optimize_for_inference
from nelf.lightfields import MobileR2L
from nelf.lightfields.mobile_r2l import embed_points

_SMALL = {"width": 64, "depth": 20, "sr_factor": 4, "sr_kernels": (64, 64)}
#: The arguments of a network, and the width and height of its image in pixels.
NETWORKS: dict[str, tuple[dict[str, object], int]] = {
    "as published": ({}, 800),
    "transposed": (_SMALL, 200),
    "shuffle": ({**_SMALL, "upsampling": "shuffle"}, 200),
    "mobile_cpu": ({**_SMALL, "width": 128, "depth": 8, "activation": "relu", "upsampling": "shuffle"}, 200),
}


class Body(nn.Module):
    """The residual blocks and the skip connection around them."""

    def __init__(self, blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = blocks

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x) + x


def parts(network: MobileR2L, pixels: int) -> dict[str, Callable[[], Tensor]]:
    """Head, body and tail, each as a call on inputs for an image of ``pixels`` x ``pixels``."""
    rays = pixels // network.sr_factor
    points = torch.rand(1, network.encoded_channels, rays, rays) * 2 - 1
    first: nn.Module = network.head
    x = embed_points(points, network.multires).to(next(first.parameters()).dtype)
    calls: dict[str, Callable[[], Tensor]] = {}
    for name, part in (("head", first), ("body", Body(network.body)), ("tail", network.tail)):
        calls[name] = lambda part=part, x=x: part(x)
        x = part(x)
    return calls


def operations(call: Callable[[], Tensor]) -> int:
    """Multiply-accumulates of a call."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() // 2


@torch.no_grad()
def main() -> None:
    """Build the networks, and time their parts in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--pixels", type=int, help="width and height of all images, instead of each network's own")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULTS / "tails.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    calls: dict[tuple[str, str], dict[str, Callable[[], Tensor]]] = {}
    for name in options.networks:
        arguments, pixels = NETWORKS[name]
        network = MobileR2L(**arguments).eval()  # type: ignore[arg-type]
        fast = optimize_for_inference(network)
        calls[name, "float32"] = parts(network, options.pixels or pixels)
        calls[name, f"fast, {fast.changes[-1]}"] = parts(fast.network, options.pixels or pixels)  # type: ignore[arg-type]
    times: dict[tuple[str, str, str], list[float]] = {}
    for turn in range(options.rounds + 1):
        for key, named in calls.items():
            for part, call in named.items():
                taken = seconds(call)
                if turn:  # the first one is a warm-up
                    times.setdefault((*key, part), []).append(taken)

    rows = []
    for (name, kind), named in calls.items():
        work = {part: operations(call) for part, call in named.items()}
        ms = {part: 1e3 * statistics.median(times[name, kind, part]) for part in named}
        rows.append(
            {
                **{"network": name, "computed": kind, "ms": round(sum(ms.values()), 2)},
                **{f"{part} ms": round(value, 2) for part, value in ms.items()},
                "millions of products": round(sum(work.values()) / 1e6, 1),
                "tail, % of products": round(100 * work["tail"] / sum(work.values()), 1),
                "tail, % of time": round(100 * ms["tail"] / sum(ms.values()), 1),
            }
        )
    table = Table(*rows[0], title=f"MobileR2L, {options.threads} threads, medians of {options.rounds}")
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(width=140).print(table)
    write(options.out, threads=options.threads, rows=rows)


if __name__ == "__main__":
    main()
