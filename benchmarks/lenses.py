"""Fit a built-in scene seen through a distorting lens, with and without the distortion model; a table and JSON.

    python benchmarks/lenses.py [--scene blocks] [--width 100] [--model ngp_small] [--steps 1500] [--seeds 0]
        [--lens K1 K2 P1 P2] [--out PATH]

The scene is rendered exactly by pinhole cameras and through the lens, with the same poses; both are written as
transforms files and read again. A model of the pinhole views is fitted for comparison. PSNR is that of each variant's
own test views; where distortion is ignored, it is ignored in the test views as well.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

from _machine import RESULTS, write  # before torch, since it says how idle threads wait

# isort: split
import torch
from _fitting import fit, show
from captures import without_lens

from nelf.cameras import Camera
from nelf.data import demo, read_scene
from nelf.scene import Scene


def drawn(root: Path, scene: str, width: int, lens: list[float] | None) -> Scene:
    """A built-in scene, written to ``root`` and read again."""
    cameras = demo.cameras(width)
    if lens is not None:
        k1, k2, p1, p2 = lens
        row = torch.tensor([k1, k2, 0.0, p1, p2, 0.0])
        cameras = {name: replace(each, lens=row.expand(len(each), 6)) for name, each in cameras.items()}
    picture = partial(demo.render, scene=scene)
    demo.write_pictures(root, cameras, picture, aabb=demo.aabb(scene), background=demo.SCENES[scene].background)
    return read_scene(root)


def moved(camera: Camera) -> float:
    """The largest displacement of a pixel by the lens of a single camera, pixels."""
    rays = camera.rays()
    x, y, _ = camera.pinhole().project((rays.origins + rays.directions).reshape(-1, 3))
    column, row = torch.arange(camera.width) + 0.5, torch.arange(camera.height)[:, None] + 0.5
    across, down = x.view(*rays.shape) - column, y.view(*rays.shape) - row
    return float((across.square() + down.square()).sqrt().max())


def main() -> None:
    """Fit all three, and print the mean and the spread of the seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", default="blocks", choices=demo.SCENES)
    parser.add_argument("--width", type=int, default=100)
    parser.add_argument("--model", default="ngp_small")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--lens", type=float, nargs=4, default=[-0.6, 0.3, 0.03, -0.03], metavar=("K1", "K2", "P1", "P2")
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "lenses.json")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        make = partial(drawn, scene=options.scene, width=options.width)
        straight, bent = make(Path(folder) / "pinhole", lens=None), make(Path(folder) / "lens", lens=options.lens)
    scenes = {"pinhole": straight, "lens": bent, "lens ignored": without_lens(bent)}
    most = moved(bent.test.camera[0])
    print(f"the lens moves a pixel by up to {most:.1f} pixels", flush=True)
    rows = []
    for seed in options.seeds:
        for name, scene in scenes.items():
            figures, _ = fit(scene, [f"model={options.model}"], options.steps, seed)
            rows.append({"cameras": name, "seed": seed, **figures})
            print(rows[-1], flush=True)

    title = f"{options.scene}, {options.width}x{options.width}, {options.model}, {options.steps} steps"
    show(rows, title, cameras="cameras")
    settings = {key: getattr(options, key) for key in ("scene", "width", "model", "steps", "lens")}
    write(options.out, settings=settings, moved_pixels=round(most, 2), rows=rows)


if __name__ == "__main__":
    main()
