import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from nelf.cameras import Camera
from nelf.data import Scene, SceneWriter, Split, read_scene, read_views, with_pseudo_views, write_scene
from nelf.errors import UserError
from nelf.paths import hemisphere

IDENTITY = np.eye(4).tolist()


def write_json(root, frames, name="transforms.json", **top):
    """A scene of 8x6 images; a frame is a dictionary that is laid over a good one."""
    root.mkdir(exist_ok=True)
    whole = []
    for index, frame in enumerate(frames):
        good = {"file_path": f"im/{index}.png", "transform_matrix": IDENTITY}
        whole.append({key: value for key, value in {**good, **frame}.items() if value is not None})
        path = root / "im" / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 6), (index, 0, 0)).save(path)
    (root / name).write_text(json.dumps({"camera_angle_x": 0.7, **top, "frames": whole}))
    return root


def identical(a, b):
    assert torch.equal(a.camera.c2w, b.camera.c2w)
    assert torch.equal(a.camera.intrinsics, b.camera.intrinsics)
    assert (a.camera.time is None) == (b.camera.time is None)
    if a.camera.time is not None:
        assert torch.equal(a.camera.time, b.camera.time)
    np.testing.assert_array_equal(a.images, b.images)


@pytest.mark.parametrize("channels", [3, 4])
def test_reading_what_was_written_is_the_identity(tmp_path, channels):
    rng = np.random.default_rng(0)

    def split(n):
        intrinsics = torch.rand(n, 4) * 10 + 1
        camera = Camera(hemisphere(n, 3.3), intrinsics, 8, 6, torch.rand(n, 1))
        images = rng.integers(0, 256, (n, 6, 8, channels), dtype=np.uint8)
        return Split(camera, images, [str(i) for i in range(n)])

    aabb = torch.tensor([-1.1, -1, -1, 1, 1, 2])
    scene = Scene("s", None, split(5), split(2), split(3), aabb, 1.25, 7.5, license="CC0-1.0")
    again = read_scene(write_scene(tmp_path / "s", scene))
    for name in ("train", "val", "test"):
        identical(getattr(again, name), getattr(scene, name))
    assert torch.equal(again.aabb, aabb)
    assert (again.near, again.far, again.license, again.name) == (1.25, 7.5, "CC0-1.0", "s")


def test_a_set_grows_and_is_resumed(tmp_path):
    camera = Camera.from_fov(hemisphere(6, 4.0), 0.7, 8, 6)
    writer = SceneWriter(tmp_path, camera)
    image = torch.rand(6, 8, 3)
    for index in (4, 0, 2, 3):
        writer.write(index, image)
    writer.path(1).write_bytes(writer.path(0).read_bytes()[:-5])  # a copy that was cut off
    Image.new("RGB", (4, 4)).save(writer.path(5))  # of another set
    assert SceneWriter(tmp_path, camera).missing() == [1, 5]
    with pytest.raises(UserError, match=r"2 of 6 train views are missing, the first is 00001\.png"):
        writer.finish()
    partial = json.loads(writer.write_index().read_text())
    assert [frame["file_path"] for frame in partial["frames"]] == [f"./train/0000{i}.png" for i in (0, 2, 3, 4)]
    for index in writer.missing():
        writer.write(index, np.full((6, 8, 4), 0.5))
    writer.finish()
    assert len(json.loads((tmp_path / "transforms_train.json").read_text())["frames"]) == 6
    stored = np.asarray(Image.open(writer.path(0)))
    np.testing.assert_array_equal(stored, np.floor(image.numpy() * np.float32(255) + np.float32(0.5)))
    assert np.asarray(Image.open(writer.path(1))).tolist()[0][0] == [128, 128, 128, 128]
    with pytest.raises(ValueError, match=r"`image` of shape \(6, 8, 3\)"):
        writer.write(0, torch.rand(8, 6, 3))


def test_lego(data):
    scene = read_scene(data / "nerf_synthetic" / "lego", width=100)
    assert scene.train.images.shape == (100, 100, 100, 4)
    assert scene.train.images.dtype == np.uint8
    assert (len(scene.val), len(scene.test)) == (10, 25)
    full = scene.train.camera.resized(800)
    torch.testing.assert_close(full.intrinsics[0], torch.tensor([1111.111, 1111.111, 400, 400]), atol=1e-3, rtol=0)
    torch.testing.assert_close(scene.train.camera.intrinsics[0, 0].item(), 138.8889, atol=1e-4, rtol=0)
    radius = scene.train.camera.c2w[:, :, 3].norm(dim=-1)
    torch.testing.assert_close(radius, torch.full((100,), 4.0311289), atol=1e-4, rtol=0)
    assert (scene.near, scene.far, scene.name) == (2.0, 6.0, "lego")
    assert scene.aabb.tolist() == [-1.5, -1.5, -1.5, 1.5, 1.5, 1.5]
    assert scene.digest == read_scene(data / "nerf_synthetic" / "lego", width=50).digest == "baf9700f5238c90f"
    corner = scene.test.rgb(0)[0, 0]
    assert corner.tolist() == [1.0, 1.0, 1.0]
    assert scene.test.rgb(0, "black")[0, 0].tolist() == [0.0, 0.0, 0.0]


