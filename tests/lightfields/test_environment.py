"""What is behind a volume: directions on a map, and a light field that draws them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from nelf import paths
from nelf.cameras import Camera
from nelf.lightfields import GridR2L
from nelf.lightfields.environment import Environment, octahedral
from nelf.rays import Rays
from nelf.rendering import Rendering
from nelf.scene import Geometry


def direction_of(at: np.ndarray) -> np.ndarray:
    """The unit direction (..., 3) at a place (..., 2) of the map: fold the corners of the square below."""
    u, v = np.moveaxis(at.astype(np.float64), -1, 0)
    z = 1 - np.abs(u) - np.abs(v)
    beyond = np.maximum(-z, 0)
    x, y = u - np.sign(u) * beyond, v - np.sign(v) * beyond
    vector = np.stack([x, y, z], -1)
    return vector / np.linalg.norm(vector, axis=-1, keepdims=True)


def sky(directions: Tensor) -> Tensor:
    """A smooth color (..., 3) for each direction."""
    return 0.5 + 0.5 * normalize(directions, dim=-1)


def painted(environment: Environment) -> None:
    side = environment.texels.shape[-1]
    centers = (np.arange(side) + 0.5) / side * 2 - 1
    at = np.stack(np.meshgrid(centers, centers), -1)  # rows are v
    with torch.no_grad():
        environment.texels.copy_(sky(torch.from_numpy(direction_of(at)).float()).movedim(-1, 0)[None])


def around(count: int, distance: float = 2.0) -> Camera:
    """Cameras around the origin, outside of the box of half-size 0.5."""
    c2w = paths.hemisphere(count, distance, (-60.0, 60.0))
    return Camera.from_fov(c2w, 0.9, 32, 24)


class Ball:
    """A teacher: a red ball of radius 0.4 in front of a sky, which is at infinity."""

    def sigma(self, positions: Tensor) -> Tensor:
        return (positions.norm(dim=-1) < 0.4) * 200.0

    def rgb(self, positions: Tensor, viewdirs: Tensor) -> Tensor:
        return positions.new_tensor([0.9, 0.1, 0.1]).expand(len(positions), 3)

    def render(self, camera: Camera) -> Rendering:
        rays = camera.rays()
        d = rays.viewdirs
        middle = -(rays.origins * d).sum(-1)
        hit = (rays.origins.square().sum(-1) - middle.square()).sqrt() < 0.4
        red = d.new_tensor([0.9, 0.1, 0.1])
        depth = torch.where(hit, middle, 50.0)  # the sky is far outside of the box
        return Rendering(torch.where(hit[..., None], red, sky(d)), depth, torch.ones_like(depth))


def test_directions_unfold_as_the_square_folds() -> None:
    axes = torch.tensor([[0.0, 0, 1], [2, 0, 0], [0, 3, 0], [-1, 0, 0], [0, -1, 0]])
    assert octahedral(axes).tolist() == [[0, 0], [1, 0], [0, 1], [-1, 0], [0, -1]]
    assert octahedral(torch.tensor([0.0, 0, -1])).abs().tolist() == [1, 1]
    directions = normalize(torch.randn(500, 3), dim=-1)
    at = octahedral(directions)
    assert at.abs().max() <= 1
    np.testing.assert_allclose(direction_of(at.numpy()), directions, atol=1e-5)


def test_an_empty_volume_shows_each_pixel_its_direction() -> None:
    """The decoder is told of blocks only: it finds the directions of pixels between them."""
    network = GridR2L(width=8, resolution=8, sr_factor=2, environment=256).eval()
    network.low_precision = False
    torch.nn.init.constant_(network.volume.density, -20.0)
    assert network.environment is not None
    painted(network.environment)
    cameras = around(6)
    for camera in (cameras[index] for index in range(6)):
        picture = network.render(camera)
        assert picture.opacity is None
        assert (picture.rgb - sky(camera.rays().directions))[1:-1, 1:-1].abs().max() < 0.01


def geometry() -> Geometry:
    box = torch.tensor([-0.5, -0.5, -0.5, 0.5, 0.5, 0.5])
    return Geometry(box, 0.5, 100.0, around(40), torch.ones(3))


def test_it_starts_with_what_its_teacher_shows_beyond_the_box() -> None:
    network = GridR2L(width=8, resolution=24, environment=32)
    network.prepare(geometry(), None, Ball())
    picture, expected = (each.render(around(7)[3]).rgb for each in (network, Ball()))
    error = (picture - expected).abs().mean(-1)
    red = (expected - expected.new_tensor([0.9, 0.1, 0.1])).abs().amax(-1) < 1e-3
    assert float(error[~red].mean()) < 0.05
    assert float(error[red].mean()) < 0.1


def test_the_volume_reaches_as_many_boxes_as_it_is_told() -> None:
    """Matter all over: the box of the volume is three times the scene's, about the same center."""

    class Fog:
        def sigma(self, positions: Tensor) -> Tensor:
            return torch.full_like(positions[:, 0], 0.5)

    network = GridR2L(width=8, resolution=32, environment=8, reach=3.0)
    network.prepare(geometry(), None, Fog())
    torch.testing.assert_close(network.aabb, torch.tensor([-1.5, -1.5, -1.5, 1.5, 1.5, 1.5]), atol=0.1, rtol=0)


def test_every_parameter_of_it_learns() -> None:
    network = GridR2L(width=8, resolution=8, environment=4).train()
    grown = {id(each) for group in network.parameter_groups(1e-3, 0.1) for each in group["params"]}
    assert grown == {id(each) for each in network.parameters()}
    d = normalize(torch.randn(1, 64, 64, 3), dim=-1)
    network(Rays(torch.zeros_like(d), d)).square().sum().backward()
    assert network.environment is not None
    assert (network.environment.texels.grad != 0).any(1).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"environment": -1}, "`environment` to be 0 or more, but got -1"),
        ({"reach": 2.0}, "`reach` to be 1, or more with an environment, but got 2.0"),
        ({"reach": 0.5, "environment": 8}, "`reach` to be 1, or more with an environment, but got 0.5"),
    ],
)
def test_what_is_not_allowed_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GridR2L(**arguments)
