"""Stage export: which files, from which stages, and what is refused before it begins."""

from __future__ import annotations

import json
import os
import re
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

import nelf
import nelf.pipeline.stages.export as stage
import nelf.viewer.static
from nelf import cli, storage
from nelf.compression.fold import fold_batch_norm
from nelf.compression.quantization import calibrate, quantize_network
from nelf.data import read_scene
from nelf.errors import UserError
from nelf.export import load
from nelf.export.graph import exact
from nelf.export.volume import rounded, write_volume
from nelf.lightfields import GridR2L
from nelf.pipeline.documents import write_json
from nelf.pipeline.recipe import Recipe
from nelf.pipeline.run import Run
from nelf.pipeline.stages.export import check

MODEL = {"width": 8, "depth": 4, "resolution": 12, "features": 4}


def run_in(root: Path, scene: Path, *more: str) -> Run:
    overrides = [
        "data=blender",
        f"data.root={scene}",
        "model=grid_r2l",
        *(f"model.{key}={value}" for key, value in MODEL.items()),
        "trainer=cpu",
        "stages=[export]",
        "stage.export.calibration_views=2",
        *more,
    ]
    plain: dict[str, Any] = OmegaConf.to_container(nelf.config("distill", overrides), resolve=True)  # type: ignore[assignment]
    return Run(root, Recipe(plain, cli.build))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, tiny_scene: Path) -> Path:
    """A run whose student, one pruned network and one trained in 8 bits are done."""
    root = tmp_path_factory.mktemp("export") / "run"
    shutil.copytree(tiny_scene, root / "pseudo")
    torch.manual_seed(5)
    network = GridR2L(**MODEL).eval()
    exists = torch.ones(12, 12, 12, dtype=torch.bool)
    exists[:2] = False
    network.volume.resize(exists)
    torch.nn.init.normal_(network.volume.density, std=2.0)
    for values in (network.tail.weight, network.tail.bias):  # new ones draw nothing of their own
        torch.nn.init.normal_(values, std=0.05)
    config = {"_target_": "nelf.lightfields.GridR2L", **network.arguments}
    storage.save(network, root / "student" / "model.safetensors", config, "digest")
    narrow = GridR2L(**{**MODEL, "width": 4})
    torch.nn.init.normal_(narrow.volume.density)
    config = {**config, **narrow.arguments}
    storage.save(narrow, root / "narrow" / "narrow.safetensors", config, "digest")
    write_json(root / "narrow" / "artifacts.json", [{"name": "narrowed by 50 %", "file": "narrow.safetensors"}])
    folded = fold_batch_norm(network)
    quantize_network(folded, calibrate(folded, [read_scene(tiny_scene).train.camera[0]]))
    config = {**config, **network.arguments}
    storage.save(folded, root / "quantize" / "int8_qat.safetensors", config, "digest")
    write_json(root / "quantize" / "artifacts.json", [{"name": "int8 QAT", "file": "int8_qat.safetensors"}])
    for name in ("pseudo", "student", "narrow", "quantize"):
        write_json(root / name / "done.json", {"mark": name})
    return root


