"""Stage prune: its files, its rounds, and that nothing is lost where it is stopped."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

import nelf
from nelf import cli, storage
from nelf.cli.sweeps import shared_stages, write_table
from nelf.compression.pruning import (
    apply_masks,
    choose_weights,
    compressed_bytes,
    find_masks,
    sparsities,
    sparsity_after,
)
from nelf.errors import UserError
from nelf.lightfields import GridR2L
from nelf.pipeline.documents import read_json, write_json, write_yaml
from nelf.pipeline.recipe import Recipe
from nelf.pipeline.run import Run
from nelf.pipeline.stage import declarations
from nelf.pipeline.stages.narrow import check as check_narrow
from nelf.pipeline.stages.prune import check
from nelf.systems import Student

ROOT = Path(__file__).parents[2]
MODEL = {"width": 16, "depth": 4, "resolution": 12, "features": 4}
LAYERS = ["head", "body", "volume"]


def overrides(scene: Path, *more: str) -> list[str]:
    return [
        "data=blender",
        f"data.root={scene}",
        "model=grid_r2l",
        *(f"model.{key}={value}" for key, value in MODEL.items()),
        "trainer=cpu",
        "callbacks.previews.every_n_steps=100000",
        "callbacks.checkpoint.train_time_interval.seconds=0",
        "stages=[prune]",
        "stage.prune.amount=0.8",
        "stage.prune.rounds=2",
        "stage.prune.layers=[head,body,volume]",
        "stage.prune.lr=1e-3",
        "stage.prune.max_steps=6",
        *more,
    ]


@pytest.fixture
def prepared(tmp_path: Path, tiny_scene: Path) -> Path:
    """A run directory whose student (not a good one) is done."""
    root = tmp_path / "run"
    shutil.copytree(tiny_scene, root / "pseudo")
    torch.manual_seed(2)
    network = GridR2L(**MODEL)
    torch.nn.init.normal_(network.volume.density, std=2.0)
    config = {"_target_": "nelf.lightfields.GridR2L", **network.arguments}
    storage.save(network, root / "student" / "model.safetensors", config, "digest")
    write_json(root / "student" / "metrics.json", {"val/psnr": 12.0})
    for name in ("pseudo", "student"):
        write_json(root / name / "done.json", {"mark": name})
    return root


def run_in(root: Path, scene: Path, *more: str) -> Run:
    plain: dict[str, Any] = OmegaConf.to_container(nelf.config("distill", overrides(scene, *more)), resolve=True)  # type: ignore[assignment]
    return Run(root, Recipe(plain, cli.build))


def do(run: Run) -> dict[str, Any]:
    return run.do("prune", run.recipe.stage("prune"))


def test_every_round_is_a_file_as_sparse_as_asked(prepared: Path, tiny_scene: Path) -> None:
    run = run_in(prepared, tiny_scene)
    metrics = do(run)
    folder = prepared / "prune"
    assert [each["round"] for each in metrics["rounds"]] == [0, 1, 2]
    assert metrics["rounds"][0]["val/psnr"] == 12.0
    first = 1 - 0.2**0.5  # geometric
    for number, share in ((1, first), (2, 0.8)):
        network = nelf.load(folder / f"round_{number}.safetensors")
        each = sparsities(choose_weights(network, LAYERS))
        assert each["total"] == pytest.approx(share, abs=1e-3)
        assert metrics["rounds"][number]["sparsity"] == each.pop("total")
        assert metrics["rounds"][number]["layers"] == each
        assert metrics["rounds"][number]["steps"] == 6
        assert network.arguments == GridR2L(**MODEL).arguments
    assert metrics["val/psnr"] == metrics["rounds"][2]["val/psnr"] > 0

    artifacts = json.loads((folder / "artifacts.json").read_text())
    assert [each["name"] for each in artifacts] == ["pruned 55.3 %", "pruned 80 %"]
    for each in artifacts:
        assert each["kind"] == "prune"
        assert each["compressed_bytes"] == compressed_bytes(folder / each["file"])
    assert artifacts[1]["compressed_bytes"] < 0.8 * artifacts[0]["compressed_bytes"]
    assert "zeros among the chosen weights" in (folder / "pruning.svg").read_text()
    assert not list(folder.glob("*/checkpoints"))
    assert do(run)["seconds"] == metrics["seconds"]  # done is done


def test_a_narrowed_student_is_a_file_of_its_own(prepared: Path, tiny_scene: Path) -> None:
    run = run_in(prepared, tiny_scene, "stages=[narrow]", "stage.narrow.max_steps=3")
    metrics = run.do("narrow", cli.build(run.config["stage"]["narrow"]))
    assert metrics["steps"] == 3
    narrow = nelf.load(prepared / "narrow" / "narrow.safetensors")
    assert narrow.arguments == {**GridR2L(**MODEL).arguments, "width": 8}
    (artifact,) = json.loads((prepared / "narrow" / "artifacts.json").read_text())
    assert (artifact["name"], artifact["kind"]) == ("narrowed by 50 %", "narrow")
    for option, words in (("ratio=1", "is 1; allowed"), ("ratio=0.1", r"0\.1 leaves a network of 16 channels")):
        with pytest.raises(UserError, match=rf"stage\.narrow\.ratio: {words}"):
            check_narrow(run_in(prepared, tiny_scene, "stages=[narrow]", f"stage.narrow.{option}").recipe)


def _stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Press Ctrl-C in a training step of the stage, counted from its first."""
    original, calls = Student.training_step, iter(range(1, 10_000))

    def training_step(self: Student, batch: Any, batch_idx: int) -> torch.Tensor:
        if next(calls) == step:
            raise KeyboardInterrupt
        return original(self, batch, batch_idx)

    monkeypatch.setattr(Student, "training_step", training_step)


