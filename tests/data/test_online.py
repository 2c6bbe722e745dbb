"""A teacher that renders while its student learns: the views of a stored set, in their order, and then others."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from nelf.cameras import Camera
from nelf.data import ImageBatch, RayBatch, Scene, SceneDataModule, read_scene, with_pseudo_views
from nelf.data.batches import Batches
from nelf.data.online import OnlineSplit, online_views
from nelf.data.resident import on_device
from nelf.errors import UserError
from nelf.fields import NGP
from nelf.lightfields import MobileR2L
from nelf.paths import random_cameras
from nelf.pipeline.stages.pseudo import write_views
from nelf.rendering import Rendering

VIEWS = 5


class Painter:
    """Draws what it is asked for in the color of the camera's place, half transparent, and counts."""

    def __init__(self) -> None:
        self.drawn = 0

    def render(self, camera: Camera) -> Rendering:
        self.drawn += 1
        column, row = torch.meshgrid(torch.arange(camera.height), torch.arange(camera.width), indexing="ij")
        opacity = (0.2 + 0.6 * (column + row) / (camera.height + camera.width)).float()
        color = torch.sigmoid(camera.c2w[:, 3]) * (1.0 if camera.time is None else camera.time)
        return Rendering(color * opacity[..., None] + 1 - opacity[..., None], None, opacity)


@pytest.fixture
def scene(tiny_scene: Path) -> Scene:
    return read_scene(tiny_scene)


def field(scene: Scene) -> NGP:
    """A field that draws something, though it has learned nothing."""
    torch.manual_seed(0)
    ngp = NGP(levels=2, log2_table=10, finest_resolution=32, hidden=16, grid_resolution=16, max_samples=32)
    ngp.prepare(scene.geometry)
    for parameter in ngp.parameters():
        parameter.data.normal_(std=0.4)
    return ngp.eval()


def cameras(scene: Scene, number: int = 0) -> Camera:
    return random_cameras(scene.train.camera, VIEWS, seed=number)


def online(scene: Scene, teacher: object = None, **options: object) -> OnlineSplit:
    made = online_views(scene, teacher or Painter(), lambda number: cameras(scene, number), **options)  # type: ignore
    assert isinstance(made.train, OnlineSplit)
    return made.train


def equal(one: ImageBatch | RayBatch, other: ImageBatch | RayBatch) -> bool:
    if isinstance(one, RayBatch):
        return torch.equal(one.rays.origins, other.rays.origins) and torch.equal(one.rgba, other.rgba)
    return torch.equal(one.camera.c2w, other.camera.c2w) and torch.equal(one.rgba, other.rgba)


def seen(batch: ImageBatch) -> list[tuple[float, ...]]:
    """Where the cameras of a batch stand."""
    return [tuple(each) for each in batch.camera.c2w[:, :, 3].tolist()]


