"""Stage finetune: kept where validation gains, and what the stages after it take."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

import nelf
from nelf import cli, storage
from nelf.errors import UserError
from nelf.lightfields import MobileR2L
from nelf.pipeline.documents import write_json
from nelf.pipeline.recipe import Recipe
from nelf.pipeline.run import Run
from nelf.pipeline.stages.finetune import check
from nelf.pipeline.stages.student import best_student, pseudo_root, student_scene

MODEL = {"width": 16, "depth": 4, "sr_factor": 4}


def run_in(root: Path, scene: Path, *more: str) -> Run:
    overrides = [
        "data=blender",
        f"data.root={scene}",
        "model=mobile_r2l",
        *(f"model.{key}={value}" for key, value in MODEL.items()),
        "trainer=cpu",
        "callbacks.previews=null",
        "stages=[finetune]",
        "stage.finetune.max_steps=30",
        *more,
    ]
    plain: Any = OmegaConf.to_container(nelf.config("distill", overrides), resolve=True)
    return Run(root, Recipe(plain, cli.build))


@pytest.fixture
def prepared(tmp_path: Path, tiny_scene: Path) -> Path:
    """A run directory whose student has not learned a thing."""
    root = tmp_path / "run"
    torch.manual_seed(1)
    network = MobileR2L(**MODEL)
    config = {"_target_": "nelf.lightfields.MobileR2L", **network.arguments}
    storage.save(network, root / "student" / "model.safetensors", config, "digest")
    write_json(root / "student" / "metrics.json", {"val/psnr": 8.0})
    shutil.copytree(tiny_scene, root / "pseudo")
    for name in ("pseudo", "student"):
        write_json(root / name / "done.json", {"mark": name})
    return root


def weights(path: Path) -> dict[str, torch.Tensor]:
    return {name: value for name, value in nelf.load(path).state_dict().items() if value.is_floating_point()}


def same(one: Path, other: Path) -> bool:
    pair = weights(one), weights(other)
    return all(torch.equal(pair[0][name], pair[1][name]) for name in pair[0])


def test_it_is_kept_where_validation_gains_and_the_later_stages_take_it(prepared, tiny_scene, capsys) -> None:
    run = run_in(prepared, tiny_scene, "stage.finetune.lr=2e-3")
    metrics = run.do("finetune", run.recipe.stage("finetune"))
    assert metrics["kept"]
    assert metrics["after"] > metrics["before"] + 0.5
    assert metrics["val/psnr"] == metrics["after"]
    folder = run.folder("finetune")
    assert same(folder, folder / "tuned.safetensors")
    assert not same(folder, prepared / "student")
    assert best_student(run) == folder
    (listed,) = json.loads((folder / "artifacts.json").read_text())
    assert (listed["name"], listed["kind"], listed["val/psnr"]) == ("fine-tuned", "finetune", metrics["after"])
    assert f"validation PSNR {metrics['before']:.2f} -> {metrics['after']:.2f} dB" in capsys.readouterr().out
    # A student that is trained anew is not the one that was fine-tuned.
    write_json(prepared / "student" / "done.json", {"mark": "another"})
    assert best_student(run) == prepared / "student"


def test_it_learns_from_the_scene_s_own_views_alone(prepared, tiny_scene, monkeypatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("nelf.pipeline.stages.prune.fit", lambda recipe, system, data, *_, **__: seen.append(data))
    run = run_in(prepared, tiny_scene)
    with pytest.raises(FileNotFoundError):  # nothing was trained, so there is nothing to keep
        run.do("finetune", run.recipe.stage("finetune"))
    (data,) = seen
    assert len(data.scene.train) == 8
    assert len(student_scene(run, run.recipe.network()).train) == 16


def test_it_is_not_kept_where_validation_falls_and_says_so(prepared, tiny_scene, capsys) -> None:
    run = run_in(prepared, tiny_scene, "stage.finetune.lr=10.0", "system.warmup_steps=0")
    metrics = run.do("finetune", run.recipe.stage("finetune"))
    assert not metrics["kept"]
    assert metrics["after"] <= metrics["before"] == metrics["val/psnr"]
    assert same(run.folder("finetune"), prepared / "student")
    assert "it overfits, and the student stays as it was" in capsys.readouterr().out
    (listed,) = json.loads((run.folder("finetune") / "artifacts.json").read_text())
    assert listed["name"] == "fine-tuned, not kept"


@pytest.mark.parametrize("lr", ["0", "-1", "inf", "nan"])
def test_a_rate_that_is_none_is_refused(prepared, tiny_scene, lr: str) -> None:
    with pytest.raises(UserError, match=r"^stage\.finetune\.lr: is .*; allowed: above 0"):
        check(run_in(prepared, tiny_scene, f"stage.finetune.lr={lr}").recipe)


def test_a_folder_of_pictures_takes_the_place_of_a_teacher(tmp_path, tiny_scene, capsys) -> None:
    run = run_in(tmp_path / "run", tiny_scene, f"stage.pseudo.root={tiny_scene}", "stages=[pseudo]")
    run.check()  # no teacher is asked for
    metrics = run.do("pseudo", run.recipe.stage("pseudo"))
    assert (metrics["views"], metrics["bytes"], metrics["coverage"]) == (8, 8 * 16 * 16 * 4, 1.0)
    assert "8 views of" in capsys.readouterr().out
    assert pseudo_root(run) == tiny_scene
    assert len(student_scene(run, run.recipe.network()).train) == 16
    assert not list(run.folder("pseudo").glob("**/*.png"))


def test_pictures_from_one_side_are_warned_of_with_figures(tmp_path, tiny_scene, capsys) -> None:
    folder = tmp_path / "front"
    shutil.copytree(tiny_scene, folder)
    path = folder / "transforms_train.json"
    content = json.loads(path.read_text())
    content["frames"] = content["frames"][:1]
    path.write_text(json.dumps(content))
    run = run_in(tmp_path / "run", tiny_scene, f"stage.pseudo.root={folder}", "stages=[pseudo]")
    metrics = run.do("pseudo", run.recipe.stage("pseudo"))
    # The brute force: the angle at the center between each camera and the one view.
    origins = run.recipe.scene.train.camera.c2w[:, :, 3].double().numpy()
    one = origins[0] / (origins[0] ** 2).sum() ** 0.5
    cosines = [float(each @ one / (each @ each) ** 0.5) for each in origins]
    far = sum(cosine < 3**0.5 / 2 for cosine in cosines)
    assert metrics["coverage"] == pytest.approx(1 - far / 8)
    assert f"{far} of 8 training cameras have no view within 30 degrees" in capsys.readouterr().out


def test_a_folder_that_is_none_is_refused_in_one_line(tmp_path, tiny_scene) -> None:
    run = run_in(tmp_path / "run", tiny_scene, f"stage.pseudo.root={tmp_path}", "stages=[pseudo]")
    with pytest.raises(UserError, match=r"^stage\.pseudo\.root: .* has no transforms_train\.json; allowed"):
        run.check()
