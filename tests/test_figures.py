"""The scripts behind the figures: what they count, what they compare, and that the documented commands compose."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
import yaml

import nelf
from nelf.cli.sweeps import first_job
from nelf.lightfields import MobileR2L

ROOT = Path(__file__).parents[1]
COMMANDS = re.findall(r"`(\w+\.py(?: [^`]*)?)`", (ROOT / "CONTRIBUTING.md").read_text().partition("## A figure")[2])


@pytest.fixture
def script(monkeypatch):
    """Import a script by name; run its main with arguments."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))

    def load(name: str, *arguments: object) -> ModuleType:
        module = importlib.import_module(name)
        if arguments:
            monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
            module.main()
        return module

    return load


def test_every_script_makes_a_figure() -> None:
    scripts = {path.name for path in (ROOT / "benchmarks").glob("[!_]*.py")}
    assert {command.split()[0] for command in COMMANDS} == scripts


@pytest.mark.parametrize("command", [command for command in COMMANDS if "=" in command and "chain" in command])
def test_the_words_behind_a_figure_compose(command: str) -> None:
    assert nelf.config("distill", first_job(shlex.split(command)[1:]))


def test_parts_are_counted_in_closed_form(script, tmp_path) -> None:
    """MobileR2L's products for each ray: its layers are 1x1, but for those of the tail."""
    out = tmp_path / "tails.json"
    script("tails", "--networks", "as published", "shuffle", "--pixels", 16, "--rounds", 1, "--out", out)
    rows = {(row["network"], row["computed"].split(",")[0]): row for row in json.loads(out.read_text())["rows"]}
    inputs = 8 * 3 * (2 * 6 + 1)
    published = inputs * 256 + 29 * 2 * 256**2
    # Per doubling: each pixel goes into 4 x 4 others, which two residual blocks of two layers follow.
    tail, pixels = 0, 1
    for before, after in ((256, 64), (64, 64), (64, 16)):
        tail += pixels * 16 * before * after
        pixels *= 4
        tail += pixels * 2 * 2 * after**2
    tail += pixels * 16 * 3
    small, shuffle = inputs * 64 + 9 * 2 * 64**2, 9 * 64 * 3 * 16
    for name, rays, rest, last in (("as published", 4, published, tail), ("shuffle", 16, small, shuffle)):
        for computed in ("float32", "fast"):
            row = rows[name, computed]
            assert row["millions of products"] == pytest.approx(rays * (rest + last) / 1e6, abs=0.05)
            assert row["tail, % of products"] == pytest.approx(100 * last / (rest + last), abs=0.05)
            assert row["ms"] == pytest.approx(row["head ms"] + row["body ms"] + row["tail ms"], abs=0.02)
            assert row["tail, % of time"] == pytest.approx(100 * row["tail ms"] / row["ms"], abs=1.0)


def weights(path: Path) -> list[np.ndarray]:
    """What the convolutions' weights are stored as."""
    graph = onnx.load(path).graph
    stored = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    made = {node.output[0]: node for node in graph.node}
    names = [node.input[1] for node in graph.node if node.op_type == "Conv"]
    return [stored[made[name].input[0] if name in made else name] for name in names]


@pytest.mark.slow
def test_ways_to_quantize_differ_in_what_they_say(script, tiny_scene, tmp_path) -> None:
    int8 = script("int8")
    network = MobileR2L(16, 4, activation="relu", sr_factor=4, upsampling="shuffle").eval()
    cameras = nelf.data.read_scene(tiny_scene).train.camera
    feeds = int8.window_feeds(int8.exact(network), "points", cameras)
    made = int8.files(network, cameras, feeds, tmp_path)
    assert list(made) == ["fp32", *int8.WAYS, "dynamic"]
    largest = {way: max(int(np.abs(each.astype(int)).max()) for each in weights(made[way])) for way in int8.WAYS}
    kinds = {way: {each.dtype.name for each in weights(made[way])} for way in int8.WAYS}
    assert (largest["shipped"], largest["weights to 127"], largest["unsigned weights"]) == (64, 127, 255)
    assert kinds["unsigned weights"] == {"uint8"}
    assert kinds["last convolution in 32 bits"] == {"int8", "float32"}

    def zero_points(way: str) -> set[str]:
        graph = onnx.load(made[way]).graph
        stored = {each.name: onnx.numpy_helper.to_array(each).dtype.name for each in graph.initializer}
        return {stored[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"}

    assert zero_points("shipped") == {"uint8"}
    assert zero_points("signed activations") == {"int8"}

    figures = int8.compared(network, cameras, views=2, rounds=1)
    assert (figures["fp32"]["times fp32"], figures["fp32"]["dB from fp32"], figures["fp32"]["costs a student"]) == (
        1,
        None,
        0,
    )
    near = figures["shipped"]["dB from fp32"]
    assert 20 < near < 80
    # Errors that have nothing to do with each other add up: of two of 30 dB, 27 are left.
    assert figures["shipped"]["costs a student"] == pytest.approx(10 * np.log10(1 + 10 ** (3 - near / 10)), abs=0.02)


def report(folder: Path, overrides: list[str], **psnr: float) -> None:
    folder.mkdir(parents=True)
    (folder / "overrides.yaml").write_text(yaml.safe_dump(overrides))
    (folder / "report.json").write_text(json.dumps({"rows": [{"name": name, "psnr": db} for name, db in psnr.items()]}))


def test_reports_of_a_run_and_of_a_sweep(script, tmp_path) -> None:
    chain = script("chain")
    report(tmp_path / "one", ["seed=1"], teacher=31.0, student=30.0)
    rows = chain.reports(tmp_path / "one")
    assert rows == [{"name": "teacher", "psnr": 31.0}, {"name": "student", "psnr": 30.0}]
    (tmp_path / "many").mkdir()
    report(tmp_path / "many_sweep" / "a", ["seed=1", "model.width=8"], student=20.0)
    report(tmp_path / "many_sweep" / "b", ["seed=1", "model.width=16"], student=25.0)
    found = chain.reports(tmp_path / "many")
    assert [(row["job"], row["psnr"]) for row in found] == [("model.width=8", 20.0), ("model.width=16", 25.0)]
    with pytest.raises(SystemExit, match="none: has no report"):
        chain.reports(tmp_path / "none")


def test_what_was_done_before_is_not_timed(script, tmp_path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(SystemExit, match="there: is there already"):
        script("chain", f"run={tmp_path / 'there'}")
    with pytest.raises(SystemExit):
        script("chain", "--make-demo", "experiment=demo")


@pytest.mark.slow
def test_a_chain_ends_in_its_figures(tiny_scene, tmp_path) -> None:
    words = [
        *("experiment=mobile_cpu", f"data.root={tiny_scene}", "data.width=16", "run=out/tails"),
        *("stages=[teacher,pseudo,student,report]", "trainer.max_steps=2", "stage.pseudo.views=3"),
        *("model.width=16", "model.depth=4", "model.upsampling=transposed,shuffle", "stage.report.frames=0"),
        *("teacher.model.levels=2", "teacher.model.log2_table=10", "teacher.system.samples_per_step=2048"),
    ]
    command = [sys.executable, str(ROOT / "benchmarks" / "chain.py"), *words, "--out", "tails.json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    document = json.loads((tmp_path / "tails.json").read_text())
    jobs = ["model.upsampling=shuffle", "model.upsampling=transposed"]
    assert [row["job"] for row in document["rows"] if row["name"] == "student"] == jobs
    assert document["seconds"] > 0
    assert str(tiny_scene) not in json.dumps(document)
    assert "data.root=sphere" in document["command"]