def test_jumpingjacks_has_times(data):
    scene = read_scene(data / "dnerf" / "jumpingjacks", width=20)
    assert (len(scene.train), len(scene.val), len(scene.test)) == (200, 20, 20)
    assert scene.train.camera.time.min() == 0.0
    assert scene.train.camera.time.max() == 1.0


def test_one_file_is_split_by_rule(tmp_path):
    root = write_json(tmp_path / "s", [{}] * 18)
    scene = read_scene(root)
    red = {name: getattr(scene, name).images[:, 0, 0, 0].tolist() for name in ("train", "val", "test")}
    assert red["test"] == [0, 8, 16]
    assert scene.val is scene.test
    assert sorted(red["train"] + red["test"]) == list(range(18))
    assert scene.train.images.shape[-1] == 3
    assert len(read_scene(root, holdout=3).test) == 6


@pytest.mark.parametrize("name", ["val", "test"])
def test_val_and_test_share_the_file_of_one_of_them(tmp_path, name: str):
    root = write_json(tmp_path / "s", [{}] * 10, "transforms_train.json")
    write_json(root, [{}] * 3, f"transforms_{name}.json")
    scene = read_scene(root)
    assert (len(scene.train), len(scene.val), len(scene.test)) == (10, 3, 3)
    assert scene.val is scene.test


def test_kinds_of_files_and_intrinsics(tmp_path):
    frames = [
        {"file_path": "./im/a", "fl_x": 10.0},  # .jpg, no extension given; center of the image
        {"file_path": "im\\b.c", "fl_x": 10.0, "fl_y": 12.0, "cx": 3.0, "cy": 2.0},  # .png behind another dot
        {"file_path": "./im/2", "fl_x": 20.0, "w": 16, "h": 12},  # stated for images of twice the size
        {"file_path": "./im/3.png", "camera_angle_x": 2 * np.arctan(0.5)},  # f = 4 / 0.5
    ] * 2
    root = write_json(tmp_path / "s", frames, camera_angle_x=None)
    Image.new("RGB", (8, 6)).save(root / "im" / "a.jpg")
    Image.new("RGBA", (8, 6)).save(root / "im" / "b.c.png")
    scene = read_scene(root, holdout=4)
    intrinsics = torch.cat([scene.test.camera.intrinsics[:1], scene.train.camera.intrinsics[:3]])
    expected = [[10, 10, 4, 3], [10, 12, 3, 2], [10, 10, 4, 3], [8, 8, 4, 3]]
    torch.testing.assert_close(intrinsics, torch.tensor(expected, dtype=torch.float32))
    assert scene.train.names[0] == "im/b.c"
    assert scene.train.images.shape[-1] == 4
    halved = read_scene(root, holdout=4, width=4)
    torch.testing.assert_close(halved.train.camera.intrinsics[0], torch.tensor([5.0, 6, 1.5, 1]))


def test_box_and_depth_come_from_the_file_or_the_caller(tmp_path):
    root = write_json(tmp_path / "s", [{}] * 3, aabb=[[-1, -2, -3], [1, 2, 3]], near=0.5, far=9)
    scene = read_scene(root)
    assert scene.aabb.tolist() == [-1, -2, -3, 1, 2, 3]
    assert (scene.near, scene.far, scene.geometry.far) == (0.5, 9.0, 9.0)
    assert read_scene(root, near=1.0, aabb=[0, 0, 0, 1, 1, 1]).near == 1.0
    with pytest.raises(UserError, match="near 10 and far 9"):
        read_scene(root, near=10)
    with pytest.raises(UserError, match="aabb"):
        read_scene(root, aabb=[1, 1, 1, 0, 0, 0])


def test_scale_in_a_pose_is_dropped(tmp_path):
    root = write_json(tmp_path / "s", [{"transform_matrix": np.diag([2.0, 2, 2, 1]).tolist()}] * 3)
    assert torch.equal(read_scene(root).train.camera.c2w[0], torch.eye(3, 4))


