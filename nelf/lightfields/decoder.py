"""The convolutional decoder of ``GridR2L``: its blocks, its inputs, and the window in which it has to run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, normalize, pixel_unshuffle

from nelf.encodings import spherical_harmonics
from nelf.lightfields.mobile_r2l import activation_layer

if TYPE_CHECKING:
    from nelf.kernels.lookup import RayFeatures
    from nelf.rays import Rays

__all__ = ["ResidualBlock", "decoder_inputs", "decoder_window", "whole_pixels"]


class ResidualBlock(nn.Module):
    """A residual block: 3x3 convolution, activation, 1x1 convolution."""

    def __init__(self, width: int, activation: str) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), activation_layer(activation), nn.Conv2d(width, width, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to the same shape."""
        return x + self.conv_block(x)


def decoder_inputs(rays: Rays, along: RayFeatures, sr_factor: int) -> Tensor:
    """Make the inputs of the decoder of ``GridR2L``.

    Args:
        rays: (B, H, W).
        along: C features and an opacity for each of the B * H * W rays.
        sr_factor: s, rays along one side of a block.

    Returns:
        (B, (C + 1) * s^2 + 16, H / s, W / s): composited features and opacity of the rays of each block, in the order
        of ``torch.nn.functional.pixel_unshuffle``, and the 16 spherical harmonics of its mean direction.
    """
    looked_up = torch.cat([along.features, along.opacity[:, None]], dim=-1)
    looked_up = looked_up.view(*rays.shape, -1).permute(0, 3, 1, 2)
    directions = rays.directions if rays.world_directions is None else rays.world_directions
    middle = normalize(avg_pool2d(directions.float().permute(0, 3, 1, 2), sr_factor), dim=1).permute(0, 2, 3, 1)
    harmonics = spherical_harmonics(middle.reshape(-1, 3)).view(*middle.shape[:3], -1)
    return torch.cat([pixel_unshuffle(looked_up, sr_factor), harmonics.permute(0, 3, 1, 2)], 1)


def decoder_window(opacity: Tensor, margin: int, multiple: int) -> tuple[int, int, int, int]:
    """Find the rectangle of blocks outside which the decoder's output is zero.

    Args:
        opacity: (B, s^2, h, w) of the rays of each block.
        margin: blocks added around the bounding rectangle of the opacity.
        multiple: the sides of the rectangle are rounded up to multiples of it, at most to h and w.

    Returns:
        First and last row, first and last column, the last ones exclusive; all zero if there is no opacity.
    """
    hit = (opacity > 0).flatten(0, 1).any(0)
    rows, columns = hit.any(1).nonzero()[:, 0].tolist(), hit.any(0).nonzero()[:, 0].tolist()
    if not rows:
        return 0, 0, 0, 0
    return (*_grown(rows, hit.shape[0], margin, multiple), *_grown(columns, hit.shape[1], margin, multiple))


def _grown(hit: list[int], size: int, margin: int, multiple: int) -> tuple[int, int]:
    """A range with a margin, its length rounded up to a multiple of ``multiple``, at most to ``size``."""
    first, last = max(hit[0] - margin, 0), min(hit[-1] + 1 + margin, size)
    length = min(-(-(last - first) // multiple) * multiple, size)
    first = min(first, size - length)
    return first, first + length


def whole_pixels(values: Tensor, side: int) -> tuple[int, int]:
    """The range of pixels, end exclusive, that covers some coordinates; at least one pixel, within the image."""
    first = min(max(int(values.min().floor()), 0), side - 1)
    return first, max(min(int(values.max().ceil()), side), first + 1)
