"""The reader of LLFF captures, against NeRF's ``load_llff.py`` restated in 64 bits."""

from __future__ import annotations

from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch

from nelf import paths
from nelf.cameras import Camera
from nelf.data import LLFFDataModule, read_llff
from nelf.errors import UserError


def unit(v):
    return v / np.linalg.norm(v)


def average(c2w):
    """``poses_avg``, squared."""
    back = unit(c2w[:, :3, 2].sum(0))
    right = unit(np.cross(c2w[:, :3, 1].sum(0), back))
    up = unit(np.cross(back, right))
    return np.vstack([np.stack([right, up, back, c2w[:, :3, 3].mean(0)], 1), [0, 0, 0, 1]])


def loaded(table, factor):
    """``load_llff_data`` without its casts to 32 bits: (N, 4, 4), bounds and focal length."""
    poses = table[:, :-2].reshape(-1, 3, 5).transpose(1, 2, 0)
    poses = np.concatenate([poses[:, 1:2], -poses[:, 0:1], poses[:, 2:]], 1).transpose(2, 0, 1)
    scale = 1 / (table[:, -2:].min() * 0.75)
    c2w = np.concatenate([poses[:, :, :4], np.tile([[[0, 0, 0, 1.0]]], (len(poses), 1, 1))], 1)
    c2w[:, :3, 3] *= scale
    return np.linalg.inv(average(c2w)) @ c2w, table[:, -2:] * scale, poses[0, 2, 4] / factor


def spherified(c2w, bounds):
    """``spherify_poses``."""
    axis, position = c2w[:, :3, 2:3], c2w[:, :3, 3:4]
    across = np.eye(3) - axis * axis.transpose(0, 2, 1)
    least = np.linalg.inv((across.transpose(0, 2, 1) @ across).mean(0)) @ (across @ position).mean(0)
    up = unit(c2w[:, :3, 3].mean(0) - least[:, 0])
    first = unit(np.cross([0.1, 0.2, 0.3], up))
    second = unit(np.cross(up, first))
    frame = np.vstack([np.stack([first, second, up, least[:, 0]], 1), [0, 0, 0, 1]])
    c2w = np.linalg.inv(frame) @ c2w
    scale = 1 / np.sqrt(np.mean(np.sum(c2w[:, :3, 3] ** 2, -1)))
    c2w[:, :3, 3] *= scale
    return c2w, bounds * scale


def everything(scene):
    """(N, 3, 4) poses of all splits, in the order of the file."""
    count = len(scene.train) + len(scene.test)
    order = [*range(0, count, 8), *(row for row in range(count) if row % 8)]
    c2w = torch.cat([scene.test.camera.c2w, scene.train.camera.c2w])
    return c2w[torch.tensor(order).argsort()].double().numpy()


@pytest.fixture
def fern(data):
    root = data / "nerf_llff_data" / "fern"
    if not root.is_dir():
        pytest.skip("fern is not here: put nerf_llff_data/fern into NELF_DATA")
    return root


def test_fern_is_what_nerf_makes_of_it(fern):
    expected, bounds, focal = loaded(np.load(fern / "poses_bounds.npy"), 8)
    scene = read_llff(fern)
    np.testing.assert_allclose(everything(scene), expected[:, :3], atol=1e-6)
    assert [len(split) for split in (scene.train, scene.val, scene.test)] == [17, 3, 3]
    assert scene.test.names == ["images_8/image000", "images_8/image008", "images_8/image016"]
    camera = scene.train.camera
    assert (camera.width, camera.height) == (504, 378)
    np.testing.assert_allclose(camera.intrinsics[0], [focal, focal, 252, 189], rtol=1e-6)
    np.testing.assert_allclose([scene.near, scene.far], [0.9 * bounds.min(), bounds.max()])
    np.testing.assert_allclose(0.9 / 0.75, scene.near)
    assert scene.trajectory == "forward"
    # Geometry is told of NDC: 0 on the near plane, 1 at infinity, and a box that holds all rays.
    assert (scene.geometry.near, scene.geometry.far) == (0.0, 1.0)
    np.testing.assert_allclose(list(vars(camera.ndc).values()), [1.0, 252 / focal, 189 / focal])
    rays = camera.rays(9)
    for t in (0.0, 0.4, 1.0):
        points = (rays.origins + t * rays.directions).view(-1, 3)
        assert (points >= scene.aabb[:3] - 1e-5).all()
        assert (points <= scene.aabb[3:] + 1e-5).all()


