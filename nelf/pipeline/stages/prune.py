"""Stage prune: a student with fewer weights, round by round, and one with fewer channels."""

import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from nelf.callbacks import IterativePruning
from nelf.compression.pruning import choose_weights, compressed_bytes, sparsities, sparsity_after
from nelf.compression.structured import prune_channels
from nelf.errors import UserError, atomic_path
from nelf.pipeline.fit import fit
from nelf.pipeline.run import Run, read_json, write_json
from nelf.pipeline.stages.student import student_data
from nelf.report.plots import sparsity_svg
from nelf.storage import load

__all__ = ["check", "prune"]


def prune(
    run: Run,
    *,
    amount: float = 0.3,
    rounds: int = 3,
    schedule: Literal["geometric", "uniform", "cubic"] = "geometric",
    layers: Sequence[str] = ("head", "body", "norms"),
    lr: float | None = 5e-6,
    max_steps: int | None = 50_000,
    max_time: str | None = None,
    structured_ratio: float | None = None,
    structured_round_to: int = 8,
    structured_lr: float | None = None,
    structured_max_steps: int | None = None,
    structured_max_time: str | None = None,
) -> dict[str, Any]:
    """Prune the student's weights in rounds, each fine-tuned as the student was trained; then, apart, its channels.

    Writes ``round_1.safetensors`` and so on, ``structured.safetensors`` (from the dense student), ``artifacts.json``
    and ``pruning.svg``. A round that is done is not done again, a half-done one goes on with its masks.

    Args:
        run: the run to write into; its pseudo and student stages are done.
        amount: share of the chosen weights that is zero after the last round.
        rounds: in how many rounds.
        schedule: how sparse each round is, see ``nelf.compression.pruning.sparsity_after``.
        layers: which weights, see ``nelf.compression.pruning.choose_weights``.
        lr: learning rate of the fine-tuning (groups keep their ratios, schedules their shape); None for the
            student's own.
        max_steps: optimizer steps of each round; None for the Trainer's.
        max_time: of each round, days:hours:minutes:seconds; None for the Trainer's.
        structured_ratio: share of the channels to remove, in a network of its own; None for none.
        structured_round_to: channels that remain are a multiple of it.
        structured_lr: as ``lr``, for the narrower network.
        structured_max_steps: as ``max_steps``, likewise.
        structured_max_time: as ``max_time``, likewise.

    Returns:
        ``sparsity`` and ``val/psnr`` after the last round; ``rounds``, a list of these by round, the student's first,
        with the sparsity of each layer; ``structured`` likewise.

    Raises:
        ValueError: an option is out of range.
        UserError: as ``nelf.pipeline.fit.fit``; a stage before is not done.
    """
    folder, student = run.folder("prune"), run.input("student")
    data = student_data(run, run.system())
    dense = read_json(student / "metrics.json") or {}
    results = [{"round": 0, "val/psnr": dense.get("val/psnr"), **_sparsity(student, layers)}]
    artifacts = []
    file = student
    for number in range(1, rounds + 1):
        share = sparsity_after(number, rounds, amount, schedule)
        network, file = load(file), folder / f"round_{number}.safetensors"
        masks = IterativePruning(share, rounds=1, steps=None, lr=None, layers=layers)
        data.seed += 1  # else each round would see the views that the student began with
        tuned = _fine_tune(run, data, file, network, lr, [masks], max_steps=max_steps, max_time=max_time)
        results.append({"round": number, "val/psnr": None, **tuned, **_sparsity(file, layers)})
        artifacts.append(_artifact(f"pruned {100 * share:.3g} %", file, results[-1]))
    narrow: dict[str, Any] = {}
    if structured_ratio is not None:
        network, file = load(student), folder / "structured.safetensors"
        network = prune_channels(network, structured_ratio, structured_round_to)
        data.seed += 1
        limits = {"max_steps": structured_max_steps, "max_time": structured_max_time}
        narrow = _fine_tune(run, data, file, network, structured_lr, [], **limits)
        artifacts.append(_artifact(f"structured {100 * structured_ratio:.3g} %", file, narrow))
    write_json(folder / "artifacts.json", artifacts)
    with atomic_path(folder / "pruning.svg") as partial:
        partial.write_text(sparsity_svg([(each["sparsity"], each["val/psnr"]) for each in results]), encoding="utf-8")
    summary = {"sparsity": results[-1]["sparsity"], "val/psnr": results[-1]["val/psnr"], "rounds": results}
    return {**summary, "structured": narrow} if narrow else summary


def check(run: Run) -> None:
    """Refuse options that the stage would stumble over, before anything is trained.

    Raises:
        UserError: names the key and what is allowed.
    """
    options, network = run.config["stage"]["prune"], run.system().network
    try:
        IterativePruning(options["amount"], options["rounds"], None, options["lr"], schedule=options["schedule"])
        choose_weights(network, options["layers"])
    except ValueError as error:
        raise UserError(f"stage.prune.{error}") from error
    if options["structured_ratio"] is not None:
        try:
            prune_channels(network, options["structured_ratio"], options["structured_round_to"])
        except ValueError as error:
            raise UserError(f"stage.prune.structured_{error}") from error


def _fine_tune(
    run: Run, data: Any, file: Path, network: Any, lr: float | None, callbacks: list[Any], **limits: Any
) -> dict[str, Any]:
    """Train a network as the student was, in a folder of its own, unless its file is finished; give its metrics."""
    noted = file.with_suffix(".json")
    metrics = read_json(noted)
    if metrics is None:
        folder = file.with_suffix("")
        system = dict(run.config["system"])
        if lr is not None:
            system.update(lr=lr, warmup_lr=system["warmup_lr"] * lr / system["lr"])
        _, metrics = fit(
            run,
            folder,
            "student",
            data,
            system=run.build(system, network=network.train()),
            callbacks=callbacks,
            **limits,
        )
        with suppress(FileNotFoundError):  # another process of the same training was faster
            (folder / "model.safetensors").replace(file)
        write_json(noted, metrics)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return metrics


def _sparsity(file: Path, layers: Sequence[str]) -> dict[str, Any]:
    """Sparsity of the chosen weights of a file, all and each."""
    each = sparsities(choose_weights(load(file), layers))
    return {"sparsity": each.pop("total"), "layers": each}


def _artifact(name: str, file: Path, metrics: dict[str, Any]) -> dict[str, Any]:
    """What the report needs to know of a file."""
    known: dict[str, Any] = {key: metrics[key] for key in ("sparsity", "val/psnr") if metrics.get(key) is not None}
    return {"name": name, "file": file.name, "kind": "prune", **known, "compressed_bytes": compressed_bytes(file)}
