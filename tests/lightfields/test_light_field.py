"""What every light field shares, on one that has the least a light field needs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from nelf.cameras import Camera
from nelf.lightfields import LightField
from nelf.rays import Rays


class Directions(LightField):
    """Draws where each ray goes."""

    def forward(self, rays: Rays) -> Tensor:
        return rays.directions * 0.5 + 0.5


def test_forward_is_enough_to_render() -> None:
    camera = Camera.from_fov(torch.eye(3, 4), fov_x=2 * math.atan(0.5), width=8, height=8)
    rgb = Directions(1).render(camera).rgb
    assert rgb.shape == (8, 8, 3)
    torch.testing.assert_close(rgb[0, 0], torch.tensor([-3.5 / 8, 3.5 / 8, -1.0]) * 0.5 + 0.5)


def test_one_that_learned_from_corners_of_pixels_is_asked_for_them() -> None:
    """Half a pixel of an image of 4 is a whole one of 8: the first ray goes a pixel more to the left."""
    camera = Camera.from_fov(torch.eye(3, 4), fov_x=2 * math.atan(0.5), width=8, height=8)
    network = Directions(1)
    network.ray_shift = 0.5 / 4
    rgb = network.render(camera).rgb
    torch.testing.assert_close(rgb[0, 0], torch.tensor([-4.5 / 8, 4.5 / 8, -1.0]) * 0.5 + 0.5)


def test_what_needs_decode_is_told_that_it_is_missing() -> None:
    network = Directions(1)
    for name, needed in (("decode", torch.zeros(1, 3, 2, 2)), ("encode", Rays(torch.zeros(1, 3), torch.zeros(1, 3)))):
        with pytest.raises(NotImplementedError, match=f"Directions: .*`{name}`"):
            getattr(network, name)(needed)
    with pytest.raises(NotImplementedError, match=r"Directions: .*`widths`"):
        network.widths()


class Wide(LightField):
    """A network of rays with as wide an input as R2L's, and four layers."""

    batch = "rays"

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(layer for _ in range(3) for layer in (nn.LazyLinear(64), nn.ReLU())), nn.LazyLinear(3), nn.Sigmoid()
        )
        self.most = 0
        self(Rays(torch.zeros(2, 3), torch.zeros(2, 3)))

    def forward(self, rays: Rays) -> Tensor:
        self.most = max(self.most, rays.shape.numel())
        points = torch.cat([rays.origins + t * rays.directions for t in torch.linspace(2.0, 6.0, 16)], -1)
        octaves = torch.cat([points * 2.0**octave for octave in range(10)], -1)
        return self.layers(torch.cat([octaves.sin(), octaves.cos(), points], -1))


def test_rays_are_rendered_in_chunks_and_the_picture_is_the_same_for_any() -> None:
    network = Wide()
    camera = Camera.from_fov(torch.eye(3, 4), 0.7, 50, 30)
    pictures = []
    for network.chunk in (7, 400, 10_000):
        network.most = 0
        pictures.append(network.render(camera).rgb)
        assert network.most == min(network.chunk, 1500)
    assert pictures[0].shape == (30, 50, 3)
    for picture in pictures[1:]:
        torch.testing.assert_close(picture, pictures[0], atol=1e-5, rtol=0)
