"""Online distillation through its stages: no set on disk, a teacher that stays as it is, and what follows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

import nelf
from nelf.cli import build
from nelf.data.online import OnlineSplit
from nelf.errors import UserError
from nelf.paths import random_cameras
from nelf.pipeline.documents import write_json
from nelf.pipeline.recipe import Recipe
from nelf.pipeline.run import Run
from nelf.pipeline.stages.export import _pseudo_cameras
from nelf.pipeline.stages.pseudo import check, pseudo
from nelf.pipeline.stages.quantize import quantize
from nelf.pipeline.stages.report import _distilled_from
from nelf.pipeline.stages.student import student, student_scene
from nelf.storage import save

TEACHER = ["levels=2", "log2_table=10", "finest_resolution=32", "hidden=16", "grid_resolution=16", "max_samples=32"]
STUDENTS = {
    "mobile_r2l": ["model.width=16", "model.depth=4", "model.sr_factor=4", "system.batch_size=2"],
    "r2l_small": ["model.width=16", "model.depth=4", "model.points=4", "model.multires=4", "system.batch_size=64"],
}


def taught(root: Path, scene: Path, model: str, *more: str) -> Run:
    """A run whose teacher is done, untrained, and whose student learns online."""
    words = ["data=blender", f"data.root={scene}", f"model={model}", "trainer=cpu", "teacher=ngp_small"]
    words += [*(f"teacher.model.{word}" for word in TEACHER), *STUDENTS[model], "trainer.max_steps=4"]
    words += ["stage.pseudo.mode=online", "stage.pseudo.views=5", *more]
    config: Any = OmegaConf.to_container(nelf.config("distill", words), resolve=True)
    del config["callbacks"]["previews"]
    config["callbacks"]["checkpoint"] |= {"train_time_interval": None, "every_n_train_steps": 2}
    run = Run(root, Recipe(config, build))
    network = run.recipe.network("teacher")
    network.prepare(run.recipe.scene.geometry)
    save(network, run.folder("teacher") / "model.safetensors", run.recipe.model_config("teacher"), "")
    write_json(run.folder("teacher") / "done.json", {"mark": "first"})
    return run


def do(run: Run, *stages: Any) -> list[dict[str, Any]]:
    options = {each.__name__: run.config["stage"][each.__name__] for each in stages}
    plain = {name: {key: value for key, value in each.items() if key[0] != "_"} for name, each in options.items()}
    return [run.do(each.__name__, lambda run, each=each: each(run, **plain[each.__name__])) for each in stages]


@pytest.mark.parametrize(
    ("model", "pool"), [("mobile_r2l", "3"), ("mobile_r2l", "null"), ("r2l_small", "3"), ("r2l_small", "null")]
)
def test_a_student_learns_and_nothing_but_its_teacher_is_kept(
    tmp_path: Path, tiny_scene: Path, model: str, pool: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = taught(tmp_path, tiny_scene, model, f"stage.pseudo.pool={pool}")
    made, trained = do(run, pseudo, student)
    assert made["mode"] == "online"
    assert made["bytes"] == 0
    assert {path.name for path in run.folder("pseudo").iterdir()} == {
        *("config.yaml", "done.json", "metrics.json", "teacher.safetensors")
    }
    assert trained["steps"] == 4
    assert " views/s" in capsys.readouterr().out
    assert "online" in _distilled_from(run)["teacher's views"]
    checkpoint = torch.load(next(run.folder("student").glob("checkpoints/*.ckpt")), weights_only=True)
    own = run.recipe.system().state_dict().keys()
    assert checkpoint["state_dict"].keys() == own
    count = sum(len(group["params"]) for group in checkpoint["optimizer_states"][0]["param_groups"])
    assert count == len(list(run.recipe.network().parameters()))
    kept, before = (nelf.load(run.folder(name) / file).state_dict() for name, file in
                    (("pseudo", "teacher.safetensors"), ("teacher", "model.safetensors")))  # fmt: skip
    assert all(torch.equal(kept[name], before[name]) for name in before)


def test_stages_after_it_get_its_views(tmp_path: Path, tiny_scene: Path) -> None:
    run = taught(tmp_path, tiny_scene, "mobile_r2l", "stage.quantize.qat_steps=2", "stage.quantize.views=3")
    do(run, pseudo, student)
    train = run.recipe.scene.train
    expected = random_cameras(train.camera, 5, seed=run.recipe.seed)
    assert torch.equal(_pseudo_cameras(run, 5).c2w, expected.c2w)
    scene = student_scene(run, run.recipe.network())
    assert isinstance(scene.train, OnlineSplit)
    assert torch.equal(scene.train.camera.c2w, torch.cat([expected.c2w, train.camera.c2w]))
    assert not any(parameter.requires_grad for parameter in scene.train.renderer.teacher.parameters())
    (found,) = do(run, quantize)
    assert "int8 QAT" in found["val/psnr"]


def test_another_teacher_makes_it_out_of_date(tmp_path: Path, tiny_scene: Path, capsys: Any) -> None:
    run = taught(tmp_path, tiny_scene, "mobile_r2l")
    do(run, pseudo, student)
    assert run.complete("pseudo", "student")
    write_json(run.folder("teacher") / "done.json", {"mark": "second"})
    assert not run.complete("pseudo")
    assert run.current("student") is None
    assert "made from an earlier teacher" in capsys.readouterr().out
    do(run, pseudo)
    assert not run.complete("student")
    run.config["stage"]["pseudo"]["pool"] = 7
    assert not run.complete("pseudo")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("data.num_workers=2", r"data\.num_workers: is 2, but with stage\.pseudo\.mode=online .*allowed: 0"),
        ("stage.pseudo.root=SCENE", r"stage\.pseudo\.mode: is online, but stage\.pseudo\.root=.*allowed: stored"),
    ],
)
def test_what_does_not_go_together_is_one_line(tmp_path: Path, tiny_scene: Path, word: str, message: str) -> None:
    run = taught(tmp_path, tiny_scene, "mobile_r2l", word.replace("SCENE", str(tiny_scene)))
    with pytest.raises(UserError, match=message):
        check(run.recipe)
