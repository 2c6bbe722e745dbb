"""The sparse volume: rows and their corners against brute force, and which states it takes."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nelf.lightfields.volume import INITIAL_DENSITY, MOST_CORNERS, SparseVolume, corners_of, index_of

SHAPE = (4, 5, 3)


def some(seed: int = 0) -> Tensor:
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(seed)) > 0.4


def filled(exists: Tensor) -> SparseVolume:
    """A volume whose numbers tell the corner that they belong to."""
    volume = SparseVolume(2)
    volume.resize(exists)
    number = exists.flatten().nonzero()[:, 0].float()
    with torch.no_grad():
        volume.density.copy_(number)
        volume.features.copy_(torch.stack([number, -number], -1))
    return volume


def test_rows_are_numbered_in_the_order_of_their_corners() -> None:
    exists, row = some(), 0
    index = index_of(exists)
    assert index.dtype == torch.int32
    for z, y, x in np.ndindex(SHAPE):
        assert int(index[z, y, x]) == (row if exists[z, y, x] else -1)
        row += int(exists[z, y, x])
    volume = filled(exists)
    assert torch.equal(volume.exists, exists)
    assert torch.equal(volume.index, index)
    assert len(volume.density) == len(volume.features) == row


def test_corners_of_cells_and_cells_of_corners() -> None:
    cells = torch.rand(3, 4, 2, generator=torch.Generator().manual_seed(1)) > 0.8
    corners = torch.zeros(SHAPE, dtype=torch.bool)
    for z, y, x in cells.nonzero().tolist():
        corners[z : z + 2, y : y + 2, x : x + 2] = True
    assert 0 < int(corners.sum()) < corners.numel()
    assert torch.equal(corners_of(cells), corners)
    read = filled(corners).cells
    for z, y, x in np.ndindex(3, 4, 2):
        assert bool(read[z, y, x]) == bool(corners[z : z + 2, y : y + 2, x : x + 2].all())


def test_resize_begins_anew() -> None:
    volume = filled(torch.ones(SHAPE, dtype=torch.bool))
    assert int(volume.index.max()) == 59  # remembered from here on
    exists = torch.zeros(3, 2, 6, dtype=torch.bool)
    exists[0, :, 1:4] = True
    volume.resize(exists)
    assert volume.shape.tolist() == [3, 2, 6]
    assert torch.equal(volume.index, index_of(exists))
    torch.testing.assert_close(volume.density.detach(), torch.full((6,), INITIAL_DENSITY))
    assert float(volume.features.detach().std()) > 0.03
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in (volume.density, volume.features))


def test_keep_drops_rows_and_leaves_the_others_as_they_are() -> None:
    volume, exists = filled(some()), some()
    before = volume.index
    cells = torch.zeros(3, 4, 2, dtype=torch.bool)
    cells[1, 2, 1] = cells[2, 0, 0] = True
    volume.keep(cells)
    assert volume.index is not before
    stay = exists & corners_of(cells)
    assert 0 < int(stay.sum()) < int(exists.sum())
    assert torch.equal(volume.exists, stay)
    number = stay.flatten().nonzero()[:, 0].float()
    assert torch.equal(volume.density, number)
    assert torch.equal(volume.features, torch.stack([number, -number], -1))
    assert volume.density.requires_grad


def test_one_row_stays_whatever_is_dropped() -> None:
    volume = filled(some())
    volume.keep(torch.zeros(3, 4, 2, dtype=torch.bool))
    first = int(some().flatten().nonzero()[0])
    assert volume.density.tolist() == [first]
    assert int(volume.exists.flatten().nonzero()) == first


def test_positions_are_those_of_the_corners() -> None:
    volume = filled(some())
    aabb = torch.tensor([-1.0, 2.0, 0.5, 3.0, 2.8, 1.1])
    for row, place in enumerate(volume.positions(aabb)):
        z, y, x = (volume.index == row).nonzero()[0].tolist()
        expected = [-1.0 + 4.0 * x / 2, 2.0 + 0.8 * y / 4, 0.5 + 0.6 * z / 3]
        torch.testing.assert_close(place, torch.tensor(expected))


def test_a_state_of_any_size_is_taken() -> None:
    volume, other = filled(some()), SparseVolume(2)
    assert int(other.index.max()) == 8**3 - 1  # remembered, and of another size
    other.load_state_dict(volume.state_dict())
    for name, value in volume.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
    assert torch.equal(other.index, volume.index)
    assert other.features.requires_grad
    halves = {name: value.half() if value.is_floating_point() else value for name, value in volume.state_dict().items()}
    other.load_state_dict(halves)
    assert other.density.dtype == other.features.dtype == torch.float32


@pytest.mark.parametrize(
    "change",
    [
        {"corners": lambda v: v.bitwise_or(torch.tensor([255] + [0] * 7, dtype=torch.uint8))},
        {"corners": lambda v: torch.zeros_like(v), "density": lambda v: v[:0], "features": lambda v: v[:0]},
        {"corners": lambda v: v[:-1]},
        {"corners": lambda v: v.float()},
        {"density": lambda v: v[1:]},
        {"density": lambda v: v[:, None]},
        {"features": lambda v: v[:, :1]},
        {"shape": lambda v: v * 1000},
        {"shape": lambda v: torch.tensor([MOST_CORNERS, 2, 2], dtype=torch.int32)},
        {"shape": lambda v: torch.tensor([60, 1, 1], dtype=torch.int32)},
        {"shape": lambda v: torch.tensor([-4, -5, 3], dtype=torch.int32)},
        {"shape": lambda v: v.float()},
        {"shape": lambda v: v[:2]},
    ],
)
def test_parts_that_do_not_belong_together_are_refused(change: dict[str, Any]) -> None:
    """And nothing of them is taken: of the network's own state everything stays."""
    state = filled(some()).state_dict()
    state.update({name: alter(state[name]) for name, alter in change.items()})
    volume = SparseVolume(2)
    before = {name: value.clone() for name, value in volume.state_dict().items()}
    with pytest.raises(ValueError, match=r"^corners: "):
        volume.load_state_dict(state)
    assert all(torch.equal(value, before[name]) for name, value in volume.state_dict().items())
    assert torch.equal(volume.index, index_of(torch.ones(8, 8, 8, dtype=torch.bool)))


