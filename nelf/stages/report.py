"""Stage report: measure every model of the run on the test views, and write it down with pictures."""

import os
import platform
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import nelf
from nelf.cameras import Camera
from nelf.data import Scene
from nelf.evaluation import evaluate, orbit_video
from nelf.paths import orbit
from nelf.reporting import comparisons, write_report
from nelf.run import Run, read_json
from nelf.training import device
from nelf.weights import load

__all__ = ["orbit_cameras", "report", "row"]


def report(run: Run, *, frames: int = 60) -> dict[str, Any]:
    """Evaluate teacher and student, whichever are done, and write ``report.json`` and ``report.html``.

    Args:
        run: the run to write into: sample pictures and videos into ``report/``, the report into its root.
        frames: of the orbit video of each model; 0 for none.

    Returns:
        The row of the last model.

    Raises:
        UserError: a model cannot be loaded, or the directory cannot be written.
    """
    scene = run.data().scene
    folder = run.folder("report")
    rows, videos, curves = [], {}, {}
    for name in ("teacher", "student"):
        trained = run.find(name)
        if trained is None:
            continue
        network = load(trained, device=device(run))
        result = evaluate(network, scene.test, scene.background, folder / name, description=f"Evaluating the {name}")
        rows.append(row(name, network, result, trained, read_json(trained / "metrics.json") or {}))
        if frames > 0:
            videos[name], _ = orbit_video(network, orbit_cameras(scene, frames), folder / f"{name}_orbit")
        logs = sorted(trained.glob("logs/*/metrics.csv"))
        curves.update({name: logs[-1]} if logs else {})
    write_report(
        run.root,
        rows,
        comparisons({each["name"]: folder / each["name"] / "samples" for each in rows}),
        title=f"{scene.name}: from a radiance field to a light field",
        video=videos.get(rows[-1]["name"]),
        curves=curves,
        meta=_circumstances(scene),
    )
    return rows[-1]


def row(
    name: str,
    network: torch.nn.Module,
    result: Mapping[str, Any],
    folder: Path,
    training: Mapping[str, Any],
) -> dict[str, Any]:
    """One model's figures, as a row of the report.

    Args:
        name: what to call it.
        network: the model.
        result: of ``nelf.evaluation.evaluate``.
        folder: holds its ``model.safetensors``.
        training: ``seconds`` and ``peak_memory_bytes`` of its training.

    Returns:
        Numbers by the names that ``nelf.reporting.write_report`` knows.
    """
    return {
        "name": name,
        **{key: result[key] for key in ("psnr", "ssim", "lpips")},
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "bytes": (folder / "model.safetensors").stat().st_size,
        "latency_ms": 1000 * result["seconds_per_view"],
        "train_seconds": training.get("seconds"),
        "peak_memory_mb": training.get("peak_memory_bytes", 0) / 1e6,
    }


def orbit_cameras(scene: Scene, frames: int) -> Camera:
    """A circle around the scene at the mean distance and height of its training cameras.

    Args:
        scene: whose first training camera gives size and intrinsics.
        frames: how many.

    Returns:
        A batch of cameras.
    """
    camera = scene.train.camera
    origins = camera.c2w[:, :, 3]
    center = scene.aabb.view(2, 3).mean(0)
    offset = origins - center
    radius = offset.norm(dim=-1)
    elevation = float(torch.rad2deg(torch.asin(offset[:, 2] / radius)).mean())
    c2w = orbit(frames, float(radius.mean()), elevation, center.tolist())
    return replace(camera, c2w=c2w, intrinsics=camera.intrinsics[:1].repeat(frames, 1), time=None)


def _circumstances(scene: Scene) -> dict[str, Any]:
    """What the figures depend on beside the models."""
    return {
        "scene": scene.name,
        "licence": scene.license,
        "test views": len(scene.test),
        "image": f"{scene.test.camera.width} x {scene.test.camera.height}",
        "processor": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "versions": f"nelf {nelf.__version__}, torch {torch.__version__}, python {platform.python_version()}",
    }