def test_pseudo_views_and_real_ones_are_one_split(tmp_path, tiny_scene):
    truth = read_scene(tiny_scene)
    pseudo = SceneWriter(tmp_path / "pseudo", truth.train.camera[:3].resized(8))
    for index in range(3):
        pseudo.write(index, torch.rand(8, 8, 3))
    pseudo.finish()
    real = read_scene(tiny_scene, width=8).train
    both = Split.cat([read_views(tmp_path / "pseudo"), real])
    assert both.images.shape == (11, 8, 8, 4)
    assert (both.images[np.arange(3)][..., 3] == 255).all()
    np.testing.assert_array_equal(both.images[np.arange(3, 11)], real.images)
    np.testing.assert_array_equal(both[-1].image, real[-1].image)
    torch.testing.assert_close(both.camera.intrinsics[0], both.camera.intrinsics[5])
    views, rows, columns = (np.random.default_rng(0).integers(side, size=200) for side in (11, 8, 8))
    whole = both.images[np.arange(11)]
    np.testing.assert_array_equal(both.images.pixels(views, rows, columns), whole[views, rows, columns])
    with pytest.raises(ValueError, match="one size"):
        Split.cat([real, truth.train])
    with pytest.raises(IndexError):
        both.images[11]
    flat = SceneWriter(tmp_path / "flat", truth.train.camera[:1].window(torch.tensor([0, 0]), 16, 8))
    flat.write(0, torch.rand(8, 16, 3))
    flat.finish()
    with pytest.raises(UserError, match=r"flat: has views of 16x8 pixels .* own are 16x16; allowed"):
        with_pseudo_views(truth, tmp_path / "flat")


def test_digest_follows_the_content_not_the_place(tmp_path, tiny_scene):
    shutil.copytree(tiny_scene, tmp_path / "copy")
    before = read_scene(tiny_scene).digest
    assert read_scene(tmp_path / "copy").digest == before
    path = tmp_path / "copy" / "transforms_train.json"
    path.write_text(path.read_text() + "\n")
    assert read_scene(tmp_path / "copy").digest != before


