"""Ray batches from a file of shuffled pixels: every pixel once a pass, rays and colors that belong together."""

from __future__ import annotations

import os
import pickle
import threading
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nelf import paths
from nelf.cameras import Camera
from nelf.data import SceneDataModule, SceneWriter, Split, read_scene, with_pseudo_views
from nelf.data.batches import Batches
from nelf.data.ray_cache import BLOCK, BUCKET, PixelFile, ShuffledSplit, shuffled
from nelf.errors import UserError

#: (views, height, width): fewer pixels than a block, some blocks, more pixels than a bucket.
SIZES = [(1, 1, 1), (5, 8, 6), (12, 40, 41), (600, 64, 65)]


def located(views: int, height: int, width: int, channels: int = 4) -> Split:
    """Views whose colors say where a pixel is: row in green, column in blue, view in red and alpha."""
    images = np.zeros((views, height, width, 4), np.uint8)
    images[..., 0] = np.arange(views)[:, None, None] % 256
    images[..., 1], images[..., 2] = np.arange(height)[:, None], np.arange(width)
    images[..., 3] = np.arange(views)[:, None, None] // 256
    camera = Camera.from_fov(paths.random_mobile_r2l(views, 4.0, seed=1), 0.7, width, height)
    return Split(camera, images[..., :channels], [f"{view:05d}" for view in range(views)])