def test_every_network_of_a_run_is_exported_and_drawn(prepared: Path, tiny_scene: Path, capfd) -> None:
    run = run_in(prepared, tiny_scene)
    metrics = run.do("export", cli.build(run.config["stage"]["export"]))
    assert metrics["max_abs_error"] <= 1e-4
    folder = prepared / "export"
    bundle = json.loads((folder / "bundle.json").read_text())
    names = ["fp32", "fp16", "int8 dynamic", "int8 static", "int8 QAT", "narrowed by 50 %"]
    assert [entry["name"] for entry in bundle["artifacts"]] == names
    entries = {entry["name"]: entry for entry in bundle["artifacts"]}
    scene = read_scene(tiny_scene)
    student = nelf.load(folder / "model.safetensors")
    expected = student.render(scene.test.camera[0]).rgb
    drawn = exact(rounded(student, "uint8")).render(scene.test.camera[0])
    rendering = load(folder / "model.onnx").render(scene.test.camera[0])
    torch.testing.assert_close(rendering.rgb, drawn.rgb, atol=1e-4, rtol=0)
    torch.testing.assert_close(rendering.opacity, drawn.opacity, atol=1e-4, rtol=0)
    for name, entry in entries.items():
        assert entry["psnr"] > 0
        assert entry["latency_ms"] > 0
        difference = (load(folder / entry["file"]).render(scene.test.camera[0]).rgb - expected).abs().max()
        if name == "narrowed by 50 %":
            assert difference > 1e-2  # another network
        else:
            assert difference < (0.1 if "int8" in name else 2e-2), name
    assert entries["int8 QAT"]["volume"] == entries["fp32"]["volume"]
    assert entries["fp32"]["volume"]["dtype"] == "uint8"
    said = capfd.readouterr().out
    assert re.search(r"export: volume: [\d.]+ dB in 8 bits, [\d.]+ dB in 16; written in 8\n", said)
    assert entries["narrowed by 50 %"]["volume"]["file"] == "narrow_volume.bin.gz"
    artifacts = json.loads((folder / "artifacts.json").read_text())
    assert [each["name"] for each in artifacts] == [f"onnx {name}" for name in names]
    assert all((folder / each["file"]).is_file() for each in artifacts)
    files = {each["file"] for each in bundle["artifacts"]} | {each["volume"]["file"] for each in bundle["artifacts"]}
    made = {path.name for path in folder.iterdir() if path.suffix in (".onnx", ".gz")}
    assert made == files
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_a_wrong_volume_beside_a_right_graph_is_noticed(
    prepared: Path, tiny_scene: Path, tmp_path, monkeypatch
) -> None:
    root = tmp_path / "run"
    shutil.copytree(prepared, root, ignore=shutil.ignore_patterns("export", "prune", "narrow", "quantize"))

    def write_another(network: GridR2L, *options: Any) -> dict[str, Any]:
        network = deepcopy(network)
        with torch.no_grad():
            network.volume.density += 0.5
        return write_volume(network, *options)

    monkeypatch.setattr(stage, "write_volume", write_another)
    run = run_in(root, tiny_scene, "stage.export.precisions=[fp32]")
    with pytest.raises(UserError, match=r"model.onnx: read from the bundle, its rgb differs by .* than tolerance"):
        run.do("export", cli.build(run.config["stage"]["export"]))


def test_a_bundle_with_the_viewer_is_a_page(tmp_path, prepared: Path, tiny_scene: Path, monkeypatch) -> None:
    (tmp_path / "runtime").mkdir()
    (tmp_path / "runtime" / "ort.wasm.min.mjs").write_text("export {}")
    monkeypatch.setattr(nelf.viewer.static, "runtime_folder", lambda: tmp_path / "runtime")
    root = tmp_path / "run"
    shutil.copytree(prepared, root, ignore=shutil.ignore_patterns("export"))
    run = run_in(root, tiny_scene, "stage.export.viewer=true", "stage.export.precisions=[fp32]")
    run.do("export", cli.build(run.config["stage"]["export"]))
    assert (root / "export" / "index.html").read_text().startswith("<!doctype html>")
    assert (root / "export" / "runtime" / "ort.wasm.min.mjs").is_file()
    assert (root / "export" / "bundle.json").is_file()


