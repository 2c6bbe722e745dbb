"""Stage teacher: fit a radiance field to the scene's training views."""

from pathlib import Path
from typing import Any

from nelf.pipeline.fit import fit
from nelf.pipeline.processes import agree
from nelf.pipeline.recipe import Recipe
from nelf.pipeline.run import Run
from nelf.pipeline.stage import stage
from nelf.pipeline.stages.given import check_given, take

__all__ = ["check", "teacher"]


def check(recipe: Recipe) -> None:
    """Refuse a file that holds no teacher.

    Raises:
        UserError: see ``nelf.pipeline.stages.given.check_given``.
    """
    check_given(recipe, "teacher")


@stage(sections=("data", "teacher", "trainer", "seed"), check=check, spreads=True)
def teacher(
    run: Run, *, max_steps: int | None = None, max_time: str | None = None, file: str | None = None
) -> dict[str, Any]:
    """Train the teacher, or use a trained one.

    Args:
        run: the run to write into; its section ``teacher`` describes the network and its training.
        max_steps: optimizer steps; None for the Trainer's.
        max_time: days:hours:minutes:seconds; None for the Trainer's.
        file: weights to use instead of training, such as those of ``python -m nelf.interop``; the file describes its
            network. A NeRF is rendered with an occupancy grid computed from its density.

    Returns:
        Metrics on the validation views, and the number of steps.

    Raises:
        UserError: see ``nelf.pipeline.fit.fit``.
    """
    if file is not None:
        return agree(lambda: take(run, "teacher", Path(file)))
    recipe = run.recipe
    system = recipe.system("teacher")
    data = recipe.data(system)
    return fit(recipe, system, data, run.folder("teacher"), name="teacher", max_steps=max_steps, max_time=max_time)