def test_fern_in_its_own_space_and_spherified(fern):
    table = np.load(fern / "poses_bounds.npy")
    scene = read_llff(fern, factor=16, ndc=False)
    assert scene.train.camera.ndc is None
    assert (scene.geometry.near, scene.geometry.far) == (scene.near, scene.far)
    expected, bounds = spherified(*loaded(table, 16)[:2])
    scene = read_llff(fern, factor=16, ndc=False, spherify=True)
    assert scene.trajectory == "orbit"
    np.testing.assert_allclose(everything(scene), expected[:, :3], atol=2e-6)
    np.testing.assert_allclose([scene.near, scene.far], [0.9 * bounds.min(), bounds.max()])


def test_the_spiral_of_fern_is_nerf_s(fern):
    expected, bounds, _ = loaded(np.load(fern / "poses_bounds.npy"), 8)
    c2w, up = average(expected), unit(expected[:, :3, 1].sum(0))
    focal = 1 / (0.25 / (0.9 * bounds.min()) + 0.75 / (5 * bounds.max()))
    radii = np.append(np.percentile(np.abs(expected[:, :3, 3]), 90, 0), 1.0)
    drawn = []
    for theta in np.linspace(0, 4 * np.pi, 121)[:-1]:
        eye = c2w[:3] @ (np.array([np.cos(theta), -np.sin(theta), -np.sin(theta / 2), 1.0]) * radii)
        back = unit(eye - c2w[:3] @ [0, 0, -focal, 1.0])
        right = unit(np.cross(up, back))
        drawn.append(np.stack([right, np.cross(back, right), back, eye], 1))
    scene = read_llff(fern)
    cameras = Camera(
        torch.from_numpy(expected[:, :3]), scene.train.camera.intrinsics[:1].double().expand(20, 4), 504, 378
    )
    path = paths.llff_spiral(cameras, scene.near, scene.far)
    np.testing.assert_allclose(path.c2w.numpy(), np.array(drawn), atol=1e-9)


# ------------------------------------------------------------------------------------------- a small capture


