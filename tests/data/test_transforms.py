"""What transforms.json can state beside poses and images: lens, files, splits, points, boxes."""

import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from nelf.cameras import Camera
from nelf.data import Scene, Split, read_scene, read_views, write_scene
from nelf.errors import UserError
from nelf.paths import look_at

WIDTH, HEIGHT = 8, 6
LENS = {"k1": -0.2, "k2": 0.05, "k3": 0.01, "p1": 0.004, "p2": -0.006}


def around(count, radius=4.0):
    """Cameras on a circle, each turned to the origin."""
    angle = torch.arange(count) * (2 * np.pi / count)
    position = radius * torch.stack([angle.cos(), angle.sin(), 0.3 + 0 * angle], -1)
    return look_at(position, torch.zeros(count, 3))


def write(root, count=3, frames=None, **top):
    """Views of one color each, whose red is their number; ``frames`` maps a number to what is laid over its frame."""
    (root / "im").mkdir(parents=True)
    whole = []
    for index, pose in enumerate(around(count).tolist()):
        whole.append({"file_path": f"im/{index}.png", "transform_matrix": pose} | (frames or {}).get(index, {}))
        Image.new("RGB", (WIDTH, HEIGHT), (index, 0, 0)).save(root / "im" / f"{index}.png")
    top = {"fl_x": 10.0, "fl_y": 11.0, "cx": 4.3, "cy": 2.8, "w": WIDTH, "h": HEIGHT, **top}
    content = {key: value for key, value in top.items() if value is not None}
    (root / "transforms.json").write_text(json.dumps({**content, "frames": whole}))
    return root


def reds(split):
    return split.images[:, 0, 0, 0].tolist()


# ------------------------------------------------------------------------------------------- the lens


def test_a_lens_of_the_top_is_every_frame_s_and_one_of_a_frame_its_own(tmp_path):
    frames = {1: {"k1": 0.1, "fl_x": 12.0, "cx": 4.0}, 2: {"distortion_params": [0.3, 0, 0, 0, 0.01, 0.02]}}
    camera = read_views(write(tmp_path / "s", frames=frames, camera_model="OPENCV", **LENS)).camera
    expected = torch.tensor([[-0.2, 0.05, 0.01, 0.004, -0.006, 0.0]]).repeat(3, 1)
    expected[1, 0] = 0.1
    expected[2] = torch.tensor([0.3, 0, 0, 0.01, 0.02, 0.0])
    torch.testing.assert_close(camera.lens, expected)
    torch.testing.assert_close(camera.intrinsics[:2], torch.tensor([[10, 11, 4.3, 2.8], [12, 11, 4, 2.8]]))


def test_full_opencv_and_no_model_at_all(tmp_path):
    rational = read_views(write(tmp_path / "a", camera_model="FULL_OPENCV", **LENS, k4=0.3, k5=-0.1, k6=0.02)).camera
    torch.testing.assert_close(rational.lens[0], torch.tensor([-0.2, 0.05, 0.01, 0.004, -0.006, 0.0, 0.3, -0.1, 0.02]))
    assert read_views(write(tmp_path / "b", k1=0.1)).camera.lens[:, 0].tolist() == pytest.approx([0.1] * 3)
    zeros = dict.fromkeys((*LENS, "k4"), 0)  # as instant-ngp's script writes them
    assert read_views(write(tmp_path / "c", **zeros, is_fisheye=False)).camera.lens is None
    assert read_views(write(tmp_path / "d", camera_model="SIMPLE_PINHOLE")).camera.lens is None


@pytest.mark.parametrize("rational", [False, True])
def test_what_a_lens_sees_is_read_back_as_it_was_written(tmp_path, rational):
    """Rays of the cameras that are read are those of the cameras that were written, bit for bit."""
    lens = torch.tensor([[-0.3, 0.09, 0.01, 0.01, -0.02, 0.0]]).repeat(5, 1) * torch.linspace(0.5, 1, 5)[:, None]
    if rational:
        lens = torch.cat([lens, torch.tensor([[0.2, -0.05, 0.01]]).repeat(5, 1)], 1)
    camera = Camera(around(5), torch.tensor([[9.0, 9.5, 4.2, 2.9]]).repeat(5, 1), WIDTH, HEIGHT, lens=lens)
    images = np.random.default_rng(0).integers(0, 256, (5, HEIGHT, WIDTH, 3), dtype=np.uint8)
    split = Split(camera, images, [str(index) for index in range(5)])
    box = torch.tensor([-1.0, -1, -1, 1, 1, 1])
    scene = read_scene(write_scene(tmp_path / "s", Scene("s", None, split, split, split, box, 1.0, 9.0)))
    assert torch.equal(scene.train.camera.rays().directions, camera.rays().directions)
    assert not torch.allclose(camera.rays().directions, camera.pinhole().rays().directions, atol=0.01)
    halved = read_scene(tmp_path / "s", width=4).train.camera
    torch.testing.assert_close(halved.rays().directions, camera.rays(2).directions, atol=2e-6, rtol=0)


