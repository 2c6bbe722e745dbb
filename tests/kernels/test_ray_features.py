"""The composited lookup: closed forms, the reference's gradient, and the Numba backend against the reference."""

import math

import pytest
import torch
from torch import Tensor

from nelf.kernels.ray_features import RayFeatures, intersect_aabb, ray_features, ray_features_reference

UNIT_BOX = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 1.0])
SOFTPLUS_OF_ONE = math.log(math.e - 1)  # its softplus is 1


def through_the_middle(n: int = 1) -> tuple[Tensor, Tensor]:
    return torch.tensor([[0.5, 0.5, -1.0]]).expand(n, 3), torch.tensor([[0.0, 0.0, 2.0]]).expand(n, 3)


def random_case(dtype: torch.dtype = torch.float32, n: int = 300) -> dict[str, object]:
    """A box away from the origin, rays towards and beside it, a third of the cells empty."""
    generator = torch.Generator().manual_seed(3)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=dtype)

    rays_o = torch.nn.functional.normalize(rand(n, 3) - 0.5, dim=-1) * 4
    return {
        "density": rand(6, 5, 7) * 6 - 3,
        "features": rand(6, 5, 7, 4),
        "occupied": rand(5, 4, 6) > 0.3,
        "rays_o": rays_o,
        "rays_d": ((rand(n, 3) * 2 - 1) * 1.4 - rays_o) * (0.5 + rand(n, 1)),
        "aabb": torch.tensor([-1.0, -1.2, -0.8, 1.0, 0.7, 0.9], dtype=dtype),
        "jitter": rand(n),
        "points": 24,
        "density_scale": 2.0,
    }


def both(case: dict[str, object]) -> list[RayFeatures]:
    from nelf.kernels.ray_features_cpu import ray_features_cpu

    return [run(**case) for run in (ray_features_reference, ray_features_cpu)]  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_two_layers_by_hand(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """tau = 1 * ln 2 * 0.5 * 2 per point: alphas 1/2, weights 1/2 and 1/4, at z = 1/4 and 3/4."""
    monkeypatch.setenv("NELF_KERNELS", backend)
    ramp = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 2, 2, 1).contiguous()  # the feature is z
    rays_o, rays_d = through_the_middle()
    density = torch.full((2, 2, 2), SOFTPLUS_OF_ONE)
    everywhere = torch.ones(1, 1, 1, dtype=torch.bool)
    out = ray_features(density, ramp, everywhere, rays_o, rays_d, UNIT_BOX, torch.tensor([0.5]), 2, 2 * math.log(2.0))
    torch.testing.assert_close(out.opacity, torch.tensor([0.75]))
    torch.testing.assert_close(out.features, torch.tensor([[0.5 * 0.25 + 0.25 * 0.75]]))
    torch.testing.assert_close(out.depth, torch.tensor([0.5 * 0.625 + 0.25 * 0.875]))  # z = -1 + 2 t
    nothing = ray_features(density, ramp, ~everywhere, rays_o, rays_d, UNIT_BOX, torch.tensor([0.5]), 2, 1.0)
    assert [float(value.sum()) for value in nothing] == [0.0, 0.0, 0.0]


def test_uniform_fog_does_not_depend_on_the_number_of_points() -> None:
    rays_o, rays_d = through_the_middle()
    density, features = torch.full((3, 3, 3), SOFTPLUS_OF_ONE), torch.ones(3, 3, 3, 2)
    everywhere, half = torch.ones(2, 2, 2, dtype=torch.bool), torch.tensor([0.5])
    for points in (1, 7, 64):
        out = ray_features(density, features, everywhere, rays_o, rays_d, UNIT_BOX, half, points, 1.5)
        torch.testing.assert_close(out.opacity, torch.tensor([1 - math.exp(-1.5)]))


