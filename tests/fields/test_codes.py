"""Codes of moments and views: interpolation against NumPy's, and which states their tables take."""

from typing import Any

import numpy as np
import pytest
import torch

from nelf.fields.codes import TimeCodes, ViewCodes


def some(times: list[float], width: int = 3) -> TimeCodes:
    codes = TimeCodes(width)
    codes.prepare(torch.tensor(times))
    return codes


def test_codes_are_linear_between_uneven_moments_and_constant_beyond_them() -> None:
    codes = some([0.1, 0.15, 0.4, 0.8])
    times = torch.cat([torch.rand(200), torch.tensor([0.0, 0.1, 0.15, 0.4, 0.8, 1.0])])
    expected = [np.interp(times, codes.times, column) for column in codes.rows.detach().numpy().T]
    np.testing.assert_allclose(codes(times).detach(), np.stack(expected, -1), atol=1e-7)
    torch.testing.assert_close(codes(torch.tensor([0.15, 0.8])), codes.rows[[1, 3]])


def test_there_is_one_row_for_each_distinct_moment_and_it_begins_small_and_positive() -> None:
    """Trap: U[0, 0.05) is one-sided."""
    codes = some([0.5, 0.25, 0.5, 0.0], width=4000).requires_grad_(False)
    assert codes.times.tolist() == [0.0, 0.25, 0.5]
    assert codes.rows.shape == (3, 4000)
    assert 0.0 <= float(codes.rows.detach().min()) < 0.001
    assert 0.049 < float(codes.rows.detach().max()) < 0.05
    single = some([0.5])
    torch.testing.assert_close(single(torch.tensor([0.0, 0.5, 0.9])), single.rows.expand(3, -1))


def test_a_row_learns_from_both_sides_by_how_near_they_are() -> None:
    codes = some([0.0, 0.5, 1.0])
    codes(torch.tensor([0.25, 0.6, 1.0])).sum().backward()
    assert codes.rows.grad is not None
    torch.testing.assert_close(codes.rows.grad[:, 0], torch.tensor([0.5, 0.5 + 0.8, 0.2 + 1.0]))


def test_the_same_moments_keep_what_was_learned_and_others_begin_anew() -> None:
    codes = some([0.0, 0.5])
    learned = codes.rows
    codes.prepare(torch.tensor([0.5, 0.0, 0.0]))
    assert codes.rows is learned
    codes.prepare(torch.tensor([0.0, 0.75]))
    assert not torch.equal(codes.rows, learned)


def test_a_state_of_another_length_is_taken() -> None:
    learned, new = some([0.1, 0.4, 0.8]), TimeCodes(3)
    new.load_state_dict(learned.state_dict())
    assert isinstance(new.rows, torch.nn.Parameter)
    times = torch.rand(20)
    assert torch.equal(new(times), learned(times))
    views, more = ViewCodes(3), ViewCodes(3)
    views.prepare(torch.tensor([4, 0]))
    more.load_state_dict(views.state_dict())
    assert torch.equal(more.rows, views.rows)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"times": torch.tensor([0.1, 0.4])}, "times: are not 3 moments"),
        ({"times": torch.tensor([0.1, 0.8, 0.4])}, "times: are not 3 moments"),
        ({"times": torch.tensor([0.1, 0.4, float("nan")])}, "times: are not 3 moments"),
        ({"times": torch.tensor([float("-inf"), 0.4, 0.5])}, "times: are not 3 moments"),
        ({"times": torch.rand(3, 1)}, "times: are not 3 moments"),
        ({"rows": torch.rand(3, 2)}, r"rows: is \(3, 2\), not one or more codes of 3 numbers"),
        ({"rows": torch.rand(0, 3), "times": torch.rand(0)}, "not one or more codes"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(changes: dict[str, Any], line: str) -> None:
    state = some([0.1, 0.4, 0.8]).state_dict()
    with pytest.raises(ValueError, match=line):
        TimeCodes(3).load_state_dict({**state, **changes})


def test_a_view_has_its_code_one_beyond_the_table_the_last_and_none_the_mean() -> None:
    """Trap: a held-out image at the end of a capture has the number of the next training image, which is not there."""
    codes = ViewCodes(2)
    codes.prepare(torch.tensor([3, 1]))
    assert codes.rows.shape == (4, 2)
    torch.testing.assert_close(codes(torch.tensor([1, 3, 4]), 3), codes.rows[[1, 3, 3]])
    torch.testing.assert_close(codes(None, 2), codes.rows.mean(0).expand(2, -1))