def test_degrees_and_a_frame_s_own_angle(tmp_path):
    frames = {1: {"camera_angle_x": 2 * np.arctan(0.5)}, 2: {"x_fov": np.degrees(2 * np.arctan(0.25))}}
    top = {"fl_x": 10.0, "fl_y": None, "cx": None, "cy": None}
    camera = read_views(write(tmp_path / "s", frames=frames, **top)).camera
    torch.testing.assert_close(camera.intrinsics[:, :2], torch.tensor([[10.0, 10], [8, 8], [16, 16]]))


BAD_CAMERAS = {
    "fisheye": ({"camera_model": "OPENCV_FISHEYE"}, "camera model 'OPENCV_FISHEYE'; allowed: SIMPLE_PINHOLE, PINHOLE"),
    "a panorama": ({"camera_model": "EQUIRECTANGULAR"}, "camera model 'EQUIRECTANGULAR'; allowed"),
    "a list": ({"camera_model": ["OPENCV"]}, "allowed: SIMPLE_PINHOLE"),
    "a word that is near": ({"camera_model": "OPEN_CV"}, "Did you mean 'OPENCV'"),
    "instant-ngp's fisheye": ({"is_fisheye": True, "k1": 0.1}, "is_fisheye is True; allowed: perspective cameras"),
    "instant-ngp's panorama": ({"equirectangular": True}, "equirectangular is True; allowed: perspective"),
    "instant-ngp's f-theta": ({"ftheta_p0": 0.0}, "ftheta_p0 is 0.0; allowed: perspective"),
    "k4 of OPENCV": ({"k4": 0.1}, "camera model OPENCV has no k4, which is 0.1; .*or model FULL_OPENCV"),
    "k1 of a pinhole": ({"camera_model": "PINHOLE", "k1": 0.1}, "PINHOLE has no k1, which is 0.1"),
    "a word": ({"p1": "much"}, "frame 0: p1 is 'much'; allowed: a finite number"),
    "five numbers": ({"distortion_params": [0.1] * 5}, "distortion_params is .*; allowed: 6 numbers"),
}


@pytest.mark.parametrize("case", BAD_CAMERAS)
def test_cameras_that_are_refused(tmp_path, case):
    top, message = BAD_CAMERAS[case]
    with pytest.raises(UserError, match=message) as caught:
        read_scene(write(tmp_path / "s", **top))
    assert "\n" not in str(caught.value)
    assert "transforms.json" in str(caught.value)


def rotated(path, size, orientation=6):
    """An image as a phone stores it that was held upright: lying, and EXIF says how to turn it."""
    image = Image.new("RGB", size)
    image.paste((250, 0, 0), (0, 0, size[0], 1))  # its first row as stored
    exif = Image.Exif()
    exif[274] = orientation
    image.save(path, exif=exif, quality=95, subsampling=0)


def test_images_are_read_as_they_are_stored_whatever_exif_says(tmp_path):
    root = write(tmp_path / "s")
    for index in range(3):
        (root / "im" / f"{index}.png").unlink()
        rotated(root / "im" / f"{index}.png.jpg", (WIDTH, HEIGHT))
    views = read_views(root)
    assert (views.camera.width, views.camera.height) == (WIDTH, HEIGHT)
    assert (views.images[:, 0, :, 0] > 150).all()
    assert (views.images[:, 2:, :, 0] < 100).all()


def test_images_that_lie_otherwise_than_their_intrinsics_are_refused(tmp_path):
    root = write(tmp_path / "s", w=HEIGHT, h=WIDTH)
    with pytest.raises(UserError, match=r"im/0: w 6 and h 8, but its image is 8x6 as stored; allowed: .*EXIF"):
        read_scene(root)


# ------------------------------------------------------------------------------------------- files and splits


