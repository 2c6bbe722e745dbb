"""COLMAP's reconstructions: one that pycolmap makes and writes, read by nelf, and what is wrong with broken ones."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nelf.data import ColmapDataModule, read_colmap
from nelf.data.colmap_model import read_model
from nelf.errors import UserError
from nelf.render.command import _options, _path, _stated
from nelf.scene import Scene

pycolmap = pytest.importorskip("pycolmap")

WIDTH, HEIGHT, VIEWS = 64, 48, 12
PARAMETERS = {
    "SIMPLE_PINHOLE": [70.0, 33.0, 23.0],
    "PINHOLE": [70.0, 68.0, 33.0, 23.0],
    "SIMPLE_RADIAL": [70.0, 33.0, 23.0, -0.08],
    "RADIAL": [70.0, 33.0, 23.0, -0.08, 0.02],
    "OPENCV": [70.0, 68.0, 33.0, 23.0, -0.08, 0.02, 0.004, -0.006],
    "FULL_OPENCV": [70.0, 68.0, 33.0, 23.0, 0.05, 0.01, 0.004, -0.006, 0.003, 0.12, 0.02, 0.001],
    "OPENCV_FISHEYE": [70.0, 68.0, 33.0, 23.0, 0.01, 0.01, 0.0, 0.0],
}


def synthesized(model: str = "SIMPLE_RADIAL") -> Any:
    """A reconstruction of points around the origin, seen from all around."""
    pycolmap.set_random_seed(0)
    options = pycolmap.SyntheticDatasetOptions(
        num_rigs=1,
        num_cameras_per_rig=1,
        num_frames_per_rig=VIEWS,
        num_points3D=150,
        camera_width=WIDTH,
        camera_height=HEIGHT,
        camera_model_id=getattr(pycolmap.CameraModelId, model),
        camera_params=PARAMETERS[model],
    )
    return pycolmap.synthesize_dataset(options)


def write(root: Path, model: Any, text: bool = False, place: str = "sparse/0") -> Path:
    """The folder of a scene: the model, and a picture of noise for each of its images."""
    folder = root / place
    folder.mkdir(parents=True)
    (model.write_text if text else model.write_binary)(folder)
    random = np.random.default_rng(0)
    for image in model.images.values():
        path = root / "images" / image.name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)).save(path)
    return root


@pytest.fixture(scope="module")
def scene_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("colmap") / "ball", synthesized())


def moved(model: Any, scene: Scene, points: np.ndarray) -> torch.Tensor:
    """Points of the files' world in the scene's: the similarity that takes the cameras there, by Umeyama's method."""
    views = {Path(name).name: split.camera[i] for split in splits(scene) for i, name in enumerate(split.names)}
    names = sorted(image.name for image in model.images.values())
    files = np.stack([model.find_image_with_name(name).projection_center() for name in names])
    ours = np.stack([views[Path(name).stem].c2w[:, 3].double().numpy() for name in names])
    similarity = pycolmap.estimate_sim3d(files, ours)
    return torch.from_numpy(np.stack([similarity * point for point in points])).float()


def splits(scene: Scene) -> list[Any]:
    return [scene.train, scene.test]


@pytest.mark.parametrize("name", [name for name in PARAMETERS if name != "OPENCV_FISHEYE"])
def test_points_are_drawn_where_pycolmap_projects_them(name: str, tmp_path: Path) -> None:
    model = synthesized(name)
    scene = read_colmap(write(tmp_path / "scene", model))
    ids = list(model.points3D)
    points = moved(model, scene, np.stack([model.points3D[key].xyz for key in ids]))
    compared = 0
    for split in splits(scene):
        for index, path in enumerate(split.names):
            image = model.find_image_with_name(f"{Path(path).name}.png")
            x, y, t = split.camera[index].project(points)
            for place, key in enumerate(ids):
                expected = image.project_point(model.points3D[key].xyz)
                if expected is None or not (0 <= expected[0] <= WIDTH and 0 <= expected[1] <= HEIGHT):
                    continue
                assert abs(float(x[place]) - expected[0]) < 0.01
                assert abs(float(y[place]) - expected[1]) < 0.01
                assert t[place] > 0
                compared += 1
    assert compared > 500


def test_the_world_is_upright_centered_and_scaled(scene_root: Path) -> None:
    scene = read_colmap(scene_root)
    model = pycolmap.Reconstruction(scene_root / "sparse/0")
    c2w = torch.cat([split.camera.c2w for split in splits(scene)]).double()
    up = c2w[:, :, 1].mean(0)
    torch.testing.assert_close(up / up.norm(), torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64), atol=1e-5, rtol=0)
    torch.testing.assert_close(c2w[:, :, 3].mean(0), torch.zeros(3, dtype=torch.float64), atol=1e-5, rtol=0)
    depths, seen = [], []
    for split in splits(scene):
        for index, path in enumerate(split.names):
            image = model.find_image_with_name(f"{Path(path).name}.png")
            shown = [model.points3D[spot.point3D_id].xyz for spot in image.points2D if spot.has_point3D()]
            points = moved(model, scene, np.stack(shown))
            seen.append(points)
            depths.append(split.camera[index].project(points)[2])
    every, places = torch.cat(depths), torch.cat(seen)
    assert float(every.median()) == pytest.approx(4.0, rel=0.01)
    assert scene.near == pytest.approx(0.75 * float(every.quantile(0.01)), rel=0.01)
    assert scene.far == pytest.approx(float(every.quantile(0.99)) / 0.75, rel=0.01)
    inside = (places > scene.aabb[:3]) & (places < scene.aabb[3:])
    assert inside.all(1).float().mean() > 0.93
    assert scene.background == "black"


