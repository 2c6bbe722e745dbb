"""Distill a scene from stored views and from views that are rendered online, at equal cost; write a table and JSON.

    python benchmarks/online.py SCENE [SCENE ...] [--width 100] [--teacher-steps 1000] [--seconds 60] [--views 100]
        [--pools 25:16 50:8] [--student grid_r2l] [--seeds 0] [--out PATH]

A SCENE is a folder in the format of Blender. Each way has the same CPU time, which includes everything: rendering by
the teacher, writing and reading of views, initialization and training of the student. Learning rates decay along a
cosine over this time. A pool ``K:N`` has K views and replaces one every N batches; ``none`` renders each batch
separately. PSNR is that of the test views.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from _machine import RESULTS, write  # before torch, since it says how idle threads wait

# isort: split
from _fitting import ProcessorTimer, Row, fit, show

from nelf.cameras import Camera
from nelf.data import Scene, read_scene, with_pseudo_views
from nelf.data.online import OnlineSplit, online_views
from nelf.paths import random_cameras
from nelf.pipeline.stages.pseudo import write_views
from nelf.systems.system import System


def distil(scene: Scene, teacher: System, way: str, options: argparse.Namespace, seed: int) -> Row:
    """Train a student in one way, and return its figures."""
    spent, timer = time.process_time(), ProcessorTimer(options.seconds)
    for_rays = not options.student.startswith(("grid", "mobile"))

    def cameras(number: int) -> Camera:
        return random_cameras(scene.train.camera, options.views, seed=seed + 1000 * number)

    with tempfile.TemporaryDirectory() as folder:
        if way == "stored":
            write_views(teacher.network, cameras(0), folder, scene)
            views = with_pseudo_views(scene, folder, for_rays=for_rays)
        else:
            size, _, every = way.partition(":")
            pool: dict[str, Any] = {} if way == "none" else {"pool": int(size), "renew_every": int(every)}
            views = online_views(scene, teacher.network, cameras, for_rays=for_rays, **pool)
        rendering = time.process_time() - spent
        figures, student = fit(views, [f"model={options.student}", *options.set], -1, seed, teacher.network, timer)
    split = views.train
    rendered = split.rendered if isinstance(split, OnlineSplit) else options.views
    counted = {"before_training": round(rendering, 1), "steps": student.trainer.global_step, "views": round(rendered)}
    return {"views_are": way, "seed": seed, **figures, "processor_seconds": options.seconds, **counted}


def main() -> None:
    """For each scene and seed, train a teacher, then a student in each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", nargs="+", help="folders in the format of Blender")
    parser.add_argument("--width", type=int, default=100)
    parser.add_argument("--teacher-steps", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=60, help="CPU time for each student")
    parser.add_argument("--views", type=int, default=100, help="size of the stored set, and of a set of cameras online")
    parser.add_argument("--pools", nargs="+", default=["25:16", "50:8"], metavar="K:N")
    parser.add_argument("--student", default="grid_r2l")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="more overrides, for students")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=RESULTS / "online.json")
    options = parser.parse_args()

    rows: list[Row] = []
    settings = {key: value for key, value in vars(options).items() if key not in ("scenes", "out")}
    for root in options.scenes:
        scene = read_scene(root, width=options.width)
        for seed in options.seeds:
            taught, teacher = fit(scene, ["model=ngp_small"], options.teacher_steps, seed)
            teacher.network.eval().requires_grad_(False)
            if not rows:  # compile the kernels, outside the timing
                distil(scene, teacher, "4:8", argparse.Namespace(**{**vars(options), "seconds": 8.0}), seed)
            rows.append({"scene": scene.name, "views_are": "the teacher", "seed": seed, **taught})
            for way in ("stored", *options.pools):
                rows.append({"scene": scene.name, **distil(scene, teacher, way, options, seed)})
                print(rows[-1], flush=True)
                write(options.out, settings=settings, rows=rows)
    title = f"{options.width} px, {options.seconds:g} s of the processor for each student"
    show(rows, title, scene="scene", views_are="views")


if __name__ == "__main__":
    main()
