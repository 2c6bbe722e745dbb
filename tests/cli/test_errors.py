"""What the user got wrong: one line on standard error, exit code 2, no traceback, nothing written."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nelf.errors import UserError, atomic_path, did_you_mean, remove_leftovers, unwritable

ROOT = Path(__file__).parents[2]


TRAIN = "train data=blender data.root=SCENE trainer=cpu run=out "
CHAIN = "distill data=blender data.root=SCENE trainer=cpu run=out "
TABLE = [
    ("train data=blender trainer=cpu run=out", "data.root: is not set"),
    ("train data=blender data.root=/nowhere trainer=cpu run=out", "data.root: /nowhere is not a directory"),
    (
        TRAIN + "model=ngpp",
        "model=ngpp: there is no such choice; allowed: dnerf, dnerf_ngp, dnerf_ngp_small, dnerf_small, dylin",
    ),
    (TRAIN + "model=ngpp", "Did you mean 'ngp'?"),
    (TRAIN + "model.levles=8", "no key 'levles' in model; allowed: levels, features, log2_table"),
    (TRAIN + "model.levles=8", "Did you mean 'levels'?"),
    (TRAIN + "mdoel=ngp", "no key 'mdoel' in the configuration; allowed: run, seed, data, model"),
    (TRAIN + "+model.extra=1", "model.extra: there is no such key; allowed: levels"),
    (TRAIN + "model.levels=abc", "model.levels: is 'abc'; allowed: a whole number"),
    (TRAIN + "model.levels=[", "no viable alternative"),
    (TRAIN + "model", "missing EQUAL"),
    (TRAIN + "system.batch_size=abc", "system.batch_size: is 'abc'; allowed: a whole number"),
    (TRAIN + "system.batch_size=0", "system.batch_size: is 0; allowed: a whole number of 1 or more"),
    (TRAIN + "system.lr=nan", "system.lr: is nan; allowed: a number above 0"),
    (TRAIN + "system.lr=" + "9" * 999, "system.lr: is a whole number of very many digits; allowed: a number above 0"),
    (TRAIN + "model=mobile_r2l model.depth=1000000000", "model.depth: is 1000000000; allowed: a whole number from 1"),
    (TRAIN + "model=mobile_r2l model.width=0", "model.width: is 0; allowed: a whole number from 1 to 4096"),
    (TRAIN + "seed=-1", "seed: is -1; allowed: a whole number from 0 to 4294967295"),
    (TRAIN + "data.width=17", "data.width: is 17"),
    (TRAIN + "data.width=100000", "data.width: is 100000; allowed: a whole number from 1 to 16384, null"),
    (TRAIN + "data.background=pink", "data.background: unknown background 'pink'; allowed: white, black"),
    (TRAIN + "model=mobile_r2l model.sr_factor=3", "`sr_factor` to be 1, 2, 4, 6, 8 or 12, but got 3"),
    (TRAIN + "model=mobile_r2l model.activation=tanh", "'gelu' or 'relu', but got 'tanh'"),
    (TRAIN + "trainer.max_steps=-1", "trainer.max_steps: is -1, and trainer.max_time is null"),
    (TRAIN + "trainer.max_time=2min", "DD:HH:MM:SS"),
    (TRAIN + "trainer.max_time=5", "trainer.max_time: is 5; allowed: days:hours:minutes:seconds"),
    (TRAIN + "trainer=null", "trainer: is null; allowed: cpu, ddp, default, gpu"),
    (TRAIN + "run=", "run: is ''; allowed: a directory"),
    (CHAIN + "stages=[[teacher]]", "stages: is [['teacher']]; allowed: a list of names"),
    (TRAIN + "trainer.precision=banana", "trainer.precision: is 'banana'; allowed: 64, 32, 16"),
    (
        CHAIN + "stages=[foo]",
        "there is no stage 'foo'; allowed: teacher, pseudo, student, finetune, prune, narrow, quantize, export, report",
    ),
    (CHAIN + "stages=[]", "stages: is empty"),
    (
        CHAIN + "stages=[student]",
        "stage pseudo is not done, and is needed here. Add it: stages=[pseudo,student]",
    ),
    (CHAIN + "stages=[report]", "is not done, and is needed here"),
    (CHAIN + "stage.studnet.max_steps=1", "no key 'studnet' in stage"),
    (
        CHAIN + "stage.pseudo.poses=sphere",
        "stage.pseudo.poses: is 'sphere'; allowed: hemisphere, interpolate, forward, mobile_r2l",
    ),
    (CHAIN + "stage.prune=1e5", "stage.prune: is 100000.0; allowed: its options, as in stage.prune.KEY=VALUE."),
    (CHAIN + "stage.report=null", "stage.report: is None; allowed: its options"),
    (
        TRAIN + "+callbacks.hard_rays=true",
        "callbacks.hard_rays: is True; allowed: its options, as in callbacks.hard_rays",
    ),
    (TRAIN + "~data._target_", "data._target_: is not set; allowed: a subclass of nelf.data.datamodules.base.Scene"),
    (TRAIN + "system={_target_:builtins.dict}", "system._target_: is 'builtins.dict'; allowed: a subclass of nelf.sys"),
    (CHAIN + "teacher.model._target_=datetime.date", "teacher.model._target_: is 'datetime.date'; allowed: a subclass"),
    (TRAIN + "logger.save_dir=/etc/passwd", "logger.save_dir: /etc/passwd is no directory that can be written"),
    (TRAIN + "logger.save_dir=1e999", "logger.save_dir: is inf; allowed: a word, a path."),
    (TRAIN + "data.width={_target_:builtins.dict}", "data.width: is {'_target_': 'builtins.dict'}; allowed: a whole"),
    (
        TRAIN + "callbacks=[default,quantization_aware] callbacks.quantization_aware.ranges=1e999",
        "callbacks.quantization_aware.ranges: is inf; allowed: a mapping with values that are each a list, null.",
    ),
    (
        "train data=demo model=hyper_ngp_small trainer=cpu system.regularizers.roughness=-inf",
        "; allowed: a mapping with values that are each a number of 0 or more, null.",
    ),
    (TRAIN + "callbacks.checkpoint.train_time_interval=1e5", "interval: is 100000.0; allowed: timedelta, null"),
    (TRAIN + "callbacks=[default,prune] callbacks.prune.amount=1", "amount: is 1; allowed: a share between 0 and 1"),
    (TRAIN + "callbacks=[default,prune] callbacks.prune.lr=1e9", "lr: is 1000000000.0; allowed: a number above 0, at"),
    (TRAIN + "system.lr=interval(0,1)", "system.lr=interval(0,1): is for a search; allowed: KEY=a,b,c, or sweep=par"),
    (TRAIN + "data=r2l_shards data.shards=SCENE", "holds no .npy files; expected shards such as data_1.npy"),
    ("train model=range(1,3)", "model: is 1; allowed: dnerf, dnerf_ngp, "),
    (CHAIN + "stage.pseudo.views=0", "stage.pseudo.views: is 0; allowed: a whole number of 1 or more"),
    (CHAIN + "stage.student.max_time=soon", "DD:HH:MM:SS"),
    (CHAIN + "model.sr_factor=0", "`sr_factor` to be a positive integer, but got 0"),
    ("distill experiment=legoo", "experiment=legoo: there is no such choice; allowed: demo, demo_dynamic, dnerf_cpu"),
    ("train --multirun " + TRAIN[6:] + "model.levles=1,2", "no key 'levles' in model"),
]


@pytest.mark.parametrize(("line", "text"), TABLE)
def test_one_line(command, line: str, text: str) -> None:
    outcome = command(line)
    assert text in outcome.line
    assert outcome.code == 2
    assert "Traceback" not in outcome.error
    assert list(Path.cwd().iterdir()) == []


def test_gpu_asked_for_and_absent(command, monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    outcome = command("train data=blender data.root=SCENE trainer=gpu run=out")
    assert outcome.code == 2
    assert outcome.line == "trainer.accelerator: gpu is asked for, but none is here; allowed: trainer=cpu."
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("file/below", "a part of this path is a file, not a directory"),
        ("file", "a file of this name is in the way"),
        ("/proc/nelf", "cannot be written"),
    ],
)
def test_output_directory_that_cannot_be(command, place: str, reason: str) -> None:
    Path("file").write_text("mine")
    outcome = command(f"train data=blender data.root=SCENE trainer=cpu run={place}")
    assert outcome.code == 2
    assert reason in outcome.line
    assert [path.name for path in Path.cwd().iterdir()] == ["file"]
    assert Path("file").read_text() == "mine"


def test_full_disk(command, tiny_scene, monkeypatch) -> None:
    """No file may grow beyond 100 kB, so the weights do not fit."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    line = (
        f"data=blender data.root={tiny_scene} trainer=cpu trainer.max_steps=1 model=mobile_r2l "
        "model.width=128 model.depth=4 model.sr_factor=4 run=out"
    )
    ended = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *line.split()],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    assert "cannot be written: a file would be larger than is allowed here" in ended.stderr.splitlines()[-1]
    assert not list(Path("out").rglob("*.safetensors"))
    assert not list(Path("out").rglob(".*"))


