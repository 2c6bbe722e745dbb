"""Fit an unbounded scene with cascades or contraction in the teacher, and with students; write a table and JSON.

    python benchmarks/unbounded.py [SCENE] [--aabb X Y Z X Y Z] [--width 128] [--steps 1000] [--student-steps 600]
        [--seeds 0 1 2] [--teachers NAME ...] [--students NAME ...] [--set KEY=VALUE ...] [--out PATH]

SCENE is a folder in the Blender format; by default it is a built-in scene: the toy blocks in the middle of a plain,
with buildings up to 30 units away and a sky at 60, seen by cameras around the blocks, in opaque images. Students start
from the best of the teachers, and learn from the training views. PSNR is that of the held-out views. The limit is a
number of steps rather than minutes, so that quality does not depend on the machine; training time is listed as well.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from _machine import RESULTS, write  # before torch, since it says how idle threads wait

# isort: split
import numpy as np
import torch
from _fitting import fit, show

import nelf
from nelf.cameras import Camera
from nelf.data import BlenderDataModule
from nelf.data.demo import SCENES, draw
from nelf.data.shapes import circle, solid
from nelf.data.solids import BOX, CONE, CYLINDER, Material, Solid, pack
from nelf.scene import Scene, Split

TEACHERS = {
    "the box alone": ["scale=0.5", "contract=false"],
    "cascades to 4": ["scale=4", "contract=false"],
    "cascades to 16": ["scale=16", "contract=false"],
    "contraction, to 4": ["scale=4"],
    "contraction, to 16": ["scale=16"],
    "contraction, to 64": ["scale=64"],
}
STUDENTS = {
    "the box alone": ["environment=0", "reach=1"],
    "the box, an environment": ["reach=1"],
    "three boxes, an environment": ["reach=3"],
}


def surroundings() -> list[Solid]:
    """Toy blocks on a plain, three rings of buildings, and a sky."""
    rng = np.random.default_rng(0)
    plain = Material((0.42, 0.40, 0.34), (0.25, 0.30, 0.18), pattern=1, scale=0.7, shine=0.1, mirror=0.0)
    sky = Material((0.35, 0.50, 0.85), (0.80, 0.85, 0.95), pattern=1, scale=0.04, shine=0.0, mirror=0.0)
    solids = [*SCENES["blocks"].solids(), solid(BOX, (0, 0, -0.78), (60, 60, 0.06), plain)]
    for ring, (radius, height) in enumerate([(5, 1.2), (9, 2.2), (16, 4.0), (30, 8.0)]):
        for index, (x, y) in enumerate(circle(9 + ring, radius, 20.0 * ring)):
            colors = [tuple(rng.uniform(0.1, 0.8, 3)) for _ in range(2)]
            look = Material(*colors, pattern=1 + index % 2, scale=3.0 / height, shine=0.2, mirror=0.0)
            half = height * rng.uniform(0.5, 1.2)
            kind = (BOX, CONE, CYLINDER)[index % 3]
            size = (0.4 * height, 0.4 * height, half) if kind == BOX else (0.5 * height, half, 0.0)
            solids.append(solid(kind, (x, y, half - 0.72), size, look, turn=17 * index))
    walls = [((x, y, 0), (0.5 if x else 60, 0.5 if y else 60, 60)) for x, y in ((-60, 0), (60, 0), (0, -60), (0, 60))]
    return solids + [solid(BOX, center, size, sky) for center, size in [*walls, ((0, 0, 60), (60, 60, 0.5))]]


def built_in(width: int) -> Scene:
    """The built-in scene, with opaque images."""
    table = pack(surroundings())

    def split(count: int, start: float, name: str) -> Split:
        index = torch.arange(count)
        turn, rise = start + index * np.pi * (3 - 5**0.5), torch.deg2rad(8 + 30 * ((index * 0.618) % 1))
        out = torch.stack([turn.cos() * rise.cos(), turn.sin() * rise.cos(), rise.sin()], -1)
        c2w = nelf.paths.look_at(2.3 * out, torch.tensor([0.0, 0.0, -0.2]).expand(count, 3))
        camera = Camera.from_fov(c2w, 1.1, width, width * 3 // 4)
        images = draw(camera, lambda _: table)[..., :3].mul(255).round().byte().numpy()
        return Split(camera, images, [f"{name}/r_{index}" for index in range(count)])

    box = torch.tensor([-1.5, -1.5, -0.9, 1.5, 1.5, 1.2])
    splits = {"train": split(60, 0.0, "train").numbered(), "val": split(3, 0.3, "val"), "test": split(12, 0.7, "test")}
    return Scene("surroundings", None, **splits, aabb=box, near=0.5, far=100.0)


def main() -> None:
    """Fit all, and print the mean and the spread of the seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", nargs="?", help="a folder in the Blender format; default: the built-in scene")
    parser.add_argument("--aabb", type=float, nargs=6, help="the box of the foreground")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--model", default="ngp_unbounded_small")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--student-steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--teachers", nargs="+", default=list(TEACHERS), choices=list(TEACHERS))
    parser.add_argument("--students", nargs="*", default=list(STUDENTS), choices=list(STUDENTS))
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="more overrides of train.py, for teachers"
    )
    parser.add_argument("--out", type=Path, help="the JSON file; default: results/unbounded_NAME.json")
    options = parser.parse_args()

    if options.scene is None:
        scene = built_in(options.width)
    else:
        scene = BlenderDataModule(options.scene, width=options.width, aabb=options.aabb).scene
    rows: list[dict[str, Any]] = []
    for seed in options.seeds:
        best, found = 0.0, None
        for name in options.teachers:
            words = [f"model={options.model}", *(f"model.{word}" for word in TEACHERS[name]), *options.set]
            figures, system = fit(scene, words, options.steps, seed)
            rows.append({"model": options.model, "variant": name, "seed": seed, **figures})
            print(rows[-1], flush=True)
            if figures["psnr"] > best:
                best, found = figures["psnr"], system.network
        for name in options.students:
            words = ["model=grid_r2l_unbounded", *(f"model.{word}" for word in STUDENTS[name])]
            figures, system = fit(scene, words, options.student_steps, seed, found)
            rows.append({"model": "grid_r2l_unbounded", "variant": name, "seed": seed, **figures})
            print(rows[-1], flush=True)

    title = f"{scene.name}, {scene.train.camera.width}x{scene.train.camera.height}, {options.steps} steps"
    show(rows, title, model="model", variant="variant")
    settings = {key: getattr(options, key) for key in ("width", "steps", "student_steps", "set")}
    write(options.out or RESULTS / f"unbounded_{scene.name}.json", scene=scene.name, settings=settings, rows=rows)


if __name__ == "__main__":
    main()
