"""Reading a sparse grid anywhere: closed forms, finite differences, and the Numba backend against the reference."""

import math
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from nelf.kernels import reference
from nelf.kernels.trilinear import trilinear
from nelf.lightfields.volume import index_of

BOX = torch.tensor([-1.0, -1.2, -0.8, 1.0, 0.7, 0.9])
# All grids here have four channels: Numba compiles its kernels for each number of them.


def dense(*shape: int) -> Tensor:
    """An index all of whose corners exist."""
    return torch.arange(math.prod(shape), dtype=torch.int32).view(shape)


def corner_positions(shape: tuple[int, int, int], aabb: Tensor) -> Tensor:
    """Where the corners (z, y, x) of a grid lie: (D * H * W, 3) xyz."""
    depth, height, width = shape
    places = product(range(depth), range(height), range(width))
    steps = torch.tensor([[x / (width - 1), y / (height - 1), z / (depth - 1)] for z, y, x in places])
    return aabb[:3] + steps.to(aabb) * (aabb[3:] - aabb[:3])


def random_case(dtype: torch.dtype = torch.float32, n: int = 400) -> dict[str, Any]:
    """A box whose cells are no cubes, some of its corners missing; a quarter of the places lie outside it."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=dtype)

    index = index_of(draw(6, 5, 7) > 0.2)
    aabb = BOX.to(dtype)
    return {
        "values": draw(int(index.max()) + 1, 4) - 0.5,
        "index": index,
        "positions": aabb[:3] + (1.2 * draw(n, 3) - 0.1) * (aabb[3:] - aabb[:3]),
        "aabb": aabb,
        "missing": torch.tensor([-3.0, 0.0, 1.0, 0.5], dtype=dtype),
    }


@pytest.mark.usefixtures("backend")
def test_a_multilinear_function_is_read_exactly() -> None:
    def function(p: Tensor) -> Tensor:
        x, y, z = p.unbind(-1)
        return torch.stack([1 + x - 2 * y + 3 * z, x * y, y * z + 0.1, x * y * z], -1)

    shape, generator = (4, 3, 5), torch.Generator().manual_seed(0)
    places = BOX[:3] + torch.rand(200, 3, generator=generator) * (BOX[3:] - BOX[:3])
    places[:2] = BOX.view(2, 3)  # the first and the last corner
    places.requires_grad_()
    read = trilinear(function(corner_positions(shape, BOX)), dense(*shape), places, BOX, torch.zeros(4))
    torch.testing.assert_close(read, function(places), atol=1e-5, rtol=1e-5)
    weights = torch.randn(200, 4, generator=generator)
    inside = slice(2, None)  # at a face the slope has two sides
    (got,) = torch.autograd.grad((read * weights).sum(), places)
    (expected,) = torch.autograd.grad((function(places) * weights).sum(), places)
    torch.testing.assert_close(got[inside], expected[inside], atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("backend")
def test_beyond_the_box_is_its_face_and_a_missing_corner_is_what_it_counts_as() -> None:
    exists = torch.zeros(2, 2, 3, dtype=torch.bool)
    exists[:, :, 0] = exists[0, 0, 2] = True
    values = torch.arange(5.0)[:, None].expand(5, 4).contiguous()  # z = 0: 0 and 1 along x, 2 above; z = 1: 3, 4
    box = torch.tensor([0.0, 0.0, 0.0, 2.0, 1.0, 1.0])
    places = torch.tensor(
        [[-5.0, -5.0, -5.0], [-1.0, 1.0, 9.0], [2.0, 0.0, 0.0], [0.25, 0.0, 0.0], [1.0, 0.5, 0.5], [1.5, 0.0, 0.0]]
    ).requires_grad_()
    read = trilinear(values, index_of(exists), places, box, torch.full((4,), -8.0))
    expected = torch.tensor([0.0, 4.0, 1.0, 0.25 * -8, -8.0, 0.5 * 1 - 0.5 * 8])
    torch.testing.assert_close(read, expected[:, None].expand(6, 4))
    read.sum().backward()
    assert places.grad is not None
    assert not places.grad[0].any()  # beyond all faces nothing changes
    torch.testing.assert_close(places.grad[3], 4 * torch.tensor([-8.0, 0.75 * 2, 0.75 * 3]))


def test_reference_gradient() -> None:
    case = random_case(torch.float64, n=12)

    def run(values: Tensor, positions: Tensor) -> Tensor:
        return reference.trilinear(**{**case, "values": values, "positions": positions})

    assert torch.autograd.gradcheck(run, (case["values"].requires_grad_(), case["positions"].requires_grad_()))


@pytest.mark.parametrize(
    ("fast_backend", "threads"), [("cpu", 1), ("cpu", 2), ("triton", 1)], indirect=["fast_backend"]
)
@pytest.mark.usefixtures("fast_backend")
def test_backends_equal_the_reference_gradients_included(threads: int) -> None:
    results = []
    torch.set_num_threads(threads)
    try:
        for run in (reference.trilinear, trilinear):
            case = random_case()
            values, positions = case["values"].requires_grad_(), case["positions"].requires_grad_()
            out = run(**case)
            weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(0))
            weights[::3] = 0.0  # places that nobody reads
            (out * weights).sum().backward()
            results.append((out.detach(), values.grad, positions.grad))
    finally:
        torch.set_num_threads(1)
    assert float(results[0][2].abs().mean()) > 0.1
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("backend")
def test_no_places_at_all() -> None:
    case = random_case(n=0)
    values = case["values"].requires_grad_()
    out = trilinear(**case)
    assert out.shape == (0, 4)
    out.sum().backward()
    assert not values.grad.any()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("values", torch.zeros(7)),
        ("missing", torch.zeros(7)),
        ("index", torch.zeros(7, 7, dtype=torch.int32)),
        ("index", torch.zeros(7, 1, 7, dtype=torch.int32)),
        ("positions", torch.zeros(7, 2)),
    ],
)
def test_wrong_shapes_are_named(name: str, value: Tensor) -> None:
    with pytest.raises(ValueError, match=f"`{name}`.*7"):
        trilinear(**{**random_case(), name: value})


def test_compiled_kernels_are_found_on_disk_again() -> None:
    """What a kernel encloses is part of its key: built anew, as in another process, it must be the same key."""
    from nelf.kernels import cpu_trilinear as module

    case = random_case()
    module.trilinear(**case)  # compiled or read, whichever: on disk from here on
    module._kernels.cache_clear()
    module.trilinear(**case)
    forward, *_ = module._kernels(4)
    assert dict(forward.stats.cache_misses) == {}
    assert sum(forward.stats.cache_hits.values()) == 1
