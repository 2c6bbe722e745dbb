"""Photographs to scenes: of a corner of a room with known cameras, registered by COLMAP; and what cannot be."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nelf import paths
from nelf.cameras import Camera
from nelf.data import PhotosDataModule, register_photos
from nelf.data.photos import registration_folder
from nelf.data.registration import pairs_of
from nelf.errors import UserError

pycolmap = pytest.importorskip("pycolmap")

WIDTH, HEIGHT, VIEWS = 240, 180, 7


def room_cameras(views: int = VIEWS, width: int = WIDTH, height: int = HEIGHT) -> Camera:
    """Cameras that walk past a corner and look into it."""
    way = torch.linspace(0, 1, views)
    position = torch.stack([2.0 + 1.2 * way, 3.2 - 1.4 * way, 1.2 + 0.3 * torch.sin(5 * way)], -1)
    c2w = paths.look_at(position, torch.tensor([0.4, 0.4, 0.7]).expand(views, 3))
    return Camera.from_fov(c2w, 0.9, width, height)


def room(camera: Camera) -> np.ndarray:
    """Its picture (H, W, 3) uint8: the planes x = 0, y = 0 and z = 0, painted with noise of several sizes."""
    rays = camera.rays()
    start, direction = rays.origins.double().numpy(), rays.directions.double().numpy()
    with np.errstate(divide="ignore"):
        t = np.where(direction < 0, -start / direction, np.inf)
    plane = t.argmin(-1)
    point = start + t.min(-1)[..., None] * direction
    image = np.empty((*plane.shape, 3))
    for wall in range(3):
        here = plane == wall
        image[here] = _paint(wall, np.delete(point[here], wall, -1))
    return (255 * image.clip(0, 1)).astype(np.uint8)


def _paint(wall: int, at: np.ndarray) -> np.ndarray:
    """Colors (P, 3) at places (P, 2) of a wall: lattices of random colors, blended linearly."""
    color = np.full((len(at), 3), 0.5)
    for octave, cells in enumerate((3.0, 9.0, 27.0)):
        lattice = np.random.default_rng(10 * wall + octave).normal(0, 0.22, (256, 256, 3))
        low = np.floor(at * cells).astype(int)
        x, y = (at * cells - low).T[..., None]
        corner = lambda i, j, low=low, lattice=lattice: lattice[(low[:, 0] + i) % 256, (low[:, 1] + j) % 256]  # noqa: E731
        color += (corner(0, 0) * (1 - x) + corner(1, 0) * x) * (1 - y) + (corner(0, 1) * (1 - x) + corner(1, 1) * x) * y
    return color


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    camera = room_cameras()
    return [room(camera[index]) for index in range(VIEWS)]


def photographed(folder: Path, pictures: list[np.ndarray], suffix: str = ".png") -> Path:
    folder.mkdir(parents=True)
    for index, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"IMG {index}{suffix}")
    return folder


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory, pictures: list[np.ndarray]) -> Path:
    folder = photographed(tmp_path_factory.mktemp("photos") / "corner", pictures)
    register_photos(folder)
    return folder


def test_cameras_stand_where_they_stood(registered: Path) -> None:
    scene = PhotosDataModule(registered).scene
    views = [view for split in (scene.train, scene.test) for view in (split[i] for i in range(len(split)))]
    views = sorted(views, key=lambda view: view.name)
    assert [view.name for view in views] == [f"images/{index:04d}_IMG_{index}" for index in range(VIEWS)]
    assert len(pycolmap.Reconstruction(registered / "nelf_colmap/sparse/0").cameras) == 1
    truth = room_cameras()
    found = np.stack([view.camera.c2w[:, 3].double().numpy() for view in views])
    similarity = pycolmap.estimate_sim3d(found, truth.c2w[:, :, 3].double().numpy())
    turn = torch.from_numpy(similarity.rotation.matrix()).float()
    for index, camera in enumerate(view.camera for view in views):
        center = torch.from_numpy(similarity * found[index]).float()
        assert float((center - truth[index].c2w[:, 3]).norm()) < 0.01
        cosine = turn @ camera.c2w[:, 2] @ truth[index].c2w[:, 2]
        assert float(torch.acos(cosine.clamp(-1, 1))) < 0.01
        assert float(camera.intrinsics[0]) == pytest.approx(float(truth.intrinsics[0, 0]), rel=0.02)


def test_a_registration_is_made_once_and_again_for_other_photographs(
    registered: Path, pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert sorted(path.name for path in registered.glob("*nelf*")) == ["nelf_colmap"]
    calls: list[Path] = []
    monkeypatch.setattr("nelf.data.photos.register", lambda source, work, **options: calls.append(work))
    assert register_photos(registered) == registered / "nelf_colmap"
    assert calls == []
    moved = registered.rename(tmp_path / "moved")
    try:
        register_photos(moved)
        assert calls == []
        Image.fromarray(pictures[0][:, ::-1]).save(moved / "IMG 0.png", compress_level=1)
        before = (moved / "nelf_colmap/photos.json").read_text()
        register_photos(moved)
        assert len(calls) == 1
        assert (moved / "nelf_colmap/photos.json").read_text() != before
        assert not list(moved.glob(".nelf*"))
    finally:
        moved.rename(registered)


def test_ctrl_c_keeps_what_is_done_and_the_same_command_goes_on(
    pictures: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = photographed(tmp_path / "corner", pictures)
    match = pycolmap.match_image_pairs

    def interrupted(*arguments: Any, **options: Any) -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        match(*arguments, **options)

    monkeypatch.setattr(pycolmap, "match_image_pairs", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            register_photos(folder)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not registration_folder(folder).exists()
    monkeypatch.undo()
    database = pycolmap.Database.open(folder / ".nelf_colmap.partial/database.db")
    assert database.num_images() == VIEWS
    keypoints = database.num_keypoints()
    database.close()
    assert keypoints > 0
    copies = {path: path.stat().st_mtime_ns for path in (folder / ".nelf_colmap.partial/images").iterdir()}
    root = register_photos(folder)
    assert {root / "images" / path.name: time for path, time in copies.items()} == {
        path: path.stat().st_mtime_ns for path in (root / "images").iterdir()
    }
    assert not list(folder.glob(".nelf*"))


def test_pictures_are_turned_as_exif_says_and_reduced(
    pictures: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nelf.data.photos.register", lambda source, work, **options: None)
    monkeypatch.setattr("nelf.data.photos.LARGEST", 120)
    folder = tmp_path / "turned"
    folder.mkdir()
    for index, picture in enumerate(pictures):
        exif, stored = Image.Exif(), picture
        exif.get_ifd(0x8769)[0xA405] = 35
        if index:  # the camera was held upright: the sensor's rows are the picture's columns
            exif[0x0112] = 6
            stored = np.rot90(picture)
        Image.fromarray(stored).save(folder / f"{index}.jpg", exif=exif, quality=98, subsampling=0)
    root = register_photos(folder)
    copies = sorted((root / "images").iterdir())
    assert len(copies) == VIEWS
    for copy, picture in zip(copies, pictures, strict=True):
        with Image.open(copy) as image:
            assert image.size == (120, 90)
            assert image.getexif().get(0x0112, 1) == 1
            camera = pycolmap.infer_camera_from_image(copy)
            assert camera.has_prior_focal_length
            assert camera.focal_length == pytest.approx(150 * 35 / np.hypot(36, 24), rel=0.01)  # of the diagonal
            half = picture.reshape(90, 2, 120, 2, 3).mean((1, 3))
            assert np.abs(np.asarray(image) - half).mean() < 5


def test_photographs_of_another_size_are_left_out(
    pictures: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("nelf.data.photos.register", lambda source, work, **options: None)
    folder = photographed(tmp_path / "mixed", [*pictures, pictures[0][:, :50]])
    assert len(list((register_photos(folder) / "images").iterdir())) == VIEWS
    assert f"1 of {VIEWS + 1} photographs are not 240x180, and left out, such as IMG 7.png" in capsys.readouterr().out


def test_heic_is_read_and_without_its_package_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    monkeypatch.setattr("nelf.data.photos.register", lambda source, work, **options: None)
    pillow_heif.register_heif_opener()
    smooth = np.linspace(40, 200, 64 * 48 * 3).reshape(48, 64, 3).astype(np.uint8)
    folder = photographed(tmp_path / "phone", [smooth] * 5, ".heic")
    with monkeypatch.context() as context:
        context.setitem(sys.modules, "pillow_heif", None)
        with pytest.raises(
            UserError, match=r"IMG 0.heic: pillow-heif is not installed, and HEIC needs it: pip install 'nelf\[heic\]'"
        ):
            register_photos(folder)
    copies = sorted((register_photos(folder) / "images").iterdir())
    assert [copy.name for copy in copies] == [f"{index:04d}_IMG_{index}.jpg" for index in range(5)]
    assert np.abs(np.asarray(Image.open(copies[0])).astype(float) - smooth).mean() < 4


def test_the_sharpest_frames_of_a_video_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    import imageio_ffmpeg

    monkeypatch.setattr("nelf.data.photos.register", lambda source, work, **options: None)
    video = tmp_path / "walk.mp4"
    writer = imageio_ffmpeg.write_frames(str(video), (64, 48), fps=10, quality=9, macro_block_size=1)
    writer.send(None)
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3))
    for index in range(20):  # of each four, the third is sharp; how bright they are tells them apart
        picture = noise if index % 4 == 2 else np.full_like(noise, noise.mean())
        writer.send(np.ascontiguousarray(picture * 0.5 + 6 * index).astype(np.uint8))
    writer.close()
    root = register_photos(video, frames=5)
    assert root == tmp_path / "walk_nelf_colmap"
    frames = [np.asarray(Image.open(path)).astype(float) for path in sorted((root / "images").glob("*.jpg"))]
    brightness = [noise.mean() * 0.5 + 6 * (4 * index + 2) for index in range(5)]
    assert [frame.mean() for frame in frames] == pytest.approx(brightness, abs=3)
    assert all(frame.std() > 15 for frame in frames)
    assert "5 of 20 frames are taken" in capsys.readouterr().out


def test_pairs_of_a_sequence() -> None:
    assert len(pairs_of(20, sequential=False)) == 190
    some = pairs_of(40, sequential=True)
    assert {other for one, other in some if one == 0} == {*range(1, 11), 16, 32}
    assert len(set(some)) == len(some)


def test_pictures_that_do_not_register_are_counted(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    folder = photographed(tmp_path / "noise", [random.integers(0, 256, (48, 64, 3), np.uint8) for _ in range(6)])
    with pytest.raises(
        UserError, match=r"noise: 0 of 6 pictures could be registered; allowed: 5 or more\. What helps: "
    ) as caught:
        register_photos(folder)
    assert len(str(caught.value).splitlines()) == 1
    assert not registration_folder(folder).exists()


@pytest.mark.parametrize(
    ("files", "text"),
    [
        ([], "holds 0 photographs; allowed: 5 or more JPEG"),
        (["a.jpg"], "holds 1 photographs; allowed: 5 or more JPEG"),
        (["a.jpg", "b.jpg", "c.jpg", "d.jpg", "broken.jpg"], r"broken.jpg: not a readable image"),
        (["a.jpg", "b.jpg", "c.jpg", "d.jpg", "cut.jpg"], r"cut.jpg: cannot be decoded"),
    ],
)
def test_what_is_wrong_is_said(files: list[str], text: str, pictures: list[np.ndarray], tmp_path: Path) -> None:
    for name in files:
        Image.fromarray(pictures[0]).save(tmp_path / name)
    if "broken.jpg" in files:
        (tmp_path / "broken.jpg").write_bytes(b"no picture")
    if "cut.jpg" in files:
        whole = (tmp_path / "cut.jpg").read_bytes()
        (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=text):
        register_photos(tmp_path)
    assert not registration_folder(tmp_path).exists()


def test_places_that_cannot_be(tmp_path: Path, pictures: list[np.ndarray]) -> None:
    with pytest.raises(UserError, match="nowhere is not there; allowed: a folder of photographs, or a video file"):
        register_photos(tmp_path / "nowhere")
    text = tmp_path / "notes.txt"
    text.write_text("no film")
    with pytest.raises(UserError, match="is neither a folder nor a video"):
        register_photos(text)
    film = tmp_path / "film.mp4"
    film.write_text("no film")
    with pytest.raises(UserError, match=r"film.mp4: is no video that FFmpeg reads"):
        register_photos(film)
    folder = photographed(tmp_path / "mine", pictures)
    (folder / "nelf_colmap").mkdir()
    with pytest.raises(UserError, match="nelf_colmap: holds something else"):
        register_photos(folder)
    with pytest.raises(UserError, match=r"data.frames: is 2; allowed: 5 or more"):
        PhotosDataModule(folder, frames=2)


def test_without_pycolmap_nothing_is_written(
    tmp_path: Path, pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = photographed(tmp_path / "corner", pictures)
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    with pytest.raises(UserError, match=r"pip install 'nelf\[colmap\]'"):
        register_photos(folder)
    assert not list(folder.glob("*nelf*"))
