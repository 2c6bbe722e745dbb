"""What a run directory remembers may come from anybody: it is data, and never runs, leaks or reaches anything."""

from __future__ import annotations

import functools
import importlib
import inspect
import pickle
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import get_object

from nelf.arguments import parameters
from nelf.cli import command as cli
from nelf.cli.command import CONF, _recall
from nelf.cli.command import _compose as compose
from nelf.cli.remembered import PATHS, _is_offered, _stated
from nelf.errors import UserError
from nelf.pipeline.documents import write_yaml

OWN = ["data=blender", "data.root=/scene", "trainer=cpu", "model=mobile_r2l"]


def recall(root: Path, remembered: list[Any], *new: str, command: str = "train", more: Path | None = None) -> list[str]:
    """What of a directory's overrides still counts beside those of a new command."""
    write_yaml(root / "overrides.yaml", remembered)
    with pytest.MonkeyPatch.context() as patch:  # all tests together compose the same overrides once
        patch.setattr(cli, "_compose", lambda command, texts, config_dir: _compose(command, tuple(texts), config_dir))
        return _recall(command, root / "overrides.yaml", list(new), None if more is None else str(more))


@functools.cache
def _compose(command: str, overrides: tuple[str, ...], config_dir: str | None) -> Any:
    return compose(command, list(overrides), config_dir)


def test_what_commands_say_is_remembered(tmp_path) -> None:
    plain = [
        *("experiment=lego", "data=blender", "data.root='/a b/c'", "trainer=cpu", "trainer.max_steps=5", "seed=3"),
        *("model=mobile_r2l", "model.width=64", "model.sr_kernels=[8,8]", "teacher=ngp", "teacher.model.levels=4"),
        *("trainer.max_time=00\\:00\\:02\\:00", "logger=tensorboard", "data.aabb=[-1,-1,-1,1,1,1]"),
        *("stage.prune.layers=[head,volume]", "stage.export.inputs=[rays]", "~callbacks.previews"),
        *("+trainer.limit_train_batches=5", "callbacks.checkpoint.monitor=val/psnr"),
        "+callbacks.pruning={_target_:nelf.callbacks.IterativePruning,amount:0.5,rounds:2,steps:null,lr:null}",
        "+callbacks.best={_target_:pytorch_lightning.callbacks.ModelCheckpoint,monitor:val/psnr,filename:best}",
        "model._target_=nelf.lightfields.MobileR2L",
    ]
    assert recall(tmp_path, plain, command="distill") == plain