def test_missing_images_are_named_or_left_out(tmp_path):
    root = write(tmp_path / "s", 8, {5: {"k1": 0.1, "time": 0.5}} | {i: {"time": 0.0} for i in (0, 1, 2, 3, 4, 6, 7)})
    for index in (0, 3):
        (root / "im" / f"{index}.png").unlink()
    with pytest.raises(
        UserError, match=r"frame 0: no image im/0\.png .*\(2 of 8 are missing\).*data\.skip_missing=true"
    ):
        read_scene(root)
    with pytest.warns(UserWarning, match=r"2 of 8 frames have no image and are left out, the first is im/0\.png"):
        scene = read_scene(root, skip_missing=True)
    found = {}
    for split in (scene.train, scene.val, scene.test):
        for red, pose, lens, time in zip(
            reds(split), split.camera.c2w, split.camera.lens[:, 0], split.camera.time, strict=True
        ):
            found[red] = (pose, float(lens), float(time))
    assert sorted(found) == [1, 2, 4, 5, 6, 7]
    for red, (pose, lens, time) in found.items():  # each frame keeps what is its own
        torch.testing.assert_close(pose, around(8)[red])
        assert (lens, time) == ((pytest.approx(0.1), 0.5) if red == 5 else (0.0, 0.0))
    shutil.rmtree(root / "im")
    with pytest.raises(UserError, match=r"none of its 8 images is in .*, the first is im/0\.png"):
        read_scene(root, skip_missing=True)


def test_lists_of_files_say_what_is_for_what(tmp_path):
    lists = {
        "train_filenames": ["./im/4.png", "im/0.png", "im/2.png"],
        "val_filenames": ["im/1.png"],
        "test_filenames": ["im\\3.png", "im/5.png"],
    }
    scene = read_scene(write(tmp_path / "s", 7, **lists))
    assert [reds(split) for split in (scene.train, scene.val, scene.test)] == [[0, 2, 4], [1], [3, 5]]
    torch.testing.assert_close(scene.test.camera.c2w, around(7)[[3, 5]])
    assert scene.test.names == ["im/3", "im/5"]


def test_val_without_a_list_has_the_views_of_test(tmp_path):
    lists = {"train_filenames": [f"im/{index}.png" for index in range(6)], "test_filenames": ["im/6.png"]}
    scene = read_scene(write(tmp_path / "s", 7, **lists, val_filenames=[]))
    assert [reds(split) for split in (scene.train, scene.val, scene.test)] == [[0, 1, 2, 3, 4, 5], [6], [6]]


def test_lists_that_say_something_else(tmp_path):
    some = [f"im/{index}.png" for index in range(3)]
    for number, (lists, message) in enumerate(
        [
            ({"train_filenames": [*some, "im/9.png"]}, r"train_filenames has im/9\.png; allowed: file_path"),
            ({"test_filenames": some}, "has test_filenames, but no train_filenames"),
            ({"train_filenames": "im/0.png"}, r"train_filenames is 'im/0\.png'; allowed: a list"),
            ({"train_filenames": ["../x.png"]}, "train_filenames points outside"),
        ]
    ):
        with pytest.raises(UserError, match=message):
            read_scene(write(tmp_path / str(number), 4, **lists))
    with pytest.warns(UserWarning, match="1 files of train_filenames are in test_filenames, too"):
        read_scene(write(tmp_path / "both", 4, train_filenames=some, test_filenames=["im/2.png", "im/3.png"]))


def test_lists_name_what_is_left_out(tmp_path):
    root = write(tmp_path / "s", 5, train_filenames=[f"im/{i}.png" for i in range(4)], test_filenames=["im/4.png"])
    (root / "im" / "2.png").unlink()
    with pytest.warns(UserWarning, match="1 of 5 frames"):
        scene = read_scene(root, skip_missing=True)
    assert (reds(scene.train), reds(scene.test)) == ([0, 1, 3], [4])


def test_keys_of_other_programs_are_passed_over(tmp_path):
    frames = {0: {"sharpness": 12.0, "colmap_im_id": 3, "depth_file_path": "../d.png"}}
    more = {"sharpness": 1.0, "fisheye_crop_radius": 3, "orientation_override": "none", "n_extra_learnable_dims": 16}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_scene(write(tmp_path / "s", frames=frames, **more))


# ------------------------------------------------------------------------------------------- box and depths


def test_aabb_scale_is_instant_ngp_s(tmp_path):
    """Its unit cube [0, 1]^3 is where 0.33 x + 0.5 brings the poses; the box of scale s has the side s around 0.5."""
    scene = read_scene(write(tmp_path / "s", aabb_scale=4))
    corner = (0.5 + 4 / 2 - 0.5) / 0.33
    assert scene.aabb.tolist() == pytest.approx([-corner] * 3 + [corner] * 3)
    assert scene.near == pytest.approx(0.1 / 0.33)  # the cameras stand in the box
    corners = np.array(np.meshgrid(*[[-corner, corner]] * 3)).reshape(3, -1)
    poses = scene.train.camera.c2w.double().numpy(), scene.val.camera.c2w.double().numpy()
    depths = [
        (np.linalg.inv(np.vstack([pose, [0, 0, 0, 1]])) @ np.vstack([corners, np.ones(8)]))[2]
        for pose in np.concatenate([*poses, scene.test.camera.c2w.double().numpy()])
    ]
    assert scene.far == pytest.approx(-np.min(depths), rel=1e-5)


