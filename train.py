"""Fit, validate and test one model: python train.py data=blender data.root=... model=ngp_small trainer=cpu."""

import time
from typing import Any

from omegaconf import DictConfig

from nelf import cli
from nelf.pipeline.documents import write_json
from nelf.pipeline.memory import peak_memory
from nelf.pipeline.processes import agree


def train(cfg: DictConfig) -> dict[str, Any]:
    """Train one system, resuming if possible, and evaluate it on the test views.

    Args:
        cfg: the configuration ``train``.

    Returns:
        ``run``, ``system``, ``scene`` and ``metrics`` by name.
    """
    with cli.start(cfg) as run:
        from nelf.pipeline.fit import fit  # imports torch, after the configuration has been checked

        start = time.perf_counter()
        system = run.recipe.system()  # the LightningModule around the network
        data = run.recipe.data(system)  # the LightningDataModule, with the batches that the system needs
        metrics = fit(run.recipe, system, data, run.root)  # Trainer.fit, from the last checkpoint on
        metrics["train_seconds"] = time.perf_counter() - start
        metrics = agree(lambda: test(system, data, run.root, metrics))
    return {"run": run, "system": system, "scene": data.scene, "metrics": metrics}


def test(system: Any, data: Any, root: Any, metrics: dict[str, Any]) -> dict[str, Any]:
    """Evaluate a trained system on the test views, and write its pictures and ``metrics.json``."""
    from nelf.pipeline.stages.report import row
    from nelf.report.evaluation import evaluate

    views = data.scene.test
    result = evaluate(system, views, data.scene.background, root)
    known = {"train_seconds": metrics["train_seconds"], "peak_memory_mb": peak_memory() / 1e6}
    figures = row("model", system.network, result, root / "model.safetensors", known, views.camera[0])
    metrics = {**metrics, **figures, "views": result["views"]}
    write_json(root / "metrics.json", metrics)
    print(f"test ({len(views)} views): PSNR {result['psnr']:.2f} dB, SSIM {result['ssim']:.4f}")
    print(f"model: {root / 'model.safetensors'}  pictures: {root / 'samples'}")
    return metrics


if __name__ == "__main__":
    cli.main("train", train)
