"""Views a second of a teacher, rendered and written, and steps a second of a student; what each waits for.

    python benchmarks/throughput.py experiment=lego_cpu data.root=../data/lego [--views 16] [--steps 200] [--out PATH]

The words are those of a chain whose stages teacher, pseudo and student are done. Views are rendered, encoded on one
thread, and written as stage pseudo writes them, which does both at the same time. The student is trained with its
batches and with one of them over and over: the difference is the share of the time that it waits for batches.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from itertools import repeat
from pathlib import Path
from typing import Any

from _machine import RESULTS, seconds, write  # before torch, since it says how idle threads wait

# isort: split
import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

import nelf
from nelf.data import SceneWriter, with_pseudo_views
from nelf.paths import random_cameras
from nelf.pipeline.recipe import Recipe
from nelf.pipeline.stages.pseudo import write_views
from nelf.scene import background_color

#: Steps that are not counted: kernels are compiled, and caches filled.
WARM_UP = 20


def finished() -> None:
    """Wait until a GPU has finished."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Clock(pl.Callback):
    """Notes when the warm-up ends, and when the last step is done."""

    def __init__(self) -> None:
        self.begin = self.end = 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, *rest: Any) -> None:
        """Note the time after step ``WARM_UP``."""
        if trainer.global_step == WARM_UP:
            finished()
            self.begin = time.perf_counter()

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Note the time when the last step is done."""
        finished()
        self.end = time.perf_counter()


def views(teacher: Any, recipe: Recipe, count: int) -> dict[str, float]:
    """Views a second and bytes a view."""
    scene = recipe.scene
    cameras, background = random_cameras(scene.train.camera, count), background_color(scene.background)
    images: list[torch.Tensor] = []

    def render() -> None:
        images[:] = [teacher.render(cameras[index]).rgba(background) for index in range(count)]
        finished()

    teacher.render(cameras[0])
    rendered = seconds(render)
    with tempfile.TemporaryDirectory() as folder:
        writer = SceneWriter(Path(folder) / "encoded", cameras)
        encoded = seconds(lambda: [writer.write(index, image) for index, image in enumerate(images)])
        written = seconds(lambda: write_views(teacher, cameras, Path(folder) / "written", scene))
        size = sum(path.stat().st_size for path in Path(folder).glob("written/train/*.png"))
    rates = {"rendered": rendered, "encoded on one thread": encoded, "written": written}
    return {**{f"{name}, views/s": round(count / taken, 2) for name, taken in rates.items()}, "kB": size / count / 1e3}


def steps(run: Path, recipe: Recipe, count: int, same: bool) -> float:
    """Steps a second of a trained student, on its batches or on the first of them over and over."""
    network = recipe.load(run / "student").train()
    system = recipe.system(network=network)
    scene = with_pseudo_views(recipe.scene, run / "pseudo", for_rays=network.batch == "rays")
    data = recipe.data(system, scene)
    if same:
        batches = data.train_dataloader
        data.train_dataloader = lambda: repeat(next(iter(batches())))  # type: ignore[method-assign]
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    clock, limits = Clock(), {"max_steps": WARM_UP + count, "max_time": None, "limit_val_batches": 0}
    trainer = recipe.build(recipe.config["trainer"], **{**quiet, **limits}, callbacks=[clock])
    trainer.fit(system, data)
    return count / (clock.end - clock.begin)


def main() -> None:
    """Measure, show, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="+", metavar="KEY=VALUE")
    parser.add_argument("--views", type=int, default=16)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path, default=RESULTS / "throughput.json")
    options = parser.parse_args()

    config: Any = OmegaConf.to_container(nelf.config("distill", options.words), resolve=True)
    recipe, run = Recipe(config, instantiate), Path(config["run"])
    if not (run / "student" / "done.json").is_file():
        raise SystemExit(f"{run}: stage student is not done.")
    drawn = views(recipe.load(run / "teacher", "teacher", recipe.device), recipe, options.views)
    own, same = (steps(run, recipe, options.steps, each) for each in (False, True))
    trained = {"steps/s": round(own, 2), "waits for batches, %": round(100 * max(1 - own / same, 0), 1)}
    table = Table("", "", title=run.name)
    for name, value in {**drawn, **trained}.items():
        table.add_row(name, f"{value:.2f}")
    Console(width=80).print(table)
    write(options.out, run=run.name, **drawn, **trained)


if __name__ == "__main__":
    main()
