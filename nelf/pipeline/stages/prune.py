"""Stage prune: a student with fewer weights, round by round."""

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
    """Refuse options that the stage would stumble over, before anything is trained.

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
    """Prune the student's weights in rounds, each fine-tuned as the student was trained.

    Writes ``round_1.safetensors`` and so on, ``artifacts.json`` and ``pruning.svg``. A round that is done is not done
    again, a half-done one goes on with its masks.

    Args:
        run: the run to write into; its pseudo and student stages are done.
        amount: share of the chosen weights that is zero after the last round.
        rounds: in how many rounds.
        schedule: how sparse each round is, see ``nelf.compression.pruning.sparsity_after``.
        layers: which weights, see ``nelf.compression.pruning.choose_weights``.
        masks: hold the zeros while the others are fine-tuned. Without, each round zeroes weights once, and its
            fine-tuning fills them again: with ``schedule="constant"`` that is MobileR2L's pruning extension, whose
            files end dense.
        lr: learning rate of the fine-tuning (groups keep their ratios, schedules their shape); None for the
            student's own.
        max_steps: optimizer steps of each round; None for the Trainer's.
        max_time: of each round, days:hours:minutes:seconds; None for the Trainer's.

    Returns:
        ``sparsity`` and ``val/psnr`` after the last round; ``rounds``, a list of these by round, the student's first,
        with the sparsity of each layer.

    Raises:
        ValueError: an option is out of range.
        UserError: as ``nelf.pipeline.fit.fit``; a stage before is not done.
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
        # A stream of its own, else each round would see the views that the student began with.
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
    """Train a network as the student was, in a folder of its own, unless its file is finished.

    Args:
        recipe: whose system and Trainer to use.
        network: to begin with.
        scene: of the student's views.
        stream: of batches, see ``Recipe.data``.
        file: the network's weights, once it is finished; its metrics lie beside it, its training's folder too.
        lr: learning rate, groups keeping their ratios; None for the student's own.
        callbacks: beside those of the configuration.
        **limits: ``max_steps`` and ``max_time``, instead of the Trainer's.

    Returns:
        The metrics of its training.
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
    """Give a trained network's weights their name, and drop what its training went on from."""
    (folder / "model.safetensors").replace(file)
    write_json(file.with_suffix(".json"), metrics)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def _sparsity(network: Any, layers: Sequence[str]) -> dict[str, Any]:
    """Sparsity of a network's chosen weights, all and each."""
    each = sparsities(choose_weights(network, layers))
    return {"sparsity": each.pop("total"), "layers": each}


def described(name: str, file: Path, metrics: dict[str, Any], kind: str = "prune") -> dict[str, Any]:
    """What the report needs to know of a file.

    Args:
        name: what to call it.
        file: the weights.
        metrics: of its training.
        kind: the stage.
    """
    known: dict[str, Any] = {key: metrics[key] for key in ("sparsity", "val/psnr") if metrics.get(key) is not None}
    return {"name": name, "file": file.name, "kind": kind, **known, "compressed_bytes": compressed_bytes(file)}
