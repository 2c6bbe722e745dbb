"""Distill scenes into light fields, one after the other, and write a table with the median and the worst case.

    python benchmarks/scenes.py blocks chess ../data/lego ../data/chair [--sizes 200] [--seeds 0 1 2]
        [--teacher-minutes 2 | --teacher-steps 2000] [--student-minutes 2 | --student-steps 2000]
        [--experiment lego_cpu] [--out runs/scenes]

A scene is the name of a built-in one or the root of a Blender folder. Each run is an ordinary distill.py command, which
is printed before it starts. Finished runs are kept in the JSON and skipped, and interrupted ones continue, so the same
command may be interrupted and repeated. An image of each scene is written to OUT/SCENE_SIZE.png, with a row for each
seed: ground truth | teacher | student | the student's error.

Limits in minutes are wall-clock time; a number of steps gives the same quality on any machine, also under load. Memory
is the largest of all stages; MB is the size of the first exported model, including its volume. Quality and times are
measured on the test views by stage report.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import imageio.v3 as iio
import numpy as np
from _machine import RESULTS, facts, without_place
from rich.console import Console
from rich.table import Table

from nelf.data.stills import SCENES
from nelf.errors import atomic_path

ROOT = Path(__file__).parents[1]
STAGES = ("teacher", "pseudo", "student", "export", "report")

#: Figures of a run: title, digits, and whether more is better.
FIGURES = {
    "teacher_psnr": ("teacher dB", 2, True),
    "teacher_ssim": ("SSIM", 4, True),
    "teacher_ms": ("ms", 1, False),
    "student_psnr": ("student dB", 2, True),
    "student_ssim": ("SSIM", 4, True),
    "student_ms": ("ms", 1, False),
    "gap_db": ("gap dB", 2, False),
    "shipped_psnr": ("shipped dB", 2, True),
    "shipped_ms": ("ms", 1, False),
    "shipped_mb": ("MB", 2, False),
    "peak_memory_mb": ("memory MB", 0, False),
}


class Job(NamedTuple):
    """One run: scene, image width, seed, and the seed of its teacher."""

    scene: str
    size: int
    seed: int
    teacher: int

    def folder(self, out: Path, seed: int | None = None) -> Path:
        """Its run directory, or that of another seed."""
        return out / f"{self.scene}_{self.size}_{self.seed if seed is None else seed}"


# ------------------------------------------------------------------------------------------------ running


def scene_overrides(scene: str) -> tuple[str, list[str]]:
    """The name of a scene, and the overrides that select it."""
    if scene in SCENES:
        return scene, ["data=demo", f"data.scene={scene}"]
    root = Path(scene).resolve()
    if not (root / "transforms_train.json").is_file() and not (root / "transforms.json").is_file():
        raise SystemExit(f"{scene}: neither a built-in scene ({', '.join(SCENES)}) nor a folder with transforms files.")
    return root.name, ["data=blender", f"data.root={_quoted(root)}"]


def run(job: Job, options: argparse.Namespace, chosen: list[str]) -> dict[str, Any]:
    """Run the remaining stages of one run, and return its row."""
    stages: Sequence[str] = STAGES
    if job.teacher != job.seed:
        _distill(job, options, chosen, ("teacher", "pseudo"), job.teacher)
        for stage in ("teacher", "pseudo"):
            _copy(job.folder(options.out, job.teacher) / stage, job.folder(options.out) / stage)
        stages = STAGES[2:]
    _distill(job, options, chosen, stages, job.seed)
    return row(job, job.folder(options.out))


def _distill(job: Job, options: argparse.Namespace, chosen: list[str], stages: Sequence[str], seed: int) -> None:
    """Run distill.py in a child process, which receives a Ctrl-C as well."""
    words = [
        f"experiment={options.experiment}",
        *chosen,
        f"data.width={job.size}",
        f"seed={seed}",
        f"run={_quoted(job.folder(options.out, seed))}",
        f"stages=[{','.join(stages)}]",
        *_limit("teacher", options.teacher_minutes, options.teacher_steps),
        *_limit("student", options.student_minutes, options.student_steps),
        "stage.export.precisions=[fp32]",
        "stage.report.frames=0",
        *options.set,
    ]
    print(f"\n$ python distill.py {shlex.join(words)}", flush=True)
    with subprocess.Popen([sys.executable, str(ROOT / "distill.py"), *words]) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt:  # the child has received it, too, and leaves a run that can continue
            process.wait()
            raise
    if code == 130:
        raise KeyboardInterrupt
    if code:
        raise subprocess.CalledProcessError(code, "distill.py")


def _limit(stage: str, minutes: float, steps: int | None) -> list[str]:
    """The overrides that limit a stage's training."""
    if steps is None:
        return [f"stage.{stage}.max_time={_time(minutes)}"]
    return [f"stage.{stage}.max_time=null", f"stage.{stage}.max_steps={steps}"]


