"""The look-up in a grid of space and time against NumPy in float64, closed forms and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nelf.kernels import space_time_lookup

SHAPE = (3, 4, 5, 6, 2)  # T, D, H, W, C


def in_float64(positions: np.ndarray, times: np.ndarray, values: np.ndarray) -> np.ndarray:
    """One axis after the other by ``np.interp``."""
    out = np.zeros((len(positions), values.shape[-1]))
    for n, (position, time) in enumerate(zip(positions, times, strict=True)):
        rest = values
        for share in (time, position[2], position[1], position[0]):  # T, D, H, W
            nodes = np.linspace(0, 1, len(rest))
            flat = rest.reshape(len(rest), -1)
            rest = np.stack([np.interp(share, nodes, column) for column in flat.T]).reshape(rest.shape[1:])
        out[n] = rest
    return out


@pytest.mark.usefixtures("backend")
def test_equals_interpolation_axis_by_axis() -> None:
    values = torch.randn(SHAPE)
    edges = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [1.0, 0.0, 0.5], [-0.2, 1.3, 0.4]])  # beyond: the border
    positions = torch.cat([torch.rand(60, 3), edges])
    times = torch.cat([torch.rand(60), torch.tensor([0.0, 1.0, 0.5, 1.2])])
    expected = in_float64(positions.double().numpy(), times.double().numpy(), values.double().numpy())
    np.testing.assert_allclose(space_time_lookup(positions, times, values).numpy(), expected, atol=1e-5)


@pytest.mark.usefixtures("backend")
def test_a_linear_function_is_exact() -> None:
    sides = [torch.linspace(0, 1, n, dtype=torch.float32) for n in SHAPE[:4]]
    t, z, y, x = torch.meshgrid(*sides, indexing="ij")
    values = torch.stack([x + 10 * y - 3 * z, 5 * t + x], -1)
    positions, times = torch.rand(100, 3), torch.rand(100)
    px, py, pz = positions.unbind(-1)
    expected = torch.stack([px + 10 * py - 3 * pz, 5 * times + px], -1)
    torch.testing.assert_close(space_time_lookup(positions, times, values), expected, atol=2e-5, rtol=0)


def test_reference_passes_gradcheck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NELF_KERNELS", "reference")
    positions, times = torch.rand(5, 3, dtype=torch.float64), torch.rand(5, dtype=torch.float64)
    values = torch.randn(2, 3, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: space_time_lookup(positions, times, v), values)


def test_gradients_equal_the_reference(fast_backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    positions, times, grad_out = torch.rand(300, 3), torch.rand(300), torch.randn(300, 2)
    grad_out[::3] = 0.0  # samples behind a surface
    gradients = []
    for backend in ("reference", fast_backend):
        monkeypatch.setenv("NELF_KERNELS", backend)
        values = torch.zeros(SHAPE, requires_grad=True)
        space_time_lookup(positions, times, values).backward(grad_out)
        gradients.append(values.grad)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("backend")
def test_a_side_of_one_node_is_constant() -> None:
    values = torch.randn(1, 1, 1, 1, 3)
    found = space_time_lookup(torch.rand(7, 3), torch.rand(7), values)
    torch.testing.assert_close(found, values.view(1, 3).expand(7, 3))


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Expected `positions` \(N, 3\)"):
        space_time_lookup(torch.rand(4, 3), torch.rand(5), torch.zeros(SHAPE))