CODE = "allowed in a run directory: classes that conf/ names"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        # Classes, wherever they hide.
        ("data.aabb={_target_:torch.load,f:x,weights_only:false}", CODE),
        ("+x._target_=os.system", CODE),
        ("+callbacks.mine={_target_:os.system,command:true}", CODE),
        ("+callbacks.mine=[1,{deep:[{_target_:os.system}]}]", CODE),
        ("+callbacks.mine={'_target_':'os.system'}", "is not an override"),
        ("stage.teacher._target_=subprocess.run", CODE),
        ("model._target_=nelf.fields.ngp.torch.load", CODE),
        ("model._target_=nelf.lightfields.mobile_r2l.activation_layer", CODE),
        ("model._target_=nelf.data.write_scene", CODE),
        ("model._target_=[os.system]", CODE),
        # Hydra's own keys and ways.
        ("+model._partial_=true", "model._partial_ is one of Hydra's own keys"),
        ("stage.teacher._partial_=false", "stage.teacher._partial_ is one of Hydra's own keys"),
        ("hydra.searchpath=[file:///tmp]", "concerns Hydra itself"),
        ("+hydra/callbacks=x", "concerns Hydra itself"),
        ("hydra/launcher=joblib", "concerns Hydra itself"),
        ("hydra.run.dir=/tmp", "concerns Hydra itself"),
        ("--config-dir=/tmp", "is not an override"),
        ("-m", "is not an override"),
        ("data=../../x", "none of nelf's own choices (blender, colmap, "),
        ("data=/tmp/x", "none of nelf's own choices"),
        ("stage=[teacher,'../../x']", "none of nelf's own choices"),
        ("model@data=ngp", "is not one value for one key"),
        ("+model@hydra=ngp", "is not one value for one key"),
        ("model.width=64,128", "is not one value for one key"),
        ("model=glob(*)", "is not one value for one key"),
        ("~data", "removes what is needed"),
        ("~model._target_", "removes what is needed"),
        # Interpolations, plain and escaped.
        ("data.root=/nowhere/${oc.env:MY_SECRET}", "holds an interpolation"),
        (r"data.root=$\{oc.env\:MY_SECRET\}", "holds an interpolation"),
        (r"+trainer.x=[a,{b:$\{seed\}}]", "holds an interpolation"),
        ("data=${model}", "holds an interpolation"),
        ("seed=${oc.decode:1}", "holds an interpolation"),
        # Paths.
        (
            "+data.sub_dir=/home",
            "data.sub_dir is the path '/home'; allowed in a run directory: no path but data.root",
        ),
        ("+data.dir=beside", "no path but data.root"),
        ("callbacks.checkpoint.dirpath=beside", "no path but data.root"),
        ("callbacks.checkpoint.filename=../../x", "no path but data.root"),
        ("callbacks.checkpoint.dirpath=[beside]", "no path but data.root"),
        ("data.root=[/x,/y]", "no path but data.root"),
        ("data.root={_target_:os.getcwd}", CODE),
        (f"data.aabb={'[' * 3000}", "is not an override"),
        ("logger.save_dir=/tmp", "no path but data.root"),
        ("logger.name=../x", "no path but data.root"),
        ("logger.name='~'", "no path but data.root"),
        ("+trainer.default_root_dir=beside", "no path but data.root"),
        ("+logger.flush_logs_every_n_steps=1", "that conf/ does not state"),
        ("stage.export.inputs=['C:x']", "no path but data.root"),
        ("data=demo", "would be written"),
    ],
)
def test_a_stranger_s_directory_is_data(tmp_path, monkeypatch, override: str, message: str) -> None:
    monkeypatch.setenv("MY_SECRET", "hidden")
    own = [text for text in OWN if override.split("=")[0] != text.split("=")[0]]
    command = "distill" if override.startswith("stage") else "train"
    with pytest.raises(UserError) as caught:
        recall(tmp_path, [*own, override], command=command)
    line = str(caught.value)
    assert line.startswith(f"{tmp_path / 'overrides.yaml'}: ")
    assert message in line
    assert "\n" not in line
    assert "hidden" not in line


@pytest.mark.parametrize(
    "content",
    [
        "a: {_target_: os.system}",
        "- [1]",
        "- {a: b}",
        "- 3",
        "text",
        '- "a=\\e[2J"',
        "{",
        "- !!python/name:os.system",
        f"- seed={'9' * 5000}",
    ],
)
def test_what_is_no_list_of_overrides_is_refused(tmp_path, content: str) -> None:
    (tmp_path / "overrides.yaml").write_text(content)
    with pytest.raises(UserError, match=r"overrides.yaml: .*is not an? (list of overrides|YAML file|override)"):
        _recall("distill", tmp_path / "overrides.yaml", [], None)


def test_a_directory_of_a_stranger_runs_nothing(command, tmp_path) -> None:
    """The way it was found: a pickle, opened by a class that overrides.yaml names."""

    class Exploit:
        def __reduce__(self) -> Any:
            return (Path(tmp_path / "ran").touch, ())

    (tmp_path / "evil").write_bytes(pickle.dumps(Exploit()))
    evil = f"data.aabb={{_target_:torch.load,f:{tmp_path / 'evil'},weights_only:false}}"
    write_yaml(Path("out/overrides.yaml"), ["data=blender", "data.root=/x", evil])
    outcome = command("distill run=out stages=[report]")
    assert outcome.code == 2
    assert outcome.line.startswith("out/overrides.yaml: data.aabb._target_ is 'torch.load'; ")
    assert not (tmp_path / "ran").exists()
    assert [path.name for path in Path("out").iterdir()] == ["overrides.yaml"]


