"""bundle.json and the volume: what a reader without nelf relies on."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import re

import numpy as np
import pytest
import torch

from nelf import paths
from nelf.cameras import Camera
from nelf.errors import UserError
from nelf.export.bundle import VERSION, orbit_limits, read_bundle, read_volume, write_volume
from tests.export.conftest import grid_network


def test_a_bundle_says_what_it_holds(bundles, scene) -> None:
    for name, (network, path, kind, error) in bundles.items():
        bundle = json.loads((path.parent / "bundle.json").read_text())
        entry = bundle["artefacts"][0]
        assert bundle["format"] == "nelf-bundle"
        assert bundle["image"] == {"width": 16, "height": 16}
        assert bundle["intrinsics"]["fx"] == pytest.approx(8 / math.tan(0.6911112 / 2))
        assert bundle["sr_factor"] == network.sr_factor
        assert entry["input"] == kind
        assert entry["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert entry["max_abs_error"] == error
        volume = (path.parent / "volume.bin.gz").stat().st_size if name == "features" else 0
        assert entry["bytes"] == path.stat().st_size + volume


def test_a_volume_is_laid_out_as_described(tmp_path) -> None:
    network = grid_network()
    about = write_volume(network, tmp_path / "v.bin.gz", "float16")
    content = gzip.decompress((tmp_path / "v.bin.gz").read_bytes())
    corners, cells = 10**3, 9**3
    assert len(content) == corners * 4 + corners * 4 * 2 + cells
    density = np.frombuffer(content, "<f4", corners).reshape(10, 10, 10)
    features = np.frombuffer(content, "<f2", corners * 4, corners * 4).reshape(10, 10, 10, 4)
    distance = np.frombuffer(content, np.uint8, cells, corners * 12).reshape(9, 9, 9)
    own = network.density.detach().numpy()
    assert np.array_equal(density[3:], own[3:])  # corners that an occupied cell touches
    assert (density[:3] == -30).all()
    np.testing.assert_allclose(features[3:], network.features.detach().numpy()[3:], atol=2e-3)
    assert (features[:3] == 0).all()
    assert (distance[3:] == 0).all()
    assert [int(distance[z].min()) for z in range(3)] == [3, 2, 1]
    assert about["resolution"] == [10, 10, 10]
    assert about["points"] == 16

    again = read_volume(tmp_path, about)
    assert torch.equal(again.occupied, network.occupied)
    assert again.features.dtype == torch.float32


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: raw[: len(raw) // 2], "is not a whole gzip file"),
        (lambda raw: gzip.compress(b"short"), "holds 5 bytes, but bundle.json describes"),
        (None, "no such file; bundle.json names it"),
    ],
)
def test_a_damaged_volume_is_named(tmp_path, damage, message: str) -> None:
    path = tmp_path / "v.bin.gz"
    about = write_volume(grid_network(), path)
    raw = path.read_bytes()
    path.unlink()
    if damage is not None:
        path.write_bytes(damage(raw))
    with pytest.raises(UserError, match=f"v.bin.gz: {message}"):
        read_volume(tmp_path, about)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not a whole bundle.json"),
        ("[]", "is not the description of a bundle"),
        ('{"format": "nelf-bundle", "version": 99}', f"has version 99; this nelf reads versions up to {VERSION}"),
    ],
)
def test_a_strange_bundle_is_refused_in_one_line(tmp_path, content: str, message: str) -> None:
    (tmp_path / "bundle.json").write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        read_bundle(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"orbit": None, "far": None}, "bundle.json: lacks far, orbit."),
        ({"artefacts": {}}, "artefacts must be a list, each with name, file, input, size and volume."),
        ({"artefacts": [{"name": "fp32"}]}, "artefacts must be a list, each with name, file, input, size and volume."),
        ({"file": "../model.onnx"}, "fp32 lies in '../model.onnx'; allowed: names of files beside bundle.json."),
        ({"file": "/model.onnx"}, "fp32 lies in '/model.onnx'"),
        ({"file": ".."}, r"fp32 lies in '..'"),
        ({"volume": {"file": "a/../../v.gz"}}, "fp32 lies in 'a/../../v.gz'"),
        ({"volume": {"resolution": [2, 2, 2]}}, "fp32 lies in None"),
        ({"volume": "v.gz"}, "fp32 has no volume that can be read"),
        ({"file": "link.onnx"}, "fp32 lies in 'link.onnx'"),
        ({"image": {"width": 10**6, "height": 10**6}}, "image: allowed: width and height from 1 to 16384"),
        ({"image": 3}, "image: allowed: width and height"),
        ({"intrinsics": {"fx": "a"}}, "intrinsics: allowed: numbers"),
        ({"sr_factor": 0}, "sr_factor: allowed: 1 to 64"),
        ({"aabb": [0, 1]}, "near, far, aabb: allowed: numbers"),
        ({"aabb": 3}, "near, far, aabb: allowed: numbers"),
    ],
)
def test_a_bundle_lacks_nothing_and_names_only_its_own_files(tmp_path, bundles, change, message: str) -> None:
    about = read_bundle(bundles["points"].path.parent)
    entry = about["artefacts"][0]
    for key, value in change.items():
        (entry if key in entry else about)[key] = value
        if value is None:
            del about[key]
    (tmp_path / "bundle.json").write_text(json.dumps(about))
    (tmp_path / "link.onnx").symlink_to("/etc/hostname")
    with pytest.raises(UserError, match=re.escape(message)):
        read_bundle(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resolution": [4000, 4000, 4000]}, "bytes, which cannot be the [0-9]+ that bundle.json describes"),
        ({"resolution": [10**9, 2, 2]}, "has resolution .*; allowed: three whole numbers from 2 to 4096"),
        ({"resolution": [10, 10]}, "has resolution"),
        ({"features": -4}, "allowed: features from 1"),
        ({"dtype": "object"}, "dtype float16 or float32"),
        ({"points": 10**9}, "has 1000000000 points on a ray"),
        ({"features": 3}, "holds more than [0-9]+ bytes, but bundle.json describes"),
    ],
)
def test_a_volume_s_size_is_checked_before_it_is_unpacked(tmp_path, change, message: str) -> None:
    about = write_volume(grid_network(), tmp_path / "v.bin.gz")
    with pytest.raises(UserError, match=message):
        read_volume(tmp_path, {**about, **change})


def test_the_camera_stays_where_training_cameras_stood(scene) -> None:
    limits = orbit_limits(scene)
    offset = scene.train.camera.c2w[:, :, 3].double().numpy() - np.array(limits["target"])
    radius = np.linalg.norm(offset, axis=-1)
    elevation = np.degrees(np.arcsin(offset[:, 2] / radius))
    assert limits["radius"]["min"] <= radius.min()
    assert limits["radius"]["max"] >= radius.max()
    assert limits["elevation"]["min"] == pytest.approx(elevation.min() - 2)
    assert limits["elevation"]["min"] <= limits["elevation"]["value"] <= limits["elevation"]["max"]
    assert limits["azimuth"]["min"] == -180


@pytest.mark.parametrize("first", [-40.0, 100.0, 150.0])
def test_a_wide_gap_between_cameras_limits_the_azimuth(scene, first: float) -> None:
    """Cameras over 90 degrees from ``first`` on; across the seam at 180, too."""
    degrees = torch.linspace(first, first + 90, 7)
    offset = torch.stack([degrees.deg2rad().cos(), degrees.deg2rad().sin(), torch.full_like(degrees, 0.2)], -1)
    c2w = torch.stack([paths.look_at(4 * each, torch.zeros(3)) for each in offset])
    train = type(scene.train)(Camera.from_fov(c2w, 0.7, 16, 16), scene.train.images[:7], scene.train.names[:7])
    azimuth = orbit_limits(type(scene)(**{**vars(scene), "train": train}))["azimuth"]
    assert azimuth["max"] - azimuth["min"] == pytest.approx(94, abs=1e-3)
    assert (azimuth["min"] + 2 - first + 180) % 360 == pytest.approx(180, abs=1e-3)
    assert azimuth["min"] < azimuth["value"] < azimuth["max"]
