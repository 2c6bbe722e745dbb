"""Stage narrow: a student with fewer channels."""

from typing import Any

from nelf.compression.structured import prune_channels
from nelf.errors import Count, Positive, UserError
from nelf.pipeline.documents import write_json
from nelf.pipeline.processes import is_first
from nelf.pipeline.recipe import Recipe
from nelf.pipeline.run import Run
from nelf.pipeline.stage import stage
from nelf.pipeline.stages.prune import described, fine_tune
from nelf.pipeline.stages.student import best_student, student_scene

__all__ = ["check", "narrow"]


def check(recipe: Recipe) -> None:
    """Check the stage's options before anything is trained.

    Raises:
        UserError: names the key and what is allowed.
    """
    options = recipe.config["stage"]["narrow"]
    try:
        prune_channels(recipe.network(), options["ratio"], options["round_to"])
    except ValueError as error:
        raise UserError(f"stage.narrow.{error}") from error


@stage(
    sections=("data", "model", "system", "trainer", "seed"),
    inputs=("pseudo", "student"),
    optional=("finetune",),
    check=check,
    spreads=True,
)
def narrow(
    run: Run,
    *,
    ratio: float = 0.5,
    round_to: Count = 8,
    lr: Positive | None = None,
    max_steps: int | None = None,
    max_time: str | None = None,
) -> dict[str, Any]:
    """Remove channels of the student, and fine-tune the rest with the student's own training.

    Writes ``narrow.safetensors`` and ``artifacts.json``.

    Args:
        run: the run to write into; its pseudo and student stages are done.
        ratio: share of the channels to remove.
        round_to: the number of remaining channels is a multiple of it.
        lr: learning rate; None for the student's own.
        max_steps: optimizer steps; None for the Trainer's.
        max_time: days:hours:minutes:seconds; None for the Trainer's.

    Returns:
        Metrics of the fine-tuning.

    Raises:
        ValueError: an option is out of range.
        UserError: see ``nelf.pipeline.fit.fit``; or an earlier stage is not done, or the network cannot be narrowed.
    """
    folder = run.folder("narrow")
    network = prune_channels(run.recipe.load(best_student(run)), ratio, round_to)
    scene = student_scene(run, network)
    file = folder / "narrow.safetensors"
    # Another random stream than the student's, whose first batches it would repeat.
    metrics = fine_tune(run.recipe, network, scene, 1, file, lr, max_steps=max_steps, max_time=max_time)
    if is_first():
        write_json(folder / "artifacts.json", [described(f"narrowed by {100 * ratio:.3g} %", file, metrics, "narrow")])
    return metrics
