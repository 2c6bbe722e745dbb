"""Compare ways to compute an exported network in 8 bits, in accuracy and time, and write a table and JSON.

    python benchmarks/int8.py [runs/lego_cpu runs/mobile_cpu] [--views 8] [--rounds 21] [--out PATH]

The student of each run is measured; without runs, untrained networks, which take as long but say nothing about
accuracy. ``shipped`` is what stage export writes; the others differ from it as their names say. Accuracy is the PSNR of
the views against those in 32 bits, and the PSNR that this error would cost a student of 30 dB. All files take turns, so
that load on the machine affects them equally: compare ratios. Whether weights may use all 8 bits, and how fast 8 bits
are, depends on the processor's instruction sets, which the JSON lists.
"""

import argparse
import math
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from _machine import RESULTS, write  # before torch, since it says how idle threads wait

# isort: split
import numpy as np
import onnxruntime.quantization as ort
import torch
import yaml
from onnxruntime.quantization import QuantType
from rich.console import Console
from rich.table import Table

import nelf
from nelf import cli, export, paths
from nelf.cameras import Camera
from nelf.export.graph import exact, session
from nelf.export.inputs import window_feeds
from nelf.export.int8 import quantize_dynamic, quantize_static
from nelf.lightfields import GridR2L, LightField, MobileR2L
from nelf.pipeline.recipe import Recipe

Feeds = list[dict[str, np.ndarray]]
STUDENT = 30.0  # dB
TIMES = ("MB", "ms", "times fp32")  # independent of training

#: Ways to make a static file: arguments of nelf's ``quantize_static``, and overrides for ONNX Runtime's function in it.
WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "shipped": ({}, {}),
    "last convolution in 32 bits": ({"keep": ["last"]}, {}),
    "weights to 127": ({}, {"reduce_range": False}),
    "unsigned weights": ({}, {"reduce_range": False, "weight_type": QuantType.QUInt8}),
    "signed activations": ({}, {"activation_type": QuantType.QInt8}),
}


@contextmanager
def instead(**options: Any) -> Iterator[None]:
    """Override options in calls of ONNX Runtime's ``quantize_static``."""
    original = ort.quantize_static
    ort.quantize_static = lambda *rest, **given: original(*rest, **{**given, **options})
    try:
        yield
    finally:
        ort.quantize_static = original


def untrained(pixels: int) -> dict[str, tuple[LightField, Camera]]:
    """Untrained networks, with cameras around them."""
    cameras = paths.orbit(9, 4.0, 20.0)
    camera = Camera.from_fov(cameras, 0.69, pixels, pixels)
    networks: dict[str, LightField] = {"GridR2L": GridR2L()}
    for activation in ("relu", "gelu"):
        for upsampling in ("shuffle", "transposed"):
            name = f"MobileR2L, {activation}, {upsampling}"
            networks[name] = MobileR2L(128, 8, activation=activation, sr_factor=4, upsampling=upsampling)  # type: ignore[arg-type]
    return {name: (network.eval(), camera) for name, network in networks.items()}


def trained(root: Path) -> tuple[LightField, Camera]:
    """A run's student, and its scene's test cameras."""
    recipe = Recipe(yaml.safe_load((root / "config.yaml").read_text()), cli.build)
    return nelf.load(root / "student" / "model.safetensors"), recipe.scene.test.camera


def files(network: LightField, cameras: Camera, feeds: Feeds, folder: Path) -> dict[str, Path]:
    """Write a network in all ways."""
    made = {"fp32": folder / "fp32.onnx"}
    export.onnx(network, made["fp32"], cameras[:1])
    for number, (name, (own, theirs)) in enumerate(WAYS.items()):
        with instead(**theirs):
            made[name] = quantize_static(made["fp32"], folder / f"{number}.onnx", feeds, **own)
    made["dynamic"] = quantize_dynamic(made["fp32"], folder / "dynamic.onnx")
    return made


def compared(network: LightField, cameras: Camera, views: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Size, time and accuracy relative to 32 bits, by way."""
    feeds = window_feeds(exact(network), network.entries[0], cameras)
    with TemporaryDirectory() as folder:
        made = files(network, cameras, feeds[views:] or feeds, Path(folder))
        graphs = {way: session(path) for way, path in made.items()}
        size = {way: path.stat().st_size / 1e6 for way, path in made.items()}
    drawn = {way: [graph.run(None, feed)[0] for feed in feeds[:views]] for way, graph in graphs.items()}
    times: dict[str, list[float]] = {way: [] for way in graphs}
    for turn in range(rounds):
        for way, graph in graphs.items():
            start = time.perf_counter()
            graph.run(None, feeds[turn % len(feeds)])
            times[way].append(time.perf_counter() - start)
    ms = {way: 1e3 * statistics.median(each) for way, each in times.items()}
    figures = {}
    for way in graphs:
        error = float(np.mean([np.mean((a - b) ** 2) for a, b in zip(drawn[way], drawn["fp32"], strict=True)]))
        figures[way] = {
            **{"MB": round(size[way], 3), "ms": round(ms[way], 2), "times fp32": round(ms["fp32"] / ms[way], 2)},
            "dB from fp32": round(-10 * math.log10(error), 1) if error else None,
            "costs a student": round(10 * math.log10(1 + error / 10 ** (-STUDENT / 10)), 3),
        }
    return figures


def main() -> None:
    """Write all files, and compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*")
    parser.add_argument("--pixels", type=int, default=200, help="width of the views of untrained networks")
    parser.add_argument("--views", type=int, default=8, help="compared; the scene's others calibrate the ranges")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--out", type=Path, default=RESULTS / "int8.json")
    options = parser.parse_args()

    networks = {run.name: trained(run) for run in options.runs} or untrained(options.pixels)
    rows = []
    for name, (network, cameras) in networks.items():
        for way, figures in compared(network, cameras, options.views, options.rounds).items():
            told = figures if options.runs else {key: figures[key] for key in TIMES}
            rows.append({"network": name, "way": way, **told})
    table = Table(*rows[0], title=f"{torch.get_num_threads()} threads, medians of {options.rounds}")
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    Console(width=140).print(table)
    write(options.out, threads=torch.get_num_threads(), rows=rows)


if __name__ == "__main__":
    main()
