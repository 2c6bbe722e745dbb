"""Marching: closed forms on simple grids, and the backends against each other."""

import math

import pytest
import torch

from nelf.kernels import Samples, march, march_within


def along_x(occupied: torch.Tensor, **options: float) -> Samples:
    """One ray along +x through the middle of the unit cube, from its face at t = 0 to t = 1."""
    rays_o, rays_d = torch.tensor([[-0.5, 0.01, 0.01]]), torch.tensor([[1.0, 0.0, 0.0]])
    settings = {"step": 1 / 16, **options}
    return march(rays_o, rays_d, torch.zeros(1), torch.ones(1), occupied, **settings)  # type: ignore[arg-type]


@pytest.mark.usefixtures("backend")
def test_full_grid_keeps_the_whole_lattice() -> None:
    samples = along_x(torch.ones(1, 4, 4, 4, dtype=torch.bool))
    torch.testing.assert_close(samples.t_starts, torch.arange(16) / 16)
    torch.testing.assert_close(samples.t_ends, torch.arange(1, 17) / 16)


@pytest.mark.usefixtures("backend")
def test_only_the_occupied_cell_is_sampled() -> None:
    occupied = torch.zeros(1, 4, 4, 4, dtype=torch.bool)
    occupied[0, 2, 2, 2] = True  # x in [0, 0.25], so t in [0.5, 0.75]
    torch.testing.assert_close(along_x(occupied).t_starts, torch.tensor([8.0, 9.0, 10.0, 11.0]) / 16)


@pytest.mark.usefixtures("backend")
def test_empty_grid_and_missed_rays_give_nothing() -> None:
    assert len(along_x(torch.zeros(1, 4, 4, 4, dtype=torch.bool)).t_starts) == 0
    full = torch.ones(1, 4, 4, 4, dtype=torch.bool)
    nothing = march(torch.zeros(2, 3), torch.ones(2, 3), torch.ones(2), torch.zeros(2), full, step=0.1)
    assert len(nothing.t_starts) == 0


@pytest.mark.usefixtures("backend")
def test_at_most_max_samples() -> None:
    samples = along_x(torch.ones(1, 4, 4, 4, dtype=torch.bool), max_samples=5)
    torch.testing.assert_close(samples.t_starts, torch.arange(5) / 16)


@pytest.mark.usefixtures("backend")
def test_cone_grows_the_step() -> None:
    samples = along_x(torch.ones(1, 4, 4, 4, dtype=torch.bool), cone=0.5, step=0.1, max_step=0.25)
    expected, t = [], 0.0
    while t + 0.5 * min(max(0.5 * t, 0.1), 0.25) < 1.0:
        expected.append(t)
        t += min(max(0.5 * t, 0.1), 0.25)
    torch.testing.assert_close(samples.t_starts, torch.tensor(expected))


@pytest.mark.parametrize(("cone", "extent", "cascades"), [(0.0, 0.5, 1), (1 / 64, 2.0, 3)])
def test_backends_agree(cone: float, extent: float, cascades: int, monkeypatch: pytest.MonkeyPatch) -> None:
    occupied = torch.rand(cascades, 16, 16, 16) < 0.1
    origins = torch.randn(300, 3)
    directions = torch.nn.functional.normalize(torch.randn(300, 3) * 0.3 - origins, dim=-1)
    directions[:3] = torch.eye(3)  # parallel to the axes: no division by zero
    t_max = torch.full((300,), 6.0)
    found = {}
    for backend in ("reference", "cpu"):
        monkeypatch.setenv("NELF_KERNELS", backend)
        samples = march(
            origins,
            directions,
            torch.rand(300, generator=torch.Generator().manual_seed(1)),
            t_max,
            occupied,
            step=0.01,
            cone=cone,
            max_step=0.1,
            extent=extent,
        )
        found[backend] = {
            (int(r), round(float(t), 3)) for t, r in zip(samples.t_starts, samples.ray_indices, strict=True)
        }
    # A mid-point within rounding of a cell's face may fall to either side.
    assert len(found["reference"]) > 500
    assert len(found["cpu"] ^ found["reference"]) <= 0.01 * len(found["reference"])


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(("cone", "extent", "cascades"), [(0.0, 0.5, 1), (1 / 16, 1.7, 3)])
def test_triton_places_the_samples_of_the_reference_to_the_last_digit(
    cone: float, extent: float, cascades: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    occupied = torch.rand(cascades, 8, 8, 8) < 0.3
    origins = torch.randn(100, 3)  # of two blocks, the second not full
    directions = torch.nn.functional.normalize(torch.randn(100, 3) * 0.3 - origins, dim=-1)
    directions[:3] = torch.eye(3)
    t_min, t_max = torch.rand(100), torch.full((100,), 3.0)
    found = []
    for backend in ("reference", "triton"):
        monkeypatch.setenv("NELF_KERNELS", backend)
        steps = {"step": 0.1, "cone": cone, "max_step": 0.3, "extent": extent, "max_samples": 7}
        found.append(march(origins, directions, t_min, t_max, occupied, **steps))  # type: ignore[arg-type]
    assert len(found[0].t_starts) > 100
    assert int(found[0].ray_indices.bincount().max()) == 7
    for expected, got in zip(*found, strict=True):
        assert torch.equal(got, expected)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(("total", "marched"), [(3, 0), (4, 1), (9, 3), (10, 5), (20, 5)])
def test_within_a_total_the_first_rays_have_all_their_samples(total: int, marched: int) -> None:
    """Rays of 4, 2, 3, 1 and 0 samples."""
    full, lengths = torch.ones(1, 4, 4, 4, dtype=torch.bool), torch.tensor([0.4, 0.2, 0.3, 0.1, 0.0])
    rays = torch.full((5, 3), -0.4), torch.eye(3)[[0, 1, 2, 0, 1]], torch.zeros(5), lengths
    samples, count = march_within(*rays, full, total, step=0.1)
    whole = march(*rays, full, step=0.1)
    assert whole.ray_indices.bincount(minlength=5).tolist() == [4, 2, 3, 1, 0]
    kept = int((whole.ray_indices < marched).sum())
    assert int(count) == marched
    for got, expected, padding in zip(samples, whole, (0.0, 0.0, 5), strict=True):
        assert got.dtype == expected.dtype
        assert torch.equal(got, torch.cat([expected[:kept], expected.new_full((total - kept,), padding)]))


def test_refuses_wrong_shapes() -> None:
    with pytest.raises(ValueError, match="occupied"):
        march(torch.zeros(1, 3), torch.ones(1, 3), torch.zeros(1), torch.ones(1), torch.ones(4, 4, 4) > 0, step=0.1)
    full = torch.ones(1, 2, 2, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="t_min"):
        march(torch.zeros(1, 3), torch.ones(1, 3), torch.zeros(2), torch.ones(1), full, step=math.inf)
