"""The checkpoint that a training goes on from: damaged files give way, good ones are never put aside."""

from __future__ import annotations

import copy
import errno
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import ModelCheckpoint

from nelf.cli.command import build, config
from nelf.errors import UserError
from nelf.lightfields.volume import SparseVolume
from nelf.pipeline.checkpoints import last_good_checkpoint, remove_superseded
from nelf.pipeline.fit import fit
from nelf.pipeline.quiet import quiet_lightning
from nelf.pipeline.recipe import Recipe

SYSTEM = torch.nn.Linear(2, 1)


def save(folder: Path, step: int, **changes: Any) -> Path:
    """A checkpoint, the newer the larger its step."""
    path = folder / f"step={step}.ckpt"
    torch.save({"state_dict": SYSTEM.state_dict(), "callbacks": {}, **changes}, path)
    os.utime(path, (step, step))
    return path


def damage(path: Path, kind: str) -> None:
    whole = path.read_bytes()
    path.unlink()
    match kind:
        case "empty":
            path.touch()
        case "torn":
            path.write_bytes(whole[: len(whole) // 2])
        case "cut":
            path.write_bytes(whole[:200] + whole[-600:])
        case "text":
            path.write_text("not a checkpoint")
        case "bits":
            path.write_bytes(whole.replace(b"state_dict", b"state dict"))
        case "list":
            torch.save({"state_dict": [1, 2]}, path)
        case "numbers":
            torch.save({"state_dict": {"weight": 3}}, path)
        case "bare":
            torch.save([1], path)
    os.utime(path, (9, 9))


@pytest.mark.parametrize("kind", ["empty", "torn", "cut", "text", "bits", "list", "numbers", "bare"])
def test_a_damaged_file_gives_way_to_the_one_before_it(tmp_path, capsys, kind: str) -> None:
    older, newest = save(tmp_path, 1), save(tmp_path, 2)
    damage(newest, kind)
    assert last_good_checkpoint(tmp_path, SYSTEM) == older
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{newest}: is damaged (it")
    assert line.endswith("; the one before it is used")
    assert "weights_only" not in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step=1.ckpt", "step=2.damaged"]


@pytest.mark.parametrize(
    "weight",
    [
        torch.full((1, 2), float("nan")),
        torch.zeros(1, 2).to_sparse(),
        torch.zeros(1).expand(2**40),
    ],
    ids=["NaN", "sparse", "repeated"],
)
def test_weights_that_are_none_give_way_too(tmp_path, capsys, weight: torch.Tensor) -> None:
    older, newest = save(tmp_path, 1), save(tmp_path, 2, state_dict={**SYSTEM.state_dict(), "weight": weight})
    assert last_good_checkpoint(tmp_path, SYSTEM) == older
    assert capsys.readouterr().out.startswith(f"{newest}: is damaged (its weight ")


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


NAN = torch.tensor([1.0, float("nan")])


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"state_dict": {**SYSTEM.state_dict(), "density": NAN}}, "its density holds numbers"),
        ({"optimizer_states": [{"state": {0: {"exp_avg": NAN}}}]}, "its optimizer_states.0.state.0.exp_avg holds"),
        ({"loops": {"fit_loop": {"total": {1, 2}}}}, "its loops.fit_loop.total is no number"),
        ({"optimizer_states": nested(90)}, "it is nested too deeply"),
    ],
)
def test_so_do_buffers_and_states_of_the_training(tmp_path, capsys, changes: dict[str, Any], what: str) -> None:
    older, newest = save(tmp_path, 1), save(tmp_path, 2, **changes)
    assert last_good_checkpoint(tmp_path, SYSTEM) == older
    assert capsys.readouterr().out.startswith(f"{newest}: is damaged ({what}")


def test_so_does_a_file_that_unpacks_to_more(tmp_path, capsys) -> None:
    older, newest = save(tmp_path, 1), save(tmp_path, 2)
    with zipfile.ZipFile(newest) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(newest, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content + bytes(10_000))
    assert last_good_checkpoint(tmp_path, SYSTEM) == older
    assert "is damaged (its parts are larger than the file)" in capsys.readouterr().out


def test_where_none_is_left_training_begins_anew(tmp_path, capsys) -> None:
    for step in (1, 2):
        damage(save(tmp_path, step), "empty")
    assert last_good_checkpoint(tmp_path, SYSTEM) is None
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition("; ")[2] for line in lines] == ["it is put aside", "training begins anew"]
    assert last_good_checkpoint(tmp_path / "no", SYSTEM) is None


