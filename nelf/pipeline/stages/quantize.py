"""Stage quantize: the student in 16 and 8 bits, weights alone or weights and activations."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import nn

from nelf.callbacks.quantization import QuantizationAwareTraining
from nelf.compression.fold import fold_batch_norm
from nelf.compression.quantization import Ranges, calibrate, quantize_network, quantized_layers
from nelf.compression.storage import Scheme
from nelf.errors import Count, CountOrZero, Positive
from nelf.metrics import psnr
from nelf.pipeline.documents import write_json
from nelf.pipeline.fit import fit
from nelf.pipeline.processes import agree
from nelf.pipeline.recipe import Recipe
from nelf.pipeline.run import Run
from nelf.pipeline.stage import stage
from nelf.pipeline.stages.student import best_student, student_scene
from nelf.rendering import Renderable
from nelf.scene import Scene, Split, compared
from nelf.storage import save

__all__ = ["quantize"]

_VALIDATION_VIEWS = 8


@stage(
    sections=("data", "model", "system", "trainer", "seed"),
    inputs=("pseudo", "student"),
    optional=("finetune",),
    spreads=True,
)
def quantize(
    run: Run,
    *,
    views: Count = 16,
    method: Literal["minmax", "percentile", "mse"] = "percentile",
    qat_steps: CountOrZero | None = 1000,
    qat_time: str | None = None,
    qat_lr: Positive = 5e-4,
) -> dict[str, Any]:
    """Write the student in 16 and 8 bits, and evaluate each file on validation views.

    Args:
        run: the run to write into. The stage's folder receives a file per precision, ``artifacts.json``, and ``qat/``
            with the checkpoints of quantization-aware training and its weights in 32 bits.
        views: number of views of the pseudo set for calibrating activation ranges.
        method: calibration method, see ``nelf.compression.quantization.calibrate``.
        qat_steps: steps of quantization-aware training (QAT); None for no limit except ``qat_time``. QAT is left out if
            both are None.
        qat_time: time limit of QAT, days:hours:minutes:seconds.
        qat_lr: initial learning rate of QAT, with a cosine schedule. Only convolutions and linear layers are trained: a
            volume is stored in 8 bits but not computed with, so all files can share it.

    Returns:
        ``val/psnr`` of fp32 and of each file, by name.

    Raises:
        UserError: the pseudo set is missing or damaged; or see ``nelf.pipeline.fit.fit``.
    """
    recipe, folder = run.recipe, run.folder("quantize")
    student = recipe.load(best_student(run), device=recipe.device)
    scene = student_scene(run, student)
    cameras = scene.train.camera
    chosen = np.linspace(0, len(cameras) - 1, min(views, len(cameras))).round().astype(int)
    folded = fold_batch_norm(student)
    ranges = calibrate(folded, (cameras[index] for index in chosen.tolist()), method)
    versions: dict[str, tuple[nn.Module, Scheme]] = {
        "fp16": (student, "fp16"),
        "bf16": (student, "bf16"),
        "int8 per tensor": (student, "int8_per_tensor"),
        "int8 per channel": (student, "int8_per_channel"),
        "int8 dynamic": (quantize_network(fold_batch_norm(student), "dynamic"), "int8_per_channel"),
        "int8 static": (quantize_network(folded, ranges), "int8_per_channel"),
    }
    if qat_steps is not None or qat_time is not None:
        network = fold_batch_norm(student)
        train_quantized(recipe, network, ranges, scene, folder / "qat", qat_steps, qat_time, qat_lr)
        network = recipe.load(folder / "qat", device=recipe.device)
        versions["int8 QAT"] = (network, "int8_per_channel")

    def write() -> dict[str, Any]:
        artifacts, found = [], {"fp32": _mean_psnr(student, scene.val, scene.background)}
        _show("fp32", best_student(run) / "model.safetensors", found)
        for name, (network, scheme) in versions.items():
            path = folder / f"{name.replace(' ', '_').lower()}.safetensors"
            save(network, path, recipe.model_config(), scene.digest, scheme)
            found[name] = _mean_psnr(recipe.load(path, device=recipe.device), scene.val, scene.background)
            known = {"kind": "quantize", "precision": scheme, "val_psnr": found[name]}
            artifacts.append({"name": name, "file": path.name, **known})
            _show(name, path, found)
        write_json(folder / "artifacts.json", artifacts)
        return {"val/psnr": found}

    return agree(write)


def train_quantized(
    recipe: Recipe,
    network: nn.Module,
    ranges: Ranges,
    scene: Scene,
    folder: Path,
    max_steps: int | None,
    max_time: str | None,
    lr: float,
) -> None:
    """Quantization-aware training: fine-tune a network with the rounding of int8 kernels, resuming if possible.

    Args:
        recipe: gives the Trainer and the system.
        network: the trained light field, its batch norms folded; changed in place.
        ranges: initial activation ranges.
        scene: the scene with the student's training views.
        folder: folder of the training; receives the weights.
        max_steps: optimizer steps, or None.
        max_time: days:hours:minutes:seconds, or None.
        lr: initial learning rate.
    """
    network.train().requires_grad_(False)
    for layer in quantized_layers(network).values():
        layer.requires_grad_(True)
    system = recipe.system(network=network, lr=lr, warmup_steps=0, schedule="cosine")
    # Ranges calibrated on many views are frozen: the extremes of single batches would only widen them.
    callback = QuantizationAwareTraining(ranges, freeze=0.0)
    data = recipe.data(system, scene)
    fit(recipe, system, data, folder, max_steps=max_steps, max_time=max_time, callbacks=[callback])


def _mean_psnr(model: Renderable, split: Split, background: str) -> float:
    """The mean PSNR of up to ``_VALIDATION_VIEWS`` views, dB."""
    values = []
    for index in np.linspace(0, len(split) - 1, min(_VALIDATION_VIEWS, len(split))).round().astype(int).tolist():
        view = split.view(index)
        values.append(float(psnr(*compared(model.render(view.camera).rgb.clamp(0, 1), view, background))))
    return sum(values) / len(values)


def _show(name: str, file: Any, found: dict[str, float]) -> None:
    """Print a line of the table."""
    against = found[name] - found["fp32"]
    megabytes = file.stat().st_size / 1e6
    print(f"{name:18}{found[name]:7.2f} dB {against:+6.2f}  {megabytes:8.2f} MB  {file}", flush=True)
