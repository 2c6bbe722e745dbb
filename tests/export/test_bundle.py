"""bundle.json and the volume: what a reader without nelf relies on."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nelf import paths
from nelf.cameras import Camera
from nelf.errors import UserError
from nelf.export.bundle import VERSION, orbit_limits, read_bundle
from nelf.export.volume import choose_dtype, read_volume, rounded, write_volume
from tests.export.conftest import grid_network


def test_a_bundle_says_what_it_holds(bundles, scene) -> None:
    for name, (network, path, kind, error) in bundles.items():
        bundle = json.loads((path.parent / "bundle.json").read_text())
        entry = bundle["artifacts"][0]
        assert bundle["format"] == "nelf-bundle"
        assert bundle["image"] == {"width": 16, "height": 16}
        assert bundle["intrinsics"]["fx"] == pytest.approx(8 / math.tan(0.6911112 / 2))
        assert bundle["sr_factor"] == network.sr_factor
        assert bundle["stride"] == network.stride
        assert bundle["background_color"] == [1.0, 1.0, 1.0]
        assert entry["output"] == ("rgba" if name in ("features", "rays") else "rgb")
        assert entry["input"] == kind
        assert entry["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert entry["max_abs_error"] == error
        volume = (path.parent / "volume.bin.gz").stat().st_size if kind == "features" else 0
        assert entry["bytes"] == path.stat().st_size + volume


@pytest.mark.parametrize(("dtype", "bytes_each"), [("uint8", 1), ("float16", 2)])
def test_a_volume_is_laid_out_as_described(tmp_path, dtype: str, bytes_each: int) -> None:
    network = grid_network()
    volume = network.volume
    about = write_volume(network, tmp_path / "v.bin.gz", dtype)
    content = gzip.decompress((tmp_path / "v.bin.gz").read_bytes())
    corners, rows = 12**3, len(volume.density)
    assert 0 < rows < corners
    assert len(content) == corners // 8 + rows * 5 * bytes_each
    assert (about["resolution"], about["rows"], about["features"]) == ([12, 12, 12], rows, 4)
    assert about["step"] == network.voxel
    exists = np.unpackbits(np.frombuffer(content, np.uint8, corners // 8)).reshape(12, 12, 12)
    assert np.array_equal(exists, volume.exists.numpy())
    kind = {"uint8": "u1", "float16": "<f2"}[dtype]
    numbers = np.frombuffer(content, kind, rows * 5, corners // 8)
    numbers = np.concatenate([numbers[:rows, None], numbers[rows:].reshape(rows, 4)], 1).astype(float)
    own = torch.cat([volume.density[:, None], volume.features], 1).detach().numpy()
    if dtype == "uint8":
        scale = about["scale"]
        numbers = numbers * scale["step"] + scale["low"]
        assert (np.abs(numbers - own) <= 0.501 * np.array(scale["step"])).all()
    else:
        assert about["scale"] is None
        np.testing.assert_allclose(numbers, own, rtol=1e-3, atol=1e-6)

    again, drawn = read_volume(tmp_path, about, network.aabb.tolist()), rounded(network, dtype).volume
    assert torch.equal(again.density, drawn.density)
    assert torch.equal(again.features, drawn.features)
    assert torch.equal(again.index, volume.index)


def test_a_zero_in_a_volume_stays_zero_in_8_bits() -> None:
    network = grid_network()
    with torch.no_grad():
        network.volume.features[::2] = 0.0
        network.volume.density[::3] = 0.0
    drawn = rounded(network, "uint8").volume
    assert (drawn.features[::2] == 0).all()
    assert (drawn.density[::3] == 0).all()


def test_eight_bits_are_taken_unless_they_cost_a_tenth(scene) -> None:
    network = grid_network()
    assert choose_dtype(network, scene)[0] == "uint8"
    with torch.no_grad():  # a channel that eight bits cannot hold: one corner is far off all others
        network.volume.features[:, :3] *= 0.2
        network.volume.features[0, :3] = 500.0
    views = [network.render(scene.val.camera[index]).rgb for index in range(len(scene.val))]
    images = np.stack([np.round(255 * rgb.clamp(0, 1).numpy()).astype(np.uint8) for rgb in views])
    seen = dataclasses.replace(scene, val=dataclasses.replace(scene.val, images=images))
    dtype, why = choose_dtype(network, seen)
    assert dtype == "float16"
    assert why.endswith("written in 16")


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
        read_volume(tmp_path, about, [0.0, 0.0, 0.0, 1.0, 1.0, 1.0])


def test_a_volume_with_other_corners_is_refused(tmp_path) -> None:
    network = grid_network()
    about = write_volume(network, tmp_path / "v.bin.gz")
    content = bytearray(gzip.decompress((tmp_path / "v.bin.gz").read_bytes()))
    content[0] ^= 0x80
    (tmp_path / "v.bin.gz").write_bytes(gzip.compress(bytes(content)))
    with pytest.raises(UserError, match="is another file than"):
        read_volume(tmp_path, about, network.aabb.tolist())
    del about["sha256"]
    with pytest.raises(UserError, match=f"corners, but bundle.json describes {about['rows']} rows"):
        read_volume(tmp_path, about, network.aabb.tolist())


@pytest.mark.parametrize("changes", [{"rows": 2**21, "features": 255}, {"resolution": [512, 512, 512]}])
def test_a_small_file_that_would_be_large_is_refused_before_it_is_unpacked(tmp_path, changes, monkeypatch) -> None:
    """What it declares would take more than half a gigabyte; it has 300 kB."""
    about = {**write_volume(grid_network(), tmp_path / "v.bin.gz"), "resolution": [256, 256, 256], **changes}
    about["scale"] = {"low": [0.0] * (1 + about["features"]), "step": [1.0] * (1 + about["features"])}
    (tmp_path / "v.bin.gz").write_bytes(b"\0" * 300_000)
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail("it was read"))
    with pytest.raises(UserError, match=r"v.bin.gz: has 300000 bytes, which cannot be the \d+ that bundle.json"):
        read_volume(tmp_path, about, [0.0, 0.0, 0.0, 1.0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON .*; allowed: a whole bundle.json"),
        ("[]", "holds a list; allowed: a whole bundle.json"),
        ('{"format": "zip"}', "is not the description of a bundle"),
        (
            '{"format": "nelf-bundle", "version": 99}',
            f"has version 99; this nelf reads version {VERSION}. Update nelf.",
        ),
        ('{"format": "nelf-bundle", "version": 1}', r"has version 1; .* Export it again: stages=\[export\]\."),
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
        ({"artifacts": {}}, "artifacts must be a list, each with file, input, name, output, size, volume, window."),
        (
            {"artifacts": [{"name": "fp32"}]},
            "artifacts must be a list, each with file, input, name, output, size, volume, window.",
        ),
        ({"file": "../model.onnx"}, "fp32 lies in '../model.onnx'; allowed: names of files beside bundle.json."),
        ({"file": "/model.onnx"}, "fp32 lies in '/model.onnx'"),
        ({"file": ".."}, r"fp32 lies in '..'"),
        ({"file": "page.html"}, "fp32 lies in 'page.html'; allowed: names in .onnx or .pte"),
        ({"volume": {"file": "model.onnx"}}, "fp32 lies in 'model.onnx'; allowed: names in .bin.gz"),
        ({"far": 10**400}, "near, far, aabb: allowed: numbers"),
        ({"time": 3}, "time: allowed: null, or numbers min, max and value"),
        ({"controls": [{"name": 1}]}, "controls: allowed: a list"),
        ({"orbit": {"target": [0, 0, 0]}}, "orbit: allowed: target, up"),
        ({"input": "everything"}, "fp32 begins at 'everything'; allowed: pose, rays, points, features"),
        ({"size": [16, 0]}, "fp32 has size [16, 0]; allowed: width and height, or null"),
        ({"volume": {"file": "a/../../v.gz"}}, "fp32 lies in 'a/../../v.gz'"),
        ({"volume": {"resolution": [2, 2, 2]}}, "fp32 lies in None"),
        ({"volume": "v.gz"}, "fp32 has no volume that can be read"),
        ({"window": 3}, "fp32 has no window that can be read"),
        ({"window": {"margin": -1, "multiple": 16}}, "allowed: whole numbers margin and multiple"),
        ({"output": "bgr"}, "fp32 draws 'bgr'; allowed: rgb, rgba"),
        ({"input": "features"}, "fp32 begins at 'features'; only features have a volume"),
        ({"stride": 3}, "stride: allowed: 1 or sr_factor"),
        ({"background_color": [1, 1]}, "background_color: allowed: three numbers"),
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
    entry = about["artifacts"][0]
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
        ({"resolution": [4000, 4000, 4000]}, "has 64000000000 corners; allowed: up to 134217728"),
        ({"resolution": [512, 512, 512]}, "bytes, which cannot be the [0-9]+ that bundle.json describes"),
        ({"resolution": [10**9, 2, 2]}, "has resolution .*; allowed: three whole numbers from 2 to 4096"),
        ({"resolution": [10, 10]}, "has resolution"),
        ({"rows": 12**3 + 1}, "has 1729 rows; allowed: 1 to 1728"),
        ({"rows": 1700}, "but bundle.json describes"),
        ({"features": -4}, "allowed: features from 1"),
        ({"features": 3, "scale": {"low": [0.0] * 4, "step": [1.0] * 4}}, "holds more than [0-9]+ bytes"),
        ({"dtype": "object"}, "dtype uint8 or float16"),
        ({"scale": None}, "has no scale that can be read; allowed for uint8: low and step, 5 numbers each"),
        ({"scale": {"low": [0.0] * 5, "step": [float("nan")] * 5}}, "has no scale that can be read"),
        ({"step": 1e-9}, "points on a ray; allowed: 8192"),
        ({"step": 0}, "has step 0; allowed: a number above 0"),
        ({"min_alpha": 1.5}, "has min_alpha 1.5"),
    ],
)
def test_a_volume_s_size_is_checked_before_it_is_unpacked(tmp_path, change, message: str) -> None:
    network = grid_network()
    about = write_volume(network, tmp_path / "v.bin.gz")
    with pytest.raises(UserError, match=message) as caught:
        read_volume(tmp_path, {**about, **change}, network.aabb.tolist())
    assert "\n" not in str(caught.value)


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


def test_the_camera_turns_around_the_axis_that_is_up_in_the_pictures(scene) -> None:
    """A world whose up is +y, and moved: limits and what is looked at go with it."""
    camera = scene.train.camera
    turn, move = torch.tensor([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]).T, torch.tensor([1.0, 2.0, 3.0])
    other = torch.cat([turn @ camera.c2w[:, :, :3], turn @ camera.c2w[:, :, 3:] + move[:, None]], -1)
    train = replace(scene.train, camera=replace(camera, c2w=other))
    own, limits = orbit_limits(scene), orbit_limits(replace(scene, train=train))
    up = turn @ torch.tensor([0.0, 0.0, 1.0])
    np.testing.assert_allclose(limits["up"], up, atol=1e-4)
    np.testing.assert_allclose(limits["target"], turn @ torch.tensor(own["target"]).float() + move, atol=1e-3)
    for key in ("radius", "elevation"):
        assert limits[key] == pytest.approx(own[key], abs=0.05)


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