def test_a_path_of_nerfstudio_is_brought_into_the_scene(scene_root: Path, tmp_path: Path) -> None:
    """The poses as nerfstudio's parser of COLMAP turns, moves and scales them, written as a path, are the cameras."""
    scene, model = read_colmap(scene_root), pycolmap.Reconstruction(scene_root / "sparse/0")
    applied = np.array([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, -1, 0], [0, 0, 0, 1.0]])
    turn = pycolmap.Rotation3d(np.array([0.1, -0.5, 0.5, 0.7]))
    oriented = np.vstack([np.column_stack([turn.matrix(), [0.3, -1.0, 2.0]]), [0, 0, 0, 1]])
    frames, split, scale = [], scene.train, 0.21
    for name in split.names:
        pose = model.find_image_with_name(f"{Path(name).name}.png").cam_from_world().inverse().matrix()
        pose = oriented @ applied @ np.vstack([pose, [0, 0, 0, 1]])
        pose[:3, 1:3] *= -1
        pose[:3, 3] *= scale
        frames.append({"camera_to_world": pose.ravel().tolist(), "fov": 50})
    path = tmp_path / "way.json"
    path.write_text(json.dumps({"camera_path": frames, "render_width": 64, "render_height": 48}))
    note = {"transform": (oriented @ applied)[:3].tolist(), "scale": scale}
    (tmp_path / "dataparser_transforms.json").write_text(json.dumps(note))
    options = _options(["model", "--path", str(path)])
    cameras = _path(options, scene, _stated(options))
    torch.testing.assert_close(cameras.c2w, split.camera.c2w, atol=1e-5, rtol=0)


def test_text_and_binary_are_the_same_scene(scene_root: Path, tmp_path: Path) -> None:
    binary = read_colmap(scene_root)
    text = read_colmap(write(tmp_path / "text", synthesized(), text=True, place="sparse"))
    nested = read_colmap(write(tmp_path / "nested", synthesized(), place="colmap/sparse/0"))
    for other in (text, nested):
        assert other.digest == binary.digest
        assert (other.near, other.far) == pytest.approx((binary.near, binary.far), rel=1e-9)
        for one, two in zip(splits(binary), splits(other), strict=True):
            assert torch.equal(one.camera.c2w, two.camera.c2w)
            assert torch.equal(one.camera.lens, two.camera.lens)
            assert one.names == two.names


def test_a_model_of_before_rigs_is_read(scene_root: Path, tmp_path: Path) -> None:
    old = shutil.copytree(scene_root, tmp_path / "old")
    for name in ("rigs.bin", "frames.bin"):
        (old / "sparse/0" / name).unlink()
    assert read_colmap(old).digest == read_colmap(scene_root).digest


def test_of_every_eight_views_by_name_the_first_is_for_test(scene_root: Path) -> None:
    names = sorted(path.stem for path in (scene_root / "images").iterdir())
    scene = read_colmap(scene_root)
    assert [Path(name).name for name in scene.test.names] == [names[0], names[8]]
    assert scene.val is scene.test
    assert len(scene.train) == VIEWS - 2
    assert scene.train.camera.view.tolist() == list(range(VIEWS - 2))
    assert len(read_colmap(scene_root, holdout=3).test) == 4


