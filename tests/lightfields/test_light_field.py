"""What every light field shares, on one that has the least a light field needs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nelf.cameras import Camera
from nelf.lightfields import LightField


class Directions(LightField):
    """Draws where each ray goes."""

    def forward(self, rays_o: Tensor, rays_d: Tensor) -> Tensor:
        return rays_d.permute(0, 3, 1, 2) * 0.5 + 0.5


def test_forward_is_enough_to_render() -> None:
    camera = Camera.from_fov(torch.eye(3, 4), fov_x=2 * math.atan(0.5), width=8, height=8)
    rgb = Directions(1).render(camera).rgb
    assert rgb.shape == (8, 8, 3)
    torch.testing.assert_close(rgb[0, 0], torch.tensor([-3.5 / 8, 3.5 / 8, -1.0]) * 0.5 + 0.5)


def test_what_needs_decode_is_told_that_it_is_missing() -> None:
    with pytest.raises(
        NotImplementedError, match="Directions: export and pruning by channels need its method `decode`"
    ):
        Directions(1).decode(torch.zeros(1, 3, 2, 2))
