"""Fit a forward-facing capture with rays in NDC and in world space; write a table and JSON.

    python benchmarks/forward.py CAPTURE [--models ngp_small] [--factor 8] [--width PIXELS] [--steps 2000] [--seeds 0]
        [--set KEY=VALUE ...] [--out PATH]

CAPTURE is a folder in the format of LLFF. PSNR is that of the held-out views. The limit is a number of steps rather
than minutes, so that quality does not depend on the machine; the training time is listed as well. The student of such a
teacher is measured by ``chain.py experiment=llff_cpu data.root=CAPTURE``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from _machine import RESULTS, write  # before torch, since it says how idle threads wait

# isort: split
from _fitting import fit, show

from nelf.data import read_llff

SPACES = {"NDC": True, "scene": False}


def main() -> None:
    """Fit all, and print the mean and the spread of the seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("capture", help="a folder in the format of LLFF")
    parser.add_argument("--models", nargs="+", default=["ngp_small"])
    parser.add_argument("--factor", type=int, default=8)
    parser.add_argument("--width", type=int, help="reduce the images further, to this width")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="more overrides of train.py, for all models"
    )
    parser.add_argument("--out", type=Path, help="the JSON file; default: results/forward_NAME.json")
    options = parser.parse_args()

    place = {"factor": options.factor, "width": options.width}
    scenes = {space: read_llff(options.capture, ndc=ndc, **place) for space, ndc in SPACES.items()}
    rows = []
    for seed in options.seeds:
        for space, scene in scenes.items():
            for model in options.models:
                figures, _ = fit(scene, [f"model={model}", *options.set], options.steps, seed)
                rows.append({"model": model, "space": space, "seed": seed, **figures})
                print(rows[-1], flush=True)

    scene = scenes["NDC"]
    title = f"{scene.name}, {scene.train.camera.width}x{scene.train.camera.height}, {options.steps} steps"
    show(rows, title, model="model", space="rays in")
    settings = {**place, "steps": options.steps, "set": options.set}
    write(options.out or RESULTS / f"forward_{scene.name}.json", scene=scene.name, settings=settings, rows=rows)


if __name__ == "__main__":
    main()
