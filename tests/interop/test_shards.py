"""Shards of rays: which rays a batch has, and which files are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nelf.errors import UserError
from nelf.interop.shards import R2LShardsDataModule, RayShards


def shard(path: Path, rows: int, columns: int = 9, first: int = 0, dtype: Any = np.float32) -> np.ndarray:
    """Rows in which column c of ray r is r + c / 100; r counts on from file to file."""
    values = np.arange(first, first + rows)[:, None] + np.arange(columns)[None] / 100
    np.save(path, values.astype(dtype))
    return values


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three files of 5, 5 and 3 rays; the tenth is not before the second."""
    for name, rows, first in (("data_1", 5, 0), ("data_2", 5, 5), ("train_10", 3, 10)):
        shard(tmp_path / f"{name}.npy", rows, first=first)
    return tmp_path


def which(batch: Any) -> list[int]:
    """The rays in a batch, by their number."""
    return batch.rays.origins[:, 0].round().int().tolist()


def test_each_pass_has_every_ray_once_and_another_order(folder) -> None:
    shards = RayShards(folder, 4, seed=1)
    assert len(shards) == 13
    drawn = [ray for index in range(13) for ray in which(shards.batch(index))]
    passes = [drawn[start : start + 13] for start in range(0, 52, 13)]
    assert all(sorted(rays) == list(range(13)) for rays in passes)
    assert len({tuple(rays) for rays in passes}) > 1


def test_a_batch_depends_on_seed_and_index_alone(folder) -> None:
    batches = [which(RayShards(folder, 4, seed=3).batch(index)) for index in range(9)]
    shards = RayShards(folder, 4, seed=3)
    assert [which(shards.batch(index)) for index in reversed(range(9))] == batches[::-1]
    stream = iter(RayShards(folder, 4, seed=3, first=2))
    assert [which(next(stream)) for _ in range(3)] == batches[2:5]
    assert [which(RayShards(folder, 4, seed=4).batch(index)) for index in range(9)] != batches
    two = [which(RayShards(folder, 4, seed=3, rank=index % 2, world=2).batch(index // 2)) for index in range(8)]
    assert two == batches[:8]  # processes share a pass


def test_columns_become_rays_and_colors(folder, tmp_path) -> None:
    batch = RayShards(folder, 2).batch(0)
    ray = batch.rays.origins[:, :1].round()
    assert torch.allclose(batch.rays.origins - ray, torch.tensor([0.0, 0.01, 0.02]), atol=1e-5)
    assert torch.allclose(batch.rays.directions - ray, torch.tensor([0.03, 0.04, 0.05]), atol=1e-5)
    assert torch.allclose(batch.rgba[:, :3] - ray, torch.tensor([0.06, 0.07, 0.08]), atol=1e-5)
    assert batch.rgba[:, 3].tolist() == [1.0, 1.0]
    assert batch.rays.controls is None
    assert batch.rgba.dtype == batch.rays.origins.dtype == torch.float32


@pytest.mark.parametrize(("dtype", "columns", "layout"), [(np.float32, 10, None), (np.float64, 12, "surface")])
def test_further_columns_are_left_out(tmp_path, dtype, columns, layout) -> None:
    shard(tmp_path / "data_1.npy", 4, columns, dtype=dtype)
    batch = RayShards(tmp_path, 4, layout).batch(0)
    assert batch.rgba.dtype == torch.float32
    assert torch.allclose(batch.rgba[0, :3], torch.tensor([0.06, 0.07, 0.08]))


def test_twelve_columns_are_never_guessed(tmp_path) -> None:
    rows = shard(tmp_path / "data_1.npy", 4, 12)
    with pytest.raises(UserError, match=r"12 columns: surface .* or time .*are not equal in every row, as in R2L's"):
        RayShards(tmp_path, 2)
    with pytest.raises(UserError, match="holds no time"):
        RayShards(tmp_path, 2, "time")
    rows[:, 6:9] = np.linspace(0, 1, 4)[:, None]
    np.save(tmp_path / "data_1.npy", rows)
    with pytest.raises(UserError, match=r"are equal in every row, as in DyLiN's\. Say which by layout="):
        RayShards(tmp_path, 2)
    batch = RayShards(tmp_path, 4, "time").batch(0)
    assert torch.allclose(batch.rays.controls, torch.linspace(0, 1, 4)[:, None])
    assert torch.allclose(batch.rgba[0, :3], torch.tensor([0.09, 0.10, 0.11]))


def test_real_rays_of_dylin_are_read_in_64_bits(tmp_path) -> None:
    """``train_N.npy``: o, d, three times the time, rgb; of HyperNeRF scenes, float64 and unit directions."""
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.normal(size=(40, 6)), rng.random((40, 1)).repeat(3, 1), rng.random((40, 3))], 1)
    rows[:, 3:6] /= np.linalg.norm(rows[:, 3:6], axis=1, keepdims=True)
    for number, part in enumerate(np.split(rows, [15, 30]), start=1):
        np.save(tmp_path / f"train_{number}.npy", part)
    batch = RayShards(tmp_path, 40, "time").batch(0)
    controls = batch.rays.controls
    assert controls is not None
    found = torch.cat([batch.rays.origins, batch.rays.directions, controls, batch.rgba], 1)
    assert found.dtype == torch.float32
    expected = np.concatenate([rows[:, :7], rows[:, 9:], np.ones((40, 1))], 1).astype(np.float32)
    order = [np.lexsort(values.T) for values in (found.numpy(), expected)]
    np.testing.assert_array_equal(found.numpy()[order[0]], expected[order[1]])


def test_files_that_are_no_shards_are_named(tmp_path) -> None:
    with pytest.raises(UserError, match=r"holds no \.npy files"):
        RayShards(tmp_path, 2)
    path = tmp_path / "data_1.npy"
    shard(path, 4, 7)
    with pytest.raises(UserError, match=r"data_1\.npy: has 7 columns; expected 9, 10 or 12"):
        RayShards(tmp_path, 2)
    shard(path, 4)
    with pytest.raises(UserError, match="has 9 columns; expected 12 for layout time"):
        RayShards(tmp_path, 2, "time")
    with pytest.raises(UserError, match=r"there is no 'tmie'; allowed: .* Did you mean 'time'"):
        RayShards(tmp_path, 2, "tmie")  # type: ignore[arg-type]
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="is not whole, or no array"):
        RayShards(tmp_path, 2)
    np.save(path, np.zeros((4, 9), np.int32))
    with pytest.raises(UserError, match=r"holds int32 of shape .*; allowed: \(N, N\) floating-point numbers"):
        RayShards(tmp_path, 2)
    shard(path, 4)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match="is not whole, or no array"):
        RayShards(tmp_path, 2)


