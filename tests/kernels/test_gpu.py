"""The kernels on a real GPU: each backend against the reference there, and who waits for whom."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from nelf.data import RayBatch
from nelf.fields import NGP
from nelf.kernels import HashGrid, composite, gpu, hash_encode, march, march_within, space_time_lookup
from nelf.kernels.lookup import ray_features
from nelf.kernels.mlp import mlp
from nelf.kernels.trilinear import trilinear
from nelf.lightfields.volume import index_of
from nelf.rays import Rays
from nelf.systems import Teacher

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

GRID = HashGrid(levels=16, features=2, log2_table=16, base_resolution=16, per_level_scale=1.38)


@pytest.fixture(params=["triton", "tcnn"])
def backend(request: pytest.FixtureRequest) -> str:
    if reason := gpu.obstacle(request.param, torch.device("cuda", 0)):
        pytest.skip(reason)
    return str(request.param)


def compare(
    run: Callable[..., Any], learned: list[Tensor], backend: str, monkeypatch: pytest.MonkeyPatch, tolerance: float
) -> None:
    """Results and gradients of a backend against the reference, with random weights on all results."""
    results = []
    for name in ("reference", backend):
        monkeypatch.setenv("NELF_KERNELS", name)
        leaves = [tensor.detach().clone().requires_grad_() for tensor in learned]
        out = run(*leaves)
        out = [out] if isinstance(out, Tensor) else [tensor for tensor in out if tensor.requires_grad]
        generator = torch.Generator("cuda").manual_seed(1)
        grads = [torch.randn(tensor.shape, generator=generator, device="cuda") for tensor in out]
        torch.autograd.backward(out, grads)
        results.append([*(tensor.detach() for tensor in out), *(leaf.grad for leaf in leaves)])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, atol=tolerance * float(expected.abs().max()), rtol=1e-3)


def test_hash_encode(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("cuda"):
        points, table = torch.rand(10_001, 3), torch.randn(GRID.entries, 2)
    compare(lambda p, t: hash_encode(p, t, GRID), [points, table], backend, monkeypatch, 1e-3)


def test_mlp(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tolerance is that of 16 bits; a unit near zero has a gradient, or none."""
    for sides in ((32, 64, 16), (48, 64, 64, 3)):
        with torch.device("cuda"):
            learned = [torch.randn(10_001, sides[0])]
            learned += [torch.randn(b, a) / a**0.5 for a, b in pairwise(sides)]
        compare(lambda x, *weights: mlp(x, weights).float(), learned, backend, monkeypatch, 0.1)


def volume(device: str = "cuda") -> dict[str, Tensor]:
    """Two thirds of the corners of a box exist."""
    with torch.device(device):
        index = index_of(torch.rand(24, 20, 28) < 0.98)
        rows = int(index.max()) + 1
        origins = torch.nn.functional.normalize(torch.randn(3_001, 3), dim=-1) * 3
        directions = torch.rand(3_001, 3) * 1.4 - 0.7 - origins
        box = torch.tensor([-1.0, -1.2, -0.8, 1.0, 0.7, 0.9])
        return {
            "density": torch.randn(rows) * 2,
            "features": torch.randn(rows, 4),
            "index": index,
            "rays_o": origins,
            "rays_d": directions,
            "aabb": box,
            "jitter": torch.rand(3_001),
        }


def test_ray_features(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = volume()
    learned = [case.pop("density"), case.pop("features")]
    compare(lambda d, f: ray_features(d, f, **case, step=0.05, min_alpha=0.02), learned, backend, monkeypatch, 2e-3)


def test_trilinear(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = volume()
    places = (torch.rand(5_001, 3, device="cuda") - 0.5) * 3
    fixed = (case["aabb"], torch.zeros(4, device="cuda"))
    compare(lambda v, p: trilinear(v, case["index"], p, *fixed), [case["features"], places], backend, monkeypatch, 1e-3)


def test_space_time(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("cuda"):
        points, times, values = torch.rand(5_001, 3), torch.rand(5_001), torch.randn(4, 8, 9, 10, 3)
    compare(lambda v: space_time_lookup(points, times, v), [values], backend, monkeypatch, 1e-4)


def rays() -> tuple[Tensor, ...]:
    with torch.device("cuda"):
        origins = torch.nn.functional.normalize(torch.randn(4_001, 3), dim=-1) * 1.5
        directions = torch.nn.functional.normalize(torch.randn(4_001, 3) * 0.2 - origins, dim=-1)
        return origins, directions, torch.rand(4_001) * 0.1, torch.full((4_001,), 4.0), torch.rand(3, 32, 32, 32) < 0.1


def test_marched_samples_are_the_references_but_for_rounding(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    marched, found = rays(), {}
    for name in ("reference", backend):
        monkeypatch.setenv("NELF_KERNELS", name)
        samples = march(*marched, step=0.01, cone=1 / 64, max_step=0.1, extent=2.0)
        found[name] = set(zip(samples.ray_indices.tolist(), samples.t_starts.tolist(), strict=True))
    assert len(found["reference"]) > 10_000
    assert len(found["reference"] ^ found[backend]) <= 1e-3 * len(found["reference"])


def test_composite(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = march(*rays(), step=0.01, cone=1 / 64, max_step=0.1, extent=2.0)
    with torch.device("cuda"):
        learned = [torch.rand(len(samples.t_starts)) * 5, torch.rand(len(samples.t_starts), 3)]
    for stop in (0.0, 1e-2):
        compare(lambda s, c, stop=stop: composite(s, c, *samples, 4_001, stop), learned, backend, monkeypatch, 1e-4)


@contextmanager
def nobody_waits() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_only_marching_waits_for_the_gpu(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NELF_KERNELS", backend)
    marched, case = rays(), volume()
    samples = march(*marched, step=0.01)
    with torch.device("cuda"):
        points, table = torch.rand(10_001, 3), torch.randn(GRID.entries, 2, requires_grad=True)
        sigma, rgb = torch.rand(len(samples.t_starts), requires_grad=True), torch.rand(len(samples.t_starts), 3)
    learned = case["density"].requires_grad_(), case["features"].requires_grad_()

    def everything() -> None:
        hash_encode(points, table, GRID).sum().backward()
        composite(sigma, rgb, *samples, 4_001).rgb.sum().backward()
        ray_features(**case, step=0.05).features.sum().backward()
        march_within(*marched, 5_000, step=0.01)

    everything()  # compiles, and copies what is known of the grid
    with nobody_waits():
        everything()
    assert all(each.grad is not None for each in learned)
    with pytest.raises(RuntimeError, match="synchroniz"), nobody_waits():
        march(*marched, step=0.01)


def test_a_training_step_of_a_teacher_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does an update of its occupancy grid after the warm-up."""
    monkeypatch.setenv("NELF_KERNELS", "triton")
    with torch.device("cuda"):
        field, origins = NGP(log2_table=14, max_samples=128), torch.randn(512, 3)
        batch = RayBatch(Rays(origins, -origins), torch.rand(512, 4))
    teacher = Teacher(field, samples_per_step=2**14).to("cuda")
    teacher.log = lambda *rest, **options: None  # type: ignore[method-assign]
    optimizer = teacher.optimizer()

    def step() -> None:
        field.before_step(1600)
        optimizer.zero_grad()
        teacher.training_step(batch, 0).backward()
        optimizer.step()

    step()
    with nobody_waits():
        step()
