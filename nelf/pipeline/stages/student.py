"""Stage student: fit a light field to the teacher's views."""

from functools import partial
from pathlib import Path
from typing import Any

from nelf.cameras import Camera
from nelf.data import with_pseudo_views
from nelf.data.blender import read_cameras
from nelf.data.online import online_views
from nelf.lightfields import LightField
from nelf.pipeline.documents import read_settings
from nelf.pipeline.fit import fit
from nelf.pipeline.processes import agree
from nelf.pipeline.recipe import Recipe
from nelf.pipeline.run import Run
from nelf.pipeline.stage import stage
from nelf.pipeline.stages.given import check_given, take
from nelf.pipeline.stages.pseudo import TEACHER, pseudo_cameras
from nelf.scene import Scene
from nelf.systems.system import System

__all__ = ["best_student", "check", "drawn_cameras", "student", "student_scene"]


def check(recipe: Recipe) -> None:
    """Refuse a file that holds no student.

    Raises:
        UserError: see ``nelf.pipeline.stages.given.check_given``.
    """
    check_given(recipe, "student")


@stage(
    sections=("data", "model", "system", "trainer", "seed"),
    inputs=("pseudo",),
    instead="file",
    check=check,
    spreads=True,
)
def student(
    run: Run,
    *,
    max_steps: int | None = None,
    max_time: str | None = None,
    real_views: bool = True,
    warm_start: bool = True,
    file: str | None = None,
) -> dict[str, Any]:
    """Train the student on the teacher's views, or use a trained one.

    Args:
        run: the run to write into; its sections ``model`` and ``system`` describe the network and its training.
        max_steps: optimizer steps; None for the Trainer's.
        max_time: days:hours:minutes:seconds; None for the Trainer's.
        real_views: add the scene's own training views to the teacher's.
        warm_start: initialize the network from the teacher's density and color, if both support that.
        file: weights to use instead of training, such as those of ``python -m nelf.interop``; the file describes its
            network.

    Returns:
        Metrics on the scene's validation views, and the number of steps.

    Raises:
        UserError: see ``nelf.pipeline.fit.fit``; or the pseudo set is missing or damaged.
    """
    if file is not None:
        return agree(lambda: take(run, "student", Path(file)))
    recipe = run.recipe
    system = recipe.system()
    data = recipe.data(system, student_scene(run, system.network, real_views))
    cameras = data.scene.train.camera
    return fit(
        recipe,
        system,
        data,
        run.folder("student"),
        begin=partial(_start_from_teacher, run, data.scene) if warm_start else None,
        end=lambda system: system.network.trim(cameras),
        max_steps=max_steps,
        max_time=max_time,
    )


def _start_from_teacher(run: Run, scene: Scene, system: System) -> None:
    """Initialize a new network from the teacher's density and color, if there is a teacher that has them."""
    folder, device = run.find("teacher"), run.recipe.device
    teacher = None if folder is None else run.recipe.load(folder, "teacher", device)
    if hasattr(teacher, "sigma"):
        system.network.to(device).prepare(scene.geometry, scene.train.silhouettes(), teacher)


def student_scene(run: Run, network: LightField, real_views: bool | None = None) -> Scene:
    """The scene that a student is trained on: the teacher's views, stored or online, and the scene's own validation.

    Args:
        run: a run whose stage pseudo is done.
        network: the student; for a student of rays, stored views are read from disk.
        real_views: add the scene's own training views; None for the option of stage ``student``.

    Raises:
        UserError: the pseudo set is missing.
    """
    if real_views is None:
        real_views = run.config["stage"]["student"]["real_views"]
    for_rays, root, recipe, options = network.batch == "rays", pseudo_root(run), run.recipe, _online(run)
    if options is None:
        return with_pseudo_views(recipe.scene, root, real_views, for_rays=for_rays)
    return online_views(
        recipe.scene,
        recipe.load(root / TEACHER, "teacher", recipe.device).requires_grad_(False),
        lambda number: pseudo_cameras(recipe, options["views"], options["poses"], number),
        real_views=real_views,
        for_rays=for_rays,
        pool=options["pool"],
        renew_every=options["renew_every"],
        device=recipe.device,
    )


def drawn_cameras(run: Run) -> Camera:
    """The cameras of the teacher's views; if these are rendered online, those of round 0."""
    options, recipe = _online(run), run.recipe
    if options is not None:
        return pseudo_cameras(recipe, options["views"], options["poses"])
    return read_cameras(pseudo_root(run)).resized(recipe.scene.train.camera.width)


def _online(run: Run) -> dict[str, Any] | None:
    """The options with which stage pseudo was done, if views are rendered online; None if they are stored."""
    if run.config["stage"]["pseudo"].get("root") is not None:
        return None
    options: dict[str, Any] = (read_settings(run.input("pseudo") / "config.yaml") or {}).get("stage", {})
    return options if options.get("mode") == "online" else None


def pseudo_root(run: Run) -> Path:
    """The folder of the teacher's views: the stage's own, or its option ``root``.

    Raises:
        UserError: the stage is not done.
    """
    folder, given = run.input("pseudo"), run.config["stage"]["pseudo"].get("root")
    return folder if given is None else Path(given)


def best_student(run: Run) -> Path:
    """The folder of the student that later stages use: that of stage finetune if it is done.

    Raises:
        UserError: there is none.
    """
    tuned = run.current("finetune") if "finetune" in run.recipe.stages else None
    return run.input("student") if tuned is None else tuned