NAN = [[float("nan"), 0, 0, 0], *IDENTITY[1:]]
FLAT = [[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
MIRROR = np.diag([-1.0, 1, 1, 1]).tolist()
BAD_FRAMES = {
    "file_path is missing": ({"file_path": None}, "frame 1 has no key 'file_path'"),
    "transform_matrix is missing": ({"transform_matrix": None}, "has no key 'transform_matrix'"),
    "pose with NaN": ({"transform_matrix": NAN}, r"transform_matrix is \[\[nan, .*; allowed: 4x4 or 3x4 numbers"),
    "pose that cannot be inverted": ({"transform_matrix": FLAT}, "cannot be inverted"),
    "pose of zeros": ({"transform_matrix": np.zeros((4, 4)).tolist()}, "cannot be inverted"),
    "mirrored pose": ({"transform_matrix": MIRROR}, "sheared or mirrored"),
    "pose of another shape": ({"transform_matrix": [[1, 2], [3, 4]]}, r"shape \(2, 2\); allowed: 4x4 or 3x4"),
    "pose of words": ({"transform_matrix": [["a"] * 4] * 4}, r"matrix is \[\['a', .*; allowed: 4x4 or 3x4 numbers"),
    "file outside": ({"file_path": "../other.png"}, r"frame 1 points outside .* \(\.\./other\.png\)"),
    "absolute file": ({"file_path": "/etc/passwd"}, "frame 1 points outside"),
    "missing file": ({"file_path": "im/none"}, "frame 1: no image im/none"),
    "focal length of words": ({"fl_x": "long"}, "frame 1: fl_x is 'long'; allowed: a finite number"),
    "focal length of zero": ({"fl_x": 0.0}, "fl_x 0, fl_y 0"),
    "time outside": ({"time": 1.5}, "time"),
}


@pytest.mark.parametrize("case", BAD_FRAMES)
def test_bad_frames(tmp_path, case):
    frame, message = BAD_FRAMES[case]
    with pytest.raises(UserError, match=message) as caught:
        read_scene(write_json(tmp_path / "s", [{}, frame, {}]))
    assert "\n" not in str(caught.value)
    assert "transforms.json" in str(caught.value)


def edit(root, **changes):
    path = root / "transforms.json"
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


BAD_SCENES = {
    "no folder": (lambda r: shutil.rmtree(r), "is not a directory"),
    "no transforms": (lambda r: (r / "transforms.json").unlink(), r"no transforms_train\.json in"),
    "only test": (
        lambda r: (r / "transforms.json").rename(r / "transforms_test.json"),
        r"no transforms_train\.json",
    ),
    "both kinds": (lambda r: shutil.copy(r / "transforms.json", r / "transforms_val.json"), "has both"),
    "not JSON": (lambda r: (r / "transforms.json").write_text("{frames"), r"transforms\.json: not JSON"),
    "a list": (lambda r: (r / "transforms.json").write_text("[]"), "holds a list"),
    "no frames": (lambda r: edit(r, frames=None), "missing key 'frames'"),
    "zero frames": (lambda r: edit(r, frames=[]), "zero frames"),
    "no lens": (lambda r: edit(r, camera_angle_x=None), "missing key 'camera_angle_x'"),
    "NaN lens": (lambda r: edit(r, camera_angle_x=float("nan")), "camera_angle_x is nan"),
    "no field of view": (lambda r: edit(r, camera_angle_x=5e-324), r"missing key 'camera_angle_x' \(0 to pi\)"),
    "very long lens": (lambda r: edit(r, camera_angle_x=2e-15), r"fl_x 4e\+15, .* allowed: above 0, up to 1e\+15"),
    "text as image": (lambda r: (r / "im/1.png").write_text("hello"), r"1\.png: not a readable image"),
    "empty image": (lambda r: (r / "im/1.png").write_bytes(b""), r"1\.png: not a readable image"),
    "cut image": (
        lambda r: (r / "im/1.png").write_bytes((r / "im/1.png").read_bytes()[:50]),
        r"1\.png: cannot be",
    ),
    "other size": (
        lambda r: Image.new("RGB", (9, 6)).save(r / "im/1.png"),
        r"1\.png: is 9x6, but 0\.png is 8x6",
    ),
    "one view": (
        lambda r: edit(r, frames=json.loads((r / "transforms.json").read_text())["frames"][:1]),
        "too few",
    ),
}


@pytest.mark.parametrize("case", BAD_SCENES)
def test_bad_scenes(tmp_path, case):
    root = write_json(tmp_path / "s", [{}, {}, {}])
    spoil, message = BAD_SCENES[case]
    spoil(root)
    with pytest.raises(UserError, match=message) as caught:
        read_scene(root)
    assert "\n" not in str(caught.value)
    assert str(root) in str(caught.value)


def test_some_frames_without_time(tmp_path):
    with pytest.raises(UserError, match="frame 0 has no key 'time', but others have"):
        read_scene(write_json(tmp_path / "s", [{}, {"time": 0.5}, {}]))


def test_views_of_a_moving_scene_stand_beside_a_static_teacher_s(tmp_path):
    moving = read_scene(write_json(tmp_path / "moving", [{"time": index / 4} for index in range(4)]))
    pseudo = read_views(write_json(tmp_path / "pseudo", [{}] * 4))
    assert moving.controls == ("time",)
    assert moving.test.camera.time is not None
    both = Split.cat([pseudo, moving.train])
    assert len(both) == 4 + 3
    assert both.camera.controls is None


def test_further_controls_are_read_and_written(tmp_path):
    frames = [{"time": index / 4, "controls": [1 - index / 4]} for index in range(4)]
    scene = read_scene(write_json(tmp_path / "s", frames, controls=["jaw"]))
    assert scene.controls == ("time", "jaw")
    again = read_scene(write_scene(tmp_path / "again", scene))
    assert again.controls == scene.controls
    assert torch.equal(again.train.camera.controls, scene.train.camera.controls)
    with pytest.raises(UserError, match=r"frame 0: controls are \[1\.5, 2\]; allowed: 1 numbers"):
        read_scene(write_json(tmp_path / "more", [{"time": 0, "controls": [1.5, 2]}] * 4, controls=["jaw"]))
    with pytest.raises(UserError, match=r"frame 0: jaw is 1\.5; allowed: 0 to 1"):
        read_scene(write_json(tmp_path / "beyond", [{"time": 0, "controls": [1.5]}] * 4, controls=["jaw"]))


@pytest.mark.parametrize("width", [9, 0])
def test_width_beyond_the_images(tmp_path, width):
    with pytest.raises(UserError, match=rf"data\.width: is {width}, .* is 8 pixels wide; allowed: 1 to 8"):
        read_scene(write_json(tmp_path / "s", [{}, {}, {}]), width=width)


def test_background_and_holdout(tmp_path):
    root = write_json(tmp_path / "s", [{}, {}, {}])
    with pytest.raises(UserError, match=r"unknown background 'whit'; allowed: white, black\. Did you mean 'white'\?"):
        read_scene(root, background="whit")
    with pytest.raises(UserError, match=r"data\.holdout: is 1; allowed: 2 or more"):
        read_scene(root, holdout=1)


def test_the_background_that_a_file_states(tmp_path):
    root = write_json(tmp_path / "s", [{}, {}, {}])
    assert read_scene(root).background == "white"
    edit(root, background="black")
    assert read_scene(root).background == "black"
    assert read_scene(root, background="white").background == "white"
    edit(root, background=[0, 0, 0])
    with pytest.raises(UserError, match=r"transforms\.json: background is \[0, 0, 0\]; allowed: white, black\."):
        read_scene(root)
    assert read_scene(root, background="black").background == "black"


def test_writing_where_a_file_is(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        SceneWriter(tmp_path / "file", Camera.from_fov(hemisphere(1, 4.0), 0.7, 8, 6))
