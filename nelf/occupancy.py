"""The occupancy grid: which cells of the scene may hold matter, learned along with the field."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from nelf.cameras import Camera


class OccupancyGrid(nn.Module):
    """Densities seen in the cells of nested cubes, and the cells that are dense enough to be sampled.

    Cascade ``c`` covers the cube of half-size ``min(2**(c - 1), extent)`` round the origin with ``resolution**3``
    cells. Cells that no training camera sees hold -1 and are never revived.

    Args:
        resolution: cells along a side.
        extent: half-size of the outermost cube, in the field's units; the scene's box has half-size 0.5.
        threshold: the density above which a cell always counts as occupied; where the mean density is lower, that.
        decay: a cell's density fades by this factor at each update unless it is seen again.
        cells_per_update: how many cells are looked at in an update, half of them anywhere, half of them where
            matter is known; None is half of all cells, and all of them while warming up, as Instant-NGP does.

    Source:
        Instant-NGP, appendix C (arXiv 2201.05989).
    """

    density: Tensor
    occupied: Tensor

    def __init__(
        self,
        resolution: int = 128,
        extent: float = 0.5,
        threshold: float = 0.01 * 1024 / math.sqrt(3),
        decay: float = 0.95,
        cells_per_update: int | None = None,
    ) -> None:
        super().__init__()
        self.extent = extent
        self.threshold = threshold
        self.decay = decay
        self.cells_per_update = cells_per_update
        cascades = max(1 + math.ceil(math.log2(2 * extent)), 1)
        shape = (cascades, resolution, resolution, resolution)
        self.register_buffer("density", torch.zeros(shape))
        self.register_buffer("occupied", torch.ones(shape, dtype=torch.bool))

    @property
    def resolution(self) -> int:
        """Cells along a side."""
        return self.density.shape[1]

    def half_size(self, cascade: int) -> float:
        """Half the side of a cascade's cube."""
        return min(2.0 ** (cascade - 1), self.extent)

    def cell_positions(self, cascade: int, cells: Tensor, jitter: bool) -> Tensor:
        """Points (N, 3) in the flat-indexed ``cells`` (N,) of a cascade: their centres, or anywhere inside."""
        n = self.resolution
        corner = torch.stack([cells // (n * n), cells // n % n, cells % n], dim=-1)
        inside = torch.rand(len(cells), 3, device=cells.device) if jitter else 0.5
        return ((corner + inside) * (2.0 / n) - 1.0) * self.half_size(cascade)

    @torch.no_grad()
    def mark_invisible(self, cameras: Camera, to_scene: Callable[[Tensor], Tensor]) -> None:
        """Exclude the cells whose centre no camera sees in front of its near plane.

        Args:
            cameras: the training cameras, batched.
            to_scene: maps points (N, 3) of this grid to scene units.
        """
        poses = cameras.c2w.to(self.density)
        intrinsics = cameras.intrinsics.to(self.density)
        cells = torch.arange(self.resolution**3, device=self.density.device)
        for cascade in range(len(self.density)):
            points = to_scene(self.cell_positions(cascade, cells, jitter=False))
            seen = torch.zeros(len(cells), dtype=torch.bool, device=cells.device)
            for pose, (fx, fy, cx, cy) in zip(poses, intrinsics, strict=True):
                hidden = (~seen).nonzero()[:, 0]
                if not len(hidden):
                    break
                x, y, z = ((points[hidden] - pose[:, 3]) @ pose[:, :3]).unbind(-1)
                depth = -z
                u, v = cx + fx * x / depth, cy - fy * y / depth
                seen[hidden] = (
                    (depth > 0.01) & (u >= 0) & (u <= cameras.width) & (v >= 0) & (v <= cameras.height)
                )
            self.density[cascade].view(-1)[~seen] = -1.0
        self.occupied.copy_(self.density >= 0)

    @torch.no_grad()
    def update(self, density: Callable[[Tensor], Tensor], warm_up: bool = False) -> None:
        """Look at some cells again, let the others fade, and decide which are occupied.

        Args:
            density: the field's density (N,) at positions (N, 3) of this grid, per unit of it.
            warm_up: look at all cells instead of half of them (no effect with ``cells_per_update``).
        """
        for cascade in range(len(self.density)):
            seen = torch.zeros_like(self.density[cascade]).view(-1)
            cells = self._choose(cascade, warm_up)
            for chunk in cells.split(2**18):
                seen[chunk] = density(self.cell_positions(cascade, chunk, jitter=True)).float()
            old = self.density[cascade].view(-1)
            self.density[cascade] = torch.where(old < 0, old, torch.maximum(old * self.decay, seen)).view_as(
                self.density[cascade]
            )
        visible = self.density[self.density > 0]
        mean = float(visible.mean()) if len(visible) else 0.0
        torch.gt(self.density, min(mean, self.threshold), out=self.occupied)

    def _choose(self, cascade: int, warm_up: bool) -> Tensor:
        """Flat indices of the cells to look at, in memory order so that neighbours share cache lines."""
        old = self.density[cascade].view(-1)
        if warm_up and self.cells_per_update is None:
            return (old >= 0).nonzero()[:, 0]
        half = (self.cells_per_update or len(old) // 2) // 2
        anywhere = torch.randint(len(old), (half,), device=old.device)
        known = self.occupied[cascade].view(-1).nonzero()[:, 0]
        if len(known):
            known = known[torch.randint(len(known), (min(half, len(known)),), device=old.device)]
        return torch.cat([anywhere, known]).sort().values