def written(root: Path, views: int, width: int = 16) -> Path:
    """A pseudo set of random pictures."""
    camera = Camera.from_fov(paths.random_mobile_r2l(views, 4.0, seed=0), 0.7, width, width)
    writer, rng = SceneWriter(root, camera), np.random.default_rng(0)
    for view in range(views):
        writer.write(view, rng.integers(256, size=(width, width, 4), dtype=np.uint8))
    writer.finish()
    return root


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> ShuffledSplit:
    assert BUCKET < 600 * 64 * 65
    return shuffled(located(*SIZES[-1]), tmp_path_factory.mktemp("large"), "")


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_pass_has_every_pixel_once_with_its_color(size, tmp_path) -> None:
    split = shuffled(located(*size), tmp_path, "")
    total, (_, height, width) = int(np.prod(size)), size
    orders = []
    for turn in (0, 1, 7):
        places = range(turn * total, (turn + 1) * total, 100_001)
        parts = [split.file.read(first, min(100_001, (turn + 1) * total - first), 3) for first in places]
        view, row, column, rgba = (np.concatenate(part) for part in zip(*parts, strict=True))
        at = np.stack([view % 256, row, column, view // 256], -1)
        np.testing.assert_array_equal(np.round(rgba * 255), at)
        orders.append((view * height + row) * width + column)
        np.testing.assert_array_equal(np.sort(orders[-1]), np.arange(total))
    if total > 2 * BLOCK:
        other = split.file.read(0, total, 4)
        orders.append((other[0] * height + other[1]) * width + other[2])
        for index, order in enumerate(orders):
            for another in orders[:index]:
                assert (order == another).mean() < 0.01


def test_any_batch_is_a_sample_of_all_views_and_places(large: ShuffledSplit) -> None:
    """Chi-squared of views, of rows, of columns and of all three together is that of drawing at random."""
    for first, count in ((0, BLOCK), (1_000_003, BLOCK), (5 * 2_496_000 + 77, 81_920)):
        view, row, column, _ = large.file.read(first, count, 0)
        # Cells of equal size: 600 = 10 * 60 views, 64 = 8 * 8 rows, 65 = 5 * 13 columns.
        cell = (view // 60 * 8 + row // 8) * 5 + column // 13
        for values, kinds in ((view, 600), (row, 64), (column, 65), (cell, 400)):
            mean = count / kinds
            squares = ((np.bincount(values, minlength=kinds) - mean) ** 2 / mean).sum()
            assert abs(squares - (kinds - 1)) < 5 * (2 * (kinds - 1)) ** 0.5, (first, count, kinds)


def test_neighbors_in_a_batch_have_nothing_to_do_with_each_other(large: ShuffledSplit) -> None:
    drawn = np.stack(large.file.read(0, 40_000, 0)[:3]).astype(float)
    along = np.corrcoef(np.concatenate([drawn[:, 1:], drawn[:, :-1]]))
    assert np.abs(along - np.eye(6)).max() < 5 / 40_000**0.5


def test_a_ray_carries_the_color_of_its_pixel(tmp_path) -> None:
    split = located(12, 40, 41)
    batch = Batches(shuffled(split, tmp_path, ""), "rays", 500).batch(3)
    at = (batch.rgba * 255).round().long()
    rays = split.camera.rays()
    where = at[:, 0], at[:, 1], at[:, 2]
    torch.testing.assert_close(batch.rays.directions, rays.directions[where])
    torch.testing.assert_close(batch.rays.origins, rays.origins[where])
    assert len(at[:, 0].unique()) == 12


def test_a_ray_carries_the_controls_of_its_view(tmp_path) -> None:
    split = located(12, 40, 41)
    controls = torch.stack([torch.linspace(0, 1, 12), torch.linspace(0.75, 0.25, 12)], 1)
    split = replace(split, camera=replace(split.camera, controls=controls))
    batch = Batches(shuffled(split, tmp_path, ""), "rays", 500).batch(3)
    views = (batch.rgba[:, 0] * 255).round().long()
    assert len(views.unique()) == 12
    assert batch.rays.controls is not None
    assert torch.equal(batch.rays.controls, controls[views])


def test_views_without_alpha_are_opaque(tmp_path) -> None:
    rgba = shuffled(located(3, 4, 5, channels=3), tmp_path, "").rays(0, 60, 0)[1]
    assert (rgba[:, 3] == 1).all()


def test_batches_follow_each_other_and_processes_share_a_pass(tmp_path) -> None:
    split = shuffled(located(5, 8, 8), tmp_path, "")

    def pixels(*batches) -> torch.Tensor:
        return torch.cat([batch.rgba for batch in batches])

    alone = Batches(split, "rays", 32, seed=2)
    ranks = [Batches(split, "rays", 32, seed=2, rank=rank, world=2) for rank in (0, 1)]
    assert torch.equal(
        pixels(*(ranks[index % 2].batch(index // 2) for index in range(10))),
        pixels(*(alone.batch(index) for index in range(10))),
    )
    assert len(pixels(*(alone.batch(index) for index in range(10))).unique(dim=0)) == 320  # one pass
    assert torch.equal(alone.batch(4).rgba, alone.batch(4).rgba)
    assert not torch.equal(alone.batch(4).rgba, Batches(split, "rays", 32, seed=3).batch(4).rgba)


def test_one_view_for_a_batch_still_can_be_asked_for(tmp_path) -> None:
    batch = Batches(shuffled(located(5, 8, 8), tmp_path, ""), "rays", 32, sampling="same_image").batch(0)
    assert len(batch.rgba[:, 0].unique()) == 1


# ------------------------------------------------------------------------------------------- the file


def test_the_file_is_written_once_and_holds_nothing_but_colors(tmp_path) -> None:
    split = shuffled(located(12, 40, 41), tmp_path, "")
    (path,) = (tmp_path / ".nelf_cache").iterdir()
    assert path.stat().st_size < 12 * 40 * 41 * 4 + 200
    stamp = path.stat().st_mtime_ns
    again = shuffled(split, tmp_path, "")
    assert path.stat().st_mtime_ns == stamp
    assert not again.file.colors.flags.writeable
    shuffled(located(12, 40, 41), tmp_path, "", "beside other real views")
    shuffled(located(12, 41, 40), tmp_path, "")
    assert len(list((tmp_path / ".nelf_cache").iterdir())) == 3


def test_files_of_a_set_that_has_changed_are_deleted(tmp_path) -> None:
    for mark in ("", "beside other real views"):
        shuffled(located(12, 40, 41), tmp_path, "before", mark)
    other = tmp_path / ".nelf_cache" / "40x41x4_0123.npy"
    other.touch()
    changed = shuffled(located(12, 40, 41), tmp_path, "after").file.path
    assert set((tmp_path / ".nelf_cache").iterdir()) == {changed, other}


def _shorter(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _another_shape(path: Path) -> None:
    np.save(path, np.zeros((7, 4), np.uint8))


def _objects(path: Path) -> None:
    np.save(path, np.array([{}]), allow_pickle=True)


def _link(path: Path) -> None:
    elsewhere = path.parents[1] / "elsewhere.npy"
    np.save(elsewhere, np.zeros((12 * 40 * 41, 4), np.uint8))
    path.unlink()
    path.symlink_to(elsewhere)


@pytest.mark.parametrize(
    "spoil", [_shorter, _another_shape, _objects, _link, lambda path: path.write_bytes(b"no array")]
)
def test_a_file_that_is_not_what_its_name_says_is_written_anew(tmp_path, spoil) -> None:
    good = shuffled(located(12, 40, 41), tmp_path, "")
    expected, path = good.rays(0, 100, 0)[1], good.file.path
    spoil(path)
    assert torch.equal(shuffled(located(12, 40, 41), tmp_path, "").rays(0, 100, 0)[1], expected)
    assert not path.is_symlink()


def test_nothing_is_written_through_a_link_in_a_set(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / ".nelf_cache").symlink_to(tmp_path / "elsewhere")
    split = shuffled(located(5, 8, 6), tmp_path / "set", "")
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert tmp_path / "temporary" in split.file.path.parents


def test_what_is_half_written_never_gets_its_name(tmp_path) -> None:
    class Broken:
        shape = (4, 8, 6, 3)

        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> np.ndarray:
            if index == 2:
                raise UserError("00002.png: cannot be decoded")
            return np.zeros((8, 6, 3), np.uint8)

    split = located(4, 8, 6)
    split.images = Broken()  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"00002\.png"):
        shuffled(split, tmp_path, "")
    assert list((tmp_path / ".nelf_cache").iterdir()) == []


def test_of_several_at_once_one_writes_and_the_others_wait(tmp_path, monkeypatch) -> None:
    writing, write = [], PixelFile.write

    def noted(*arguments) -> None:
        writing.append(arguments)
        write(*arguments)

    monkeypatch.setattr(PixelFile, "write", staticmethod(noted))
    threads = [threading.Thread(target=shuffled, args=(located(12, 40, 41), tmp_path, "")) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(writing) == 1


def test_a_worker_process_gets_the_path_not_the_pixels(large: ShuffledSplit) -> None:
    packed = pickle.dumps(large.file)
    assert len(packed) < 1000
    np.testing.assert_array_equal(pickle.loads(packed).read(5, 50, 1)[3], large.file.read(5, 50, 1)[3])


# ------------------------------------------------------------------------------------------- a pseudo set


@pytest.mark.parametrize("real_views", [True, False])
def test_a_pseudo_set_for_rays_is_the_same_views(tiny_scene, tmp_path, real_views: bool) -> None:
    scene, root = read_scene(tiny_scene), written(tmp_path / "pseudo", 6)
    plain = with_pseudo_views(scene, root, real_views).train
    split = with_pseudo_views(scene, root, real_views, for_rays=True).train
    assert split.names == plain.names
    assert torch.equal(split.camera.c2w, plain.camera.c2w)
    for view in range(len(plain)):
        np.testing.assert_array_equal(split.images[view], plain.images[view])
    data = SceneDataModule(with_pseudo_views(scene, root, real_views, for_rays=True), batch_size=len(plain) * 256)
    drawn = (next(iter(data.train_dataloader())).rgba.numpy() * 255).round().astype(np.uint8)
    every = np.concatenate([plain.images[view].reshape(-1, 4) for view in range(len(plain))])
    np.testing.assert_array_equal(_sorted(drawn), _sorted(every))


def _sorted(pixels: np.ndarray) -> np.ndarray:
    return np.sort(np.ascontiguousarray(pixels).view(np.uint32).ravel())


def test_a_changed_image_makes_another_file(tiny_scene, tmp_path) -> None:
    scene, root = read_scene(tiny_scene), written(tmp_path / "pseudo", 3)
    first = with_pseudo_views(scene, root, for_rays=True).train
    image = root / "train" / "00001.png"
    os.utime(image, ns=(1, 1))
    second = with_pseudo_views(scene, root, for_rays=True).train
    assert first.file.path != second.file.path  # type: ignore[attr-defined]
    assert [path.exists() for path in (first.file.path, second.file.path)] == [False, True]  # type: ignore[attr-defined]


def test_memory_does_not_grow_with_the_views(tmp_path) -> None:
    """What Python and NumPy hold at most: a bucket. An image has 256 kB, a view's name, pose and path one or two."""
    scene, peaks = read_scene(written(tmp_path / "scene", 8)), {}
    scene.train.camera = scene.train.camera.resized(256)
    shuffled(located(1, 1, 1), tmp_path, "").rays(0, 1, 0)  # compiles
    for views in (36, 100):
        assert views * 256**2 > BUCKET
        writer = SceneWriter(tmp_path / str(views), scene.train.camera[torch.zeros(views, dtype=torch.long)])
        for view in range(views):
            writer.write(view, np.full((256, 256, 4), view, np.uint8))
        writer.finish()
        tracemalloc.start()
        split = with_pseudo_views(scene, writer.root, real_views=False, for_rays=True).train
        Batches(split, "rays", 4096).batch(0)
        peaks[views] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[100] - peaks[36] < 64 * 8192
