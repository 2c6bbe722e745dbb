"""Stage report: evaluate all models of a run on the test views, and write figures and images."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from nelf.cameras import Camera
from nelf.compression.inference import optimize_for_inference
from nelf.compression.pruning import compressed_bytes
from nelf.data import Scene
from nelf.errors import UserError
from nelf.export import ExportedLightField
from nelf.lightfields import LightField
from nelf.paths import MOTIONS, around, in_motion, llff_spiral
from nelf.pipeline.documents import read_artifacts, read_record
from nelf.pipeline.memory import peak_memory, reset_peak_memory
from nelf.pipeline.run import Run
from nelf.pipeline.stage import BATCHES, EVERYTHING, stage
from nelf.rendering import Renderable
from nelf.report.evaluation import MOVING_FIGURES, evaluate, latencies, orbit_video
from nelf.report.machine import machine
from nelf.report.page import write_report
from nelf.report.views import comparisons

__all__ = ["Artifact", "along", "artifacts", "film_cameras", "report", "row"]

_VIEWS, _MOMENTS = 4, 5  # number of test views that are shown, of static scenes and of scenes with a time
_FILMS = {
    "orbit": "The camera moves",
    "time": "Time goes by, the camera stands still",
    "camera": "The camera moves, time stands still",
    "both": "The camera moves while time goes by",
}


class Artifact(NamedTuple):
    """A model of a run: its name, its file, the model itself, and figures that are already known."""

    name: str
    file: Path
    model: Renderable
    known: Mapping[str, Any]


@stage(sections=("data",), optional=EVERYTHING, without=BATCHES)
def report(run: Run, *, frames: int = 60) -> dict[str, Any]:
    """Evaluate all models whose stages are done, and write ``report.json``, ``report.md`` and ``report.html``.

    The figures at the top of the page are those of the shipped model: the first of the bundle if there is a bundle.

    Args:
        run: the run to write into: sample images and videos into ``report/``, the report into its root.
        frames: frames of the student's video (the teacher's if there is no student); 0 for no video. Its camera follows
            the training cameras, see ``film_cameras``. A scene with a time has three videos: only the time changes,
            only the camera moves, or both.

    Returns:
        The row of the student, or of the last model if there is no student.

    Raises:
        UserError: a model cannot be loaded, or the directory cannot be written.
    """
    scene, folder = run.recipe.scene, run.folder("report")
    rows, curves, videos = [], {}, {}
    times, samples = _times(scene), _MOMENTS if scene.controls else _VIEWS
    models = artifacts(run)
    filmed = [each.name for each in models if each.name in ("teacher", "student")][-1:]
    for name, file, model, known in models:
        words, own = f"Evaluating {name}", folder / _slug(name)
        result = evaluate(model, scene.test, scene.background, own, samples=samples, description=words)
        rows.append(row(name, model, result, file, known, scene.test.camera[0]))
        if frames > 0 and name in filmed:
            for motion, cameras in _films(scene, frames).items():
                stem = f"{name}_orbit" if motion == "orbit" else f"{name}_{motion}"
                videos[_FILMS[motion]], _ = orbit_video(model, cameras, folder / stem)
        if name in ("teacher", "student"):
            logs = sorted(file.parent.glob("logs/*/metrics.csv"))
            curves.update({name: logs[-1]} if logs else {})
    timed = latencies({each.name: each.model for each in models}, scene.test.camera)
    by_name = {each["name"]: each for each in rows}
    for each in rows:
        each["latency_ms"] = 1000 * timed[each["name"]]
        if "student" in by_name and each["name"] not in ("teacher", "student"):
            each["delta_db"] = each["psnr"] - by_name["student"]["psnr"]
    subject = by_name.get("student", rows[-1])
    shipped = next((each.name for each in models if each.known.get("kind") == "export"), subject["name"])
    write_report(
        run.root,
        rows,
        comparisons({name: folder / _slug(name) / "samples" for name in _shown(models)}, times),
        title=f"{scene.name}: from a radiance field to a light field",
        subject=shipped,
        videos=videos,
        curves=curves,
        plots=_pruning_plot(models),
        meta={**_circumstances(scene), **_distilled_from(run)},
    )
    return subject


def artifacts(run: Run) -> list[Artifact]:
    """Open the models of all finished stages, in the order of the chain.

    Args:
        run: the run.

    Returns:
        The teacher, the student, the student optimized for inference, then the ``artifacts.json`` of the other stages.

    Raises:
        UserError: a file is missing or damaged.
    """
    found: list[Artifact] = []
    camera, place = run.recipe.scene.test.camera[0], run.recipe.device

    def add(name: str, file: Path, make: Callable[[], Renderable], known: Mapping[str, Any]) -> Renderable:
        model, memory = _measured(make, camera)
        found.append(Artifact(name, file, model, {"memory_mb": memory / 1e6, **known}))
        return model

    for name in ("teacher", "student"):
        folder = run.current(name)
        if folder is None:
            continue
        file, training = folder / "model.safetensors", read_record(folder / "metrics.json") or {}
        seconds, peak = (training.get(key) for key in ("seconds", "peak_memory_bytes"))
        if not isinstance(seconds, int | float | None) or not isinstance(peak, int | float | None):
            raise UserError(f"{folder / 'metrics.json'}: its seconds, or its peak_memory_bytes, are no number.")
        known = {"train_seconds": seconds, "peak_memory_mb": (peak or 0) / 1e6}
        network = add(name, file, partial(run.recipe.load, file, name, place), known)
        if isinstance(network, LightField):
            fast = optimize_for_inference(network)
            add("student, optimized", file, partial(getattr, fast, "network"), {"changes": ", ".join(fast.changes)})
    for name in (each for each in run.recipe.stages if each not in ("teacher", "student", "report")):
        folder = run.current(name)
        for each in read_artifacts(folder) if folder else []:
            file = folder / each["file"]  # type: ignore[operator]
            known = {key: each[key] for key in ("kind", "bytes", "sparsity", "max_abs_error") if key in each}
            add(each["name"], file, partial(run.recipe.load, file, device=place), known)
    return found


def _measured(make: Callable[[], Renderable], camera: Camera) -> tuple[Renderable, int]:
    """Open a model and render one view; return the model, and the peak of main memory for that, in bytes."""
    with suppress(OSError, AttributeError):  # return freed memory, whose reuse would not be counted
        ctypes.CDLL(None).malloc_trim(0)
    reset_peak_memory()
    before = peak_memory()
    model = make()
    model.render(camera)
    return model, peak_memory() - before


def row(
    name: str,
    model: Renderable,
    result: Mapping[str, Any],
    file: Path,
    known: Mapping[str, Any],
    camera: Camera,
) -> dict[str, Any]:
    """One model's figures, as a row of the report.

    Args:
        name: its name.
        model: the model.
        result: from ``nelf.report.evaluation.evaluate``.
        file: its weights.
        known: figures that are not measured here; they take precedence.
        camera: the view for which multiply-accumulates are counted.

    Returns:
        Figures by the names of ``nelf.report.page.write_report``. ``macs`` counts matrix products and convolutions, not
        lookups and encodings.
    """
    figures = {
        "name": name,
        **{key: result[key] for key in ("psnr", "ssim", "lpips", *MOVING_FIGURES) if key in result},
        "bytes": file.stat().st_size,
        "latency_ms": 1000 * result["seconds_per_view"],
    }
    if isinstance(model, torch.nn.Module):
        parameters = list(model.parameters())
        with FlopCounterMode(display=False) as counter:
            model.render(camera)  # type: ignore[attr-defined, operator, unused-ignore]
        figures |= {
            "parameters": sum(parameter.numel() for parameter in parameters),
            "nonzero": sum(int(parameter.count_nonzero()) for parameter in parameters),
            "compressed_bytes": compressed_bytes(file),
            "macs": counter.get_total_flops() // 2,
        }
    elif isinstance(model, ExportedLightField):
        figures |= model.cost(camera)
    return {**figures, **known}


def _shown(models: list[Artifact]) -> list[str]:
    """The models whose images the report shows: teacher, student, and the last of each later stage."""
    last = {each.known["kind"]: each.name for each in models if "kind" in each.known}
    return [each.name for each in models if each.name in ("teacher", "student", *last.values())]


def _pruning_plot(models: list[Artifact]) -> dict[str, Path]:
    """The plot of stage prune by its caption, if there are models of that stage."""
    folder = next((each.file.parent for each in models if each.file.parent.name == "prune"), None)
    return {} if folder is None else {"PSNR against sparsity, validation views": folder / "pruning.svg"}


def _slug(name: str) -> str:
    """The name of the folder of a model's images."""
    return re.sub(r"[^\w.-]+", "_", name).strip("_")