@pytest.mark.parametrize("real_views", [True, False])
def test_the_first_round_is_the_stored_set(scene: Scene, tmp_path: Path, real_views: bool) -> None:
    """Cameras, colors, opacity and order, to the last bit; and in the second round the teacher's views are others."""
    teacher = field(scene)
    write_views(teacher, cameras(scene), tmp_path, scene)
    stored = with_pseudo_views(scene, tmp_path, real_views).train
    made = online(scene, teacher, real_views=real_views)
    assert len(made) == len(stored) == VIEWS + real_views * len(scene.train)
    assert made.has_alpha == stored.has_alpha
    size = len(stored)
    for rank, world in ((0, 1), (0, 2), (1, 2)):
        one, other = (Batches(split, "views", 1, seed=3, rank=rank, world=world) for split in (made, stored))
        for index in range(size // world):
            batch, expected = one.batch(index), other.batch(index)
            assert equal(batch, expected)
            assert torch.equal(batch.camera.intrinsics, expected.camera.intrinsics)
    own = {tuple(each) for each in scene.train.camera.c2w[:, :, 3].tolist()}
    rounds = [
        {place for index in range(number * size, (number + 1) * size) for place in seen(one.batch(index))}
        for one in [Batches(made, "views", 1, seed=3)]
        for number in range(2)
    ]
    assert rounds[0] & rounds[1] == (own if real_views else set())
    assert len(rounds[1]) == size
    crossing = Batches(made, "views", 4, seed=3)
    together = [place for index in range(2 * size // 4) for place in seen(crossing.batch(index))]
    assert set(together[:size]) == rounds[0]
    assert set(together[size:]) <= rounds[1]


def test_a_pool_slides_over_the_sequence(scene: Scene) -> None:
    """Batch k is drawn from views k // n to k // n + K - 1, each rendered once; any batch can be the first."""
    painter = Painter()
    made = online(scene, painter, pool=4, renew_every=3)
    alone = online(scene)
    sequence = [seen(Batches(alone, "views", 1, seed=7).batch(index))[0] for index in range(40)]
    batches = Batches(made, "views", 2, seed=7)
    before = painter.drawn
    drawn = [batches.batch(index) for index in range(60)]
    for index, batch in enumerate(drawn):
        first = index // 3
        assert set(seen(batch)) <= set(sequence[first : first + 4])
    window = sequence[: 4 + 59 // 3]
    assert {place for batch in drawn for place in seen(batch)} == set(window)
    own = {tuple(each) for each in scene.train.camera.c2w[:, :, 3].tolist()}
    assert painter.drawn - before == made.rendered == sum(place not in own for place in window)
    for first in (0, 31, 59):  # as after a restart
        again = Batches(online(scene, pool=4, renew_every=3), "views", 2, seed=7, first=first)
        assert all(equal(one, other) for one, other in zip(again, drawn[first:], strict=False))


def test_processes_share_the_sequence(scene: Scene) -> None:
    alone = Batches(online(scene, real_views=False), "views", 1, seed=1)
    sequence = [seen(alone.batch(index))[0] for index in range(8)]
    pools = [online(scene, real_views=False, pool=4).window(0, 1, rank, 2) for rank in range(2)]
    places = [[tuple(each) for each in pool.camera.c2w[:, :, 3].tolist()] for pool in pools]
    assert places == [sequence[0::2], sequence[1::2]]


@pytest.mark.parametrize("pool", [None, 3])
def test_rays_have_the_colors_of_their_pixels(scene: Scene, pool: int | None) -> None:
    """Each ray goes through a pixel of a view whose picture has that color there."""
    teacher = field(scene)
    made = online(scene, teacher, for_rays=True, pool=pool, real_views=False)
    batch = Batches(made, "rays", 64, seed=2).batch(0)
    pictures = {}
    for index in range(VIEWS):
        camera = cameras(scene)[index]
        pictures[tuple(camera.c2w[:, 3].tolist())] = camera.rays(), teacher.render(camera).rgba(torch.ones(3))
    views = set()
    for ray, rgba in zip((batch.rays[index] for index in range(64)), batch.rgba, strict=True):
        place = tuple(ray.origins.tolist())
        rays, picture = pictures[place]
        row, column = np.unravel_index(int((rays.directions - ray.directions).norm(dim=-1).argmin()), (16, 16))
        torch.testing.assert_close(rays.directions[row, column], ray.directions)
        # Colors of what is hardly there are divided by almost nothing.
        weight = picture[row, column, 3]
        torch.testing.assert_close(rgba[3], weight, atol=0.51 / 255 if pool else 1e-5, rtol=0)
        error = (rgba[:3] - picture[row, column, :3]).abs().max()
        assert error * weight < (0.51 / 255 if pool else 1e-5)
        views.add(place)
    assert len(views) == (pool or VIEWS)
    assert made.rendered == (pool or pytest.approx(64 / 16**2))


def test_single_rays_come_from_the_scenes_views_too_and_later_from_other_poses(scene: Scene) -> None:
    made = online(scene, field(scene), for_rays=True)
    share = VIEWS / (VIEWS + len(scene.train))
    batches = Batches(made, "rays", 2048, seed=2)
    first = batches.batch(0)
    own = {tuple(each) for each in scene.train.camera.c2w[:, :, 3].tolist()}
    real = np.array([tuple(each) in own for each in first.rays.origins.tolist()])
    assert abs((1 - real.mean()) - share) < 4 * (share * (1 - share) / 2048) ** 0.5
    found = [{tuple(each) for each in batches.batch(index).rays.origins.tolist()} - own for index in range(3)]
    assert found[0] == found[1] == {tuple(each) for each in cameras(scene).c2w[:, :, 3].tolist()}
    assert found[2] == {tuple(each) for each in cameras(scene, 1).c2w[:, :, 3].tolist()}  # 3328 pixels are a round


@pytest.mark.parametrize("pool", [None, 4])
def test_every_view_is_of_its_own_moment(scene: Scene, pool: int | None) -> None:
    times = torch.linspace(0.2, 1.0, len(scene.train))[:, None]
    moving = replace(scene, train=replace(scene.train, camera=replace(scene.train.camera, controls=times)))
    made = online(moving, pool=pool, real_views=False)
    for index in range(4):
        camera, rgba, _ = Batches(made, "views", 1).batch(index)
        color = (torch.sigmoid(camera.c2w[0, :, 3]) * camera.time[0] * 255).round()
        assert (rgba[0, 8, 8, :3].float() - color).abs().max() <= 1.0


def test_masks_travel_with_the_scenes_own_views(scene: Scene) -> None:
    mask = np.ones((16, 16), bool)
    mask[:, :9] = False
    masked = replace(scene, train=replace(scene.train, masks=[mask] * len(scene.train)))
    made = online(masked, pool=VIEWS + 8)
    batch = Batches(made, "views", VIEWS + 8).batch(0)
    counts = sorted(batch.mask.flatten(1).sum(1).tolist())
    assert counts == [16 * 7] * 8 + [256] * VIEWS
    rays = Batches(made, "rays", 256).batch(0)
    real = torch.tensor([tuple(each) in set(seen(batch)) for each in rays.rays.origins.tolist()])
    assert real.all()


def test_the_rays_of_a_student_are_shifted_and_the_teachers_are_not(scene: Scene) -> None:
    data = SceneDataModule(replace(scene, train=online(scene, pool=3)), batch="views", batch_size=3, ray_shift=1 / 32)
    plain = SceneDataModule(replace(scene, train=online(scene, pool=3)), batch="views", batch_size=3)
    shifted, batch = (next(iter(each.train_dataloader())) for each in (data, plain))
    assert torch.equal(shifted.rgba, batch.rgba)
    torch.testing.assert_close(shifted.camera.intrinsics[:, 2:], batch.camera.intrinsics[:, 2:] + 0.5)


def test_what_draws_whole_views_only_needs_a_pool_for_rays(scene: Scene) -> None:
    network = MobileR2L(width=8, depth=4, sr_factor=4, sr_kernels=(8, 8)).eval()
    with pytest.raises(UserError, match=r"stage\.pseudo\.pool: is null, but MobileR2L draws whole views only"):
        online(scene, network, for_rays=True)
    made = online(scene, network, for_rays=True, pool=2, real_views=False)
    batch = Batches(made, "rays", 16).batch(0)
    assert (batch.rgba[:, 3] == 1).all()  # it has no opacity


def test_views_on_a_device_give_the_same_batches(scene: Scene) -> None:
    own = on_device(scene.train, torch.device("cpu"))
    for kind, sampling in (("rays", "all_images"), ("rays", "same_image"), ("views", "all_images")):
        one, other = (Batches(split, kind, 9, sampling=sampling, seed=5) for split in (own, scene.train))
        assert all(equal(one.batch(index), other.batch(index)) for index in range(3))


def test_the_order_of_pools_is_even(scene: Scene) -> None:
    """Between two renewals each view of a pool is drawn equally often."""
    made = online(scene, pool=4, renew_every=8)
    batches = Batches(made, "views", 1)
    drawn = [seen(batches.batch(index))[0] for index in range(8)]
    assert sorted(drawn.count(place) for place in set(drawn)) == [2, 2, 2, 2]
    assert all(set(one) != set(other) for one, other in pairwise([drawn[:1], drawn[1:2]]))
