"""The pool of hard rays against a plain model of it, ray by ray."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nelf.data.batches import RayBatch
from nelf.data.hard_rays import HardRayPool
from nelf.errors import UserError
from nelf.rays import Rays


def batch(number: int, count: int, controls: int = 0) -> RayBatch:
    """Rays that tell themselves apart."""
    generator = torch.Generator().manual_seed(number)
    values = torch.rand(count, 10 + controls, generator=generator)
    rays = Rays(values[:, :3], values[:, 3:6], values[:, 10:] if controls else None)
    return RayBatch(rays, values[:, 6:10])


def table(drawn: RayBatch) -> list[tuple[float, ...]]:
    parts = [drawn.rays.origins, drawn.rays.directions, drawn.rgba]
    parts += [] if drawn.rays.controls is None else [drawn.rays.controls]
    return [tuple(row) for row in torch.cat(parts, -1).tolist()]


def errors(number: int, count: int) -> list[float]:
    return torch.rand(count, generator=torch.Generator().manual_seed(1000 + number)).tolist()


@pytest.mark.parametrize(
    ("ratio_in", "ratio_out", "mul", "count", "controls"),
    [
        (0.2, 0.2, 3.0, 50, 0),
        (0.1, 0.3, 2.0, 40, 1),
        (0.5, 0.25, 1.0, 20, 2),  # no more come in than are drawn
        (0.2, 0.2, 1.1, 37, 0),  # 7 a step: the last ones overshoot 40.7
        (0.01, 0.5, 2.0, 10, 0),  # less than a ray a step: none
    ],
)
def test_the_pool_is_that_of_a_plain_model(ratio_in, ratio_out, mul, count, controls) -> None:
    pool = HardRayPool(ratio_in, ratio_out, mul, seed=5)
    kept: list[tuple[float, ...]] = []
    n_out = int(ratio_out * count)
    n_in = min(int(ratio_in * count), n_out)
    full, ever_full, drawn_before = False, False, []
    for step in range(40):
        fresh = batch(step, count, controls)
        rows = table(fresh)
        extended = table(pool.extend(fresh))
        assert extended[:count] == rows
        slots: list[int] = []
        if full:
            slots = [kept.index(row) for row in extended[count:]]
            assert len(set(slots)) == n_out  # different ones
            drawn_before.append(slots)
        else:
            assert len(extended) == count
        hardness = errors(step, count)
        pool.update(torch.tensor(hardness))
        hardest = [rows[index] for index in sorted(range(count), key=lambda index: -hardness[index])[:n_in]]
        if full:
            for slot, row in zip(slots[:n_in], hardest, strict=True):
                kept[slot] = row
        else:
            kept += hardest
            full = len(kept) >= mul * count
        assert [tuple(row) for row in pool.rays.tolist()] == kept
        ever_full |= full
    assert ever_full == (n_in > 0)
    if ever_full:
        assert mul * count <= len(kept) < mul * count + n_in
        assert len({tuple(slots) for slots in drawn_before}) == len(drawn_before)


def test_the_sizes_of_the_original() -> None:
    """A fifth and 20: full after 100 steps, used from step 101 on, and its size stays."""
    pool, fresh = HardRayPool(), batch(0, 640)
    for step in range(1, 104):
        assert len(pool.extend(fresh).rgba) == (640 if step <= 100 else 768)
        pool.update(torch.rand(640))
        assert len(pool.rays) == 128 * min(step, 100)


def test_what_is_drawn_is_drawn_evenly() -> None:
    pool = HardRayPool(0.1, 0.5, 2.0, seed=1)
    while not pool.full:
        pool.extend(batch(pool.steps, 40))
        pool.update(torch.rand(40))
    places = {row: index for index, row in enumerate(map(tuple, pool.rays.tolist()))}
    seen = np.zeros(len(places))
    for step in range(400):
        pool.steps = step
        for row in table(pool.extend(batch(0, 40)))[40:]:
            seen[places[row]] += 1
    # Each of 80 rays is drawn with probability 1 / 4: 100 of 400 times, give or take 9.
    assert np.abs(seen - 100).max() < 5 * 9


def test_a_pool_that_is_saved_goes_on_as_if_it_had_not_been() -> None:
    def steps(pool: HardRayPool, first: int, last: int) -> list[torch.Tensor]:
        drawn = []
        for step in range(first, last):
            drawn.append(pool.extend(batch(step, 30)).rgba)
            pool.update(torch.tensor(errors(step, 30)))
        return drawn

    whole, half, other = (HardRayPool(0.3, 0.4, 1.0, seed=2) for _ in range(3))
    expected = steps(whole, 0, 20)
    for at in (2, 12):  # before and after it is full
        half = HardRayPool(0.3, 0.4, 1.0, seed=2)
        steps(half, 0, at)
        other = HardRayPool(0.3, 0.4, 1.0, seed=2)
        other.load_state_dict({key: value for key, value in half.state_dict().items()})
        assert all(torch.equal(a, b) for a, b in zip(steps(other, at, 20), expected[at:], strict=True))
        assert torch.equal(other.rays, whole.rays)


def test_seeds_and_processes_draw_differently() -> None:
    drawn = []
    for seed, rank in ((0, 0), (1, 0), (0, 1)):
        pool = HardRayPool(0.5, 0.5, 1.0, seed, rank)
        for step in range(3):
            drawn_now = pool.extend(batch(step, 20)).rgba
            pool.update(torch.tensor(errors(step, 20)))
        drawn.append(drawn_now)
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("rays", [torch.zeros(8, 9), torch.zeros(50, 10), torch.zeros(10)])
def test_a_pool_that_does_not_fit_is_refused(rays: torch.Tensor) -> None:
    pool = HardRayPool(0.5, 0.5, 1.0)
    pool.load_state_dict({"rays": rays, "full": True, "steps": 3})
    with pytest.raises(UserError, match=r"callbacks\.hard_rays: .* allowed: at most 31 rays of 10 numbers"):
        pool.extend(batch(0, 20))


@pytest.mark.parametrize(
    ("wrong", "text"),
    [({"ratio_in": 0.0}, "`ratio_in`"), ({"ratio_out": 1.5}, "`ratio_out`"), ({"mul": 0.5}, "`mul`")],
)
def test_wrong_arguments_are_named(wrong: dict[str, float], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        HardRayPool(**wrong)