def film_cameras(scene: Scene, frames: int) -> Camera:
    """The cameras of a scene's video: LLFF's spiral for a ``forward`` trajectory, else ``nelf.paths.around``.

    Args:
        scene: its first training camera gives size and intrinsics.
        frames: number of cameras.

    Returns:
        A batch of cameras. If the scene has a time, it runs over its range; other controls are in the middle of theirs.
    """
    if scene.trajectory == "forward":
        return along(scene, llff_spiral(scene.train.camera.at(), scene.near, scene.far, frames).c2w)
    return along(scene, around(scene.viewpoints, frames))


def along(scene: Scene, c2w: Tensor, intrinsics: Tensor | None = None) -> Camera:
    """Cameras of a video of a scene along given poses.

    Args:
        scene: its training cameras give the size and the ranges of the controls.
        c2w: (N, 3, 4) the poses.
        intrinsics: (N, 4) in pixels; None for those of the first training camera.

    Returns:
        A batch of N cameras. If the scene has a time, it runs over its range; other controls are in the middle of
        theirs.
    """
    camera = scene.train.camera
    intrinsics = camera.intrinsics[:1].repeat(len(c2w), 1) if intrinsics is None else intrinsics
    controls = camera.controls
    if controls is not None:
        first, last = controls.amin(0), controls.amax(0)
        controls = ((first + last) / 2).repeat(len(c2w), 1)
        controls[:, 0] = torch.linspace(float(first[0]), float(last[0]), len(c2w))
    return replace(camera.pinhole(), c2w=c2w, intrinsics=intrinsics, controls=controls, view=None)


