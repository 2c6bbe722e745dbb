"""What lies beyond the box of a light field: a picture of all directions, without parallax."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample, interpolate

if TYPE_CHECKING:
    from nelf.lightfields.volume import SparseVolume
    from nelf.lightfields.warm_start import Looks

__all__ = ["Environment", "octahedral"]

UNSEEN = 0.5  # color of directions before anything is known of them


class Environment(nn.Module):
    """Colors by direction: a square map, onto which an octahedron of directions is unfolded.

    Args:
        resolution: texels along a side. One is about 3.5 / ``resolution`` radians wide.

    Source:
        Octahedral maps: Cigolle et al. 2014, "A Survey of Efficient Representations for Independent Unit Vectors".
    """

    def __init__(self, resolution: int) -> None:
        super().__init__()
        self.texels = nn.Parameter(torch.full((1, 3, resolution, resolution), UNSEEN))

    def forward(self, directions: Tensor) -> Tensor:
        """The colors (B, 3, h, w) in directions (B, 3, h, w) of any length."""
        at = octahedral(directions.movedim(1, -1))
        # In 32 bits as the directions are, whatever the texels are stored in.
        return grid_sample(
            self.texels.float().expand(len(at), -1, -1, -1), at, "bilinear", padding_mode="border", align_corners=False
        )

    def of_blocks(self, directions: Tensor, size: int) -> Tensor:
        """The colors (B, 3, h * size, w * size) of pixels, from the directions (B, 3, h, w) of blocks of them."""
        return self(interpolate(directions, scale_factor=float(size), mode="bilinear", align_corners=False))

    @torch.no_grad()
    def paint(self, volume: SparseVolume, looks: Looks, aabb: Tensor, step: float, min_alpha: float) -> None:
        """Take from a teacher's pictures what is missing in those of a volume; unseen directions get the mean color.

        Args:
            volume: what stands before the environment, with three colors first.
            looks: the teacher's pictures.
            aabb: (6,) the box that the volume fills.
            step: see ``nelf.kernels.lookup``.
            min_alpha: likewise.
        """
        side = self.texels.shape[-1]
        sums = torch.zeros(side * side, 4, device=aabb.device)
        for camera, picture, along in looks.beside(volume, aabb, step, min_alpha):
            rest = 1.0 - along.opacity[:, None]
            # The least squares of rgb + rest * color against the picture.
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
    """Unfold directions onto a square: +z is its middle, -z are its corners.

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
