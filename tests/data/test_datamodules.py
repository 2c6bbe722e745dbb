import itertools
import sys

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from nelf.data import BlenderDataModule, DemoDataModule, ImageBatch, RayBatch, View, composite_background
from nelf.data.batches import Batches, sample_rays
from nelf.errors import UserError


@pytest.fixture(scope="module")
def module(tiny_scene):
    return BlenderDataModule(tiny_scene, batch_size=64)


def take(loader, n):
    return list(itertools.islice(iter(loader), n))


class Probe(pl.LightningModule):
    """Remembers what it is given."""

    def __init__(self):
        super().__init__()
        self.seen, self.looked_at = [], []
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch, index):
        self.seen.append(batch)
        return self.weight * 1.0

    def validation_step(self, batch, index):
        self.looked_at.append(batch)

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(probe, data, steps, tmp_path, checkpoint=None):
    trainer = pl.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_checkpointing=False, enable_model_summary=False, default_root_dir=tmp_path,
        num_sanity_val_steps=0, val_check_interval=1000, check_val_every_n_epoch=None,
    )  # fmt: skip
    trainer.fit(probe, data, ckpt_path=checkpoint, weights_only=True)
    return trainer


def test_rays_of_a_model_that_learned_from_corners_go_through_them(tiny_scene):
    """They meet the image in the upper left corners of the pixels whose colors they carry."""
    width = 16
    data = BlenderDataModule(tiny_scene, batch_size=200, ray_shift=0.5 / width)
    split, batch = data.scene.train, take(data.train_dataloader(), 1)[0]
    assert torch.equal(split.camera.intrinsics[:, 2:], torch.full((8, 2), width / 2))  # the scene is as it was
    for ray in range(200):
        rays_o, rays_d = batch.rays.origins[ray], batch.rays.directions[ray]
        view = int((split.camera.c2w[:, :, 3] - rays_o).norm(dim=-1).argmin())
        x, y, _ = (float(value) for value in split.camera[view].project((rays_o + rays_d)[None]))
        column, row = round(x), round(y)
        assert (x, y) == pytest.approx((column, row), abs=1e-3)
        pixel = split.images[view, row, column] / 255
        assert batch.rgba[ray].tolist() == pytest.approx(pixel.tolist(), abs=1e-6)


