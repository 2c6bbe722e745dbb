"""The visual hull of spheres whose silhouettes are known."""

import numpy as np
import pytest
import torch

from nelf import paths
from nelf.cameras import Camera
from nelf.data import Split
from nelf.lightfields.visual_hull import tight_box, visual_hull

BOX = torch.tensor([-1.5, -1.5, -1.5, 1.5, 1.5, 1.5])


def radii(cells: int) -> torch.Tensor:
    """Distance of each cell's center from the origin."""
    line = ((torch.arange(cells) + 0.5) / cells * 2 - 1) * 1.5
    return torch.stack(torch.meshgrid(line, line, line, indexing="ij")).norm(dim=0)


def hull_of(split: Split, box: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    silhouettes = split.silhouettes()
    return candidates if silhouettes is None else visual_hull(silhouettes, box, candidates)


def sphere(views: int, radius: float, alpha: bool, width: int = 96) -> Split:
    camera = Camera.from_fov(paths.hemisphere(views, 4.0, (-80.0, 80.0)), 0.8, width, width)
    rays = camera.rays()
    along = (rays.origins * rays.viewdirs).sum(-1)
    hit = (rays.origins.square().sum(-1) - along.square() < radius**2).numpy()
    rgb = np.where(hit[..., None], np.uint8(90), np.uint8(255)).repeat(3, -1)
    rgba = np.concatenate([rgb, hit[..., None] * np.uint8(255)], -1)
    return Split(camera, rgba if alpha else rgb, [str(i) for i in range(views)])


def cells(*shape: int) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.bool)


@pytest.mark.parametrize("fog", [0, 10])
def test_hull_of_a_sphere_keeps_it_and_carves_what_is_far_from_it(fog: int) -> None:
    split = sphere(60, 0.7, alpha=True)
    split.images[..., 3] = np.maximum(split.images[..., 3], fog)  # as a teacher leaves it
    hull = hull_of(split, BOX, cells(32, 32, 32))
    distance, cell = radii(32), 3 / 32
    assert hull[distance < 0.7].all()
    assert not hull[distance > 0.7 + 3 * cell].any()
    box = tight_box(hull, BOX)
    assert (box[:3] < -0.7).all()
    assert (box[3:] > 0.7).all()
    assert box.abs().max() < 0.7 + 5 * cell


def test_opaque_pictures_carve_nothing() -> None:
    """White in them may be an object."""
    assert sphere(4, 0.7, alpha=False).silhouettes() is None
    opaque = sphere(4, 0.7, alpha=False)
    assert hull_of(opaque, BOX, cells(8, 8, 8)).all()
    rgba = np.concatenate([opaque.images, np.full_like(opaque.images[..., :1], 255)], -1)
    assert hull_of(Split(opaque.camera, rgba, opaque.names), BOX, cells(8, 8, 8)).all()
    rgba[0, ..., 3] = 0  # one of the views sees past everything: it does carve
    assert not hull_of(Split(opaque.camera, rgba, opaque.names), BOX, cells(8, 8, 8)).all()


def test_only_candidates_stay() -> None:
    split, candidates = sphere(8, 0.7, alpha=True), torch.rand(9, 10, 11) > 0.5
    everywhere, hull = hull_of(split, BOX, cells(9, 10, 11)), hull_of(split, BOX, candidates)
    assert 0 < int(hull.sum()) < int(everywhere.sum()) < everywhere.numel()
    assert not (hull & ~candidates).any()
    assert hull[4, 5, 5] == candidates[4, 5, 5]  # in the middle of the sphere
    candidates[4, 5, 5] = ~candidates[4, 5, 5]
    assert hull_of(split, BOX, candidates)[4, 5, 5] == candidates[4, 5, 5]
    assert not hull_of(split, BOX, ~cells(3, 4, 5)).any()


def test_tight_box_is_the_box_itself_where_nothing_is_left() -> None:
    assert torch.equal(tight_box(torch.zeros(4, 4, 4, dtype=torch.bool), BOX), BOX)


def test_axes_follow_the_scene() -> None:
    """A hull is indexed z, y, x: the sphere lies at the box's smallest x, middle y and largest z."""
    hull = hull_of(sphere(60, 0.5, alpha=True), torch.tensor([0.0, -0.6, -1.2, 1.2, 0.6, 0.0]), cells(12, 12, 12))
    z, y, x = hull.nonzero().float().mean(0).tolist()
    assert x < 4  # x and z begin and end at the center
    assert 5 < y < 6
    assert z > 7