def test_smaller_images_have_scaled_intrinsics(scene_root: Path, tmp_path: Path) -> None:
    root = shutil.copytree(scene_root, tmp_path / "scene")
    (root / "images_2").mkdir()
    for path in (root / "images").iterdir():
        Image.open(path).resize((WIDTH // 2, HEIGHT // 2)).save(root / "images_2" / path.name)
    whole, half = read_colmap(root), read_colmap(root, images="images_2")
    assert (half.train.camera.width, half.train.camera.height) == (WIDTH // 2, HEIGHT // 2)
    torch.testing.assert_close(half.train.camera.intrinsics, whole.train.camera.intrinsics / 2)
    torch.testing.assert_close(half.train.camera.lens, whole.train.camera.lens)
    assert half.digest == whole.digest
    assert ColmapDataModule(root, images="images_2", width=16).scene.train.images.shape[1:] == (12, 16, 3)


def test_views_without_image_are_named_or_left_out(scene_root: Path, tmp_path: Path, capsys: Any) -> None:
    root = shutil.copytree(scene_root, tmp_path / "scene")
    gone = sorted((root / "images").iterdir())[2:5]
    for path in gone:
        path.unlink()
    with pytest.raises(UserError, match=f"{gone[0].name}: no such image file, 3 of {VIEWS} .*skip_missing"):
        read_colmap(root)
    scene = read_colmap(root, skip_missing=True)
    assert sum(map(len, splits(scene))) == VIEWS - 3
    assert f"3 of {VIEWS} images are missing, and left out" in capsys.readouterr().out


def broken(root: Path, what: str) -> None:
    """Break a scene in text form."""
    cameras, images = root / "sparse/0/cameras.txt", root / "sparse/0/images.txt"
    first = sorted((root / "images").iterdir())[0]
    if what == "unknown model":
        cameras.write_text(cameras.read_text().replace("SIMPLE_RADIAL", "PERISCOPE"))
    elif what == "no points":
        (root / "sparse/0/points3D.txt").unlink()
    elif what == "outside":
        images.write_text(images.read_text().replace(first.name, "../../secret.png"))
    elif what == "other shape":
        for path in (root / "images").iterdir():
            Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path)
    elif what == "other size":
        Image.open(first).resize((32, 24)).save(first)
    elif what == "not numbers":
        cameras.write_text("1 SIMPLE_RADIAL 64 48 seventy 32 24 0\n")
    else:
        raise AssertionError(what)


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("unknown model", "cameras.txt: names camera model 'PERISCOPE', which COLMAP does not know"),
        ("no points", r"sparse/0: has no points3D.bin or points3D.txt; allowed: a model with all three"),
        ("outside", r"names the image '../../secret.png'; allowed: a path inside images"),
        ("other shape", "is 48x64, but its camera is 64x48; allowed: the same shape"),
        ("other size", "is 64x48, but .* is 32x24; allowed: one size"),
        ("not numbers", "cameras.txt: is not whole, or no file of COLMAP's"),
    ],
)
def test_what_is_wrong_is_said(what: str, text: str, tmp_path: Path) -> None:
    root = write(tmp_path / "scene", synthesized(), text=True)
    broken(root, what)
    with pytest.raises(UserError, match=text) as caught:
        read_colmap(root)
    assert len(str(caught.value).splitlines()) == 1


def test_a_fisheye_is_refused_by_name(tmp_path: Path) -> None:
    root = write(tmp_path / "scene", synthesized("OPENCV_FISHEYE"))
    with pytest.raises(UserError, match="sparse/0: camera 1: camera model 'OPENCV_FISHEYE'; allowed: SIMPLE_PINHOLE"):
        read_colmap(root)


@pytest.mark.parametrize("name", ["cameras.bin", "images.bin", "points3D.bin"])
def test_a_truncated_file_is_refused(name: str, scene_root: Path, tmp_path: Path) -> None:
    root = shutil.copytree(scene_root, tmp_path / "scene")
    file = root / "sparse/0" / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError, match="sparse/0"):
        read_colmap(root)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"images": "images_4"}, r"data.images: .*images_4 is not a directory; allowed: .*: images\."),
        ({"width": 65}, "data.width: is 65"),
        ({"holdout": 1}, "data.holdout: is 1; allowed: 2 or more"),
        ({"near": 9e9}, "allowed: 0 < near < far"),
        ({"aabb": [0.0] * 6}, "allowed: six numbers"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], text: str, scene_root: Path) -> None:
    with pytest.raises(UserError, match=text):
        read_colmap(scene_root, **options)


def test_folders_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a directory; allowed: a folder with images/ and sparse/0/"):
        read_colmap(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds no COLMAP model; .*data=photos"):
        read_colmap(tmp_path)


def test_a_scene_is_read_without_pycolmap(scene_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    assert len(read_colmap(scene_root).train) == VIEWS - 2


@pytest.mark.parametrize("text", [False, True])
def test_a_model_of_rigs_is_what_pycolmap_reads(text: bool, tmp_path: Path) -> None:
    pycolmap.set_random_seed(1)
    options = pycolmap.SyntheticDatasetOptions(num_rigs=2, num_cameras_per_rig=2, num_frames_per_rig=3, num_points3D=40)
    expected = pycolmap.synthesize_dataset(options)
    (expected.write_text if text else expected.write_binary)(tmp_path)
    model = read_model(tmp_path)
    assert len(model.images) == expected.num_images() == 12
    for image in model.images:
        other = expected.find_image_with_name(image.name)
        np.testing.assert_allclose(image.world_to_camera, other.cam_from_world().matrix(), atol=1e-12)
        assert image.points.tolist() == [spot.point3D_id for spot in other.points2D if spot.has_point3D()]
        lens, camera = model.cameras[image.camera], expected.cameras[other.camera_id]
        assert (lens.model, lens.width, lens.height) == (camera.model.name, camera.width, camera.height)
        np.testing.assert_allclose(lens.parameters, camera.params)
    assert model.keys.tolist() == sorted(expected.points3D)
    np.testing.assert_allclose(model.points, [expected.points3D[key].xyz for key in model.keys.tolist()])
