"""Stage finetune: fine-tune the student on the scene's own photographs alone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from nelf.errors import Positive, UserError, atomic_path
from nelf.pipeline.documents import write_json
from nelf.pipeline.processes import agree
from nelf.pipeline.recipe import Recipe
from nelf.pipeline.run import Run
from nelf.pipeline.stage import stage
from nelf.pipeline.stages.prune import described, fine_tune
from nelf.rendering import Renderable
from nelf.report.evaluation import evaluate
from nelf.scene import Scene

__all__ = ["check", "finetune"]


def check(recipe: Recipe) -> None:
    """Check the learning rate before anything is trained.

    Raises:
        UserError: names the key and what is allowed.
    """
    lr = recipe.config["stage"]["finetune"]["lr"]
    if lr is not None and not 0 < lr < float("inf"):
        raise UserError(f"stage.finetune.lr: is {lr}; allowed: above 0, or null for a tenth of the student's.")


@stage(
    sections=("data", "model", "system", "trainer", "seed"),
    inputs=("student",),
    spreads=True,
    check=check,
)
def finetune(
    run: Run, *, lr: Positive | None = None, max_steps: int | None = 10_000, max_time: str | None = None
) -> dict[str, Any]:
    """Fine-tune the student without the teacher's views.

    The teacher's views are as blurred as the teacher; the photographs are sharp, but so few that training on them alone
    overfits quickly. So the result is kept only if PSNR on the validation views improves. Writes ``tuned.safetensors``,
    ``artifacts.json`` and ``model.safetensors``, the better of the two networks, which later stages use.

    Args:
        run: the run to write into; its student stage is done.
        lr: learning rate; parameter groups keep their ratios, schedules their shape. None for a tenth of the student's.
        max_steps: optimizer steps; None for the Trainer's. R2L uses 400,000 after 1,200,000 (its author also reports
            about 1,000), DyLiN 10,000 after 800,000; all warn of overfitting with more.
        max_time: days:hours:minutes:seconds; None for the Trainer's.

    Returns:
        ``before`` and ``after``, the mean PSNR of all validation views, dB, and ``kept``.

    Raises:
        UserError: see ``nelf.pipeline.fit.fit``; or the student is not done.
    """
    recipe, folder, student = run.recipe, run.folder("finetune"), run.input("student")
    scene, file = recipe.scene, folder / "tuned.safetensors"
    rate = recipe.config["system"]["lr"] / 10 if lr is None else lr
    network = recipe.load(student, device=recipe.device)
    before = agree(lambda: _quality(network, scene, "the student"))
    metrics = fine_tune(recipe, network, scene, 1, file, rate, max_steps=max_steps, max_time=max_time)
    return agree(lambda: _choose(recipe, folder, student, before, metrics))


def _choose(recipe: Recipe, folder: Path, student: Path, before: float, metrics: dict[str, Any]) -> dict[str, Any]:
    """Keep the better of the two networks, and print which."""
    file = folder / "tuned.safetensors"
    after = _quality(recipe.load(file, device=recipe.device), recipe.scene, "the fine-tuned student")
    kept = after > before
    change = f"validation PSNR {before:.2f} -> {after:.2f} dB"
    words = f"finetune: {change}" if kept else f"finetune: {change}: it overfits, and the student stays as it was"
    print(words, flush=True)
    with atomic_path(folder / "model.safetensors") as partial:
        shutil.copyfile(file if kept else student / "model.safetensors", partial)
    name = "fine-tuned" if kept else "fine-tuned, not kept"
    listed = {**described(name, file, metrics, "finetune"), "val/psnr": after}
    write_json(folder / "artifacts.json", [listed])
    # val/psnr is named as in the student's metrics, for stages that read either.
    return {"val/psnr": max(before, after), "before": before, "after": after, "kept": kept, "steps": metrics["steps"]}


def _quality(model: Renderable, scene: Scene, words: str) -> float:
    """Mean PSNR of all validation views, dB."""
    return float(evaluate(model, scene.val, scene.background, description=f"Validating {words}")["psnr"])