def test_a_later_file_is_checked_when_it_is_read(folder) -> None:
    whole = (folder / "data_2.npy").read_bytes()
    (folder / "data_2.npy").write_bytes(whole[:-4])
    with pytest.raises(UserError, match=r"data_2\.npy: is not whole, or not of 9 columns as data_1\.npy is"):
        RayShards(folder, 4)
    shard(folder / "data_2.npy", 9, 5)  # as many bytes
    shards = RayShards(folder, 13)
    with pytest.raises(UserError, match=r"data_2\.npy: holds float32 of shape \(9, 5\); allowed: \(5, 9\)"):
        shards.batch(0)
    rows = np.zeros((5, 9), np.float32)
    rows[3, 7] = np.nan
    np.save(folder / "data_2.npy", rows)
    with pytest.raises(UserError, match=r"data_2\.npy: holds numbers that are not finite"):
        RayShards(folder, 13).batch(0)


def test_a_datamodule_draws_from_them_and_looks_at_a_shifted_scene(folder, tiny_scene) -> None:
    data = R2LShardsDataModule(tiny_scene, shards=folder, shard_width=8, batch="rays", batch_size=4)
    assert which(next(iter(data.train_dataloader()))) == which(RayShards(folder, 4).batch(0))
    view = data.scene.val[0]
    centered = view.camera.intrinsics[2:]
    assert centered.tolist() == [8.0 + 1.0, 8.0 + 1.0]  # half a pixel of 8 is a pixel of 16
    data = R2LShardsDataModule(tiny_scene, shards=folder, batch="views")
    with pytest.raises(UserError, match="holds single rays, but this network learns from views; choose r2l"):
        data.train_dataloader()
