"""Compositing: closed forms, properties, gradients against float64."""

import pytest
import torch

from nelf.kernels import composite


def ragged(n_rays: int = 10, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Rays with 0 to 12 samples each, some opaque."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, 13, (n_rays,), generator=generator)
    counts[:3] = torch.tensor([0, 1, 12])
    rays = torch.repeat_interleave(torch.arange(n_rays), counts)
    size = len(rays)
    starts = torch.cat([torch.arange(int(c)) * 0.1 for c in counts])
    ends = starts + 0.1 * torch.rand(size, generator=generator)
    sigma = torch.rand(size, generator=generator) * 20
    sigma[5] = 1e4
    return sigma, torch.rand(size, 3, generator=generator), starts, ends, rays


@pytest.mark.usefixtures("backend")
def test_by_hand() -> None:
    # optical depths ln 2, ln 4 | 0.5 -> weights 1/2, 1/2 * 3/4 | 1 - exp(-0.5) = 0.3935
    sigma = torch.tensor([2.0, 4.0, 0.5]).log().where(torch.tensor([True, True, False]), torch.tensor(0.5))
    out = composite(
        sigma, torch.eye(3), torch.tensor([0.0, 1.0, 3.0]), torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 0, 2]), 3
    )
    torch.testing.assert_close(out.weights, torch.tensor([0.5, 0.375, 0.39346934]))
    torch.testing.assert_close(out.opacity, torch.tensor([0.875, 0.0, 0.39346934]))
    torch.testing.assert_close(out.depth, torch.tensor([0.5 * 0.5 + 0.375 * 1.5, 0.0, 3.5 * 0.39346934]))
    torch.testing.assert_close(out.rgb[0], torch.tensor([0.5, 0.375, 0.0]))


@pytest.mark.usefixtures("backend")
def test_weights_sum_to_an_opacity_within_one() -> None:
    sigma, rgb, starts, ends, rays = ragged()
    out = composite(sigma, rgb, starts, ends, rays, 10)
    torch.testing.assert_close(torch.zeros(10).index_add(0, rays, out.weights), out.opacity)
    assert out.opacity.min() == 0.0
    assert out.opacity.max() <= 1.0 + 1e-6


@pytest.mark.usefixtures("backend")
def test_halving_a_sample_changes_nothing() -> None:
    sigma, rgb, starts, ends, rays = ragged()
    middle = 0.5 * (starts + ends)
    twice = lambda x: x.repeat_interleave(2, dim=0)  # noqa: E731
    halves_start = torch.stack([starts, middle], 1).flatten()
    halves_end = torch.stack([middle, ends], 1).flatten()
    whole = composite(sigma, rgb, starts, ends, rays, 10)
    halved = composite(twice(sigma), twice(rgb), halves_start, halves_end, twice(rays), 10)
    torch.testing.assert_close(halved.rgb, whole.rgb, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(halved.opacity, whole.opacity, atol=1e-5, rtol=1e-4)


@pytest.mark.usefixtures("backend")
def test_early_stop_drops_what_little_light_reaches() -> None:
    sigma = torch.tensor([20.0, 5.0, 5.0])
    bounds = torch.tensor([0.0, 1.0, 2.0, 3.0])
    rays = torch.zeros(3, dtype=torch.long)
    out = composite(sigma, torch.ones(3, 3), bounds[:-1], bounds[1:], rays, 1, early_stop=1e-4)
    assert out.weights[1:].tolist() == [0.0, 0.0]


@pytest.mark.usefixtures("backend")
def test_padding_counts_for_nothing() -> None:
    sigma, rgb, starts, ends, rays = ragged()
    empty = torch.zeros(7)
    padded = torch.cat([starts, empty]), torch.cat([ends, empty]), torch.cat([rays, torch.full((7,), 10)])
    found = []
    for bounds, more in (((starts, ends, rays), 0), (padded, 7)):
        learned = torch.cat([sigma, torch.ones(more)]), torch.cat([rgb, torch.ones(more, 3)])
        leaves = [values.requires_grad_() for values in learned]
        out = composite(*leaves, *bounds, 10, early_stop=1e-2)
        generator = torch.Generator().manual_seed(1)
        grads = [torch.randn(part.shape, generator=generator) for part in out[:3]]
        torch.autograd.backward(out[:3], grads)
        assert not out.weights[len(rays) :].any()
        assert not any(leaf.grad[len(rays) :].any() for leaf in leaves)  # type: ignore[index]
        found.append([*out, *(leaf.grad for leaf in leaves)])
    for plain, with_padding in zip(*found, strict=True):
        torch.testing.assert_close(with_padding[: len(plain)], plain)


def test_reference_passes_gradcheck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NELF_KERNELS", "reference")
    sigma, rgb, starts, ends, rays = ragged(8)
    sigma[5] = 2.0  # finite differences of an opaque sample are all rounding
    leaves = (sigma.double().requires_grad_(), rgb.double().requires_grad_())
    assert torch.autograd.gradcheck(lambda s, c: composite(s, c, starts.double(), ends.double(), rays, 8), leaves)


@pytest.mark.parametrize("early_stop", [0.0, 1e-2])
def test_gradients_equal_the_reference_in_float64(
    early_stop: float, fast_backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sigma, rgb, starts, ends, rays = ragged()
    grads = [torch.randn(10, 3), torch.randn(10), torch.randn(10), torch.randn(len(sigma))]
    results = []
    for backend, dtype in (("reference", torch.float64), (fast_backend, torch.float32)):
        monkeypatch.setenv("NELF_KERNELS", backend)
        s, c = sigma.to(dtype).requires_grad_(), rgb.to(dtype).requires_grad_()
        out = composite(s, c, starts.to(dtype), ends.to(dtype), rays, 10, early_stop)
        torch.autograd.backward(list(out), [grad.to(dtype) for grad in grads])
        results.append([tensor.float() for tensor in (*out, s.grad, c.grad)])
    torch.testing.assert_close(results[1], results[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("backend", ["reference", "cpu"], indirect=True)  # a GPU would have to be waited for
@pytest.mark.parametrize("rays", [[1, 0], [0, 3], [-1, 0]])
@pytest.mark.usefixtures("backend")
def test_refuses_disordered_rays(rays: list[int]) -> None:
    with pytest.raises(ValueError, match="non-decreasing"):
        composite(torch.ones(2), torch.ones(2, 3), torch.zeros(2), torch.ones(2), torch.tensor(rays), 2)


def test_refuses_samples_of_different_number() -> None:
    with pytest.raises(ValueError, match=r"`rgb` has shape \(3, 3\), `sigma` has 2 samples"):
        composite(torch.ones(2), torch.ones(3, 3), torch.zeros(2), torch.ones(2), torch.zeros(2).long(), 1)
