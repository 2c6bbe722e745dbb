"""Exported files render as everything else does."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import nelf
from nelf.errors import UserError
from nelf.export import load
from nelf.export.graph import exact


@pytest.mark.parametrize("name", ["features", "environment", "rays", "points", "pose"])
def test_a_bundle_renders_what_its_network_renders(bundles, scene, name: str) -> None:
    network, path, _, _ = bundles[name]
    camera = scene.test.camera[1]
    rendering = load(path.parent).render(camera)
    assert rendering.rgb.shape == (16, 16, 3)
    expected = exact(network).render(camera)
    torch.testing.assert_close(rendering.rgb, expected.rgb, atol=1e-4, rtol=0)
    assert (rendering.opacity is None) == (expected.opacity is None)
    if expected.opacity is not None:
        assert expected.opacity.std() > 0.02
        torch.testing.assert_close(rendering.opacity, expected.opacity, atol=1e-4, rtol=0)


def test_a_graph_runs_only_where_something_is_seen(bundles, scene) -> None:
    network, path, _, _ = bundles["features"]
    model, camera = load(path.parent), scene.test.camera[0].resized(256)
    far = replace(camera, c2w=torch.cat([camera.c2w[:, :3], 4 * camera.c2w[:, 3:]], -1))
    height, width = model.inputs(far)["features"].shape[2:]
    assert (height % 16, width % 16) == (0, 0)
    assert height < 128
    torch.testing.assert_close(model.render(far).rgb, exact(network).render(far).rgb, atol=1e-4, rtol=0)
    away = replace(camera, c2w=camera.c2w * torch.tensor([-1.0, 1.0, -1.0, 1.0]))  # it looks the other way
    rendering = model.render(away)
    assert torch.equal(rendering.rgb, torch.ones(256, 256, 3))
    assert not rendering.opacity.any()


def test_another_graph_than_was_described_is_refused(bundles, tmp_path) -> None:
    import onnx

    folder = shutil.copytree(bundles["points"].path.parent, tmp_path / "bundle")
    model = onnx.load(folder / "model.onnx")
    model.producer_name = "somebody else"
    onnx.save(model, folder / "model.onnx")
    with pytest.raises(UserError, match=r"model\.onnx: is another file than bundle\.json describes"):
        load(folder)


def test_a_picture_that_is_not_finite_is_refused(bundles, scene, monkeypatch) -> None:
    model = load(bundles["features"].path.parent)
    monkeypatch.setattr(model, "_graph", Endless())
    with pytest.raises(UserError, match=r"model\.onnx: draws numbers that are not finite"):
        model.render(scene.test.camera[0])


class Endless:
    """A graph whose weights overflow."""

    def run(self, outputs: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        height, width = inputs["features"].shape[2:]
        return [np.full((1, 4, 2 * height, 2 * width), np.inf, np.float32)]


def test_the_background_is_that_of_the_bundle(bundles, scene, tmp_path) -> None:
    shutil.copytree(bundles["features"].path.parent, tmp_path / "bundle")
    about = json.loads((tmp_path / "bundle" / "bundle.json").read_text())
    about["background_color"] = [0.0, 0.5, 1.0]
    (tmp_path / "bundle" / "bundle.json").write_text(json.dumps(about))
    camera = scene.test.camera[0]
    white, other = (load(folder).render(camera) for folder in (bundles["features"].path.parent, tmp_path / "bundle"))
    rest = (1 - white.opacity)[..., None] * torch.tensor([1.0, 0.5, 0.0])
    torch.testing.assert_close(other.rgb, white.rgb - rest, atol=1e-6, rtol=0)


def test_an_exported_file_is_scored_like_any_model(bundles, scene) -> None:
    network, path, _, _ = bundles["points"]
    exported = nelf.evaluate(load(path), scene.test)
    assert exported["psnr"] == pytest.approx(nelf.evaluate(network, scene.test)["psnr"], abs=1e-3)


def test_cameras_of_another_size_are_refused_where_the_graph_is_fixed(bundles, scene) -> None:
    model = load(bundles["pose"].path)
    with pytest.raises(UserError, match=r"model.onnx: draws 16x16 pixels only, but the camera has 24x24"):
        model.render(scene.test.camera[0].resized(24))


@pytest.mark.parametrize("name", ["points", "features", "rays"])
def test_an_image_of_any_size_is_drawn_and_cut(name: str, bundles, scene) -> None:
    camera = scene.test.camera[0].resized(24).window(torch.tensor([0, 0]), 18, 15)
    picture = load(bundles[name].path).render(camera)
    assert picture.rgb.shape == (15, 18, 3)
    torch.testing.assert_close(picture.rgb, exact(bundles[name].network).render(camera).rgb, atol=1e-4, rtol=0)


def truncate(folder: Path) -> None:
    path = folder / "model.onnx"
    path.write_bytes(path.read_bytes()[:1000])


def forget(folder: Path) -> None:
    (folder / "model.onnx").unlink()


def rename(folder: Path) -> None:
    bundle = json.loads((folder / "bundle.json").read_text())
    bundle["artifacts"][0]["file"] = "other.onnx"
    (folder / "bundle.json").write_text(json.dumps(bundle))


def empty(folder: Path) -> None:
    (folder / "bundle.json").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "model.onnx: is not a whole ONNX file"),
        (forget, "model.onnx: no such file"),
        (rename, "bundle.json does not name it; it names other.onnx"),
        (empty, "bundle.json: no such file; allowed: a whole bundle.json, which stage export writes"),
    ],
)
def test_damage_is_named_in_one_line(bundles, tmp_path, damage, message: str) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(bundles["points"].path.parent, folder)
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        load(folder / "model.onnx")
    assert "\n" not in str(caught.value)


def test_a_graph_takes_no_weights_from_other_files(tmp_path, bundles) -> None:
    import onnx
    from onnx.external_data_helper import convert_model_to_external_data

    shutil.copytree(bundles["points"].path.parent, tmp_path / "bundle")
    path = tmp_path / "bundle" / "model.onnx"
    model = onnx.load(path)
    convert_model_to_external_data(model, location="weights", size_threshold=0)
    onnx.save(model, path)
    with pytest.raises(UserError, match=r"model.onnx: takes weights from another file"):
        load(path)


@pytest.mark.parametrize("place", ["function", "sparse", "graph in a node"])
def test_nor_do_the_parts_of_a_graph(tmp_path, place: str) -> None:
    import onnx
    from onnx import TensorProto, helper

    from nelf.export.files import check_graph

    elsewhere = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    elsewhere.external_data.add(key="location", value="/etc/passwd")
    constant = helper.make_node("Constant", [], ["y"], value=elsewhere)
    graph = helper.make_graph([], "g", [], [])
    model = helper.make_model(graph)
    if place == "function":
        function = helper.make_function("own", "f", [], ["y"], [constant], [helper.make_opsetid("", 20)])
        model.functions.append(function)
    elif place == "sparse":
        model.graph.sparse_initializer.add(values=elsewhere, dims=[1])
    else:
        inner = helper.make_graph([constant], "inner", [], [])
        model.graph.node.append(helper.make_node("If", ["c"], ["z"], then_branch=inner))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(UserError, match=r"model.onnx: takes weights from another file"):
        check_graph(tmp_path / "model.onnx")
