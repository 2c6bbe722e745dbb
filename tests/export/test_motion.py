"""A volume that moves, in a bundle: its file, the graphs beside it, and what a reader refuses."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nelf.cameras import Camera
from nelf.errors import UserError
from nelf.export import load, onnx, write_bundle
from nelf.export.bundle import artifact, read_bundle
from nelf.export.graph import exact
from nelf.export.inputs import output_of
from nelf.export.motion import read_motion, write_motion
from nelf.export.volume import read_volume, rounded, write_volume
from nelf.lightfields import GridDyLiN
from nelf.scene import Scene


def moving_network() -> GridDyLiN:
    """Two controls; corners missing at rest and in windows; displacements of some voxels, densities that change."""
    torch.manual_seed(5)
    network = GridDyLiN(width=8, depth=4, features=4, controls=2, motion_cells=4, motion_times=3)
    network.volume.resize(torch.rand(11, 12, 13) > 0.05)
    network.frames.resize(torch.rand(3, 10, 11, 12) > 0.05)
    network.aabb.copy_(torch.tensor([-1.0, -0.9, -0.8, 1.0, 0.9, 0.8]))
    network.canonical_aabb.copy_(torch.tensor([-1.2, -1.0, -0.9, 1.2, 1.1, 0.9]))
    network.motion_aabb.copy_(torch.tensor([-1.1, -1.1, -1.1, 1.1, 1.1, 1.1]))
    network.unit.fill_(2.2)
    torch.nn.init.normal_(network.volume.density, mean=-1.0, std=2.0)
    torch.nn.init.normal_(network.volume.features, mean=0.3, std=0.5)
    network.set_displacements(0.3 * torch.randn(network.motion.shape))
    for values in (network.tail.weight, network.tail.bias):
        torch.nn.init.normal_(values, std=0.05)
    return network.eval()


@pytest.fixture(scope="module")
def moving_scene(scene: Scene) -> Scene:
    def timed(split: Any) -> Any:
        controls = torch.stack([torch.linspace(0, 1, len(split)), torch.linspace(0.9, 0.1, len(split))], -1)
        return replace(split, camera=replace(split.camera, controls=controls))

    splits = {name: timed(getattr(scene, name)) for name in ("train", "val", "test")}
    return replace(scene, **splits, controls=("time", "height"))


@pytest.fixture(scope="module")
def bundle(moving_scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, network = tmp_path_factory.mktemp("moving"), moving_network()
    volume = write_volume(network, folder / "v.bin.gz")
    network = rounded(network, "uint8")
    onnx(network, folder / "model.onnx", moving_scene.test.camera)
    about = {"output": output_of(network), "window": network.window}
    entry = artifact("fp32", folder / "model.onnx", "features", "fp32", volume, **about)
    write_bundle(folder, moving_scene, network, [entry])
    return folder


def test_a_motion_is_laid_out_as_described(tmp_path: Path) -> None:
    network = moving_network()
    about = write_motion(network, tmp_path / "m.bin.gz")
    content = gzip.decompress((tmp_path / "m.bin.gz").read_bytes())
    assert about["resolution"] == [10, 11, 12]
    assert about["windows"] == 3
    assert about["grid"] == [2, 3, 4, 4, 4]
    each = 10 * 11 * 12 // 8
    assert len(content) == 3 * each + 2 * 2 * 3 * 4**3 * 4
    for window in range(3):
        bits = np.unpackbits(np.frombuffer(content, np.uint8, each, window * each))
        assert np.array_equal(bits.reshape(10, 11, 12).astype(bool), network.frames.exists[window].numpy())
    numbers = np.frombuffer(content, "<f2", offset=3 * each).reshape(2, 3, 4, 4, 4, 4).astype(np.float32)
    np.testing.assert_allclose(numbers, network.displacements.detach(), rtol=1e-3, atol=1e-6)


def test_a_bundle_says_what_moves(bundle: Path) -> None:
    about = read_bundle(bundle)
    assert [each["name"] for each in about["controls"]] == ["height"]
    assert about["time"] == {"min": 0.0, "max": 1.0, "value": 0.0}
    entry = about["artifacts"][0]
    files = [bundle / name for name in ("model.onnx", "v.bin.gz", "v_motion.bin.gz")]
    assert entry["bytes"] == sum(file.stat().st_size for file in files)
    assert entry["volume"]["motion"]["file"] == "v_motion.bin.gz"
    assert load(bundle).cost(view(0.5))["compressed_bytes"] > entry["volume"]["rows"]


def view(time: float, height: float = 0.4) -> Camera:
    """A camera in front of the volume, at a moment."""
    c2w = torch.eye(3, 4)
    c2w[2, 3] = 3.5
    return Camera.from_fov(c2w, 0.7, 32, 32).at(time, height)


def test_a_bundle_draws_its_network_at_any_moment(bundle: Path) -> None:
    model, network = load(bundle), exact(rounded(moving_network(), "uint8"))
    assert model._graph.get_inputs()[0].name == "features"
    assert len(model._graph.get_inputs()) == 1
    drawn = []
    for time in (0.0, 0.2, 0.34, 0.9, 1.0):
        camera = view(time)
        found, expected = model.render(camera), network.render(camera)
        torch.testing.assert_close(found.rgb, expected.rgb, atol=1e-4, rtol=0)
        torch.testing.assert_close(found.opacity, expected.opacity, atol=1e-4, rtol=0)
        drawn.append(found.rgb)
    assert all(float((a - b).abs().mean()) > 0.01 for a, b in pairwise(drawn))
    other = model.render(view(0.2, 0.9)).rgb
    assert float((other - drawn[1]).abs().mean()) > 0.005
    torch.testing.assert_close(model.render(view(0.2)).rgb, drawn[1])


@pytest.mark.parametrize("kind", ["rays", "pose"])
def test_a_graph_from_rays_on_takes_the_time(kind: str, moving_scene: Scene, tmp_path: Path) -> None:
    network = moving_network()
    error = onnx(network, tmp_path / "model.onnx", moving_scene.test.camera, kind)
    assert error < 1e-4
    entry = artifact("all", tmp_path / "model.onnx", kind, "fp32", output="rgba", size=(16, 16))
    write_bundle(tmp_path, moving_scene, network, [entry])
    model = load(tmp_path)
    for controls in ((0.0, 0.1), (0.4, 0.6), (1.0, 1.0)):
        camera = moving_scene.test.camera[0].at(*controls)
        torch.testing.assert_close(model.render(camera).rgb, exact(network).render(camera).rgb, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resolution": [4000, 4000, 4000]}, "has 3 windows of 64000000000 corners; allowed: 1 to 64, of 134217728"),
        ({"resolution": [500, 500, 500]}, "corners; allowed: 1 to 64"),
        ({"resolution": [1, 10, 10]}, "has resolution [1, 10, 10]; allowed: three whole numbers from 2"),
        ({"resolution": [10, 11]}, "has resolution"),
        ({"windows": 0}, "has 0 windows"),
        ({"windows": 65}, "has 65 windows"),
        ({"windows": 2}, "holds more than"),
        ({"windows": 4}, "holds"),
        ({"grid": [1, 3, 4, 4, 4]}, "has the grid [1, 3, 4, 4, 4]; allowed: [2, T, Z, Y, X]"),
        ({"grid": [2, 1, 4, 4, 4]}, "has the grid"),
        ({"grid": [2, 4000, 40, 40, 40]}, "has the grid"),
        ({"grid": "all"}, "has the grid 'all'"),
        ({"aabb": [0.0] * 6}, "has aabb"),
        ({"canonical_aabb": [0, 0, 0, 1, 1, float("inf")]}, "has canonical_aabb"),
        ({"empty": float("nan")}, "has empty nan; allowed: a number below 0"),
        ({"empty": 3}, "has empty 3"),
    ],
)
def test_what_cannot_be_a_motion_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    network = moving_network()
    about = write_volume(network, tmp_path / "v.bin.gz")
    rest = read_volume(tmp_path, about, network.aabb.tolist())
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        read_motion(tmp_path, {**about["motion"], **change}, rest, network.aabb.tolist(), 2)
    assert "\n" not in str(caught.value)


def test_a_motion_file_with_numbers_that_are_none_or_an_empty_window_is_refused(tmp_path: Path) -> None:
    network = moving_network()
    about = write_volume(network, tmp_path / "v.bin.gz")
    rest = read_volume(tmp_path, about, network.aabb.tolist())
    path = tmp_path / about["motion"]["file"]
    content = gzip.decompress(path.read_bytes())
    for damaged, message in (
        (content[:-2] + b"\x00\x7e", "holds numbers that are not finite"),
        (bytes(165) + content[165:], "a window has no corner"),
    ):
        path.write_bytes(gzip.compress(damaged))
        with pytest.raises(UserError, match=message):
            read_motion(tmp_path, {**about["motion"], "sha256": None}, rest, network.aabb.tolist(), 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"motion": 3}, "fp32 has no motion that can be read; allowed: what it is, or null"),
        ({"motion": {"file": "../m.gz"}}, "fp32 lies in '../m.gz'; allowed: names of files beside bundle.json"),
        ({"motion": None}, "has a time, but fp32 has a volume without motion"),
    ],
)
def test_a_bundle_s_motion_lies_in_it(bundle: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    shutil.copytree(bundle, tmp_path / "bundle")
    path = tmp_path / "bundle" / "bundle.json"
    about = json.loads(path.read_text())
    about["artifacts"][0]["volume"].update(change)
    path.write_text(json.dumps(about))
    with pytest.raises(UserError, match=re.escape(message)):
        load(tmp_path / "bundle")
