"""ONNX graphs draw what their networks draw, of any size; and are refused where they do not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx as onnx_format
import onnxruntime
import pytest
import torch

import nelf
from nelf import paths
from nelf.cameras import Camera
from nelf.errors import UserError
from nelf.export import graph, onnx
from nelf.export.graph import exact, half_weights
from nelf.export.inputs import KINDS, feed_of, output_of
from nelf.lightfields import LightField, MobileR2L
from nelf.rays import Rays

NAMES = ["features", "environment", "rays", "points", "pose"]


def run(path: Path, feeds: dict[str, np.ndarray]) -> np.ndarray:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feeds)[0]


def rays_of(network: LightField, camera: Camera) -> Rays:
    """The rays of a camera: those of one whose principal point lies as far to the right and below."""
    shift = network.ray_shift * camera.width * torch.tensor([0.0, 0.0, 1.0, 1.0])
    return replace(camera, intrinsics=camera.intrinsics + shift).rays(network.stride)


@pytest.mark.parametrize("name", NAMES)
def test_a_graph_has_the_names_and_the_colors_of_its_kind(bundles, scene, name: str) -> None:
    network, path, kind, error = bundles[name]
    declared = onnx_format.load(path).graph
    assert tuple(value.name for value in declared.input) == KINDS[kind]
    assert [value.name for value in declared.output] == [output_of(network)]
    camera = scene.train.camera[3]
    rays = rays_of(network, camera)
    network = exact(network)
    with torch.no_grad():
        expected = network(rays[None]).movedim(-1, 1).numpy()
    drawn = run(path, feed_of(network, kind, camera))
    with_opacity = kind in ("features", "rays") and name != "environment"
    assert drawn.shape == (1, 4 if with_opacity else 3, 16, 16)
    assert expected[:, 0].std() > 0.02  # else all grays would pass
    assert expected[:, -1].std() > 0.02
    np.testing.assert_allclose(drawn, expected, atol=1e-4)
    assert error <= 1e-4


@pytest.mark.parametrize("name", ["features", "rays", "points"])
def test_a_graph_draws_other_sizes(bundles, scene, name: str) -> None:
    network, path, kind, _ = bundles[name]
    camera = scene.train.camera[2].resized(24)
    network = exact(network)
    drawn = run(path, feed_of(network, kind, camera))[0]
    rays = rays_of(network, camera)
    with torch.no_grad():
        expected = network(rays[None])[0].movedim(-1, 0).numpy()
    np.testing.assert_allclose(drawn, expected, atol=1e-4)


def test_a_volume_may_be_inside_a_graph_from_the_pose_on(bundles, scene, tmp_path) -> None:
    network = bundles["rays"].network
    assert onnx(network, tmp_path / "pose.onnx", scene.test.camera, "pose") <= 1e-4
    drawn = run(tmp_path / "pose.onnx", feed_of(network, "pose", scene.train.camera[0]))[0]
    expected = exact(network).render(scene.train.camera[0]).opacity
    np.testing.assert_allclose(drawn[3], expected.numpy(), atol=1e-4)


def test_no_norm_is_left_and_gelu_stays_gelu(bundles) -> None:
    nodes = {node.op_type for node in onnx_format.load(bundles["points"].path).graph.node}
    assert "BatchNormalization" not in nodes
    assert "Gelu" in nodes
    assert "Relu" not in nodes


def test_half_of_the_bytes_draw_nearly_the_same(bundles, scene, tmp_path) -> None:
    network, path, kind, _ = bundles["points"]
    half = half_weights(path, tmp_path / "half.onnx")
    weights = [tensor for tensor in onnx_format.load(half).graph.initializer if np.prod(tensor.dims) >= 16]
    assert weights
    kept = [tensor.name for tensor in weights if tensor.data_type == onnx_format.TensorProto.FLOAT]
    assert not kept

    def raw(file: Path) -> int:
        return sum(len(tensor.raw_data) for tensor in onnx_format.load(file).graph.initializer)

    assert raw(half) < 0.55 * raw(path)
    feeds = feed_of(network, kind, scene.test.camera[0])
    difference = np.abs(run(half, feeds) - run(path, feeds)).max()
    assert 0 < difference < 5e-3


def test_a_graph_that_draws_something_else_is_not_written(bundles, scene, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(graph, "largest_difference", lambda *_: 0.5)
    with pytest.raises(UserError, match=r"differ by 0.5 .* tolerance 0.0001; it is not written"):
        onnx(bundles["features"].network, tmp_path / "model.onnx", scene.test.camera)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_beginning_is_refused(bundles, scene, tmp_path) -> None:
    with pytest.raises(UserError, match="GridR2L cannot begin at 'points'; allowed: features, rays, pose"):
        onnx(bundles["features"].network, tmp_path / "model.onnx", scene.test.camera, "points")


def test_a_wrong_graph_is_noticed(bundles, scene) -> None:
    """The check compares pictures: another network's graph differs."""
    network, path, kind, _ = bundles["points"]
    other = exact(network)
    with torch.no_grad():
        other.head[0].bias += 1.0
    session = graph.session(path)
    assert graph.largest_difference(session, exact(network), kind, scene.test.camera) < 1e-4
    assert graph.largest_difference(session, other, kind, scene.test.camera) > 1e-2


def test_a_file_names_no_folder_of_the_machine_that_wrote_it(tmp_path: Path) -> None:
    network = MobileR2L(width=16, depth=4, sr_factor=4).eval()
    onnx(network, tmp_path / "a.onnx", Camera.from_fov(paths.orbit(2, 4.0), 0.7, 16, 16))
    content = (tmp_path / "a.onnx").read_bytes()
    for place in (Path(torch.__file__).parents[1], Path(nelf.__file__).parents[1]):
        assert str(place).encode() not in content
    assert b".py" not in content
