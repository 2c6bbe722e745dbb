"""The composited lookup: closed forms, the reference's gradient, and the Numba backend against the reference."""

import math
import os
from typing import Any

import pytest
import torch
from torch import Tensor

from nelf.kernels import reference
from nelf.kernels.lookup import occupied_cells, ray_features
from nelf.lightfields.volume import index_of
from nelf.rays import intersect_aabb

UNIT_BOX = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 1.0])
HALF = torch.tensor([0.5])
# All volumes here have four channels: Numba compiles its kernels for each number of them.


def dense(*shape: int) -> Tensor:
    """An index all of whose corners exist."""
    return torch.arange(math.prod(shape), dtype=torch.int32).view(shape)


def through_the_middle(n: int = 1) -> tuple[Tensor, Tensor]:
    return torch.tensor([[0.5, 0.5, -1.0]]).expand(n, 3), torch.tensor([[0.0, 0.0, 2.0]]).expand(n, 3)


def rand(generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(*shape, generator=generator, dtype=dtype)


def random_case(dtype: torch.dtype = torch.float32, n: int = 300) -> dict[str, Any]:
    """A box away from the origin whose voxels are no cubes, rays toward and beside it, some corners missing."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return rand(generator, *shape, dtype=dtype)

    index = index_of(draw(6, 5, 7) > 0.1)
    rows = int(index.max()) + 1
    rays_o = torch.nn.functional.normalize(draw(n, 3) - 0.5, dim=-1) * 4
    return {
        "density": draw(rows) * 6 - 3,
        "features": draw(rows, 4),
        "index": index,
        "rays_o": rays_o,
        "rays_d": ((draw(n, 3) * 2 - 1) * 1.4 - rays_o) * (0.5 + draw(n, 1)),
        "aabb": torch.tensor([-1.0, -1.2, -0.8, 1.0, 0.7, 0.9], dtype=dtype),
        "jitter": draw(n),
        "step": 0.12,
        "min_alpha": 0.1,
    }


def mostly_empty_case() -> dict[str, Any]:
    """Three lumps in a large grid: the walk leaps from one to the next; some rays begin between them."""
    generator = torch.Generator().manual_seed(4)
    exists = torch.zeros(40, 44, 36, dtype=torch.bool)
    for z, y, x in ((0, 0, 0), (30, 35, 20), (37, 41, 33)):  # the last one ends with the box
        exists[z : z + 3, y : y + 3, x : x + 3] = True
    exists[20, 20, 20] = True  # a corner that no cell has
    rows, n = int(exists.sum()), 400
    goals = torch.tensor([[0.6, 0.6, 0.5], [21.0, 36.0, 31.0], [34.0, 42.0, 38.0]])[torch.arange(n) % 3]
    rays_o = (rand(generator, n, 3) * 3 - 1) * torch.tensor([35.0, 43.0, 39.0])
    return {
        "density": rand(generator, rows) * 6 - 3,
        "features": rand(generator, rows, 4),
        "index": index_of(exists),
        "rays_o": rays_o,
        "rays_d": goals + rand(generator, n, 3) - rays_o,
        "aabb": torch.tensor([0.0, 0.0, 0.0, 35.0, 43.0, 39.0]),
        "jitter": rand(generator, n),
        "step": 0.4,
        "min_alpha": 0.0,
    }


@pytest.mark.usefixtures("backend")
def test_two_points_by_hand() -> None:
    """A density of 0 lets half of the light through: weights 1/2 and 1/4, at z = 1/4 and 3/4."""
    ramp = torch.tensor([0.0] * 4 + [1.0] * 4)[:, None].expand(8, 4)  # the features are z
    rays_o, rays_d = through_the_middle()
    out = ray_features(torch.zeros(8), ramp, dense(2, 2, 2), rays_o, rays_d, UNIT_BOX, HALF, 0.5)
    torch.testing.assert_close(out.opacity, torch.tensor([0.75]))
    torch.testing.assert_close(out.features, torch.full((1, 4), 0.5 * 0.25 + 0.25 * 0.75))
    torch.testing.assert_close(out.depth, torch.tensor([0.5 * 0.625 + 0.25 * 0.875]))  # z = -1 + 2 t


@pytest.mark.usefixtures("backend")
def test_density_is_interpolated_before_its_sigmoid() -> None:
    rays_o, rays_d = through_the_middle()
    rays_o = rays_o + torch.tensor([[0.25, 0.0, 0.0]])  # x = 3/4: a quarter of -2, three of 6
    density = torch.tensor([-2.0, 6.0] * 4)
    out = ray_features(density, torch.ones(8, 4), dense(2, 2, 2), rays_o, rays_d, UNIT_BOX, HALF, 1.0)
    torch.testing.assert_close(out.opacity, torch.sigmoid(torch.tensor([4.0])))


@pytest.mark.usefixtures("backend")
def test_thin_points_and_the_dark_fade_out() -> None:
    """From ``min_alpha`` to twice as much a point comes in; below a hundredth of the light it goes out."""
    rays_o, rays_d = through_the_middle()

    def opacity(alpha: float, step: float, min_alpha: float) -> float:
        density = torch.full((8,), math.log(alpha / (1 - alpha)))
        case = (torch.ones(8, 4), dense(2, 2, 2), rays_o, rays_d, UNIT_BOX, HALF, step, min_alpha)
        return float(ray_features(density, *case).opacity)

    for share, expected in ((0.9, 0.0), (1.25, 0.25), (1.5, 0.5), (2.5, 1.0)):
        assert opacity(0.1 * share, 1.0, 0.1) == pytest.approx(0.1 * share * expected, abs=1e-6)
    # 15 thousandths of the light reach the second point: half of them count.
    assert opacity(0.985, 0.5, 0.0) == pytest.approx(0.985 + 0.015 * 0.5 * 0.985, abs=1e-5)
    assert opacity(0.995, 0.5, 0.0) == pytest.approx(0.995, abs=1e-5)


@pytest.mark.usefixtures("backend")
def test_uniform_fog_does_not_depend_on_the_step() -> None:
    rays_o, rays_d = through_the_middle()
    for points in (1, 7, 64) if os.environ["NELF_KERNELS"] != "triton" else (1, 7):
        alpha = 1 - math.exp(-1.5 / points)
        density = torch.full((27,), math.log(alpha / (1 - alpha)))
        out = ray_features(density, torch.ones(27, 4), dense(3, 3, 3), rays_o, rays_d, UNIT_BOX, HALF, 1 / points)
        torch.testing.assert_close(out.opacity, torch.tensor([1 - math.exp(-1.5)]))


@pytest.mark.usefixtures("backend")
def test_rays_that_miss_or_turn_away_see_nothing() -> None:
    rays_o = torch.tensor([[5.0, 0.5, -1.0], [0.5, 0.5, -1.0], [0.5, 0.5, -1.0]])
    rays_d = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0], [0.0, 0.0, 1.0]])
    t_min, t_max = intersect_aabb(rays_o, rays_d, UNIT_BOX)
    assert (t_max - t_min).tolist() == [0.0, 0.0, 1.0]
    case = {"rays_o": rays_o, "rays_d": rays_d, "aabb": UNIT_BOX, "jitter": HALF.expand(3), "step": 0.1}
    volume = {"density": torch.full((8,), 3.0), "features": torch.ones(8, 4), "index": dense(2, 2, 2)}
    out = ray_features(**{**case, **volume})
    assert (out.opacity > 0).tolist() == [False, False, True]


@pytest.mark.usefixtures("backend")
def test_a_cell_is_read_only_if_all_its_corners_exist() -> None:
    """One ray through each of 3 x 3 columns of cells: it sees what the cells of its column hold, by brute force."""
    exists = torch.ones(4, 4, 4, dtype=torch.bool)
    for corner in ((0, 0, 0), (3, 2, 1), (1, 2, 3), (2, 2, 3), (0, 2, 3), (3, 2, 3)):
        exists[corner] = False
    index = index_of(exists)
    middles = (torch.arange(3) + 0.5) / 3
    y, x = (grid.flatten() for grid in torch.meshgrid(middles, middles, indexing="ij"))
    rays_o = torch.stack([x, y, torch.full_like(x, -1.0)], -1)
    rays_d = torch.tensor([0.0, 0.0, 1.0]).expand(9, 3)
    full = [
        [sum(bool(exists[z : z + 2, y : y + 2, x : x + 2].all()) for z in range(3)) for x in range(3)] for y in range(3)
    ]
    assert [min(map(min, full)), max(map(max, full))] == [0, 3]
    expected = 1 - 0.5 ** torch.tensor(full).flatten().float()
    rows = int(exists.sum())
    case = {"index": index, "rays_o": rays_o, "rays_d": rays_d, "aabb": UNIT_BOX, "jitter": HALF.expand(9)}
    out = ray_features(**case, density=torch.zeros(rows), features=torch.ones(rows, 4), step=1 / 3)
    torch.testing.assert_close(out.opacity, expected)
    assert torch.equal(occupied_cells(index).sum(0), torch.tensor(full))


@pytest.mark.usefixtures("backend")
def test_the_cell_in_the_last_corner_of_the_box_is_read_up_to_the_faces() -> None:
    exists = torch.zeros(5, 4, 6, dtype=torch.bool)
    exists[-2:, -2:, -2:] = True
    rays_o = torch.tensor([[0.9, 0.9, -1.0], [0.9999, 0.9999, -1.0], [0.7, 0.9, -1.0], [0.9, 0.6, -1.0]])
    case = {
        "density": torch.full((8,), 20.0),
        "features": torch.arange(8.0)[:, None].expand(8, 4),
        "index": index_of(exists),
        "rays_o": rays_o,
        "rays_d": torch.tensor([0.0, 0.0, 1.0]).expand(4, 3),
        "aabb": UNIT_BOX,
        "jitter": torch.full((4,), 0.999),
        "step": 0.999,  # one point for each ray, at z = 0.998
    }
    out = ray_features(**case)
    assert out.opacity.round().tolist() == [1.0, 1.0, 0.0, 0.0]
    torch.testing.assert_close(out.features[1], torch.full((4,), 7.0), atol=0.05, rtol=0)


@pytest.mark.usefixtures("backend")
def test_a_volume_without_a_cell_and_no_rays_at_all() -> None:
    exists = torch.zeros(3, 3, 3, dtype=torch.bool)
    exists[2, 2, 2] = True
    density, features = torch.ones(1, requires_grad=True), torch.ones(1, 4, requires_grad=True)
    for n in (0, 3):
        rays_o, rays_d = through_the_middle(n)
        jitter = torch.full((n,), 0.5)
        out = ray_features(density, features, index_of(exists), rays_o, rays_d, UNIT_BOX, jitter, 0.2)
        assert [tuple(value.shape) for value in out] == [(n, 4), (n,), (n,)]
        assert all(not value.any() for value in out)
        (out.features.sum() + out.opacity.sum()).backward()
    assert density.grad is not None
    assert features.grad is not None
    assert not density.grad.any()
    assert not features.grad.any()


def test_an_index_that_changes_is_noticed() -> None:
    """The Numba backend remembers how far cells are from matter; with the same tensor, not for ever."""
    rays_o, rays_d = through_the_middle()
    index = torch.full((3, 3, 3), -1, dtype=torch.int32)
    case = {"index": index, "rays_o": rays_o, "rays_d": rays_d, "aabb": UNIT_BOX, "jitter": HALF, "step": 0.5}
    volume = {"density": torch.zeros(27), "features": torch.ones(27, 4)}
    assert float(ray_features(**case, **volume).opacity) == 0.0
    index.copy_(dense(3, 3, 3))
    assert float(ray_features(**case, **volume).opacity) == 0.75


def test_weights_stay_within_one_and_rays_do_not_see_each_other() -> None:
    case = random_case()
    case["features"] = torch.ones_like(case["features"])
    whole = ray_features(**case)
    assert float(whole.opacity.min()) >= 0
    assert 0.5 < float(whole.opacity.max()) <= 1
    torch.testing.assert_close(whole.features, whole.opacity[:, None].expand(-1, 4))
    part = ray_features(**{k: v[37:91] if k in ("rays_o", "rays_d", "jitter") else v for k, v in case.items()})
    torch.testing.assert_close(part.features, whole.features[37:91])


def test_reference_gradient() -> None:
    case = random_case(torch.float64, n=12)
    exists = torch.ones(3, 4, 3, dtype=torch.bool)
    exists[0, 0, 0] = False  # each number of the volume costs two passes: a small one
    case |= {"index": index_of(exists), "density": case["density"][:35], "features": case["features"][:35, :2]}
    case["density"].requires_grad_()
    case["features"].requires_grad_()

    def run(density: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        out = reference.ray_features(**{**case, "density": density, "features": features})
        return out.features, out.opacity

    assert torch.autograd.gradcheck(run, (case["density"], case["features"]), atol=1e-6)


def fewer_case() -> dict[str, Any]:
    """Rays and points enough for what is interpreted."""
    return {**random_case(n=60), "step": 0.3}


@pytest.mark.parametrize(
    ("fast_backend", "threads", "make"),
    [("cpu", threads, make) for threads in (1, 2) for make in (random_case, mostly_empty_case)]
    + [("triton", 1, fewer_case)],
    indirect=["fast_backend"],
)
@pytest.mark.usefixtures("fast_backend")
def test_backends_equal_the_reference_gradients_included(make: Any, threads: int) -> None:
    results = []
    torch.set_num_threads(threads)
    try:
        for run in (reference.ray_features, ray_features):
            case = make()
            density, features = case["density"].requires_grad_(), case["features"].requires_grad_()
            out = run(**case)
            generator = torch.Generator().manual_seed(0)
            loss = (out.features * torch.randn(out.features.shape, generator=generator)).sum()
            (loss + (out.opacity * torch.randn(out.opacity.shape, generator=generator)).sum()).backward()
            results.append((*(value.detach() for value in out), density.grad, features.grad))
    finally:
        torch.set_num_threads(1)
    assert int((results[0][1] > 0.1).sum()) > len(results[0][1]) / 3  # the rays meet something
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, atol=2e-3, rtol=1e-3)
        assert float((got - expected).abs().mean()) < 2e-5


def test_opacity_alone_can_be_learned_from() -> None:
    case = random_case()
    density = case["density"].requires_grad_()
    ray_features(**case).opacity.sum().backward()
    assert float(density.grad.abs().sum()) > 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("index", torch.zeros(3, 3, dtype=torch.int32)),
        ("index", torch.zeros(3, 3, 3)),
        ("jitter", torch.ones(7)),
        ("rays_d", torch.ones(7, 3)),
        ("features", torch.ones(2, 2)),
        ("density", torch.ones(2, 2)),
    ],
)
def test_wrong_shapes_are_named(name: str, value: Tensor) -> None:
    with pytest.raises(ValueError, match=f"`{name}`.*{len(value)}"):
        ray_features(**{**random_case(), name: value})


def test_compiled_walks_are_found_on_disk_again() -> None:
    """What a kernel encloses is part of its key: built anew, as in another process, it must be the same key."""
    from nelf.kernels import cpu_lookup as module

    module.ray_features(**random_case())  # compiled or read, whichever: on disk from here on
    module._kernels.cache_clear()
    module.ray_features(**random_case())
    forward, *_ = module._kernels(4)
    assert dict(forward.stats.cache_misses) == {}
    assert sum(forward.stats.cache_hits.values()) == 1


@pytest.mark.parametrize("share", [0.0, 0.6, 0.999])
def test_the_clearance_is_the_distance_to_the_nearest_occupied_cell(share: float) -> None:
    from nelf.kernels.cpu_lookup import MAX_CLEARANCE, clearance

    generator = torch.Generator().manual_seed(5)
    lumps = torch.nn.functional.interpolate(rand(generator, 1, 1, 7, 6, 5), size=(20, 18, 15))[0, 0]
    index = index_of(lumps > share)
    found = torch.from_numpy(clearance(index))
    cells = torch.stack(torch.meshgrid(*(torch.arange(side) for side in found.shape), indexing="ij"), -1).view(-1, 3)
    occupied = occupied_cells(index).flatten()
    expected = torch.full((len(cells),), MAX_CLEARANCE)
    if occupied.any():
        expected = (cells[:, None] - cells[occupied]).abs().amax(-1).amin(-1)
    assert torch.equal(found.flatten().long(), expected)
