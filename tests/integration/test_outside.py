"""A data set, a teacher, a student and a stage from outside go through the whole chain by configuration alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

import nelf

FOLDER = Path(__file__).parent / "outside"

CONF = {
    "data/toy": {"_target_": "toys.ToyData", "root": "???", "width": None, "background": None},
    "model/toy": {"_target_": "toys.ToyLightField", "kernel": 3},
    "model/toy_field": {"_target_": "toys.ToyField", "samples": 32},
    "system/toy": {"defaults": ["student", "_self_"], "lr": 1.0e-2, "warmup_steps": 0, "batch_size": 2},
    "system/toy_field": {"defaults": ["teacher", "_self_"], "lr": 0.1, "batch_size": 256},
    "teacher/toy_field": {"defaults": [{"/model@model": "toy_field"}, {"/system@system": "toy_field"}]},
    "stage/halve": {"_target_": "toys.halve", "_partial_": True, "factor": 0.5},
}


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with configuration and a scene; its module can be imported."""
    monkeypatch.syspath_prepend(str(FOLDER))
    for name, content in CONF.items():
        path = tmp_path / "conf" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        head = f"# @package {name.replace('/', '.')}\n" if name.startswith("stage/") else ""
        path.write_text(head + yaml.safe_dump(content, sort_keys=False))
    (tmp_path / "scene").mkdir()
    (tmp_path / "scene" / "toy.json").write_text('{"views": 6}')
    return tmp_path


def test_the_whole_chain(outside: Path, command) -> None:
    chosen = f"--config-dir {outside / 'conf'} data=toy data.root={outside / 'scene'} model=toy teacher=toy_field"
    steps = "trainer=cpu trainer.max_steps=20 stage.pseudo.views=8 stage.report.frames=2 callbacks.previews=null"
    prune = "stage.prune.layers=[net] stage.prune.rounds=1 stage.prune.max_steps=2 stage.prune.amount=0.5"
    chain = "stages=[teacher,pseudo,student,prune,halve,export,report]"
    line = f"distill {chosen} +stage=[halve] {steps} {prune} {chain} run=out"
    outcome = command(line)
    assert outcome.code == 0, outcome.error
    rows = {row["name"]: row for row in json.loads(Path("out/report.json").read_text())["rows"]}
    assert {"teacher", "student", "pruned 50 %", "halved", "onnx fp32", "onnx pruned 50 %"} <= set(rows)
    assert rows["teacher"]["psnr"] > 15
    assert rows["halved"]["psnr"] != rows["student"]["psnr"]
    assert rows["onnx fp32"]["psnr"] == pytest.approx(rows["student"]["psnr"], abs=1e-2)
    assert "halved" in Path("out/report.html").read_text()
    again = command(line)
    assert again.output.count(": done, out/") == 7

    # A file names no class of somebody's own: the command line does, or the caller passes the network.
    with pytest.raises(nelf.UserError, match=r"describes 'toys\.ToyLightField', which is not one of nelf's"):
        nelf.load("out/student")
    # Without the configuration's folder, a later command says what is missing.
    refused = command("distill run=out stages=[report]")
    assert refused.code == 2
    assert "pass --config-dir again" in refused.line
