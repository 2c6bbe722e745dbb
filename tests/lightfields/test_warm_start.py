"""What a teacher is asked for a volume's start: where it has matter, and how often it is asked."""

import torch
from torch import Tensor

from nelf.lightfields.warm_start import dense_cells

BOX = torch.tensor([-1.0, -2.0, -3.0, 1.0, 2.0, 3.0])


class Wall:
    """Matter where x is above zero, seen from a certain question on."""

    def __init__(self, first: int = 0) -> None:
        self.first = first
        self.asked: list[Tensor] = []

    def sigma(self, positions: Tensor) -> Tensor:
        self.asked.append(positions)
        return 100.0 * ((positions[:, 0] > 0) & (len(self.asked) > self.first))


def test_cells_with_matter_are_found_and_asked_once() -> None:
    wall = Wall()
    cells = dense_cells(wall, BOX, (3, 5, 4))
    assert cells.shape == (3, 5, 4)
    assert cells.any((0, 1)).tolist() == cells.all((0, 1)).tolist() == [False, False, True, True]
    assert [len(each) for each in wall.asked] == [60] + 7 * [30]
    places = torch.cat(wall.asked)
    assert ((places >= BOX[:3]) & (places <= BOX[3:])).all()
    assert (places[60:, 0] < 0).all()


def test_a_cell_is_asked_until_it_has_matter() -> None:
    late = Wall(first=7)
    assert dense_cells(late, BOX, (3, 5, 4)).sum() == 30
    assert len(late.asked) == 8
    assert not dense_cells(Wall(first=8), BOX, (3, 5, 4)).any()


def test_only_the_cells_among_which_it_looks_are_asked() -> None:
    among = torch.zeros(3, 5, 4, dtype=torch.bool)
    among[1, 2, 1:] = True
    wall = Wall()
    cells = dense_cells(wall, BOX, (3, 5, 4), among)
    assert cells.nonzero().tolist() == [[1, 2, 2], [1, 2, 3]]
    assert [len(each) for each in wall.asked] == [3] + 7 * [1]
    low, high = torch.tensor([-0.5, -0.4, -1.0]), torch.tensor([1.0, 0.4, 1.0])  # of the three cells
    assert ((wall.asked[0] >= low) & (wall.asked[0] <= high)).all()