def test_scale_and_offset_move_the_box(tmp_path):
    scene = read_scene(write(tmp_path / "s", aabb_scale=1, scale=0.5, offset=[0.5, 0.25, 0.0]))
    low, high = np.array([0, -0.0, 0]), np.array([1.0, 1, 1])
    offset = np.array([0.5, 0.25, 0.0])
    assert scene.aabb.tolist() == pytest.approx([*((low - offset) / 0.5), *((high - offset) / 0.5)])
    stated = read_scene(write(tmp_path / "t", aabb_scale=4, aabb=[-1, -1, -1, 1, 1, 1], near=0.5))
    assert stated.aabb.tolist() == [-1, -1, -1, 1, 1, 1]
    assert stated.near == 0.5
    assert stated.far < 4 * np.sqrt(1 + 0.3**2) + np.sqrt(3)  # of the stated box, not of the scaled cube
    for number, (key, value) in enumerate({"aabb_scale": 0, "scale": -1, "offset": [1, 2]}.items()):
        with pytest.raises(UserError, match=rf"transforms\.json: {key} is .*; allowed"):
            read_scene(write(tmp_path / str(number), **{"aabb_scale": 1, key: value}))


def cloud(root, points, name="sparse_pc.ply"):
    header = (
        f"ply\nformat ascii 1.0\nelement vertex {len(points)}\nproperty float x\nproperty float y\nproperty float z\n"
    )
    body = "\n".join(" ".join(f"{value:.6f}" for value in point) for point in points)
    (root / name).write_text(header + "end_header\n" + body + "\n")


def test_points_tell_box_and_depths(tmp_path):
    """Of 2000 points in a block and 20 far away: the block, a tenth of its longest side wider, and its depths."""
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.uniform([-1, -0.5, -0.2], [1, 0.5, 0.2], (2000, 3)), rng.normal(0, 300, (20, 3))])
    root = write(tmp_path / "s", ply_file_path="sparse_pc.ply", fl_x=6.0, fl_y=6.0)
    cloud(root, points)
    scene = read_scene(root)
    expected = np.array([-1.2, -0.7, -0.4, 1.2, 0.7, 0.4])
    np.testing.assert_allclose(scene.aabb.numpy(), expected, atol=0.04)
    radius = 4 * np.sqrt(1 + 0.3**2)
    assert 0.75 * (radius - 1.2) < scene.near < 0.75 * (radius - 0.8)
    assert (radius + 0.8) / 0.75 < scene.far < (radius + 1.2) / 0.75
    assert scene.points is None
    assert read_scene(root, near=1.0).near == 1.0
    assert read_scene(root, aabb=[0, 0, 0, 1, 1, 1]).aabb.tolist() == [0, 0, 0, 1, 1, 1]


def test_points_lie_where_the_poses_do(tmp_path):
    """nerfstudio writes points with applied_transform in them already; applied_scale its reader still applies."""
    points = np.random.default_rng(0).uniform([-1, -0.5, -0.2], [1, 0.5, 0.2], (500, 3))
    turned = [[0, 0, 1, 7], [1, 0, 0, 0], [0, 1, 0, 0]]
    boxes = []
    for name, more in {"a": {}, "b": {"applied_transform": turned}, "c": {"applied_scale": 0.5}}.items():
        root = write(tmp_path / name, ply_file_path="p.ply", **more)
        cloud(root, points, "p.ply")
        boxes.append(read_scene(root).aabb)
    torch.testing.assert_close(boxes[1], boxes[0])
    torch.testing.assert_close(boxes[2], 0.5 * boxes[0], atol=0.02, rtol=0)  # nearer the center no other ones are seen


def test_points_that_cannot_be_used(tmp_path):
    root = write(tmp_path / "s", ply_file_path="p.ply")
    with pytest.raises(UserError, match=r"no file p\.ply \(ply_file_path\); allowed: the file, or data\.near="):
        read_scene(root)
    assert read_scene(root, near=1, far=9, aabb=[-1, -1, -1, 1, 1, 1]).far == 9
    cloud(root, [(0, 0, 900.0), (0, 1, 900.0)], "p.ply")
    with pytest.raises(UserError, match=r"p\.ply: no camera has any of its points in the picture"):
        read_scene(root)
    with pytest.raises(UserError, match="ply_file_path points outside"):
        read_scene(write(tmp_path / "t", ply_file_path="../p.ply"))
    with pytest.raises(UserError, match="ply_file_path is 3; allowed: the name of a file"):
        read_scene(write(tmp_path / "u", ply_file_path=3))
