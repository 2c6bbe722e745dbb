"""Time the artifacts of a run side by side, and write a table and JSON.

    python benchmarks/latency.py runs/lego_cpu [--threads 2] [--rounds 21] [--out PATH]

All artifacts take turns, so that load on the machine affects all of them equally: compare ratios, not milliseconds. In
its turn each computes everything twice, and the second time counts, as in interactive viewing. ``network`` is the part
after the points or features of the rays; ``view`` is all of ``render``.
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _machine import RESULTS, seconds, write  # before torch, since it says how idle threads wait

# isort: split
import torch
import yaml
from rich.console import Console
from rich.table import Table

from nelf import cli
from nelf.cameras import Camera
from nelf.export import ExportedLightField
from nelf.export.inputs import window_feeds
from nelf.lightfields import LightField
from nelf.pipeline.recipe import Recipe
from nelf.pipeline.run import Run
from nelf.pipeline.stages.report import artifacts


def network_of(model: Any, camera: Camera) -> Callable[[], Any] | None:
    """A call of the network alone with precomputed inputs; None for a radiance field."""
    if isinstance(model, ExportedLightField):
        inputs = model.inputs(camera)
        return lambda: model.run(inputs)
    if isinstance(model, LightField):
        (array,) = window_feeds(model, model.entries[0], [camera])[0].values()
        tensor = torch.from_numpy(array)
        return lambda: model.decode(tensor)
    return None


def second_time(call: Callable[[], Any]) -> float:
    """Seconds of the second of two calls, with warm caches as in interactive viewing."""
    call()
    return seconds(call)


@torch.no_grad()
def main() -> None:
    """Open the run, and time its artifacts in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--out", type=Path, default=RESULTS / "latency.json")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    run = Run(options.run, Recipe(yaml.safe_load((options.run / "config.yaml").read_text()), cli.build))
    camera = run.recipe.scene.test.camera[0]
    models = {each.name: each.model for each in artifacts(run)}
    networks = {name: network_of(model, camera) for name, model in models.items()}
    times: dict[str, dict[str, list[float]]] = {name: {"network": [], "view": []} for name in models}
    for _ in range(options.rounds):
        for name, model in models.items():
            if network := networks[name]:
                times[name]["network"].append(second_time(network))
            times[name]["view"].append(second_time(lambda model=model: model.render(camera)))

    medians = {
        name: {part: 1e3 * statistics.median(each) if each else None for part, each in parts.items()}
        for name, parts in times.items()
    }
    rows = [{"artifact": name, **_figures(parts, medians)} for name, parts in medians.items()]
    table = Table(*rows[0], title=f"{options.run}, {options.threads} threads, medians of {options.rounds}")
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    Console(width=120).print(table)
    write(options.out, run=options.run.name, threads=options.threads, rows=rows)


def _figures(parts: dict[str, float | None], medians: dict[str, dict[str, float | None]]) -> dict[str, float | None]:
    """Milliseconds, and speed-ups over the student in PyTorch and in ONNX Runtime."""
    figures = {f"{part} ms": None if ms is None else round(ms, 2) for part, ms in parts.items()}
    for part, ms in parts.items():
        for other in ("student", "onnx fp32"):
            base = medians.get(other, {}).get(part)
            figures[f"{part} / {other}"] = round(base / ms, 2) if base and ms else None
    return figures


if __name__ == "__main__":
    main()
