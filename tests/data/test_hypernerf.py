"""Hand-held captures: what is read is what the files say, and what is wrong with them is said in a line."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nelf.cameras import Camera
from nelf.data import HyperNeRFDataModule, RayBatch, Scene, read_capture
from nelf.data.capture import Space, read_path
from nelf.data.capture_writer import write_capture
from nelf.errors import UserError
from nelf.paths import random_mobile_r2l

IDS = [f"{index:03d}" for index in (3, 4, 7, 8, 9, 12, 15, 16, 17)]


def camera_file(**changes: Any) -> dict[str, Any]:
    """At (2, 4, 6), looking along +x: its right is -y, its down -z."""
    good = {
        "orientation": [[0, -1, 0], [0, 0, -1], [1, 0, 0]],
        "position": [2, 4, 6],
        "focal_length": 20.0,
        "principal_point": [9.0, 5.0],
        "skew": 0.0,
        "pixel_aspect_ratio": 1.1,
        "radial_distortion": [0.1, -0.2, 0.0],
        "tangential": [0.01, 0.02],
        "image_size": [16, 12],
    }
    return {key: value for key, value in {**good, **changes}.items() if value is not None}


def write(root: Path, name: str, content: Any) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    """Nine views of 8x6 pixels at half of the cameras' size; every id one gray; of no id, an image more."""
    root = tmp_path / "capture"
    write(root, "dataset.json", {"count": 9, "ids": IDS, "train_ids": IDS[::2], "val_ids": IDS[1::2]})
    entries = [{"warp_id": index // 2, "appearance_id": 10 + index, "camera_id": index % 2} for index in range(9)]
    write(root, "metadata.json", dict(zip(IDS, entries, strict=True)))
    write(root, "scene.json", {"scale": 0.5, "center": [1, 1, 1], "near": 0.5, "far": 3.0})
    (root / "rgb" / "2x").mkdir(parents=True)
    for index, each in enumerate([*IDS, "099"]):
        write(root, f"camera/{each}.json", camera_file())
        Image.new("RGB", (8, 6), (20 * index,) * 3).save(root / "rgb" / "2x" / f"{each}.png")
    return root


def change(root: Path, name: str, edit: Callable[[Any], Any]) -> None:
    content = json.loads((root / name).read_text())
    changed = edit(content)
    write(root, name, content if changed is None else changed)


def read(root: Path, **options: Any) -> Scene:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read_capture(root, **{"image_scale": 2, **options})


# ------------------------------------------------------------------------------------------- what is read


def test_a_camera_by_hand(capture: Path) -> None:
    scene = read(capture)
    camera = scene.train.camera[0]
    assert (camera.width, camera.height) == (8, 6)
    # Right -y, up +z, back -x; position (2 - 1, 4 - 1, 6 - 1) / 2.
    expected = [[0.0, 0, -1, 0.5], [-1, 0, 0, 1.5], [0, 1, 0, 2.5]]
    assert torch.equal(camera.c2w, torch.tensor(expected))
    torch.testing.assert_close(camera.intrinsics, torch.tensor([10.0, 11.0, 4.5, 2.5]))
    torch.testing.assert_close(camera.lens, torch.tensor([0.1, -0.2, 0.0, 0.01, 0.02, 0.0]))
    assert (scene.name, scene.background, scene.controls, scene.points) == ("capture", "black", ("time",), None)


def test_the_splits_of_the_files(capture: Path) -> None:
    scene = read(capture)
    assert scene.train.names == [f"rgb/2x/{each}" for each in IDS[::2]]
    assert scene.test.names == scene.val.names == [f"rgb/2x/{each}" for each in IDS[1::2]]
    assert scene.train.images[:, 0, 0, 0].tolist() == [0, 40, 80, 120, 160]
    # Warp ids 0 to 4, in each split.
    assert scene.train.camera.time.tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert scene.test.camera.time.tolist() == [0.0, 0.25, 0.5, 0.75]
    # Appearance ids 10, 12, ... are those of five views.
    assert scene.train.camera.view.tolist() == [0, 1, 2, 3, 4]
    assert scene.test.camera.view is None


def test_every_fourth_and_the_middle_between_two(capture: Path) -> None:
    scene = read(capture, split="interp")
    assert [name[-3:] for name in scene.train.names] == [IDS[0], IDS[4], IDS[8]]
    assert [name[-3:] for name in scene.test.names] == [IDS[2], IDS[6]]
    assert scene.train.camera.time.tolist() == [0.0, 0.5, 1.0]  # the place among the ids
    assert scene.test.camera.time.tolist() == [0.25, 0.75]
    change(capture, "dataset.json", lambda content: content.update(val_ids=[]))
    assert read(capture).train.names == scene.train.names
    # Eight ids: the last one has no training view behind it, so there is one in the middle.
    change(capture, "dataset.json", lambda content: content.update(ids=IDS[:8]))
    change(capture, "metadata.json", lambda content: [content.pop(each) for each in IDS[8:]] and None)
    assert [name[-3:] for name in read(capture).test.names] == [IDS[2]]


@pytest.mark.parametrize("split", ["vrig", "interp"])
def test_time_ids_come_first(capture: Path, split: str) -> None:
    def add(content: dict[str, Any]) -> None:
        for each, moment in zip(IDS, (0, 1, 2, 4, 8, 9, 10, 12, 16), strict=True):
            content[each]["time_id"] = moment

    change(capture, "metadata.json", add)
    times = read(capture, split=split).train.camera.time.tolist()
    assert times == {"vrig": [0.0, 0.125, 0.5, 0.625, 1.0], "interp": [0.0, 0.5, 1.0]}[split]


def test_the_largest_time_is_that_of_all_ids(capture: Path) -> None:
    change(capture, "metadata.json", lambda content: content[IDS[1]].update(warp_id=8))
    scene = read(capture)
    assert scene.train.camera.time.tolist() == [0.0, 0.125, 0.25, 0.375, 0.5]
    assert scene.test.camera.time[0] == 1.0


def test_the_older_key_wins(capture: Path) -> None:
    for each in IDS:
        write(capture, f"camera/{each}.json", camera_file(tangential=None, tangential_distortion=[0.03, 0.04]))
    assert read(capture).train.camera.lens[0, 3:5].tolist() == pytest.approx([0.03, 0.04])
    for each in IDS:
        write(capture, f"camera/{each}.json", camera_file(tangential_distortion=[0.03, 0.04]))
    assert read(capture).train.camera.lens[0, 3:5].tolist() == pytest.approx([0.01, 0.02])


def test_cameras_without_distortion_are_pinholes(capture: Path) -> None:
    for each in IDS:
        write(capture, f"camera/{each}.json", camera_file(tangential=[0, 0], radial_distortion=[0, 0, 0]))
    assert read(capture).train.camera.lens is None


def test_options(capture: Path) -> None:
    scene = read(capture, width=4, near=0.1, far=9.0, aabb=[-1, -2, -3, 1, 2, 3])
    assert scene.train.images.shape == (5, 3, 4, 3)
    torch.testing.assert_close(scene.train.camera.intrinsics[0], torch.tensor([5.0, 5.5, 2.25, 1.25]))
    assert (scene.near, scene.far, scene.aabb.tolist()) == (0.1, 9.0, [-1, -2, -3, 1, 2, 3])
    assert scene.digest == read(capture).digest == read(capture, split="interp").digest


def test_few_of_many_test_views_are_looked_at_during_training(tmp_path: Path) -> None:
    scene = round_trip(tmp_path, count=40)[1]
    assert len(scene.test) == 20
    assert len(scene.val) == 8
    assert set(scene.val.names) < set(scene.test.names)
    assert (scene.val.names[0], scene.val.names[-1]) == (scene.test.names[0], scene.test.names[-1])
    index = scene.test.names.index(scene.val.names[3])
    assert torch.equal(scene.val.camera.c2w[3], scene.test.camera.c2w[index])
    np.testing.assert_array_equal(scene.val.images[3], scene.test.images[index])


# ------------------------------------------------------------------------------------------- depth and box


def round_trip(root: Path, count: int = 8, **options: Any) -> tuple[Camera, Scene, np.ndarray]:
    """Cameras, what is read of them, and the images."""
    generator = np.random.default_rng(5)
    intrinsics = torch.tensor([[20.0, 22.0, 9.0, 7.0]]).repeat(count, 1) + torch.rand(count, 4)
    lens = torch.tensor([0.05, -0.1, 0.02, 0.01, -0.02, 0.8]) * (0.5 + torch.rand(count, 6))
    camera = Camera(random_mobile_r2l(count, 4.0), intrinsics, 16, 12, lens=lens)
    images = generator.integers(0, 256, (count, 12, 16, 3), dtype=np.uint8)
    ids = [f"{'left' if index % 2 else 'right'}{index}" for index in range(count)]
    metadata = {each: {"warp_id": i // 2, "appearance_id": i, "time_id": i // 2} for i, each in enumerate(ids)}
    splits = {"train_ids": ids[::2], "val_ids": ids[1::2]}
    space = Space(0.25, np.array([0.5, -1.0, 2.0]), 0.4, 2.5)
    points = generator.normal(size=(500, 3)).astype(np.float32)
    write_capture(root, camera, lambda i: images[i], metadata, splits, space, points, {"p": camera}, (1, 2))
    return camera, read(root, **{"image_scale": 1, **options}), images


def test_what_is_written_is_read(tmp_path: Path) -> None:
    camera, scene, images = round_trip(tmp_path)
    for split, first in ((scene.train, 0), (scene.test, 1)):
        torch.testing.assert_close(split.camera.c2w[:, :, :3], camera.c2w[first::2, :, :3])
        moved = (camera.c2w[first::2, :, 3] - torch.tensor([0.5, -1.0, 2.0])) * 0.25
        torch.testing.assert_close(split.camera.c2w[:, :, 3], moved)
        torch.testing.assert_close(split.camera.intrinsics, camera.intrinsics[first::2])
        torch.testing.assert_close(split.camera.lens, camera.lens[first::2])
        np.testing.assert_array_equal(split.images, images[first::2])
        assert split.camera.time.tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
    points = np.load(tmp_path / "points.npy")
    torch.testing.assert_close(scene.points, torch.from_numpy((points - [0.5, -1.0, 2.0]) * 0.25).float())
    assert scene.geometry.points is scene.points
    half = read(tmp_path, image_scale=2).train
    torch.testing.assert_close(half.camera.rays().directions, scene.train.camera.rays(2).directions, atol=1e-6, rtol=0)
    means = images[::2].reshape(-1, 6, 2, 8, 2, 3).mean((2, 4))
    assert np.abs(half.images - means).max() <= 0.5 + 1e-6


def test_a_lens_that_the_format_does_not_state_is_not_written(tmp_path: Path) -> None:
    pose, lens = random_mobile_r2l(1, 4.0), torch.tensor([[0.1, 0.0, 0.0, 0.0, 0.0, 0.0, 0.2, 0.0, 0.0]])
    camera = Camera(pose, torch.tensor([[20.0, 20.0, 8.0, 6.0]]), 16, 12, lens=lens)
    about = {"a0": {"warp_id": 0, "appearance_id": 0}}, {"train_ids": ["a0"], "val_ids": []}
    space = Space(1.0, np.zeros(3), 0.4, 2.5)
    with pytest.raises(ValueError, match="without `k4`, `k5` and `k6`"):
        write_capture(tmp_path / "new", camera, lambda _: np.zeros((12, 16, 3), np.uint8), *about, space)
    assert not (tmp_path / "new").exists()
    camera.lens[:, 6:] = 0  # as a batch has them of which others are rational
    write_capture(tmp_path, camera, lambda _: np.zeros((12, 16, 3), np.uint8), *about, space)
    assert json.loads((tmp_path / "camera" / "a0.json").read_text())["radial_distortion"][0] == pytest.approx(0.1)


def test_no_ray_loses_a_part_of_its_range(tmp_path: Path) -> None:
    """near and far are distances in the files: 0.4 and 2.5 along rays of unit length."""
    scene = round_trip(tmp_path)[1]
    rays = scene.train.camera.rays()
    back = scene.train.camera.c2w[:, None, None, :, 2]
    low, high = scene.aabb[:3], scene.aabb[3:]
    (tmp_path / "points.npy").unlink()
    whole = read(tmp_path, image_scale=1).aabb
    for distance in (0.4, 2.5):
        offset = distance * rays.viewdirs
        depth = -(offset * back).sum(-1)
        assert depth.min() >= scene.near * (1 - 1e-5)
        assert depth.max() <= scene.far
        points = rays.origins + offset
        assert (points >= whole[:3] - 0.01).all()
        assert (points <= whole[3:] + 0.01).all()
    assert 0.4 * 0.7 < scene.near < 0.4
    # Points make the box smaller, as far as they and the cameras go.
    inner = torch.cat([scene.points, rays.origins.reshape(-1, 3)])
    inner = inner[((inner >= whole[:3]) & (inner <= whole[3:])).all(-1)]
    assert ((inner >= low) & (inner <= high)).all(-1).float().mean() > 0.99
    assert (low >= whole[:3]).all()
    assert (high <= whole[3:]).all()
    assert (high - low).prod() < 0.7 * (whole[3:] - whole[:3]).prod()


def test_outliers_among_the_points_do_not_blow_up_the_box(tmp_path: Path) -> None:
    box = round_trip(tmp_path)[1].aabb
    points = np.load(tmp_path / "points.npy")
    inner = np.random.default_rng(0).uniform(-1, 1, (5000, 3))
    np.save(tmp_path / "points.npy", np.concatenate([inner, [[1e4, 1e4, 1e4]]]).astype(np.float32))
    again = read(tmp_path, image_scale=1).aabb
    assert len(points) == 500
    assert ((again[3:] - again[:3]) <= (box[3:] - box[:3]) + 1e-3).all()


# ------------------------------------------------------------------------------------------- cake


def test_cake(data: Path) -> None:
    root = data / "hypernerf" / "cake"
    scene = read(root, image_scale=8)
    assert (len(scene.train), len(scene.val), len(scene.test)) == (82, 5, 5)
    assert scene.train.images.shape == (82, 107, 60, 3)
    assert scene.test.names == [f"rgb/8x/0000{each}" for each in ("04", "25", "45", "66", "86")]
    torch.testing.assert_close(scene.test.camera.time * 81, torch.tensor([0.0, 19, 38, 57, 76]))
    torch.testing.assert_close(scene.train.camera.time * 81, torch.arange(82.0))
    assert torch.equal(scene.train.camera.view, torch.arange(82))
    assert scene.far == pytest.approx(0.946416, abs=1e-6)
    assert scene.near == pytest.approx(0.003135 * 0.76, rel=0.01)  # the cosine in its corner
    assert scene.points is None
    assert (len(read(root, image_scale=8, split="interp").test)) == 21
    path = read_path(root / "camera-paths" / "orbit-mild")
    assert (len(path), path.width, path.height, path.lens) == (100, 480, 856, None)


def test_cake_at_a_quarter_of_its_size(data: Path) -> None:
    """Rays of HyperNeRF's own camera class."""
    camera = read(data / "hypernerf" / "cake", image_scale=4).test.camera[0]
    assert (camera.width, camera.height) == (120, 214)
    viewdirs = camera.rays().viewdirs
    for (column, row), direction in {
        (0, 0): (-0.384629, -0.548191, 0.742662),
        (119, 213): (0.164452, 0.454416, 0.875478),
        (60, 107): (-0.115494, -0.055997, 0.991729),
    }.items():
        torch.testing.assert_close(viewdirs[row, column], torch.tensor(direction), atol=1e-6, rtol=0)


# ------------------------------------------------------------------------------------------- camera paths, batches


def test_a_path_lies_in_the_scene(tmp_path: Path) -> None:
    camera, scene, _ = round_trip(tmp_path)
    path = read_path(tmp_path / "camera-paths" / "p")
    assert len(path) == 8
    torch.testing.assert_close(path.c2w[::2], scene.train.camera.c2w)
    torch.testing.assert_close(path.intrinsics, camera.intrinsics)
    assert path.lens is None
    with pytest.raises(UserError, match="holds no cameras"):
        read_path(tmp_path / "camera-paths")


def test_batches_of_a_capture(capture: Path) -> None:
    module = HyperNeRFDataModule(capture, image_scale=2, batch="rays", batch_size=50)
    batch = next(iter(module.train_dataloader()))
    assert isinstance(batch, RayBatch)
    # The gray of an id tells the view, and with it time and appearance.
    view = (batch.rgba[:, 0] * 255 / 40).round().long()
    assert torch.equal(batch.rays.view, view)
    torch.testing.assert_close(batch.rays.time, view / 4)
    assert len(list(module.test_dataloader())) == 4
    with pytest.raises(
        UserError, match=r"data\.split: is 'interpp'; allowed: auto, vrig, interp\. Did you mean 'interp'"
    ):
        HyperNeRFDataModule(capture, split="interpp")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"data\.image_scale: is 0; allowed: 1 or more"):
        HyperNeRFDataModule(capture, image_scale=0)


# ------------------------------------------------------------------------------------------- what is wrong


def scene_with(**changes: Any) -> Callable[[Path], None]:
    return lambda root: change(root, "scene.json", lambda content: content.update(changes))


def dataset_with(**changes: Any) -> Callable[[Path], None]:
    return lambda root: change(root, "dataset.json", lambda content: content.update(changes))


def camera_with(**changes: Any) -> Callable[[Path], None]:
    return lambda root: write(root, "camera/007.json", camera_file(**changes))


def moment_with(**changes: Any) -> Callable[[Path], None]:
    return lambda root: change(root, "metadata.json", lambda content: content["004"].update(changes))


WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no file": (lambda root: (root / "scene.json").unlink(), r"scene\.json: no such file; allowed: a JSON object"),
    "not JSON": (lambda root: write(root, "scene.json", "{"), r"scene\.json: not JSON"),
    "a list": (lambda root: write(root, "metadata.json", []), r"metadata\.json: holds a list"),
    "scale": (scene_with(scale=0), r"scene\.json: scale is 0; allowed: above 0"),
    "scale NaN": (scene_with(scale=float("nan")), r"scene\.json: scale is nan; allowed: a finite number"),
    "center": (scene_with(center=[1, 2]), r"scene\.json: center is \[1, 2\]; allowed: 3 numbers"),
    "depth": (scene_with(near=4.0), r"scene\.json: near 4 and far 3; allowed: 0 < near < far"),
    "no ids": (dataset_with(ids=[]), r"dataset\.json: ids: is \[\]; allowed: a list of one or more ids"),
    "no path": (dataset_with(ids=["../x"]), r"dataset\.json: ids: '\.\./x' is no id"),
    "twice": (dataset_with(ids=[*IDS, "007"]), r"dataset\.json: ids: names '007' twice"),
    "unknown": (dataset_with(train_ids=["5"]), r"dataset\.json: train_ids names '5', which is not among ids"),
    "few": (dataset_with(ids=IDS[:4], val_ids=[]), r"dataset\.json: ids are 4; allowed: 5 or more"),
    "no camera": (lambda root: (root / "camera" / "007.json").unlink(), r"camera/007\.json: no such file"),
    "no image": (lambda root: (root / "rgb" / "2x" / "008.png").unlink(), r"rgb/2x/008\.png: no such image file"),
    "no entry": (
        lambda root: change(root, "metadata.json", lambda content: content.pop("004") and None),
        r"metadata\.json: says nothing of '004'",
    ),
    "warp id": (moment_with(warp_id="a"), r"metadata\.json: 004: warp_id is 'a'; allowed: a whole number from 0"),
    "negative": (moment_with(appearance_id=-1), r"metadata\.json: 004: appearance_id is -1"),
    "time ids": (moment_with(time_id=1), r"metadata\.json: 003 has no time_id, but others have; allowed: all or none"),
    "missing": (camera_with(focal_length=None), r"007\.json: missing key 'focal_length'; allowed: a number"),
    "NaN": (camera_with(position=[0, float("nan"), 0]), r"007\.json: position is \[0, nan, 0\]; allowed: 3 numbers"),
    "words": (camera_with(skew="x"), r"007\.json: skew is 'x'; allowed: a finite number"),
    "ragged": (camera_with(orientation=[[1], [2, 3]]), r"007\.json: orientation is .*; allowed: 3x3 numbers"),
    "mirrored": (
        camera_with(orientation=[[0, 1, 0], [0, 0, -1], [1, 0, 0]]),
        r"007\.json: orientation is no rotation",
    ),
    "focal": (camera_with(focal_length=-1), r"007\.json: focal_length -1, .*allowed: above 0"),
    "no tangential": (camera_with(tangential=None), r"007\.json: missing key 'tangential_distortion'"),
    "size": (camera_with(image_size=[16, 14]), r"image_size is .*007|007\.json: image_size is \(16\.0, 14\.0\)"),
    "points": (
        lambda root: np.save(root / "points.npy", np.zeros((4, 2))),
        r"points\.npy: holds float64 of shape \(4, 2\); allowed: \(N, 3\)",
    ),
    "objects": (
        lambda root: np.save(root / "points.npy", np.array([{}]), allow_pickle=True),
        r"points\.npy: is not whole, or no array",
    ),
    "NaN points": (
        lambda root: np.save(root / "points.npy", np.full((2, 3), np.nan)),
        r"points\.npy: holds NaN, infinity or numbers beyond",
    ),
    "torn points": (
        lambda root: (np.save(root / "points.npy", np.zeros((9, 3))), cut(root / "points.npy")),
        r"points\.npy: is not whole",
    ),
    "one size": (
        lambda root: Image.new("RGB", (8, 7)).save(root / "rgb" / "2x" / "007.png"),
        r"007\.png: is 8x7, but 003\.png is 8x6; allowed: one size",
    ),
    "other size": (
        lambda root: [Image.new("RGB", (4, 3)).save(root / "rgb" / "2x" / f"{each}.png") for each in IDS],
        r"003\.png: is 4x3, but its camera's image_size is 8x6 at this scale",
    ),
}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_one_line(capture: Path, name: str) -> None:
    spoil, message = WRONG[name]
    spoil(capture)
    with pytest.raises(UserError, match=message) as caught:
        read(capture)
    assert "\n" not in str(caught.value)


def test_images_that_are_not_there_at_this_scale(capture: Path) -> None:
    (capture / "rgb" / "16x").mkdir()
    with pytest.raises(UserError, match=r"has no images in rgb/4x; allowed: data\.image_scale=2\|16"):
        read(capture, image_scale=4)
    with pytest.raises(UserError, match=r"data\.width: is 9, but .*003\.png is 8 pixels wide; allowed: 1 to 8"):
        read(capture, width=9)
    with pytest.raises(UserError, match="is not a directory"):
        read(capture / "scene.json")
    with pytest.raises(UserError, match="aabb"):
        read(capture, aabb=[0, 0, 0, 1, 1, 0])
    for folder in ("16x", "2x"):
        (capture / "rgb" / folder).rename(capture / folder)
    with pytest.raises(UserError, match="has no images in rgb/; allowed: folders such as rgb/4x"):
        read(capture)


def test_an_image_may_be_rounded_by_a_pixel(capture: Path) -> None:
    for each in IDS:
        Image.new("RGB", (8, 5)).save(capture / "rgb" / "2x" / f"{each}.png")
    camera = read(capture).train.camera
    assert (camera.width, camera.height) == (8, 5)
    torch.testing.assert_close(camera.intrinsics[0], torch.tensor([10.0, 11.0, 4.5, 2.5]))


def test_what_is_odd_but_can_be_read_is_a_warning(capture: Path) -> None:
    dataset_with(train_ids=IDS[:2])(capture)
    with pytest.warns(UserWarning, match=r"1 of val_ids are in train_ids, too \(004\)"):
        assert len(read_capture(capture, image_scale=2).train) == 2
    dataset_with(train_ids=IDS[::2])(capture)
    change(capture, "metadata.json", lambda content: content.update(x={"warp_id": 99}))
    with pytest.warns(UserWarning, match=r"1 entries are of ids that dataset\.json does not name \(x\)"):
        assert read_capture(capture, image_scale=2).train.camera.time.max() == 1.0


def test_a_camera_of_no_view_may_be_missing(capture: Path) -> None:
    (capture / "camera" / f"{IDS[1]}.json").unlink()
    assert len(read(capture, split="interp").train) == 3
    assert replace(read(capture, split="interp").train.camera, view=None).view is None
