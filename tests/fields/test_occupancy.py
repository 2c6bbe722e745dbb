"""The occupancy grid: what is seen, what fades, what counts as occupied."""

import pytest
import torch

from nelf import paths
from nelf.cameras import Camera
from nelf.fields.occupancy import OccupancyGrid, grown


def same(points: torch.Tensor) -> torch.Tensor:
    return points


def test_cascades_double_up_to_the_extent() -> None:
    assert [len(OccupancyGrid(8, extent).density) for extent in (0.5, 1.0, 4.0, 16.0)] == [1, 2, 4, 6]
    grid = OccupancyGrid(8, 3.0)
    assert [grid.half_size(c) for c in range(4)] == [0.5, 1.0, 2.0, 3.0]


def test_cells_lie_where_march_looks_them_up() -> None:
    grid = OccupancyGrid(4, 1.0)
    position = grid.cell_positions(1, torch.tensor([1 * 16 + 2 * 4 + 3]), jitter=False)  # x 1, y 2, z 3
    torch.testing.assert_close(position, torch.tensor([[-0.25, 0.25, 0.75]]))


def test_cells_that_no_camera_sees_are_never_occupied() -> None:
    grid = OccupancyGrid(16)
    c2w = paths.look_at(torch.tensor([[0.0, -0.2, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]]))
    camera = Camera.from_fov(c2w, fov_x=1.0, width=8, height=8)
    grid.mark_invisible(camera, same)
    y = torch.linspace(-0.5 + 1 / 32, 0.5 - 1 / 32, 16)
    behind = y < -0.2
    assert (grid.density[0, :, behind] == -1).all()  # behind the camera
    assert (grid.density[0, 7:9, 8:, 7:9] == 0).all()  # on its axis
    grid.update(lambda positions: torch.full((len(positions),), 100.0), warm_up=True)
    assert not grid.occupied[0, :, behind].any()
    assert grid.occupied[0, 7:9, 8:, 7:9].all()


def test_how_near_a_camera_sees_is_in_the_units_of_the_grid() -> None:
    """The scene is a tenth, or ten times, as large as the grid: the same cells are seen."""
    c2w = paths.look_at(torch.tensor([[0.0, -0.2, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]]))
    marks = []
    for scale in (1.0, 0.02, 50.0):
        grid = OccupancyGrid(16)
        moved = c2w.clone()
        moved[..., 3] *= scale
        grid.mark_invisible(Camera.from_fov(moved, fov_x=1.0, width=8, height=8), lambda points, s=scale: s * points)
        marks.append(grid.density)
    assert torch.equal(marks[0], marks[1])
    assert torch.equal(marks[0], marks[2])
    assert 0 < int((marks[0] == 0).sum()) < 16**3 / 2


def test_update_finds_matter_and_forgets_it() -> None:
    grid = OccupancyGrid(8, threshold=5.0, decay=0.5)
    grid.update(lambda positions: (positions[:, 0] > 0) * 40.0, warm_up=True)
    assert grid.occupied[0, 4:].all()
    assert not grid.occupied[0, :4].any()
    for _ in range(3):  # 40 -> 20 -> 10 -> 5: no longer above the threshold
        grid.update(lambda positions: torch.zeros(len(positions)), warm_up=True)
    torch.testing.assert_close(grid.density[0, 4:], torch.full((4, 8, 8), 5.0))
    assert not grid.occupied.any()


def test_a_thin_scene_is_cut_at_its_mean() -> None:
    grid = OccupancyGrid(8, threshold=5.0)
    grid.update(lambda positions: 1.0 + (positions[:, 0] > 0), warm_up=True)  # densities 1 and 2, mean 1.5
    assert grid.occupied[0, 4:].all()
    assert not grid.occupied[0, :4].any()


def test_slices_visit_every_cell_in_turn() -> None:
    """Four updates look at each cell once, and forget as much as four updates of Instant-NGP's rule."""
    grid = OccupancyGrid(8, threshold=1e9, decay=0.9, slices=4)
    asked = []

    def density(positions: torch.Tensor) -> torch.Tensor:
        asked.append(len(positions))
        return torch.zeros(len(positions))

    grid.density.fill_(100.0)
    for _ in range(4):
        grid.update(density)
    assert asked == [128] * 4
    torch.testing.assert_close(grid.density, torch.full_like(grid.density, 100 * 0.9**4))


def test_coarse_warm_up_covers_the_grid() -> None:
    grid = OccupancyGrid(8, slices=4)
    grid.update(lambda positions: (positions[:, 2] > 0) * 50.0, warm_up=True)
    assert grid.occupied[0, :, :, 4:].all()
    assert not grid.occupied[0, :, :, :4].any()


@pytest.mark.parametrize("slices", [None, 8])
def test_either_rule_finds_a_ball(slices: int | None) -> None:
    grid = OccupancyGrid(32, threshold=5.0, slices=slices)
    for step in range(24):
        grid.update(lambda positions: (positions.norm(dim=-1) < 0.3) * 100.0, warm_up=step < 4)
    radius = grid.cell_positions(0, torch.arange(32**3), jitter=False).norm(dim=-1).view(32, 32, 32)
    assert grid.occupied[0][radius < 0.28].all()
    assert not grid.occupied[0][radius > 0.3 + 2 * 3**0.5 / 32].any()


@pytest.mark.parametrize("extent", [0.5, 3.0])
def test_at_reads_the_finest_cascade_that_holds_a_place(extent: float) -> None:
    """Brute force, over places in every cascade and beyond the last."""
    grid = OccupancyGrid(4, extent)
    grid.occupied.copy_(torch.rand(grid.occupied.shape) > 0.5)
    positions = (torch.rand(500, 3) * 2 - 1) * torch.tensor([0.4, 0.9, 1.9, 3.5])[torch.arange(500) % 4, None]
    expected, used = [], set()
    for place in positions.tolist():
        half = [grid.half_size(c) for c in range(len(grid.occupied)) if max(map(abs, place)) < grid.half_size(c)]
        if not half:
            expected.append(False)
            continue
        cascade = len(grid.occupied) - len(half)
        used.add(cascade)
        x, y, z = (int((each / half[0] + 1) / 2 * 4) for each in place)
        expected.append(bool(grid.occupied[cascade, x, y, z]))
    assert used == set(range(len(grid.occupied)))
    assert grid.at(positions).tolist() == expected


def test_neighbors_of_a_cell_are_the_27_around_it() -> None:
    cells = torch.rand(9, 9, 9) < 0.03
    cells[0, 0, 8] = cells[8, 4, 0] = True
    around = torch.nn.functional.max_pool3d(cells[None].float(), 3, stride=1, padding=1)[0] > 0
    assert torch.equal(grown(cells), around)
    assert not around.all()


def test_more_looks_find_what_is_there_for_a_moment() -> None:
    """Matter that is in the middle a tenth of the time: looked at once, it is forgotten; sixteen times, it stays."""
    occupied = {}
    for looks in (1, 16):
        grid = OccupancyGrid(8, threshold=1.5, decay=0.7, slices=4, looks=looks)

        def density(positions: torch.Tensor) -> torch.Tensor:
            there = torch.rand(len(positions)) < 0.1
            return 200.0 * (there & (positions.abs().amax(-1) < 0.125))

        found = 0.0
        for update in range(200):
            grid.update(density, warm_up=update < 8)
            found += float(grid.occupied[0, 3:5, 3:5, 3:5].float().mean()) / 200
        occupied[looks] = found
        assert not grid.occupied[0, 0].any()
    assert occupied[16] > 0.9
    assert occupied[1] < 0.5