@pytest.mark.parametrize("sampling", ["all_images", "same_image"])
def test_a_ray_carries_the_color_of_its_pixel(tiny_scene, sampling):
    split = BlenderDataModule(tiny_scene).scene.train
    batch = sample_rays(split, 500, np.random.default_rng(0), sampling)
    assert batch.rgba.shape == (500, 4)
    assert batch.rays.time is None
    # Every ray of the split by the whole-image path; the nearest one is the pixel that was drawn.
    rays = split.camera.rays()
    every = torch.cat([rays.origins, rays.directions], -1).reshape(-1, 6).double()
    drawn = torch.cat([batch.rays.origins, batch.rays.directions], -1).double()
    distance, pixel = torch.cdist(drawn, every).min(1)
    assert distance.max() < 1e-3
    torch.testing.assert_close(batch.rgba, torch.from_numpy(split.images.reshape(-1, 4))[pixel] / 255)
    assert len((pixel // 256).unique()) == (8 if sampling == "all_images" else 1)


def test_rays_are_drawn_from_everywhere_alike(tiny_scene):
    split = BlenderDataModule(tiny_scene).scene.train
    batch = sample_rays(split, 40_000, np.random.default_rng(0))
    share = composite_background(batch.rgba, "black").mean()
    truth = composite_background(torch.from_numpy(split.images).float() / 255, "black").mean()
    assert abs(share - truth) < 0.005


def test_images_without_alpha_are_opaque(tiny_scene):
    split = BlenderDataModule(tiny_scene).scene.train
    split.images = np.ascontiguousarray(split.images[..., :3])
    assert (sample_rays(split, 10, np.random.default_rng(0)).rgba[:, 3] == 1).all()
    assert (Batches(split, "views", 2).batch(0).rgba[..., 3] == 255).all()


def test_views_come_in_a_new_permutation_each_pass(tiny_scene):
    split = BlenderDataModule(tiny_scene).scene.train
    stream = Batches(split, "views", 3, seed=5)
    drawn = torch.cat([batch.camera.c2w for batch in take(stream, 8)])  # 24 views: three passes over 8
    order = torch.cdist(drawn.flatten(1), split.camera.c2w.flatten(1)).argmin(1).reshape(3, 8)
    assert (order.sort(1).values == torch.arange(8)).all()
    assert len({tuple(row.tolist()) for row in order}) == 3
    batch = stream.batch(0)
    np.testing.assert_array_equal(batch.rgba.numpy(), split.images[order[0, :3].numpy()])


def test_processes_share_a_pass(tiny_scene):
    split = BlenderDataModule(tiny_scene).scene.train
    views = [Batches(split, "views", 2, rank=rank, world=2).batch(index) for rank in (0, 1) for index in (0, 1)]
    assert len(torch.cat([batch.camera.c2w for batch in views]).flatten(1).unique(dim=0)) == 8


@pytest.mark.parametrize("kind", ["rays", "views"])
def test_batches_are_the_same_ones_for_any_number_of_processes(tiny_scene, kind):
    def drawn(world: int) -> list[torch.Tensor]:
        split = BlenderDataModule(tiny_scene).scene.train
        streams = [Batches(split, kind, 5, seed=3, rank=rank, world=world) for rank in range(world)]
        batches = [stream.batch(index) for index in range(12 // world) for stream in streams]
        return [batch.rgba.float() for batch in batches]

    alone = drawn(1)
    assert not torch.equal(alone[0], alone[1])
    for world in (2, 3):
        assert all(torch.equal(*pair) for pair in zip(alone, drawn(world), strict=True))


@pytest.mark.parametrize("kind", ["rays", "views"])
def test_workers_do_not_change_the_batches(tiny_scene, kind):
    alone = BlenderDataModule(tiny_scene, batch=kind, batch_size=2)
    shared = BlenderDataModule(tiny_scene, batch=kind, batch_size=2, num_workers=2)
    for a, b in zip(take(alone.train_dataloader(), 5), take(shared.train_dataloader(), 5), strict=True):
        first, second = (a.rays.directions, b.rays.directions) if kind == "rays" else (a.rgba, b.rgba)
        assert torch.equal(first, second)


def test_a_resumed_run_goes_on_where_it_stopped(tiny_scene, tmp_path):
    def fresh():
        return BlenderDataModule(tiny_scene, batch_size=16)

    whole, first, second = Probe(), Probe(), Probe()
    fit(whole, fresh(), 6, tmp_path)
    fit(first, fresh(), 4, tmp_path).save_checkpoint(tmp_path / "a.ckpt")
    fit(second, fresh(), 6, tmp_path, tmp_path / "a.ckpt")
    assert len(second.seen) == 2
    for a, b in zip(whole.seen, first.seen + second.seen, strict=True):
        assert torch.equal(a.rays.directions, b.rays.directions)


@pytest.mark.parametrize(("kind", "batch"), [("rays", RayBatch), ("views", ImageBatch)])
def test_batches_are_what_was_asked_for(tiny_scene, tmp_path, kind, batch):
    probe = Probe()
    data = BlenderDataModule(tiny_scene, batch=kind, batch_size=16)
    trainer = fit(probe, data, 2, tmp_path)
    assert {type(seen) for seen in probe.seen} == {batch}
    trainer.test(probe, data, verbose=False)
    assert [type(view) for view in probe.looked_at] == [View, View]
    np.testing.assert_array_equal(probe.looked_at[1].image, data.scene.test.images[1])
    assert [view.name for view in data.val_dataloader()] == data.scene.val.names


@pytest.mark.parametrize("sampling", ["all_images", "same_image"])
def test_sampling_makes_no_call_per_ray(tiny_scene, sampling):
    """A batch is drawn in whole arrays: as many calls for 8192 rays as for 16."""
    split = BlenderDataModule(tiny_scene).scene.train
    rng = np.random.default_rng(0)

    def calls(n_rays):
        counted = []
        sys.setprofile(lambda frame, event, argument: counted.append(event) if event in ("call", "c_call") else None)
        try:
            sample_rays(split, n_rays, rng, sampling)
        finally:
            sys.setprofile(None)
        return len(counted)

    calls(4)  # imports and caches
    assert calls(8192) == calls(16) < 500


BAD = {
    "batch_size": (0, r"data\.batch_size: is 0; allowed: 1 or more"),
    "width": (0, r"data\.width: is 0; allowed: 1 or more, or null"),
    "num_workers": (-1, r"data\.num_workers: is -1"),
    "sampling": (
        "all_image",
        r"data\.sampling: is 'all_image'; allowed: all_images, same_image\. Did you mean",
    ),
    "batch": ("ray", r"data\.batch: is 'ray'; allowed: rays, views"),
    "background": ("gray", r"data\.background: unknown background 'gray'; allowed: white, black"),
}


@pytest.mark.parametrize("key", BAD)
def test_bad_arguments_are_refused_before_anything_is_read(key):
    value, message = BAD[key]
    with pytest.raises(UserError, match=message):
        BlenderDataModule("nowhere", **{key: value})


def test_the_demo_is_written_once_and_read(tmp_path, monkeypatch):
    monkeypatch.setenv("NELF_CACHE", str(tmp_path))
    scene = DemoDataModule(width=16, background="black").scene
    assert (len(scene.train), len(scene.val), len(scene.test)) == (100, 10, 25)
    assert scene.train.images.shape == (100, 16, 16, 4)
    assert scene.background == "black"
    stamp = (tmp_path / "demo" / "blocks_16" / "transforms_train.json").stat().st_mtime_ns
    assert DemoDataModule(width=16).scene.digest == scene.digest
    assert (tmp_path / "demo" / "blocks_16" / "transforms_train.json").stat().st_mtime_ns == stamp
    with pytest.raises(UserError, match=r"data\.scene: is 'block'; allowed: blocks, .*\. Did you mean 'blocks'\?"):
        DemoDataModule(scene="block")


def test_a_built_in_scene_brings_its_background_and_its_kind_of_pictures(tmp_path, monkeypatch):
    monkeypatch.setenv("NELF_CACHE", str(tmp_path))
    assert DemoDataModule(scene="chess", width=8).scene.background == "black"
    village = DemoDataModule(scene="village", width=8).scene
    assert village.background == "white"
    assert village.train.images.shape == (100, 8, 8, 3)
    assert (village.train.images[:, 0, 0] == 255).all()
