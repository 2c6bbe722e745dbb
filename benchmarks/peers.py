"""Compare light fields of nelf with one that another project trained, and write a table and JSON.

    python benchmarks/peers.py PEER.onnx SCENE runs/lego_100/export [MORE ...] [--width 100] [--out PATH]

The peer is a network of rziga/nerf as ONNX, of the kind of MobileR2L. Its input is (1, 624, H, W): 16 points on a ray
through the corner of a pixel at z-depths 2 to 6; first all coordinates, then blocks of all their sines and of all their
cosines for each of six octaves. Its output is logits of colors over black. Ours are any models that ``nelf.load``
opens. Each is compared with the test views over the background that it was trained for; all take turns in timing.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from _machine import RESULTS, write  # before torch, since it says how idle threads wait

# isort: split
import torch
from rich.console import Console
from rich.table import Table

import nelf
from nelf.cameras import Camera
from nelf.data import read_scene
from nelf.export.graph import session
from nelf.rendering import Rendering
from nelf.report.evaluation import evaluate, latencies

POINTS, OCTAVES, NEAR, FAR = 16, 6, 2.0, 6.0


class Peer:
    """The other project's network."""

    def __init__(self, path: Path) -> None:
        self.graph = session(path)

    def render(self, camera: Camera) -> Rendering:
        """Render a camera of the network's image size."""
        rays = camera.shifted(0.5 / camera.width).rays()
        t = torch.linspace(NEAR, FAR, POINTS)
        points = rays.origins[..., None, :] + rays.directions[..., None, :] * t[:, None]  # (H, W, P, 3)
        x = points.flatten(-2).movedim(-1, 0)[None]
        blocks = [x, *(wave(2.0**octave * x) for octave in range(OCTAVES) for wave in (torch.sin, torch.cos))]
        name = self.graph.get_inputs()[0].name
        logits = torch.from_numpy(self.graph.run(None, {name: torch.cat(blocks, 1).numpy()})[0])
        return Rendering(torch.sigmoid(logits[0]).movedim(0, -1), None, None)


def main() -> None:
    """Open, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", type=Path)
    parser.add_argument("scene", type=Path)
    parser.add_argument("ours", type=Path, nargs="+")
    parser.add_argument("--width", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULTS / "peers.json")
    options = parser.parse_args()
    scene = read_scene(options.scene, width=options.width)
    models: dict[str, Any] = {"rziga/nerf": Peer(options.peer)}
    models |= {str(Path(*path.parts[-2:])): nelf.load(path) for path in options.ours}
    files = {"rziga/nerf": options.peer, **dict(zip([*models][1:], options.ours, strict=True))}
    seconds = latencies(models, scene.test.camera, options.rounds)
    rows = []
    for name, model in models.items():
        background = "black" if isinstance(model, Peer) else scene.background
        result = evaluate(model, scene.test, background, description=f"Evaluating {name}")
        size = sum(path.stat().st_size for path in _files(files[name], model))
        figures = {"psnr": result["psnr"], "ssim": result["ssim"], "ms": 1e3 * seconds[name], "mb": size / 1e6}
        rows.append({"model": name, "background": background, **{key: round(each, 4) for key, each in figures.items()}})
    table = Table("model", "over", "PSNR", "SSIM", "ms a view", "MB", title=f"{scene.name}, {options.width} pixels")
    for row in rows:
        numbers = (f"{row['psnr']:.2f}", f"{row['ssim']:.4f}", f"{row['ms']:.1f}", f"{row['mb']:.2f}")
        table.add_row(row["model"], row["background"], *numbers)
    Console(width=120).print(table)
    write(options.out, scene=scene.name, width=options.width, rounds=options.rounds, rows=rows)


def _files(path: Path, model: Any) -> list[Path]:
    """The files that a client has to download for a model."""
    if isinstance(model, nelf.export.ExportedLightField):
        volume = model.entry["volume"]
        return [model.path, *([model.path.parent / volume["file"]] if volume else [])]
    return [path / "model.safetensors" if path.is_dir() else path]


if __name__ == "__main__":
    main()
