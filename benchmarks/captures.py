"""Fit a hand-held capture with dynamic and static teachers, with and without lens distortion; write a table and JSON.

    python benchmarks/captures.py CAPTURE|demo [--models hyper_ngp_small ngp_small] [--image-scale 8] [--steps 1500]
        [--seeds 0 1 2] [--pinhole] [--set KEY=VALUE ...] [--out PATH]

PSNR is that of the held-out views. With ``--pinhole`` each model is also fitted with training and held-out cameras
without distortion, as in programs that ignore it. The limit is a number of steps rather than minutes, so that quality
does not depend on the machine; the training time is listed as well.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from _machine import RESULTS, write  # before torch, since it says how idle threads wait

# isort: split
from _fitting import fit, show

from nelf.data import DemoHandheldDataModule, HyperNeRFDataModule
from nelf.scene import Scene, Split


def without_lens(scene: Scene) -> Scene:
    """The scene as read by a program that ignores lens distortion."""

    def pinholes(split: Split) -> Split:
        return replace(split, camera=split.camera.pinhole())

    return replace(scene, train=pinholes(scene.train), val=pinholes(scene.val), test=pinholes(scene.test))


def main() -> None:
    """Fit all, and print the mean and the spread of the seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("capture", help="a folder in the format of Nerfies, or demo for the built-in one")
    parser.add_argument("--models", nargs="+", default=["hyper_ngp_small", "ngp_small"])
    parser.add_argument("--image-scale", type=int, default=8)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--pinhole", action="store_true", help="also without lens distortion")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="more overrides of train.py, for all models"
    )
    parser.add_argument("--out", type=Path, help="the JSON file; default: results/captures_NAME.json")
    options = parser.parse_args()

    place = {"image_scale": options.image_scale}
    demo = options.capture == "demo"
    scene = (DemoHandheldDataModule(**place) if demo else HyperNeRFDataModule(options.capture, **place)).scene
    lenses = {"with its lens": scene} | ({"as a pinhole": without_lens(scene)} if options.pinhole else {})
    rows = []
    for seed in options.seeds:
        for lens, each in lenses.items():
            for model in options.models:
                figures, _ = fit(each, [f"model={model}", *options.set], options.steps, seed)
                rows.append({"model": model, "lens": lens, "seed": seed, **figures})
                print(rows[-1], flush=True)

    title = f"{scene.name}, {scene.train.camera.width}x{scene.train.camera.height}, {options.steps} steps"
    show(rows, title, model="model", lens="lens")
    settings = {"image_scale": options.image_scale, "steps": options.steps, "set": options.set}
    write(options.out or RESULTS / f"captures_{scene.name}.json", scene=scene.name, settings=settings, rows=rows)


if __name__ == "__main__":
    main()
