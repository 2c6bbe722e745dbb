"""Stage teacher: fit a radiance field to the scene's training views."""

from typing import Any

from nelf.pipeline.fit import fit
from nelf.pipeline.run import Run
from nelf.pipeline.stage import stage

__all__ = ["teacher"]


@stage(sections=("data", "teacher", "trainer", "seed"), spreads=True)
def teacher(run: Run, *, max_steps: int | None = None, max_time: str | None = None) -> dict[str, Any]:
    """Train the teacher.

    Args:
        run: the run to write into; its ``teacher`` section says what and how.
        max_steps: optimizer steps; None for the Trainer's.
        max_time: days:hours:minutes:seconds; None for the Trainer's.

    Returns:
        Metrics on the validation views, and the number of steps.

    Raises:
        UserError: as ``nelf.pipeline.fit.fit``.
    """
    recipe = run.recipe
    system = recipe.system("teacher")
    data = recipe.data(system)
    return fit(recipe, system, data, run.folder("teacher"), name="teacher", max_steps=max_steps, max_time=max_time)