def test_what_is_no_file_does_not_count(tmp_path, capsys) -> None:
    good = save(tmp_path, 1)
    (tmp_path / "link.ckpt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder.ckpt").mkdir()
    os.mkfifo(tmp_path / "pipe.ckpt")
    assert last_good_checkpoint(tmp_path, SYSTEM) == good
    assert capsys.readouterr().out == ""
    assert len(list(tmp_path.glob("*.ckpt"))) == 4


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (MemoryError(), MemoryError),
        (torch.OutOfMemoryError("CUDA out of memory."), torch.OutOfMemoryError),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), RuntimeError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (PermissionError(errno.EACCES, "Permission denied"), UserError),
        (OSError(errno.EIO, "Input/output error"), UserError),
        (RuntimeError("a bug of a new version"), UserError),
    ],
)
def test_a_good_file_stays_where_it_is(tmp_path, monkeypatch, error: BaseException, raised: type) -> None:
    good = save(tmp_path, 1)

    def fail(*rest: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(raised):
        last_good_checkpoint(tmp_path, SYSTEM)
    assert list(tmp_path.iterdir()) == [good]


class Exploit:
    def __reduce__(self) -> Any:
        return (os.system, ("true",))


def test_objects_are_refused_in_one_line_without_advice_to_trust_them(tmp_path) -> None:
    path = tmp_path / "step=1.ckpt"
    torch.save({"state_dict": SYSTEM.state_dict(), "callbacks": Exploit()}, path, pickle_module=pickle)
    with pytest.raises(UserError, match=r"step=1.ckpt: holds objects \(\w+\.system\), not only numbers") as caught:
        last_good_checkpoint(tmp_path, SYSTEM)
    assert "weights_only" not in str(caught.value)
    assert path.exists()


@pytest.mark.parametrize("place", ["{folder}/../../mine", "s3://bucket/mine"])
def test_a_checkpoint_makes_lightning_delete_nothing_elsewhere(tmp_path, place: str) -> None:
    """Lightning removes what the state of its ModelCheckpoint names once there are newer ones."""
    state = {"dirpath": str(tmp_path), "best_k_models": {place.format(folder=tmp_path): torch.tensor(1.0)}}
    save(tmp_path, 1, callbacks={"ModelCheckpoint{}": state})
    with pytest.raises(UserError, match=r"names .*mine', outside its folder"):
        last_good_checkpoint(tmp_path, SYSTEM)


def test_a_state_that_cannot_be_restored_is_one_line(tiny_scene, tmp_path) -> None:
    """What a file holds beside the weights goes to Lightning, and to the optimizers."""
    options = ["levels=2", "log2_table=8", "finest_resolution=32", "hidden=16", "grid_resolution=16", "max_samples=8"]
    words = ["data=blender", f"data.root={tiny_scene}", "trainer=cpu", "model=ngp_small", "system.batch_size=16"]
    words += [*(f"model.{each}" for each in options), "trainer.max_steps=2", "trainer.limit_val_batches=1"]
    plain: Any = OmegaConf.to_container(config("train", words), resolve=True)
    recipe = Recipe(plain, build)
    system = recipe.system()
    path = tmp_path / "checkpoints" / "step=1.ckpt"
    with quiet_lightning():
        trainer = recipe.trainer(tmp_path, max_steps=1)
        trainer.fit(system, datamodule=recipe.data(system))
        trainer.save_checkpoint(path)
    whole = torch.load(path, weights_only=True)
    moments = copy.deepcopy(whole["optimizer_states"])
    next(iter(moments[0]["state"].values()))["exp_avg"] = torch.zeros(3)
    short = copy.deepcopy(whole["optimizer_states"])
    del next(iter(short[0]["state"].values()))["exp_avg"]
    changes = ({"loops": 7}, {"lr_schedulers": [{}, {}]}, {"optimizer_states": [7]})
    for change in (*changes, {"optimizer_states": moments}, {"optimizer_states": short}):
        torch.save({**whole, **change}, path)
        system = recipe.system()
        with pytest.raises(UserError, match=r"step=1\.ckpt: cannot be gone on from \(.*\)\. Delete it, or choose"):
            fit(recipe, system, recipe.data(system), tmp_path)
        assert path.is_file()


@pytest.mark.parametrize(("monitor", "left"), [("step", [3, 4]), ("val/psnr", [1, 3, 4])])
def test_what_lightning_had_not_deleted_yet_goes_later(tmp_path, monitor: str, left: list[int]) -> None:
    """Killed after it had written step 4, and before it deleted step 1."""
    for step in (1, 3, 4):
        save(tmp_path, step)
    with quiet_lightning():
        own = ModelCheckpoint(tmp_path, monitor=monitor, mode="max", save_top_k=2)
        remove_superseded(tmp_path, pl.Trainer(accelerator="cpu", logger=False, callbacks=[own]))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step={step}.ckpt" for step in left]


def test_another_network_is_named(tmp_path) -> None:
    save(tmp_path, 1)
    with pytest.raises(UserError, match=r"is of another network: weight is \(1, 2\), not \(1, 3\)"):
        last_good_checkpoint(tmp_path, torch.nn.Linear(3, 1))


def volume(corners: int) -> torch.nn.Sequential:
    network = SparseVolume(2)
    network.resize(torch.arange(27).view(3, 3, 3) < corners)
    return torch.nn.Sequential(network)


def test_rows_of_a_volume_are_those_of_the_checkpoint(tmp_path) -> None:
    """Their number differs between scenes; how many numbers are in a row does not."""
    good = save(tmp_path, 1, state_dict=volume(9).state_dict())
    assert last_good_checkpoint(tmp_path, volume(20)) == good
    flat = volume(9).state_dict()
    flat["0.features"] = flat["0.features"].flatten()
    save(tmp_path, 2, state_dict=flat)
    with pytest.raises(UserError, match=r"is of another network: 0\.features is \(18,\), not \(20, 2\)"):
        last_good_checkpoint(tmp_path, volume(20))
