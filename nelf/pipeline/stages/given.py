"""A teacher or a student from a file, instead of training one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nelf.errors import UserError
from nelf.fields import RadianceField
from nelf.lightfields import LightField
from nelf.pipeline.recipe import Recipe
from nelf.pipeline.run import Run
from nelf.report.evaluation import evaluate
from nelf.scene import Geometry
from nelf.storage import described, load, save

__all__ = ["check_given", "faster", "take"]

_KINDS = {"teacher": (RadianceField, LightField), "student": (LightField,)}


def check_given(recipe: Recipe, stage: str) -> None:
    """Refuse a file that cannot replace a training, before anything is written.

    Args:
        recipe: the option ``file`` of the stage names it, or is None.
        stage: ``teacher`` or ``student``.

    Raises:
        UserError: see ``nelf.storage.load``; or the file holds another kind of network.
    """
    file = recipe.config["stage"][stage].get("file")
    if file is not None:
        _opened(Path(file), stage)


def take(run: Run, stage: str, file: Path) -> dict[str, Any]:
    """Use the network in a file as the result of a stage.

    Args:
        run: the run to write into.
        stage: ``teacher`` or ``student``.
        file: the weights with the description of their network; depth range and box are those in the file.

    Returns:
        ``val/psnr`` on the validation views, and ``file``, its name.

    Raises:
        UserError: see ``check_given``.
    """
    recipe, scene = run.recipe, run.recipe.scene
    network = _opened(file, stage).to(recipe.device)
    config = described(file)
    config, network = faster(network, config, scene.geometry) or (config, network)
    save(network, run.folder(stage) / "model.safetensors", config, scene.digest)
    result = evaluate(network, scene.val, scene.background, description=f"Validating {file.name}")
    print(f"{stage}: {type(network).__name__} of {file}, {result['psnr']:.2f} dB on the validation views", flush=True)
    return {"val/psnr": result["psnr"], "file": file.name}


def faster(network: Any, config: dict[str, Any], geometry: Geometry) -> tuple[dict[str, Any], Any] | None:
    """A faster equivalent of a teacher that skips empty space, with its description; None if there is none.

    Args:
        network: a trained teacher.
        config: its description, ``_target_`` and arguments.
        geometry: the scene's.
    """
    layout = {key: value for key, value in config.items() if key != "_target_"}
    field = network.through_grid(layout, geometry) if isinstance(network, RadianceField) else None
    return None if field is None else ({"_target_": f"nelf.fields.{type(field).__name__}", **layout}, field)


def _opened(file: Path, stage: str) -> Any:
    network = load(file)
    if not isinstance(network, _KINDS[stage]):
        allowed = " or ".join(
            "a radiance field" if kind is RadianceField else "a light field" for kind in _KINDS[stage]
        )
        raise UserError(f"stage.{stage}.file: {file} holds a {type(network).__name__}; allowed: {allowed}.")
    return network
