"""Weights from a file in the place of a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

import nelf
from nelf import cli, storage
from nelf.data import read_scene
from nelf.errors import UserError
from nelf.fields import NGP, GridNeRF, NeRF
from nelf.lightfields import R2L, MobileR2L
from nelf.pipeline.recipe import Recipe
from nelf.pipeline.run import Run

NERF = {"depth": 2, "width": 16, "skips": [], "direction_width": 8, "samples": 8, "fine_samples": 8}
SMALL = {"levels": 2, "log2_table": 8, "finest_resolution": 32, "hidden": 16, "grid_resolution": 16, "max_samples": 32}


def run_in(root: Path, scene: Path, *more: str) -> Run:
    overrides = ["data=blender", f"data.root={scene}", "trainer=cpu", "model=r2l_small", *more]
    plain: Any = OmegaConf.to_container(nelf.config("distill", overrides), resolve=True)
    return Run(root, Recipe(plain, cli.build))


def written(network: torch.nn.Module, arguments: dict[str, Any], scene: Path, path: Path, package: str) -> Path:
    """A file as it comes from somewhere else: with near and far of its own, and no scene."""
    network.prepare(read_scene(scene).geometry)
    network.near.fill_(2.25)
    config = {"_target_": f"nelf.{package}.{type(network).__name__}", **arguments}
    return storage.save(network, path / "model.safetensors", config, "")


def test_a_field_from_a_file_teaches(tmp_path: Path, tiny_scene: Path) -> None:
    torch.manual_seed(0)
    file = written(NGP(**SMALL), SMALL, tiny_scene, tmp_path, "fields")
    run = run_in(tmp_path / "run", tiny_scene, f"stage.teacher.file={file}", "stage.pseudo.views=2")
    run.check()
    metrics = run.do("teacher", run.recipe.stage("teacher"))
    assert metrics["file"] == "model.safetensors"
    again = run.recipe.load(run.folder("teacher"), "teacher")  # whatever the section `teacher` describes
    assert isinstance(again, NGP)
    assert float(again.near) == 2.25
    camera = run.recipe.scene.test.camera[0]
    assert torch.equal(again.render(camera).rgb, nelf.load(file).render(camera).rgb)
    run.do("pseudo", run.recipe.stage("pseudo"))
    assert len(list((run.folder("pseudo") / "train").glob("*.png"))) == 2


def test_a_nerf_from_a_file_is_rendered_through_a_grid(tmp_path: Path, tiny_scene: Path) -> None:
    torch.manual_seed(0)
    file = written(NeRF(**NERF), NERF, tiny_scene, tmp_path, "fields")
    run = run_in(tmp_path / "run", tiny_scene, f"stage.teacher.file={file}")
    run.do("teacher", run.recipe.stage("teacher"))
    again = nelf.load(run.folder("teacher"))
    assert isinstance(again, GridNeRF)
    assert float(again.nerf.near) == 2.25
    for name, value in nelf.load(file).state_dict().items():
        assert torch.equal(again.nerf.state_dict()[name], value)


def test_a_student_from_a_file_needs_no_teacher(tmp_path: Path, tiny_scene: Path) -> None:
    arguments = {"width": 16, "depth": 4, "points": 4, "multires": 4}
    file = written(R2L(**arguments), arguments, tiny_scene, tmp_path, "lightfields")
    run = run_in(tmp_path / "run", tiny_scene, f"stage.student.file={file}", "stages=[student]")
    run.check()
    assert run.do("student", run.recipe.stage("student"))["val/psnr"] > 0
    assert isinstance(nelf.load(run.folder("student")), R2L)


def test_what_is_none_is_refused_before_anything_is_written(tmp_path: Path, tiny_scene: Path) -> None:
    arguments = MobileR2L(width=16, depth=4, sr_factor=4).arguments
    light = written(MobileR2L(width=16, depth=4, sr_factor=4), arguments, tiny_scene, tmp_path / "a", "lightfields")
    field = written(NGP(**SMALL), SMALL, tiny_scene, tmp_path / "b", "fields")
    for option, text in (
        (f"stage.student.file={field}", r"stage\.student\.file: .* holds a NGP; allowed: a light field\."),
        (f"stage.student.file={tmp_path / 'none.safetensors'}", "no such file"),
        (f"stage.teacher.file={tiny_scene / 'transforms_train.json'}", "is not a whole safetensors file"),
    ):
        run = run_in(tmp_path / "run", tiny_scene, option, f"stages=[{option.split('.')[1]}]")
        with pytest.raises(UserError, match=text):
            run.check()
    run_in(
        tmp_path / "run", tiny_scene, f"stage.teacher.file={light}", "stages=[teacher]"
    ).check()  # anything that renders
    assert not (tmp_path / "run").exists()