def test_a_viewer_whose_runtime_is_not_to_be_had_is_refused_first(tmp_path, tiny_scene, monkeypatch) -> None:
    def missing() -> Path:
        raise UserError("viewer: npm is not installed.")

    monkeypatch.setattr("nelf.pipeline.stages.export.runtime_folder", missing)
    with pytest.raises(UserError, match="npm is not installed"):
        check(run_in(tmp_path, tiny_scene, "stage.export.viewer=true").recipe)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stage.export.inputs=[ray]", "stage.export.inputs: there is no 'ray'; .* Did you mean 'rays'"),
        ("stage.export.inputs=[points]", "GridR2L cannot begin at 'points'; allowed: features, rays, pose"),
        ("stage.export.precisions=[int4]", "stage.export.precisions: there is no 'int4'; allowed: fp32, fp16"),
        ("stage.export.tar=true", "tar: MobileR2L's code has no GridR2L, only mobile_r2l"),
    ],
)
def test_options_are_refused_before_anything_runs(tmp_path, tiny_scene, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(run_in(tmp_path, tiny_scene, override).recipe)


class Power:
    """Stands in for what writes and measures files: notes what is done, and is cut off after so many steps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[str] = []
        self.left = 0
        monkeypatch.setattr(stage, "onnx", lambda network, path, *rest: self.step("fp32", path, 0.0))
        monkeypatch.setattr(stage, "half_weights", lambda model, path, **_: self.step("fp16", path, path))
        monkeypatch.setattr(stage, "quantize_dynamic", lambda model, path, **_: self.step("int8", path, path))
        monkeypatch.setattr(stage, "load", lambda path: path)
        monkeypatch.setattr(stage, "check_drawn", lambda *_: None)
        figures = {"psnr": 1.0, "seconds_per_view": 1.0}
        monkeypatch.setattr(stage, "evaluate", lambda path, *rest, **options: self.step("measured", None, figures))

    def step(self, word: str, path: Path | None, result: Any) -> Any:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        self.done.append(word)
        if path is not None:
            path.write_text(word)
        return result


def test_a_stage_that_is_killed_again_and_again_comes_to_its_end(tmp_path, prepared, tiny_scene, monkeypatch) -> None:
    root = tmp_path / "run"
    shutil.copytree(prepared, root, ignore=shutil.ignore_patterns("export", "prune", "narrow", "quantize"))
    options = ["stage.export.inputs=[rays]", "stage.export.precisions=[fp16,int8 dynamic]"]
    power = Power(monkeypatch)

    def export(*more: str) -> None:
        run = run_in(root, tiny_scene, *options, *more)
        run.do("export", cli.build(run.config["stage"]["export"]))

    for steps in (1, 2, 1, 1):
        power.left = steps
        with pytest.raises(KeyboardInterrupt):
            export()
    assert power.done == ["fp32", "fp16", "int8", "measured", "measured"]
    left = root / "export" / ".model.0a_bcdef.onnx"
    left.touch()
    os.utime(left, (0, 0))
    # A file that is not as it was is made anew, with what is known of it.
    (root / "export" / "model_fp16.onnx").write_bytes(b"torn")
    power.left = 3
    export()
    assert power.done[5:] == ["fp16", "measured", "measured"]
    assert [entry["psnr"] for entry in json.loads((root / "export/bundle.json").read_text())["artifacts"]] == [1.0] * 3
    assert not left.exists()
    assert not (root / "export" / "made.json").exists()


def test_files_of_other_inputs_are_not_kept(tmp_path, prepared, tiny_scene, monkeypatch) -> None:
    root = tmp_path / "run"
    shutil.copytree(prepared, root, ignore=shutil.ignore_patterns("export", "prune", "narrow", "quantize"))
    power = Power(monkeypatch)

    def export() -> None:
        run = run_in(root, tiny_scene, "stage.export.inputs=[rays]", "stage.export.precisions=[fp32]")
        run.do("export", cli.build(run.config["stage"]["export"]))

    for mark in ("student", "another"):
        write_json(root / "student" / "done.json", {"mark": mark})
        power.left = 1
        with pytest.raises(KeyboardInterrupt):
            export()
        (root / "export" / "config.yaml").unlink()  # as if killed while the old files were deleted
    assert power.done == ["fp32", "fp32"]