@pytest.mark.parametrize("script", ["train", "distill"])
def test_a_disk_that_fills_up_while_training_is_that_of_the_run(command, monkeypatch, script: str) -> None:
    """Who writes a checkpoint does not say where."""

    def full(*rest: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("nelf.pipeline.fit.fit", full)
    monkeypatch.setattr("nelf.pipeline.stages.teacher.fit", full)
    outcome = command(f"{script} data=blender data.root=SCENE trainer=cpu run=out")
    assert outcome.code == 2
    assert outcome.line.startswith("out: cannot be written: no space left on the device")


def test_unexpected_errors_keep_their_traceback(monkeypatch, tmp_path) -> None:
    from nelf import cli

    def broken(cfg: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(ZeroDivisionError, match="a bug"):
        cli.main("train", broken)


def test_scene_of_another_kind_in_a_run_directory(command, tiny_scene, tmp_path) -> None:
    other = shutil.copytree(tiny_scene, tmp_path / "other")
    transforms = json.loads((other / "transforms_train.json").read_text())
    transforms["frames"] = transforms["frames"][:-1]
    (other / "transforms_train.json").write_text(json.dumps(transforms))
    Path("out").mkdir()
    Path("out/scene.json").write_text(
        json.dumps({"name": "sphere", "root": str(tiny_scene), "digest": "0123456789abcdef"})
    )
    outcome = command(f"train data=blender data.root={other} trainer=cpu run=out")
    assert outcome.code == 2
    assert outcome.line.startswith("out: holds work on another scene (sphere from ")
    assert [path.name for path in Path("out").iterdir()] == ["scene.json"]


def test_atomic_path_leaves_the_old_file_or_the_new_one(tmp_path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")

    def torn() -> None:
        with atomic_path(target) as partial:
            partial.write_text("ne")
            raise RuntimeError("torn")

    with pytest.raises(RuntimeError, match="torn"):
        torn()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]
    with atomic_path(target) as partial:
        partial.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_atomic_path_names_the_directory(tmp_path, code: int) -> None:
    with pytest.raises(UserError, match=f"^{tmp_path}: cannot be written: "), atomic_path(tmp_path / "a"):
        raise OSError(code, os.strerror(code))
    assert os.listdir(tmp_path) == []


def test_atomic_path_does_not_blame_its_directory_for_another_file(tmp_path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a"):
        Path("/nowhere/b").read_text()


def test_unwritable_is_silent_about_other_errors() -> None:
    assert unwritable(OSError(errno.EBADF, "bad"), "x") is None


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path) -> None:
    left = [".model.0a_bcdef.onnx", ".config.abcdefgh.yaml", "inner/.00001.zzzzzzzz.png", ".folder.12345678/file"]
    kept = ["model.onnx", ".gitignore", ".model.onnx", ".cache.short.onnx", "inner/a.abcdefgh.png", ".young.abcdefgh.a"]
    for name in (*left, *kept):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1, 1))
    os.utime(tmp_path / ".folder.12345678", (1, 1))
    os.utime(tmp_path / ".young.abcdefgh.a", (9, 9))
    with atomic_path(tmp_path / "model.onnx") as partial:
        assert partial.parent == tmp_path
        partial.touch()
        remove_leftovers(tmp_path, before=5, recursive=False)
        assert partial.exists()
    assert (tmp_path / "inner/.00001.zzzzzzzz.png").exists()
    remove_leftovers(tmp_path, before=5)
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert found == set(kept)
    with atomic_path(tmp_path / "a.b") as partial:
        partial.touch()
        os.utime(partial, (1, 1))
        remove_leftovers(tmp_path, before=5)
        assert not partial.exists()
        partial.touch()


def test_did_you_mean_offers_only_what_is_near() -> None:
    assert did_you_mean("ngpp", ["ngp", "grid_r2l"]) == " Did you mean 'ngp'?"
    assert did_you_mean("xyz", ["ngp", "grid_r2l"]) == ""


def test_who_reads_the_help_may_leave_early(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "train.py", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path) as process:
        assert process.stdout is not None
        process.stdout.close()
        _, complaints = process.communicate()
    assert complaints == b""