def _copy(source: Path, target: Path) -> None:
    """Copy a finished stage, unless the copy exists; an interrupted copy leaves nothing."""
    if not target.exists():
        with atomic_path(target) as partial:
            shutil.copytree(source, partial, dirs_exist_ok=True)


def _quoted(path: Path) -> str:
    """A path, quoted for Hydra's grammar where necessary."""
    if re.fullmatch(r"[\w./-]+", str(path)):
        return str(path)
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"


def _time(minutes: float) -> str:
    """Minutes as days:hours:minutes:seconds."""
    seconds = max(1, round(60 * minutes))
    return f"{seconds // 86400:02d}:{seconds // 3600 % 24:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


# ------------------------------------------------------------------------------------------------ figures


def row(job: Job, folder: Path) -> dict[str, Any]:
    """The figures of a finished run."""
    rows = json.loads((folder / "report.json").read_text(encoding="utf-8"))["rows"]
    teacher, student = (next(each for each in rows if each["name"] == name) for name in ("teacher", "student"))
    shipped = next(each for each in rows if each.get("kind") == "export")
    stages = [json.loads((folder / stage / "metrics.json").read_text(encoding="utf-8")) for stage in STAGES]
    figures = {
        "teacher_psnr": teacher["psnr"],
        "teacher_ssim": teacher["ssim"],
        "teacher_ms": teacher["latency_ms"],
        "student_psnr": student["psnr"],
        "student_ssim": student["ssim"],
        "student_ms": student["latency_ms"],
        "gap_db": teacher["psnr"] - student["psnr"],
        "shipped_psnr": shipped["psnr"],
        "shipped_ms": shipped["latency_ms"],
        "shipped_mb": shipped["bytes"] / 1e6,
        "peak_memory_mb": max(stage["peak_memory_bytes"] for stage in stages) / 1e6,
    }
    return {
        **{"scene": job.scene, "size": job.size, "seed": job.seed, "teacher_seed": job.teacher},
        **{key: round(value, 4) for key, value in figures.items()},
        "shipped": shipped["name"],
        "seconds": {name: round(stage["seconds"], 1) for name, stage in zip(STAGES, stages, strict=True)},
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Median and worst over the seeds of each scene; for all scenes the median of the medians and the worst run."""
    scenes = {name: _extremes([each for each in rows if each["scene"] == name]) for name in _names(rows)}
    medians = [each["median"] for each in scenes.values()]
    return {"scenes": scenes, "all": {**_extremes(rows), "median": _extremes(medians)["median"]} if rows else {}}


def _names(rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(each["scene"] for each in rows))


def _extremes(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Median and worst of each figure."""
    columns = {key: [each[key] for each in rows] for key in FIGURES}
    return {
        "median": {key: statistics.median(values) for key, values in columns.items()},
        "worst": {key: min(values) if FIGURES[key][2] else max(values) for key, values in columns.items()},
    }


def table(size: int, rows: list[dict[str, Any]], summed: dict[str, Any]) -> Table:
    """All runs, with the median and the worst below each scene's runs."""
    shown = Table("scene", "seed", *(title for title, _, _ in FIGURES.values()), title=f"{size} x {size} pixels")

    def add(name: str, seed: str, figures: dict[str, float], style: str | None = None, last: bool = False) -> None:
        cells = (f"{figures[key]:.{digits}f}" for key, (_, digits, _) in FIGURES.items())
        shown.add_row(name, seed, *cells, style=style, end_section=last)

    for name in _names(rows):
        own = [each for each in rows if each["scene"] == name]
        for each in own:
            add(name, str(each["seed"]), each, last=len(own) == 1)
        if len(own) > 1:
            for kind in ("median", "worst"):
                add(name, kind, summed["scenes"][name][kind], "bold", last=kind == "worst")
    for kind in ("median", "worst") if rows else ():
        add("all", kind, summed["all"][kind], "bold")
    return shown


# ------------------------------------------------------------------------------------------------ files


class Results:
    """The JSON of one size: the rows so far, and the settings that produced them."""

    def __init__(self, path: Path, settings: dict[str, Any], about: dict[str, Any]) -> None:
        self.path, self.settings, self.about = path, settings, about
        self.rows: list[dict[str, Any]] = []
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            before = {**found["settings"], "processor": found["machine"]["processor"]}
            now = {**settings, "processor": about["machine"]["processor"]}
            changed = [f"{key} was {before.get(key)} and is {now[key]}" for key in now if before.get(key) != now[key]]
            if changed:
                raise SystemExit(f"{path}: holds other figures: {', '.join(changed)}. Move it, or pass --results.")
            self.rows = found["rows"]

    def has(self, job: Job) -> bool:
        """Whether a run is finished."""
        return any((each["scene"], each["size"], each["seed"]) == job[:3] for each in self.rows)

    def add(self, new: dict[str, Any]) -> None:
        """Add a row and write the file; rows of a scene stay together, in order of seeds."""
        self.rows.append({**new, "nelf": self.about["versions"]["nelf"]})
        names = _names(self.rows)
        self.rows.sort(key=lambda each: (names.index(each["scene"]), each["seed"]))
        content = {**self.about, "settings": self.settings, **summary(self.rows), "rows": self.rows}
        with atomic_path(self.path) as partial:
            partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def contact_sheet(job: Job, out: Path, seeds: Sequence[int]) -> None:
    """Write one test view as ground truth, teacher, student and error side by side; a row for each seed."""
    rows = []
    for seed in seeds:
        samples = {name: job.folder(out, seed) / "report" / name / "samples" for name in ("teacher", "student")}
        names = sorted(path.name for path in samples["student"].glob("*.png"))
        if not names or not (samples["teacher"] / names[len(names) // 2]).is_file():
            continue  # the run has been deleted since
        panels = {
            name: np.split(iio.imread(folder / names[len(names) // 2])[..., :3], 3, axis=1)
            for name, folder in samples.items()
        }
        (teacher, truth, _), (student, _, error) = panels["teacher"], panels["student"]
        rows.append(np.concatenate([truth, teacher, student, error], axis=1))
    if rows:
        iio.imwrite(out / f"{job.scene}_{job.size}.png", np.concatenate(rows))


def jobs(options: argparse.Namespace, names: Sequence[str]) -> Iterator[Job]:
    """All runs of all sizes; every scene is run with one seed before any with the next."""
    for size in options.sizes:
        for place, seed in enumerate(options.seeds):
            teacher = options.seeds[place - place % options.students_per_teacher]
            for name in names:
                yield Job(name, size, seed, teacher)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", nargs="+", help="built-in names, or roots of Blender folders")
    parser.add_argument("--sizes", type=int, nargs="+", default=[200], help="widths in pixels; a JSON for each")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--teacher-minutes", type=float, default=2.0)
    parser.add_argument("--student-minutes", type=float, default=2.0)
    parser.add_argument("--teacher-steps", type=int, help="optimizer steps instead of minutes")
    parser.add_argument("--student-steps", type=int, help="optimizer steps instead of minutes")
    parser.add_argument(
        "--students-per-teacher", type=int, default=1, help="number of seeds that share the teacher of the first"
    )
    parser.add_argument("--experiment", default="lego_cpu")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="more overrides of distill.py")
    parser.add_argument("--out", type=Path, default=Path("runs/scenes"), help="for the runs and the images")
    parser.add_argument("--results", type=Path, default=RESULTS, help="for the JSON")
    options = parser.parse_args()
    if options.students_per_teacher < 1 or min(options.sizes) < 1:
        parser.error("--students-per-teacher and --sizes: allowed: 1 or more")
    return options


def main() -> None:
    """Run what is missing, and show the tables."""
    options = arguments()
    chosen = dict(scene_overrides(scene) for scene in options.scenes)
    if len(chosen) < len(options.scenes):
        raise SystemExit("scenes: two have the same name, so their rows would be indistinguishable.")
    settings = {
        "experiment": options.experiment,
        "teacher_minutes": None if options.teacher_steps else options.teacher_minutes,
        "student_minutes": None if options.student_steps else options.student_minutes,
        "teacher_steps": options.teacher_steps,
        "student_steps": options.student_steps,
        "students_per_teacher": options.students_per_teacher,
        "set": [without_place(word) for word in options.set],
    }
    about = facts(names=options.scenes)
    results = {size: Results(options.results / f"scenes_{size}.json", settings, about) for size in options.sizes}
    failed = []
    try:
        for job in jobs(options, list(chosen)):
            if results[job.size].has(job):
                continue
            try:
                results[job.size].add(run(job, options, chosen[job.scene]))
            except subprocess.CalledProcessError:
                failed.append(f"{job.scene} at {job.size} pixels, seed {job.seed}")
            contact_sheet(job, options.out, options.seeds)
    except KeyboardInterrupt:
        print("\nInterrupted; the same command goes on from here.", file=sys.stderr)
        raise SystemExit(130) from None
    finally:
        for size, each in results.items():
            Console(width=170).print(table(size, each.rows, summary(each.rows)))
    if failed:
        raise SystemExit(f"failed, see the output above: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
