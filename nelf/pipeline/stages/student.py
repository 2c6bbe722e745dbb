"""Stage student: fit a light field to the teacher's views."""

from functools import partial
from typing import Any

from nelf.data import SceneDataModule, with_pseudo_views
from nelf.pipeline.fit import device, fit
from nelf.pipeline.run import Run
from nelf.pipeline.stage import stage
from nelf.systems.system import System

__all__ = ["student", "student_data"]


@stage(sections=("data", "model", "system", "trainer", "seed"), inputs=("pseudo",))
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
    system = run.system()
    data = student_data(run, system, real_views)
    cameras = data.scene.train.camera
    _, metrics = fit(
        run,
        run.folder("student"),
        "student",
        data,
        system=system,
        begin=partial(_start_from_teacher, run, data) if warm_start else None,
        end=lambda system: system.network.trim(cameras),
        max_steps=max_steps,
        max_time=max_time,
    )
    return metrics


def _start_from_teacher(run: Run, data: SceneDataModule, system: System) -> None:
    """Give a new network what the teacher knows of the scene, if there is a teacher that can be asked."""
    folder = run.find("teacher")
    teacher = None if folder is None else run.load(folder, "teacher", device(run))
    if hasattr(teacher, "sigma"):
        scene = data.scene
        system.network.to(device(run)).prepare(scene.geometry, scene.train.silhouettes(), teacher)


def student_data(run: Run, system: System, real_views: bool | None = None) -> SceneDataModule:
    """What a student learns from: the teacher's views, validated on the scene's own.

    Args:
        run: whose pseudo stage is done.
        system: what learns; it says what its batches are.
        real_views: mix the scene's own training views in; None as the configuration of stage ``student`` says.

    Raises:
        UserError: the pseudo set is missing.
    """
    if real_views is None:
        real_views = run.config["stage"]["student"]["real_views"]
    scene = with_pseudo_views(run.data().scene, run.input("pseudo"), real_views, for_rays=system.batch == "rays")
    options = {key: run.config["data"][key] for key in ("sampling", "num_workers", "seed") if key in run.config["data"]}
    return SceneDataModule(scene, **system.batches, **options)