def test_interrupted_in_a_round_it_goes_on_with_its_masks(
    prepared: Path, tiny_scene: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patched:
        _stop_at(10, patched)  # the fourth step of round 2
        with pytest.raises(KeyboardInterrupt):
            do(run_in(prepared, tiny_scene))
    folder = prepared / "prune"
    finished = (folder / "round_1.safetensors").read_bytes()
    newest = max((folder / "round_2" / "checkpoints").glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    checkpoint = torch.load(newest, weights_only=True)
    (masks,) = (state["masks"] for state in checkpoint["callbacks"].values() if "masks" in state)
    assert checkpoint["global_step"] == 3

    do(run_in(prepared, tiny_scene))
    assert f"goes on from {newest.name}" in capsys.readouterr().out
    assert (folder / "round_1.safetensors").read_bytes() == finished
    assert read_json(folder / "round_2.json")["steps"] == 6
    network = nelf.load(folder / "round_2.safetensors")
    assert sparsities(choose_weights(network, LAYERS))["total"] == pytest.approx(0.8, abs=1e-3)
    for name, mask in masks.items():
        assert bool((network.get_parameter(name.removeprefix("network."))[~mask] == 0).all())
        assert 0 < int((~mask).sum()) < mask.numel()


@pytest.mark.slow
def test_killed_in_a_round_it_goes_on(prepared: Path, tiny_scene: Path) -> None:
    command = [
        *(sys.executable, str(ROOT / "distill.py"), f"run={prepared}"),
        *overrides(tiny_scene, "stage.prune.max_steps=60"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def kill_when(reached: Callable[[], bool]) -> None:
        process = start()
        end = time.monotonic() + 120
        while not reached():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < end
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()

    folder = prepared / "prune"
    for number in (1, 2):
        kill_when(lambda number=number: len(list((folder / f"round_{number}" / "checkpoints").glob("*.ckpt"))) > 1)
    printed, _ = start().communicate(timeout=120)
    assert f"{folder / 'round_2'}: goes on from step=" in printed
    network = nelf.load(folder / "round_2.safetensors")
    assert sparsities(choose_weights(network, LAYERS))["total"] == pytest.approx(0.8, abs=1e-3)
    assert not [path for path in prepared.rglob(".*") if path.is_file()]


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("amount=1.2", r"stage\.prune\.amount: is 1\.2; allowed: a share between 0 and 1"),
        ("rounds=0", r"stage\.prune\.rounds: is 0; allowed: 1 or more"),
        ("schedule=cosine", r"stage\.prune\.schedule: there is no 'cosine'; allowed: geometric, uniform, cubic"),
        ("layers=[heads]", r"stage\.prune\.layers: 'heads' matches no weight; allowed: head, body, .*head\.0\.weight"),
        ("lr=-1.0", r"stage\.prune\.lr: is -1\.0; allowed: a positive number"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(
    option: str, words: str, prepared: Path, tiny_scene: Path
) -> None:
    with pytest.raises(UserError, match=words):
        check(run_in(prepared, tiny_scene, f"stage.prune.{option}").recipe)
    plain = nelf.config("distill", overrides(tiny_scene, f"run={prepared}", f"stage.prune.{option}"))
    with pytest.raises(UserError, match=r"stage\.prune\."):
        cli.start(plain)
    assert not (prepared / "config.yaml").exists()


def test_the_presets_pass_their_own_check(tiny_scene: Path, tmp_path: Path) -> None:
    for preset in ("demo", "lego_cpu", "lego"):
        config = nelf.config("distill", [f"experiment={preset}", f"data.root={tiny_scene}"])
        check(Recipe(OmegaConf.to_container(config, resolve=True), cli.build))  # type: ignore[arg-type]


def test_a_sweep_over_the_amount_shares_what_is_before_and_shows_every_round(tmp_path: Path) -> None:
    chain = ["teacher", "pseudo", "student", "prune", "report"]
    declared = declarations(OmegaConf.to_container(nelf.config("distill").stage))  # type: ignore[arg-type]
    assert shared_stages(chain, ["stage.prune.amount"], declared) == ["teacher", "pseudo", "student"]
    assert shared_stages(chain, ["stage.report.frames"], declared) == ["teacher", "pseudo", "student", "prune"]
    for amount in ("0.3", "0.5"):
        job = tmp_path / f"stage.prune.amount={amount}"
        write_yaml(job / "overrides.yaml", ["data=demo", f"stage.prune.amount={amount}"])
        names = ["pruned 10 %", f"pruned {float(amount):.0%}".replace("%", " %")]
        listed = [{"name": name, "file": "round.safetensors", "sparsity": float(amount)} for name in names]
        write_json(job / "prune" / "artifacts.json", listed)
        (job / "prune" / "round.safetensors").touch()
        rows = [{"name": name, "psnr": 20.0 + place} for place, name in enumerate(["student", *names])]
        write_json(job / "report.json", {"rows": rows})
    (tmp_path / "stage.prune.amount=0.7").mkdir()
    assert write_table(tmp_path) == 1  # of the third job there is nothing
    table = (tmp_path / "table.md").read_text().splitlines()
    assert table[0] == "| stage.prune.amount | artifact | sparsity | PSNR, dB | folder |"
    assert table[2] == "| 0.3 | pruned 10 % | 30.0% | 21.00 | stage.prune.amount=0.3 |"
    assert [line.split(" | ")[1] for line in table[4:]] == ["pruned 10 %", "pruned 50 %"]


def test_without_masks_every_round_zeroes_anew_and_the_zeros_do_not_last(prepared: Path, tiny_scene: Path) -> None:
    more = ["stage.prune.masks=false", "stage.prune.schedule=constant", "stage.prune.amount=0.3"]
    metrics = do(run_in(prepared, tiny_scene, *more))
    assert [each["round"] for each in metrics["rounds"]] == [0, 1, 2]
    assert all(each["sparsity"] < 0.05 for each in metrics["rounds"][1:])
    # What a round begins with: 30 % zeros, in the second as in the first.
    network = nelf.load(prepared / "prune" / "round_1.safetensors")
    weights = choose_weights(network, LAYERS)
    apply_masks(weights, find_masks(network, weights, sparsity_after(2, 2, 0.3, "constant")))
    assert sparsities(weights)["total"] == pytest.approx(0.3, abs=1e-3)