def _films(scene: Scene, frames: int) -> dict[str, Camera]:
    """The cameras of the report's videos, by the keys of ``_FILMS``."""
    cameras = film_cameras(scene, frames)
    if cameras.time is None:
        return {"orbit": cameras}
    span = float(cameras.time[0]), float(cameras.time[-1])
    return {motion: in_motion(cameras, motion, span) for motion in MOTIONS}


def _times(scene: Scene) -> dict[str, float]:
    """The time of each test view by its name; an empty dict for a static scene."""
    times = scene.test.camera.time
    return {} if times is None else dict(zip(scene.test.names, times.tolist(), strict=True))


def _circumstances(scene: Scene) -> dict[str, Any]:
    """The conditions of the measurements."""
    return {
        "scene": scene.name,
        **({"license": scene.license} if scene.license else {}),
        "test views": len(scene.test),
        **({"controls": ", ".join(scene.controls)} if scene.controls else {}),
        "image": f"{scene.test.camera.width} x {scene.test.camera.height}",
        **machine(),
        "latency": "median over rounds in which all models take turns; each renders twice, the second call is timed",
    }


def _distilled_from(run: Run) -> dict[str, str]:
    """The teacher's views that the student was trained on, if any."""
    folder = run.find("pseudo") if "pseudo" in run.recipe.stages else None
    known = (read_record(folder / "metrics.json") or {}) if folder else {}
    if "views" not in known:
        return {}
    online = known.get("mode") == "online"
    words = "online, rendered while the student learned" if online else f"{known['views']:,} stored"
    return {"teacher's views": words}
