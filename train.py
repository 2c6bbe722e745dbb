"""Fit, validate and test one model: python train.py data=blender data.root=... model=ngp_small trainer=cpu."""

import time
from typing import Any

from omegaconf import DictConfig

from nelf import cli
from nelf.pipeline.documents import write_json
from nelf.pipeline.memory import peak_memory
from nelf.pipeline.run import Run


def train(cfg: DictConfig) -> dict[str, Any]:
    """Train one system, or go on with it, and measure it on the test views.

    Args:
        cfg: the configuration ``train``.

    Returns:
        The objects: ``run``, ``system``, ``scene``, ``metrics``.
    """
    with cli.start(cfg) as run:
        return _train(run)


def _train(run: Run) -> dict[str, Any]:
    from nelf.pipeline.fit import fit  # torch is loaded only once the configuration is known to be right
    from nelf.pipeline.stages.report import row
    from nelf.report.evaluation import evaluate

    start = time.perf_counter()
    system = run.system()  # the LightningModule around the network
    data = run.data(system)  # the LightningDataModule, with the batches that the system wants
    system, metrics = fit(run, run.root, data=data, system=system)
    seconds = time.perf_counter() - start
    scene = data.scene
    result = evaluate(system, scene.test, scene.background, run.root)
    known = {"train_seconds": seconds, "peak_memory_mb": peak_memory() / 1e6}
    figures = row("model", system.network, result, run.root / "model.safetensors", known, scene.test.camera[0])
    metrics |= figures | {"views": result["views"]}
    write_json(run.root / "metrics.json", metrics)
    print(f"test ({len(scene.test)} views): PSNR {result['psnr']:.2f} dB, SSIM {result['ssim']:.4f}")
    print(f"model: {run.root / 'model.safetensors'}  pictures: {run.root / 'samples'}")
    return {"run": run, "system": system, "scene": scene, "metrics": metrics}


if __name__ == "__main__":
    cli.main("train", train)
