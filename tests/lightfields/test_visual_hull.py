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
    """Distance of each cell's centre from the origin."""
    line = ((torch.arange(cells) + 0.5) / cells * 2 - 1) * 1.5
    return torch.stack(torch.meshgrid(line, line, line, indexing="ij")).norm(dim=0)


def sphere(views: int, radius: float, alpha: bool, width: int = 96) -> Split:
    camera = Camera.from_fov(paths.hemisphere(views, 4.0, (-80.0, 80.0)), 0.8, width, width)
    rays = camera.rays()
    along = (rays.rays_o * rays.viewdirs).sum(-1)
    hit = (rays.rays_o.square().sum(-1) - along.square() < radius**2).numpy()
    rgb = np.where(hit[..., None], np.uint8(90), np.uint8(255)).repeat(3, -1)
    rgba = np.concatenate([rgb, hit[..., None] * np.uint8(255)], -1)
    return Split(camera, rgba if alpha else rgb, [str(i) for i in range(views)])


@pytest.mark.parametrize("alpha", [True, False])
def test_hull_of_a_sphere_keeps_it_and_carves_what_is_far_from_it(alpha: bool) -> None:
    hull = visual_hull(sphere(60, 0.7, alpha), BOX, 32, "white")
    distance, cell = radii(32), 3 / 32
    assert hull[distance < 0.7].all()
    assert not hull[distance > 0.7 + 3 * cell].any()
    box = tight_box(hull, BOX)
    assert (box[:3] < -0.7).all()
    assert (box[3:] > 0.7).all()
    assert box.abs().max() < 0.7 + 5 * cell


def test_nothing_is_carved_where_no_view_shows_background() -> None:
    split = sphere(4, 0.7, alpha=False)
    assert visual_hull(split, BOX, 8, "black").all()
    everything = Split(split.camera, np.full_like(split.images, 7), split.names)
    assert visual_hull(everything, BOX, 8, "white").all()


def test_tight_box_is_the_box_itself_where_nothing_is_left() -> None:
    assert torch.equal(tight_box(torch.zeros(4, 4, 4, dtype=torch.bool), BOX), BOX)


def test_axes_follow_the_scene() -> None:
    """A hull is indexed z, y, x: the sphere lies at the box's smallest x, middle y and largest z."""
    hull = visual_hull(sphere(60, 0.5, alpha=True), torch.tensor([0.0, -0.6, -1.2, 1.2, 0.6, 0.0]), 12, "white")
    z, y, x = hull.nonzero().float().mean(0).tolist()
    assert x < 4  # x and z begin and end at the centre
    assert 5 < y < 6
    assert z > 7
