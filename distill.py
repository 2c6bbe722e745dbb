"""Distill a scene into a small light field, stage by stage: python distill.py experiment=lego data.root=..."""

from typing import Any

from omegaconf import DictConfig

from nelf import cli


def distill(cfg: DictConfig) -> dict[str, Any]:
    """Run the chain of stages, or the rest of it.

    Args:
        cfg: the configuration ``distill``.

    Returns:
        ``run``, and ``metrics`` by stage.
    """
    with cli.start(cfg) as run:
        metrics = {name: run.do(name, run.recipe.stage(name)) for name in cfg.stages}
    patterns = {"report": "report.html", "video": "*_orbit.mp4", "model": "model.safetensors", "bundle": "bundle.json"}
    for words, pattern in patterns.items():
        for path in sorted([*run.root.glob(pattern), *run.root.glob(f"*/{pattern}")]):
            print(f"{words}: {path}")
    return {"run": run, "metrics": metrics}


if __name__ == "__main__":
    cli.main("distill", distill)
