"""nerfstudio's camera paths, against the poses that nerfstudio's own steps make."""

import json

import numpy as np
import pytest

from nelf.data import nerfstudio
from nelf.errors import UserError


def rotation(seed):
    """(3, 3) float64: a random one."""
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.sign(np.linalg.det(q))


def square(matrix):
    return np.vstack([matrix, [0, 0, 0, 1]])


def pose(seed):
    return np.column_stack([rotation(seed), np.random.default_rng(seed).normal(size=3)])


def document(poses, **change):
    frames = [
        {"camera_to_world": square(each).ravel().tolist(), "fov": 50.0 + index, "aspect": 1.5}
        for index, each in enumerate(poses)
    ]
    about = {"camera_type": "perspective", "render_height": 200, "render_width": 300, "fps": 24, "seconds": 4.0}
    return {**about, "keyframes": [], "is_cycle": False, "smoothness_value": 0.5, "camera_path": frames, **change}


def written(folder, content, name="path.json"):
    (folder / name).write_text(json.dumps(content))
    return folder / name


def test_a_path_is_read(tmp_path):
    poses = [pose(1), pose(2), pose(3)]
    path = written(tmp_path, document(poses))
    assert nerfstudio.is_camera_path(path)
    read = nerfstudio.read_camera_path(path)
    np.testing.assert_array_equal(read.c2w, np.stack(poses))
    assert (read.width, read.height, read.fps) == (300, 200, 24)
    assert read.times is None
    lenses, height = read.intrinsics(60)
    assert height == 40
    # A vertical angle: half of it meets the picture's upper edge.
    np.testing.assert_allclose(np.rad2deg(np.arctan(20 / lenses[:, 1])), [25.0, 25.5, 26.0], rtol=1e-6)
    np.testing.assert_array_equal(lenses[:, 0], lenses[:, 1])
    np.testing.assert_array_equal(lenses[:, 2:], [[30, 20]] * 3)


def test_times_count_where_each_frame_has_one(tmp_path):
    content = document([pose(1), pose(2)])
    content["camera_path"][1]["render_time"] = 0.25
    assert nerfstudio.read_camera_path(written(tmp_path, content)).times is None
    content["camera_path"][0]["render_time"] = 1
    assert nerfstudio.read_camera_path(written(tmp_path, content)).times.tolist() == [1.0, 0.25]


def test_what_nerfstudio_did_to_the_poses_is_undone(tmp_path):
    """Forward as its parser goes: poses of the file are turned and moved, then scaled; both notes count from before."""
    turn, applied = pose(5), np.column_stack([rotation(6), [0.3, -0.2, 0.1]])
    in_file, scale, applied_scale = np.stack([pose(seed) for seed in range(7, 11)]), 0.37, 1.6
    changed = np.stack([(square(turn) @ square(each))[:3] for each in in_file])
    changed[:, :, 3] *= scale
    stated = {"transform": (square(turn) @ square(applied))[:3].tolist(), "scale": scale * applied_scale}
    changes = written(tmp_path, stated, nerfstudio.TRANSFORMS)
    file = {"applied_transform": applied.tolist(), "applied_scale": applied_scale, "frames": []}
    back = nerfstudio.into_file_space(changed, changes, written(tmp_path, file, "transforms.json"))
    np.testing.assert_allclose(back, in_file, atol=1e-12)
    changes = written(tmp_path, {"transform": turn.tolist(), "scale": scale}, nerfstudio.TRANSFORMS)
    back = nerfstudio.into_file_space(changed, changes, written(tmp_path, {"frames": []}, "transforms.json"))
    np.testing.assert_allclose(back, in_file, atol=1e-12)


def one_frame(matrix, fov):
    return {"camera_path": [{"camera_to_world": np.asarray(matrix).ravel().tolist(), "fov": fov}]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"camera_type": "fisheye"}, "camera_type is 'fisheye'; allowed: perspective."),
        ({"camera_type": "equirectangular"}, "camera_type is 'equirectangular'; allowed: perspective."),
        ({"camera_path": []}, "camera_path: allowed: a list of one or more frames"),
        ({"render_width": 1e9}, "render_width is 1000000000.0; allowed: 1 to 16384."),
        ({"render_height": None}, "render_height is None; allowed: 1 to 16384."),
        ({"fps": 0}, "fps is 0; allowed: 0.01 to 1000."),
        ({"camera_path": [{"fov": 50}]}, "frame 0: camera_to_world is None; allowed: 4x4 or 3x4 or 16 numbers"),
        (one_frame([1] * 12, 50), "frame 0: camera_to_world is [1, 1"),
        (
            {"camera_path": [{"camera_to_world": np.eye(4).ravel().tolist(), "fov": 180}]},
            "fov is 180; allowed: 0.01 to 179.99",
        ),
        (one_frame(np.diag([2, 2, 2, 1]), 9), "is no rotation"),
        # column by column, as nobody writes it any more
        (one_frame(square(pose(1)).T, 9), "the last row 0 0 0 1"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, change, words):
    path = written(tmp_path, document([pose(1)], **change))
    with pytest.raises(UserError) as caught:
        nerfstudio.read_camera_path(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