def test_rays_that_miss_or_turn_away_see_nothing() -> None:
    rays_o = torch.tensor([[5.0, 0.5, -1.0], [0.5, 0.5, -1.0], [0.5, 0.5, -1.0]])
    rays_d = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0], [0.0, 0.0, 1.0]])
    t_min, t_max = intersect_aabb(rays_o, rays_d, UNIT_BOX)
    assert (t_max - t_min).tolist() == [0.0, 0.0, 1.0]
    for backend in both(
        {
            "density": torch.full((2, 2, 2), 3.0),
            "features": torch.ones(2, 2, 2, 1),
            "occupied": torch.ones(1, 1, 1, dtype=torch.bool),
            "rays_o": rays_o,
            "rays_d": rays_d,
            "aabb": UNIT_BOX,
            "jitter": torch.full((3,), 0.5),
            "points": 8,
            "density_scale": 1.0,
        }
    ):
        assert (backend.opacity > 0).tolist() == [False, False, True]


def test_weights_stay_within_one_and_rays_do_not_see_each_other() -> None:
    case = random_case()
    case["features"] = torch.ones(6, 5, 7, 4)
    whole = ray_features(**case)  # type: ignore[arg-type]
    assert float(whole.opacity.min()) >= 0
    assert float(whole.opacity.max()) <= 1
    torch.testing.assert_close(whole.features, whole.opacity[:, None].expand(-1, 4))
    cut = {key: value[37:91] if key in ("rays_o", "rays_d", "jitter") else value for key, value in case.items()}  # type: ignore[index]
    part = ray_features(**cut)  # type: ignore[arg-type]
    torch.testing.assert_close(part.features, whole.features[37:91])


def test_reference_gradient() -> None:
    case = random_case(torch.float64, n=12)
    case["density"] = case["density"].requires_grad_()  # type: ignore[attr-defined]
    case["features"] = case["features"].requires_grad_()  # type: ignore[attr-defined]

    def run(density: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        out = ray_features_reference(**{**case, "density": density, "features": features})  # type: ignore[arg-type]
        return out.features, out.opacity

    assert torch.autograd.gradcheck(run, (case["density"], case["features"]), atol=1e-6)


@pytest.mark.parametrize("threads", [1, 2])
def test_numba_equals_the_reference_gradients_included(threads: int) -> None:
    results = []
    torch.set_num_threads(threads)
    try:
        for index in range(2):
            case = random_case()
            density, features = case["density"].requires_grad_(), case["features"].requires_grad_()  # type: ignore[attr-defined]
            out = both(case)[index]
            generator = torch.Generator().manual_seed(0)
            loss = (out.features * torch.randn(out.features.shape, generator=generator)).sum()
            (loss + (out.opacity * torch.randn(out.opacity.shape, generator=generator)).sum()).backward()
            results.append((*(value.detach() for value in out), density.grad, features.grad))
    finally:
        torch.set_num_threads(1)
    for expected, got in zip(*results, strict=True):
        # A point that one of the two finds just too thin or too dark to count may differ: 1e-3 of the light.
        torch.testing.assert_close(got, expected, atol=1.5e-3, rtol=1e-3)
        assert float((got - expected).abs().mean()) < 2e-5


def test_opacity_alone_can_be_learned_from() -> None:
    case = random_case()
    density = case["density"].requires_grad_()  # type: ignore[attr-defined]
    ray_features(**case).opacity.sum().backward()  # type: ignore[arg-type]
    assert float(density.grad.abs().sum()) > 0


def test_wrong_shapes_are_named() -> None:
    case = random_case()
    for name, value in (("occupied", torch.ones(3, 3, 3)), ("jitter", torch.ones(7)), ("features", torch.ones(2, 2))):
        with pytest.raises(ValueError, match=f"`{name}`"):
            ray_features(**{**case, name: value})  # type: ignore[arg-type]


def test_compiled_walks_are_found_on_disk_again() -> None:
    """What a kernel encloses is part of its key: built anew, as in another process, it must be the same key."""
    from nelf.kernels import ray_features_cpu as module

    both(random_case())  # compiled or read, whichever: on disk from here on
    module._kernels.cache_clear()
    both(random_case())
    forward, *_ = module._kernels(4)
    assert dict(forward.stats.cache_misses) == {}
    assert sum(forward.stats.cache_hits.values()) == 1
