"""Stage student: fit a light field to the teacher's views."""

from functools import partial
from typing import Any

from nelf.data import BlenderDataModule
from nelf.pipeline.fit import device, fit
from nelf.pipeline.run import Run
from nelf.storage import load

__all__ = ["student", "student_data"]

_SCENE_ONLY = ("_target_", "root", "eval_root", "extra_views", "scene", "width")


def student(
    run: Run,
    *,
    max_steps: int | None = None,
    max_time: str | None = None,
    real_views: bool = True,
    warm_start: bool = True,
) -> dict[str, Any]:
    """Train the student on the pseudo set.

    Args:
        run: the run to write into; its ``model`` and ``system`` sections say what and how.
        max_steps: optimizer steps; None for the Trainer's.
        max_time: days:hours:minutes:seconds; None for the Trainer's.
        real_views: mix the scene's own training views in with the teacher's.
        warm_start: start from the teacher's density and color, where the network can and the teacher has them.

    Returns:
        Metrics on the scene's validation views, and the number of steps.

    Raises:
        UserError: as ``nelf.pipeline.fit.fit``; the pseudo set is missing or damaged.
    """
    data = student_data(run, real_views)
    cameras = data.scene.train.camera
    _, metrics = fit(
        run,
        run.folder("student"),
        "student",
        data,
        begin=partial(_start_from_teacher, run, data) if warm_start else None,
        end=lambda system: system.network.trim(cameras),
        max_steps=max_steps,
        max_time=max_time,
    )
    return metrics


def _start_from_teacher(run: Run, data: BlenderDataModule, system: Any) -> None:
    """Give a new network what the teacher knows of the scene, if there is a teacher that can be asked."""
    folder = run.find("teacher")
    teacher = None if folder is None else load(folder, device=device(run))
    if hasattr(teacher, "sigma"):
        system.network.to(device(run)).fit_scene(data.scene, teacher)


def student_data(run: Run, real_views: bool | None = None) -> BlenderDataModule:
    """What a student learns from: the teacher's views, validated on the scene's own.

    Args:
        run: whose pseudo stage is done.
        real_views: mix the scene's own training views in; None as the configuration of stage ``student`` says.

    Raises:
        UserError: the pseudo set is missing.
    """
    if real_views is None:
        real_views = run.config["stage"]["student"]["real_views"]
    scene = run.data()
    options = {key: value for key, value in run.config["data"].items() if key not in _SCENE_ONLY}
    return BlenderDataModule(
        run.input("pseudo"),
        eval_root=scene.root,
        extra_views=scene.root if real_views else None,
        width=scene.scene.train.camera.width,
        **options,
    )