def test_a_huge_grid_is_refused_before_memory_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trap: 2^27 corners described by no more than their shape would be unpacked to a gigabyte and more."""

    def unpack(*rest: object, **options: object) -> None:
        raise AssertionError("unpacked")

    state = filled(some()).state_dict()
    for shape in ([1024, 1024, 1024], [512, 512, 512]):
        state["shape"] = torch.tensor(shape, dtype=torch.int32)
        volume = SparseVolume(2)
        with monkeypatch.context() as patched:
            patched.setattr(np, "unpackbits", unpack)
            with pytest.raises(ValueError, match="do not describe a grid"):
                volume.load_state_dict(state)


def test_more_corners_leave_the_others_as_they_are() -> None:
    volume = SparseVolume(3)
    exists = torch.rand(5, 6, 7) > 0.5
    volume.resize(exists)
    torch.nn.init.normal_(volume.density)
    before = {
        tuple(corner): row for corner, row in zip(exists.nonzero().tolist(), volume.features.tolist(), strict=True)
    }
    density = volume.density.detach().clone()
    more = torch.rand(5, 6, 7) > 0.7
    new = volume.extend(more)
    assert torch.equal(volume.exists, exists | more)
    assert torch.equal(new, ~exists[exists | more])
    after = dict(zip(map(tuple, volume.exists.nonzero().tolist()), volume.features.tolist(), strict=True))
    assert all(after[corner] == row for corner, row in before.items())
    assert torch.equal(volume.density[~new], density)
