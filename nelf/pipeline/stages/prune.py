"""Stage prune: iterative magnitude pruning of the student."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from nelf.callbacks import IterativePruning
from nelf.compression.pruning import (
    apply_masks,
    choose_weights,
    compressed_bytes,
    find_masks,
    sparsities,
    sparsity_after,
)
from nelf.errors import Count, Positive, UserError, atomic_path
from nelf.pipeline.documents import read_record, write_json
from nelf.pipeline.fit import fit
from nelf.pipeline.processes import agree, is_first
from nelf.pipeline.recipe import Recipe
from nelf.pipeline.run import Run
from nelf.pipeline.stage import stage
from nelf.pipeline.stages.student import best_student, student_scene
from nelf.report.plots import sparsity_svg
from nelf.scene import Scene

__all__ = ["check", "described", "fine_tune", "prune"]


def check(recipe: Recipe) -> None:
    """Check the stage's options before anything is trained.

    Raises:
        UserError: names the key and what is allowed.
    """
    options, network = recipe.config["stage"]["prune"], recipe.network()
    try:
        IterativePruning(options["amount"], options["rounds"], None, options["lr"], schedule=options["schedule"])
        choose_weights(network, options["layers"])
    except ValueError as error:
        raise UserError(f"stage.prune.{error}") from error


@stage(
    sections=("data", "model", "system", "trainer", "seed"),
    inputs=("pseudo", "student"),
    optional=("finetune",),
    check=check,
    spreads=True,
)
def prune(
    run: Run,
    *,
    amount: float = 0.3,
    rounds: Count = 3,
    schedule: Literal["geometric", "uniform", "cubic", "constant"] = "geometric",
    layers: Sequence[str] = ("head", "body", "norms"),
    masks: bool = True,
    lr: Positive | None = 5e-6,
    max_steps: int | None = 50_000,
    max_time: str | None = None,
) -> dict[str, Any]:
    """Prune the student's weights in rounds, and fine-tune after each with the student's own training.

    Writes ``round_1.safetensors`` and so on, ``artifacts.json`` and ``pruning.svg``. A finished round is not repeated;
    an unfinished one resumes with its masks.

    Args:
        run: the run to write into; its pseudo and student stages are done.
        amount: sparsity of the chosen weights after the last round.
        rounds: number of rounds.
        schedule: sparsity by round, see ``nelf.compression.pruning.sparsity_after``.
        layers: which weights, see ``nelf.compression.pruning.choose_weights``.
        masks: keep pruned weights at zero during fine-tuning. Without masks, each round sets weights to zero once and
            fine-tuning changes them again: with ``schedule="constant"`` that is MobileR2L's pruning extension, whose
            final weights are dense.
        lr: learning rate of the fine-tuning (parameter groups keep their ratios, schedules their shape); None for the
            student's own.
        max_steps: optimizer steps per round; None for the Trainer's.
        max_time: limit per round, days:hours:minutes:seconds; None for the Trainer's.

    Returns:
        ``sparsity`` and ``val/psnr`` after the last round; ``rounds``, the same for the student and for each round,
        with the sparsity of each layer.

    Raises:
        ValueError: an option is out of range.
        UserError: see ``nelf.pipeline.fit.fit``; or an earlier stage is not done.
    """
    recipe, folder, student = run.recipe, run.folder("prune"), best_student(run)
    network, dense = recipe.load(student), read_record(student / "metrics.json") or {}
    scene = student_scene(run, network)
    results = [{"round": 0, "val/psnr": dense.get("val/psnr"), **_sparsity(network, layers)}]
    artifacts = []
    for number in range(1, rounds + 1):
        share = sparsity_after(number, rounds, amount, schedule)
        file = folder / f"round_{number}.safetensors"
        callbacks: list[Any] = []
        if masks:
            callbacks = [IterativePruning(share, rounds=1, steps=None, lr=None, layers=layers)]
        else:
            weights = choose_weights(network, layers)
            apply_masks(weights, find_masks(network, weights, share))
        # Other random streams than the student's, whose first batches each round would repeat.
        tuned = fine_tune(recipe, network, scene, number, file, lr, callbacks, max_steps=max_steps, max_time=max_time)
        network = recipe.load(file)
        results.append({"round": number, "val/psnr": None, **tuned, **_sparsity(network, layers)})
        artifacts.append(described(f"pruned {100 * share:.3g} %", file, results[-1]))
    if is_first():
        write_json(folder / "artifacts.json", artifacts)
        plot = sparsity_svg([(each["sparsity"], each["val/psnr"]) for each in results])
        with atomic_path(folder / "pruning.svg") as partial:
            partial.write_text(plot, encoding="utf-8")
    return {"sparsity": results[-1]["sparsity"], "val/psnr": results[-1]["val/psnr"], "rounds": results}


def fine_tune(
    recipe: Recipe,
    network: Any,
    scene: Scene,
    stream: int,
    file: Path,
    lr: float | None,
    callbacks: Sequence[Any] = (),
    **limits: Any,
) -> dict[str, Any]:
    """Train a network with the student's system, in its own folder, unless its file exists.

    Args:
        recipe: gives the system and the Trainer.
        network: the network to fine-tune.
        scene: the scene with the student's training views.
        stream: random stream of the batches, see ``Recipe.data``.
        file: receives the weights; the metrics and the folder of the training are beside it, with the same stem.
        lr: learning rate; parameter groups keep their ratios. None for the student's own.
        callbacks: in addition to those of the configuration.
        **limits: ``max_steps`` and ``max_time``, which replace the Trainer's.

    Returns:
        The metrics of the training.
    """
    metrics: dict[str, Any] | None = agree(lambda: read_record(file.with_suffix(".json")))
    if metrics is None:
        folder, changes = file.with_suffix(""), {}
        if lr is not None:
            own = recipe.config["system"]
            changes = {"lr": lr, "warmup_lr": own["warmup_lr"] * lr / own["lr"]}
        system = recipe.system(network=network.train(), **changes)
        metrics = fit(recipe, system, recipe.data(system, scene, stream), folder, callbacks=callbacks, **limits)
        agree(lambda: _keep(folder, file, metrics))
    return metrics


def _keep(folder: Path, file: Path, metrics: dict[str, Any]) -> None:
    """Move a trained network's weights to their file, write the metrics, and delete the checkpoints."""
    (folder / "model.safetensors").replace(file)
    write_json(file.with_suffix(".json"), metrics)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def _sparsity(network: Any, layers: Sequence[str]) -> dict[str, Any]:
    """Sparsity of a network's chosen weights, in total and by layer."""
    each = sparsities(choose_weights(network, layers))
    return {"sparsity": each.pop("total"), "layers": each}


def described(name: str, file: Path, metrics: dict[str, Any], kind: str = "prune") -> dict[str, Any]:
    """A file's entry in ``artifacts.json``, for the report.

    Args:
        name: the artifact's name.
        file: the weights.
        metrics: the metrics of its training.
        kind: the stage.
    """
    known: dict[str, Any] = {key: metrics[key] for key in ("sparsity", "val/psnr") if metrics.get(key) is not None}
    return {"name": name, "file": file.name, "kind": kind, **known, "compressed_bytes": compressed_bytes(file)}