def write(
    root: Path, count: int = 9, folder: str = "images_4", size: tuple[int, int] = (8, 6), factor: int = 4
) -> Path:
    """Cameras on a small square, looking along world +x; images of one gray each."""
    rows = []
    (root / folder).mkdir(parents=True)
    for index in range(9):
        down, right, back = np.array([0.0, 0, -1]), np.array([0.0, -1, 0]), np.array([-1.0, 0, 0])
        position = np.array([0.0, index % 3 - 1.0, index // 3 - 1.0])
        hwf = np.array([size[1], size[0], 2.5 * size[0]]) * factor
        matrix = np.stack([down, right, back, position, hwf], 1)
        rows.append([*matrix.flatten(), 4.0 + 0.1 * index, 20.0])
        gray = np.full((size[1], size[0], 3), 10 * index, np.uint8)
        iio.imwrite(root / folder / f"{index:03d}.png", gray)
    np.save(root / "poses_bounds.npy", np.array(rows))
    return root


@pytest.fixture
def small(tmp_path):
    return write(tmp_path / "small")


def test_axes_and_unit(small):
    scene = read_llff(small, factor=4)
    c2w = everything(scene)
    # The average camera stands in the middle; what lay to its right (-y of the file) is +x now, and up +z is +y.
    identity = np.tile(np.eye(3), (9, 1, 1))
    np.testing.assert_allclose(c2w[:, :, :3], identity, atol=1e-6)
    unit_of_file = 1 / (0.75 * 4.0)
    expected = [[-(index % 3 - 1.0) * unit_of_file, (index // 3 - 1.0) * unit_of_file, 0] for index in range(9)]
    np.testing.assert_allclose(c2w[:, :, 3], expected, atol=1e-6)
    assert [int(scene.test.images[i, 0, 0, 0]) for i in range(2)] == [0, 80]
    assert scene.val is scene.test
    assert scene.background == "black"


def test_images_are_reduced_where_the_factor_has_no_folder(small, tmp_path):
    full = write(tmp_path / "full", folder="images", size=(32, 24), factor=1)
    reduced, ready = read_llff(full, factor=4), read_llff(small, factor=4)
    assert reduced.train.names[0] == "images/001"
    camera, expected = reduced.train.camera, ready.train.camera
    assert (camera.width, camera.height) == (8, 6)
    torch.testing.assert_close(camera.intrinsics, expected.intrinsics)
    torch.testing.assert_close(camera.c2w, expected.c2w)
    np.testing.assert_array_equal(reduced.train.images, ready.train.images)
    half = read_llff(small, factor=4, width=4).train.camera
    assert (half.width, half.height, float(half.intrinsics[0, 0])) == (4, 3, 10.0)
    assert half.ndc == expected.ndc


def spoiled(root: Path, **changes: float) -> None:
    table = np.load(root / "poses_bounds.npy")
    for place, value in changes.items():
        row, column = map(int, place[1:].split("_"))
        table[row, column] = value
    np.save(root / "poses_bounds.npy", table)


def turned_around(root: Path) -> None:
    """The cameras look to all sides, evenly."""
    table = np.load(root / "poses_bounds.npy")
    matrix = table[:, :15].reshape(-1, 3, 5)
    for angle, each in zip(2 * np.pi * np.arange(len(matrix)) / len(matrix), matrix, strict=True):
        right, back = (np.cos(angle), 0.0, -np.sin(angle)), (np.sin(angle), 0.0, np.cos(angle))
        each[:, :3] = np.stack([(0.0, -1.0, 0.0), right, back], 1)
    np.save(root / "poses_bounds.npy", np.concatenate([matrix.reshape(-1, 15), table[:, 15:]], 1))


@pytest.mark.parametrize(
    ("spoil", "options", "words"),
    [
        (turned_around, {"ndc": False}, "look all ways"),
        (lambda root: (root / "images_4" / "003.png").unlink(), {}, r"has 8 images, but poses_bounds.npy has 9 rows"),
        (lambda root: (root / "poses_bounds.npy").unlink(), {}, r"poses_bounds.npy: no such file"),
        (lambda root: (root / "poses_bounds.npy").write_bytes(b"\x93NUMPY"), {}, "is not whole, or no array"),
        (lambda root: np.save(root / "poses_bounds.npy", np.array([{}])), {}, "is not whole, or no array"),
        (
            lambda root: np.save(root / "poses_bounds.npy", np.zeros((9, 15))),
            {},
            r"of shape \(9, 15\); allowed: \(N, 17\)",
        ),
        (lambda root: np.save(root / "poses_bounds.npy", np.zeros((9, 17), int)), {}, "floating-point numbers"),
        (lambda root: spoiled(root, _2_5=np.nan), {}, "row 2 holds NaN"),
        (lambda root: spoiled(root, _3_0=4.0), {}, "row 3 has a pose whose axes are not orthonormal"),
        (lambda root: spoiled(root, _1_15=-1.0), {}, "row 1 has bounds -1 and 20; allowed: 0 < near < far"),
        (lambda root: spoiled(root, _1_14=7.0), {}, "the same in all rows"),
        (lambda root: (root / "images_4").rename(root / "images_2"), {"factor": 2}, r"000.png: is 8x6, but .* 16x12"),
        (lambda root: None, {"factor": 8}, r"no folder images_8, and no images; allowed: data.factor=4"),
        (lambda root: None, {"factor": 0}, "data.factor: is 0; allowed: 1 or more"),
        (lambda root: None, {"width": 9}, "data.width: is 9"),
        (lambda root: None, {"spherify": True}, "data.spherify: is true, and so is data.ndc"),
        (lambda root: None, {"holdout": 1}, "data.holdout: is 1"),
        (lambda root: None, {"aabb": [0, 0, 0, 1, 1, 0]}, "aabb"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(small, spoil, options, words):
    spoil(small)
    with pytest.raises(UserError, match=words) as caught:
        read_llff(small, **{"factor": 4, **options})
    assert "\n" not in str(caught.value)


def test_cameras_that_look_around_have_no_ndc(tmp_path):
    root = write(tmp_path / "around")
    table = np.load(root / "poses_bounds.npy")
    matrix = table[:, :15].reshape(-1, 3, 5)
    matrix[4, :, 1:3] *= -1  # one looks back
    np.save(root / "poses_bounds.npy", table)
    with pytest.raises(UserError, match=r"camera 4 looks away .* data.ndc=false"):
        read_llff(root, factor=4)
    assert len(read_llff(root, factor=4, ndc=False).train) == 7


def test_the_data_module_reads_what_the_reader_reads(small):
    module = LLFFDataModule(small, factor=4, batch_size=32)
    batch = next(iter(module.train_dataloader()))
    assert batch.rays.world_directions.shape == (32, 3)
    torch.testing.assert_close(batch.rays.origins[:, 2], -torch.ones(32))
    assert module.scene.name == "small"
    assert module.scene.train.camera.view.tolist() == list(range(len(module.scene.train)))
    with pytest.raises(UserError, match=r"data\.width: is 0"):
        LLFFDataModule(small, width=0)
