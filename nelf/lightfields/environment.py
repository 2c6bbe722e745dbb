"""An environment map for what lies beyond the box of a light field, without parallax."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample, interpolate

if TYPE_CHECKING:
    from nelf.lightfields.volume import SparseVolume
    from nelf.lightfields.warm_start import TeacherImages

__all__ = ["Environment", "octahedral"]

UNSEEN = 0.5  # initial color of all directions


class Environment(nn.Module):
    """A learned environment map: colors by direction, in octahedral projection.

    Args:
        resolution: texels along a side. A texel is about 3.5 / ``resolution`` radians wide.

    Source:
        Octahedral maps: Cigolle et al. 2014, "A Survey of Efficient Representations for Independent Unit Vectors".
    """

    def __init__(self, resolution: int) -> None:
        super().__init__()
        self.texels = nn.Parameter(torch.full((1, 3, resolution, resolution), UNSEEN))

    def forward(self, directions: Tensor) -> Tensor:
        """The colors (B, 3, h, w) of directions (B, 3, h, w) of any length."""
        at = octahedral(directions.movedim(1, -1))
        # In float32 like the directions, whatever the dtype of the texels.
        return grid_sample(
            self.texels.float().expand(len(at), -1, -1, -1), at, "bilinear", padding_mode="border", align_corners=False
        )

    def of_blocks(self, directions: Tensor, size: int) -> Tensor:
        """The colors (B, 3, h * size, w * size) of pixels, from directions (B, 3, h, w) of blocks, interpolated."""
        return self(interpolate(directions, scale_factor=float(size), mode="bilinear", align_corners=False))

    @torch.no_grad()
    def paint(self, volume: SparseVolume, images: TeacherImages, aabb: Tensor, step: float, min_alpha: float) -> None:
        """Fit the map to the teacher's images behind a volume; unseen directions get the mean color.

        Args:
            volume: what lies in front of the environment; its first three features are rgb.
            images: the teacher's images.
            aabb: (6,) the box that the volume fills.
            step: see ``nelf.kernels.lookup``.
            min_alpha: see ``nelf.kernels.lookup``.
        """
        side = self.texels.shape[-1]
        sums = torch.zeros(side * side, 4, device=aabb.device)
        for camera, picture, along in images.with_volume(volume, aabb, step, min_alpha):
            rest = 1.0 - along.opacity[:, None]
            # Least squares: rgb + rest * color = the teacher's rgb, one color for each texel.
            missing = picture.rgb.reshape(-1, 3) - along.features[:, :3]
            at = octahedral(camera.rays().directions.reshape(-1, 3))
            texel = ((at * 0.5 + 0.5) * side).long().clamp(0, side - 1)
            sums.index_add_(0, texel[:, 1] * side + texel[:, 0], torch.cat([rest * missing, rest.square()], 1))
        seen = sums[:, 3] > 1e-2
        if seen.any():
            colors = (sums[:, :3] / sums[:, 3:].clamp(min=1e-2)).clamp(0.0, 1.0)
            colors = torch.where(seen[:, None], colors, colors[seen].mean(0))
            self.texels.copy_(colors.T.view(1, 3, side, side))


def octahedral(directions: Tensor) -> Tensor:
    """Project directions onto a square by an octahedral map: +z is its center, -z its corners.

    Args:
        directions: (..., 3), any length but zero.

    Returns:
        (..., 2) in [-1, 1]: x, y.
    """
    x, y, z = (directions / directions.abs().sum(-1, keepdim=True)).unbind(-1)
    below = z < 0
    folded_x = (1.0 - y.abs()) * torch.where(x < 0, -1.0, 1.0)
    folded_y = (1.0 - x.abs()) * torch.where(y < 0, -1.0, 1.0)
    return torch.stack([torch.where(below, folded_x, x), torch.where(below, folded_y, y)], -1)