def test_the_scene_is_shown_before_it_is_read(command, capfd) -> None:
    write_yaml(Path("out/overrides.yaml"), ["data=blender", "data.root=/nowhere/else"])
    outcome = command("distill run=out stages=[teacher]")
    assert outcome.line.startswith("data.root: /nowhere/else is not a directory")
    assert "out: begun with data=blender data.root=/nowhere/else, which still holds" in outcome.output


@pytest.mark.parametrize(
    "own", ["model._target_=torch.nn.Linear", "logger.save_dir=/real", "logger.save_dir=/logs", "seed=${oc.env:SEED}"]
)
def test_what_is_not_remembered_is_passed_again(tmp_path, own: str) -> None:
    remembered = [*OWN, own]
    with pytest.raises(UserError, match=r"If it is yours, pass .* again") as caught:
        recall(tmp_path, remembered)
    assert own in str(caught.value)
    assert recall(tmp_path, remembered, own) == OWN


def test_one_s_own_configuration_is_passed_again(tmp_path) -> None:
    folder = tmp_path / "mine"
    write_yaml(folder / "model" / "mynet.yaml", {"_target_": "torch.nn.Linear", "in_features": 1, "out_features": 2})
    write_yaml(folder / "system" / "mynet.yaml", {"defaults": ["student", "_self_"]})
    remembered = ["data=blender", "data.root=/x", "model=mynet", "model.in_features=9"]
    with pytest.raises(UserError, match=r"'model=mynet' is none of nelf's own choices .*pass --config-dir again\."):
        recall(tmp_path, remembered)
    assert recall(tmp_path, remembered, more=folder) == remembered
    assert recall(tmp_path, remembered, "model=mynet", more=folder) == [*remembered[:2], "model.in_features=9"]
    with pytest.raises(UserError, match=r"os\.system"):
        recall(tmp_path, [*remembered, "+model.bias={_target_:os.system}"], more=folder)


def test_the_command_line_may_name_anything(tmp_path) -> None:
    new = ["model._target_=torch.nn.Linear", "logger.save_dir=/x", "+callbacks.mine={_target_:os.system}"]
    assert recall(tmp_path, OWN, *new) == OWN


def test_every_class_of_the_configuration_and_each_public_one_may_be_remembered() -> None:
    stated = _stated([CONF])
    assert {"nelf.lightfields.GridR2L", "nelf.pipeline.stages.export.export", "pytorch_lightning.Trainer"} <= set(
        stated
    )
    for offered in ("nelf.fields.NGP", "nelf.data.DemoDataModule", "nelf.systems.Student", "nelf.callbacks.Progress"):
        assert _is_offered(offered)


def test_the_paths_are_those_among_the_arguments() -> None:
    importlib.import_module("nelf.cli.search")  # a sweeper, which Hydra finds among its plugins
    found = set()
    for target in _stated([CONF]):
        for name, parameter in parameters(get_object(target)).items():
            if "Path" in inspect.formatannotation(parameter.annotation):
                found.add(name)
    assert found == set(PATHS)


def test_all_presets_may_be_remembered(tmp_path) -> None:
    for path in (CONF / "experiment").glob("*.yaml"):
        remembered = [f"experiment={path.stem}"]
        assert recall(tmp_path, remembered, command="distill") == remembered


def test_what_cannot_be_remembered_is_asked_for_again(command, tmp_path, monkeypatch) -> None:
    def interrupted(*rest: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nelf.pipeline.fit.fit", interrupted)
    own = f"logger.save_dir={tmp_path}"
    assert command(f"train data=blender data.root=SCENE trainer=cpu run=out {own}").code == 130
    assert command("train run=out").line.endswith(f"If it is yours, pass {own} again; else delete it there.")
