"""The occupancy grid: which cells of the scene may be occupied, updated during training."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from nelf.cameras import Camera

NEAREST = 0.01  # smallest distance of a sample from its camera, in the grid's units
_FAR = 0.25  # fraction of the cells away from occupied ones that is sampled in their turn, if ``looks`` is above 1


class OccupancyGrid(nn.Module):
    """Densities in the cells of nested cubes, and which cells are dense enough to be sampled.

    Cascade ``c`` covers the cube of half-size ``min(2**(c - 1), extent)`` round the origin with ``resolution**3``
    cells. Cells that no training camera sees hold -1 and are never revived.

    Args:
        resolution: cells along a side.
        extent: half-size of the outermost cube, in the field's units; the scene's box has half-size 0.5.
        threshold: a cell is occupied above this density, or above the mean of all positive ones if that is lower.
        decay: factor on a cell's density at each update, unless it is found to be higher.
        slices: None updates as Instant-NGP does: all cells during warm-up, then a random half of them. With a number,
            each update samples the next of ``slices`` interleaved subsets of the cells, or one point for each 2 x 2 x 2
            cells during warm-up: the same decay, ``slices / 2`` times cheaper.
        looks: with ``slices``, samples of an occupied cell or a neighbor of one at its turn; more than one for dynamic
            scenes, where each is at another moment. Fewer if they would outnumber the cells of the subset.

    Source:
        Instant-NGP, appendix C (arXiv 2201.05989).
    """

    density: Tensor
    occupied: Tensor
    updates: Tensor

    def __init__(
        self,
        resolution: int = 128,
        extent: float = 0.5,
        threshold: float = 0.01 * 1024 / math.sqrt(3),
        decay: float = 0.95,
        slices: int | None = None,
        looks: int = 1,
    ) -> None:
        super().__init__()
        self.looks = looks
        self.extent = extent
        self.threshold = threshold
        self.decay = decay
        self.slices = slices
        cascades = max(1 + math.ceil(math.log2(2 * extent)), 1)
        shape = (cascades, resolution, resolution, resolution)
        self.register_buffer("density", torch.zeros(shape))
        self.register_buffer("occupied", torch.ones(shape, dtype=torch.bool))
        self.register_buffer("updates", torch.tensor(0))

    @property
    def resolution(self) -> int:
        """Cells along a side."""
        return self.density.shape[1]

    def half_size(self, cascade: int) -> float:
        """Half the side of a cascade's cube."""
        return min(2.0 ** (cascade - 1), self.extent)

    def cell_positions(self, cascade: int, cells: Tensor, jitter: bool) -> Tensor:
        """Points (N, 3) in the flat-indexed ``cells`` (N,) of a cascade: their centers, or random ones with jitter."""
        n = self.resolution
        corner = torch.stack([cells // (n * n), cells // n % n, cells % n], dim=-1)
        inside = torch.rand(len(cells), 3, device=cells.device) if jitter else 0.5
        return ((corner + inside) * (2.0 / n) - 1.0) * self.half_size(cascade)

    def at(self, positions: Tensor) -> Tensor:
        """Whether positions (N, 3) of this grid lie in occupied cells of the finest cascade that holds them, (N,)."""
        n = self.resolution
        largest = positions.abs().amax(-1)
        occupied = torch.zeros_like(largest, dtype=torch.bool)
        for cascade in reversed(range(len(self.occupied))):
            inside = (largest < self.half_size(cascade)).nonzero()[:, 0]
            cell = ((positions[inside] / self.half_size(cascade) + 1.0) * (0.5 * n)).long().clamp(0, n - 1)
            occupied[inside] = self.occupied[cascade].view(-1)[(cell[:, 0] * n + cell[:, 1]) * n + cell[:, 2]]
        return occupied

    @torch.no_grad()
    def mark_invisible(self, cameras: Camera, to_scene: Callable[[Tensor], Tensor]) -> None:
        """Exclude the cells whose center no camera sees, or only nearer than the first sample of a ray.

        Args:
            cameras: the training cameras, batched.
            to_scene: maps points (N, 3) of this grid to scene units.
        """
        cameras = cameras.to(self.density.device)
        ends = to_scene(torch.tensor([[0.0, 0.0, 0.0], [NEAREST, 0.0, 0.0]], device=self.density.device))
        nearest = (ends[1] - ends[0]).norm()
        cells = torch.arange(self.resolution**3, device=self.density.device)
        for cascade in range(len(self.density)):
            points = to_scene(self.cell_positions(cascade, cells, jitter=False))
            seen = torch.zeros(len(cells), dtype=torch.bool, device=cells.device)
            for camera in (cameras[index] for index in range(len(cameras))):
                hidden = (~seen).nonzero()[:, 0]
                if not len(hidden):
                    break
                x, y, t = camera.project(points[hidden])
                seen[hidden] = (t > nearest) & (x >= 0) & (x <= camera.width) & (y >= 0) & (y <= camera.height)
            self.density[cascade].view(-1)[~seen] = -1.0
        self.occupied.copy_(self.density >= 0)

    @torch.no_grad()
    def update(self, density: Callable[[Tensor], Tensor], warm_up: bool = False) -> None:
        """Set some cells to the larger of their decayed and their current density, then find the occupied ones.

        Args:
            density: the field's density (N,) at positions (N, 3) of this grid, per unit of it.
            warm_up: update the whole grid.
        """
        for cascade, old in enumerate(self.density):
            if self.slices is None:
                self._update_half(cascade, old.view(-1), density, warm_up)
            elif warm_up:
                self._update_coarsely(cascade, old, density)
            else:
                self._update_slice(cascade, old.view(-1), density)
        self.updates += 1
        mean = self.density.clamp(min=0.0).sum() / (self.density > 0).sum().clamp(min=1)
        torch.gt(self.density, mean.clamp(max=self.threshold), out=self.occupied)

    def _update_half(self, cascade: int, old: Tensor, density: Callable[[Tensor], Tensor], warm_up: bool) -> None:
        """Instant-NGP's rule: sample a quarter of the cells at random, and as many occupied ones; all of them decay."""
        if warm_up:
            cells = (old >= 0).nonzero()[:, 0]
        else:
            cells = torch.randint(len(old), (len(old) // 4,), device=old.device)
            cells = torch.cat([cells, _draw(self.occupied[cascade].view(-1), len(old) // 4)])
        seen = torch.zeros_like(old)
        seen[cells] = self._evaluate(density, self.cell_positions(cascade, cells, jitter=True))
        old.copy_(torch.where(old < 0, old, torch.maximum(old * self.decay, seen)))

    def _update_slice(self, cascade: int, old: Tensor, density: Callable[[Tensor], Tensor]) -> None:
        """Sample every ``slices``-th cell; these decay as far as in ``slices`` updates of Instant-NGP's rule."""
        assert self.slices is not None
        cells = torch.arange(int(self.updates) % self.slices, len(old), self.slices, device=old.device)
        cells = cells[old[cells] >= 0]
        if self.looks > 1:  # away from occupied cells, few samples suffice
            near = grown(self.occupied[cascade]).view(-1)
            most = len(cells)
            cells = cells[near[cells] | (torch.rand(most, device=cells.device) < _FAR)]
        seen = self._evaluate(density, self.cell_positions(cascade, cells, jitter=True))
        if self.looks > 1:  # moving matter is in a cell only briefly
            close = near[cells].nonzero()[:, 0]
            looks = min(self.looks - 1, most // max(len(close), 1))
            again = cells[close].repeat(looks)
            densest = self._evaluate(density, self.cell_positions(cascade, again, jitter=True)).view(looks, len(close))
            seen[close] = torch.maximum(seen[close], densest.amax(0)) if looks else seen[close]
        old[cells] = torch.maximum(old[cells] * self.decay**self.slices, seen)

    def _update_coarsely(self, cascade: int, old: Tensor, density: Callable[[Tensor], Tensor]) -> None:
        """Sample one random point for each 2 x 2 x 2 cells, which is enough while the field is still smooth."""
        half = self.resolution // 2
        corner = torch.stack(torch.meshgrid(*[torch.arange(half, device=old.device)] * 3, indexing="ij"), dim=-1).view(
            -1, 3
        )
        inside = torch.rand(len(corner), 3, device=old.device)
        positions = ((corner + inside) * (2.0 / half) - 1.0) * self.half_size(cascade)
        seen = self._evaluate(density, positions).view(half, half, half)
        for axis in range(3):
            seen = seen.repeat_interleave(2, dim=axis)
        old.copy_(torch.where(old < 0, old, torch.maximum(old * self.decay, seen)))

    @staticmethod
    def _evaluate(density: Callable[[Tensor], Tensor], positions: Tensor) -> Tensor:
        return torch.cat([density(chunk).float() for chunk in positions.split(2**18)] or [positions[:, 0]])


def _draw(among: Tensor, count: int) -> Tensor:
    """Draw ``count`` places at random, with repetitions, where ``among`` (N,) is True; the last place if nowhere."""
    ranks = among.cumsum(0)  # a search of them, unlike a list of the places, has a size that is known beforehand
    drawn = torch.rand(count, dtype=torch.float64, device=among.device) * ranks[-1]
    return torch.searchsorted(ranks, drawn.long(), right=True).clamp(max=len(among) - 1)


def grown(cells: Tensor) -> Tensor:
    """Dilate cells (G, G, G), bool, by one cell along each axis."""
    cells = cells.clone()
    for side in range(3):
        before, after = cells.narrow(side, 0, len(cells) - 1), cells.narrow(side, 1, len(cells) - 1)
        both = before | after  # of two neighbors, either
        before |= both
        after |= both
    return cells
