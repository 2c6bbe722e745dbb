"""Warps and slicing surfaces: the exponential map against that of matrices, and the sizes of HyperNeRF."""

import math

import pytest
import torch
from torch import Tensor, nn

from nelf.fields.warp import SE3Warp, SkipMLP, SlicingSurface, TranslationWarp, moved_along, robust


def by_matrices(rotation: Tensor, velocity: Tensor, points: Tensor) -> Tensor:
    """``exp(S) x - x`` with the 4 x 4 matrices of the twists."""
    matrix = points.new_zeros(len(points), 4, 4)
    for (row, column), (axis, sign) in {
        (0, 1): (2, -1), (0, 2): (1, 1), (1, 0): (2, 1), (1, 2): (0, -1), (2, 0): (1, -1), (2, 1): (0, 1),
    }.items():  # fmt: skip
        matrix[:, row, column] = sign * rotation[:, axis]
    matrix[:, :3, 3] = velocity
    ones = torch.cat([points, torch.ones_like(points[:, :1])], -1)
    return (torch.linalg.matrix_exp(matrix) @ ones[..., None])[:, :3, 0] - points


def twists(angle: float) -> tuple[Tensor, Tensor, Tensor]:
    axes = nn.functional.normalize(torch.randn(50, 3, dtype=torch.float64), dim=-1)
    return axes * angle, torch.randn(50, 3, dtype=torch.float64), torch.randn(50, 3, dtype=torch.float64)


@pytest.mark.parametrize("angle", [0.0, 1e-8, 1e-3, 0.5, 0.999, 1.001, 2.0, math.pi, 6.0])
def test_points_move_by_the_exponential_of_their_twists(angle: float) -> None:
    """The series ends at an angle of 1; on both sides of it, the result is right to the last digits."""
    rotation, velocity, points = twists(angle)
    expected = by_matrices(rotation, velocity, points)
    torch.testing.assert_close(moved_along(rotation, velocity, points), expected, atol=1e-13, rtol=1e-13)
    single = moved_along(rotation.float(), velocity.float(), points.float())
    torch.testing.assert_close(single.double(), expected, atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize("angle", [0.0, 1e-6, 0.3, 0.9, 1.5])
def test_the_gradient_is_that_of_finite_differences_and_of_matrices(angle: float) -> None:
    """Trap: the norm of a rotation has no gradient at 0, and a quotient none of a number."""
    inputs = tuple(part[:4].requires_grad_() for part in twists(angle))
    assert torch.autograd.gradcheck(moved_along, inputs, eps=1e-6, atol=1e-8, rtol=1e-6)
    weights = torch.randn(4, 3, dtype=torch.float64)
    found = torch.autograd.grad((moved_along(*inputs) * weights).sum(), inputs)
    expected = torch.autograd.grad((by_matrices(*inputs) * weights).sum(), inputs)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


def test_large_angles_in_float32_have_a_finite_gradient() -> None:
    """Trap: the series that is not chosen overflows, and infinity times zero is not a number."""
    rotation = torch.full((1, 3), 1e6, requires_grad=True)
    moved_along(rotation, torch.ones(1, 3), torch.ones(1, 3)).sum().backward()
    assert rotation.grad is not None
    assert rotation.grad.isfinite().all()


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_sizes_are_hypernerf_s() -> None:
    assert count(SE3Warp()) == 95_494
    assert count(TranslationWarp()) == 95_494 - (128 + 1) * 3
    assert count(SlicingSurface()) == 26_626
    warp = SE3Warp()
    assert [tuple(layer.weight.shape) for layer in warp.trunk.layers] == [  # type: ignore[operator]
        (128, 47), (128, 128), (128, 128), (128, 128), (128, 175), (128, 128)
    ]  # fmt: skip


def test_networks_begin_as_hypernerf_s() -> None:
    warp, surface = SE3Warp().requires_grad_(False), SlicingSurface().requires_grad_(False)
    assert 0.9e-4 < float(warp.head.weight.abs().max()) <= 1e-4
    assert float(warp.head.weight.min()) < 0
    assert float(surface.head.weight.std()) == pytest.approx(1e-5, rel=0.3)
    limit = math.sqrt(6 / (47 + 128))  # Glorot and Bengio's
    assert 0.98 * limit < float(warp.trunk.layers[0].weight.abs().max()) <= limit
    biases = [value for name, value in [*warp.named_parameters(), *surface.named_parameters()] if "bias" in name]
    assert len(biases) == 6 + 1 + 6 + 1
    assert not any(bias.any() for bias in biases)


def test_the_fifth_layer_sees_the_input_behind_the_activations() -> None:
    """With ones for the input's weights and zeros for the others, it is the sum of the input."""
    network = SkipMLP(3, 8, 5, low_precision=False)
    with torch.no_grad():
        network.layers[4].weight.zero_()  # type: ignore[union-attr,operator]
        network.layers[4].weight[:, 8:] = 1.0  # type: ignore[union-attr,index]
    inputs = torch.rand(5, 3)
    torch.testing.assert_close(network(inputs), inputs.sum(-1, keepdim=True).expand(5, 8))


@pytest.mark.parametrize("kind", [SE3Warp, TranslationWarp])
def test_a_shut_window_leaves_position_and_code(kind: type[TranslationWarp]) -> None:
    """The coordinates themselves are never shut: with them alone the network is piecewise linear, and still moves."""
    warp = kind(codes=2, width=16, depth=2, low_precision=False)
    nn.init.normal_(warp.head.weight)
    positions, codes = torch.rand(6, 3) - 0.5, torch.rand(6, 2)
    shut, opened = warp(positions, codes, torch.tensor(0.0)), warp(positions, codes, torch.tensor(1.0))
    encoded = torch.cat([positions, torch.zeros(6, 36), codes], 1)
    motion = warp.head(warp.trunk(encoded))
    expected = motion if kind is TranslationWarp else by_matrices(motion[:, :3], motion[:, 3:], positions)
    torch.testing.assert_close(shut, expected, atol=1e-5, rtol=1e-4)
    assert (opened - shut).abs().max() > 0.05


def test_the_slicing_surface_has_no_position_but_its_waves() -> None:
    """All its frequencies are whole: a shift by a full turn changes nothing."""
    surface = SlicingSurface(codes=2, outputs=3, low_precision=False)
    nn.init.normal_(surface.head.weight)
    positions, codes = torch.rand(6, 3), torch.rand(6, 2)
    found = surface(positions, codes)
    assert found.shape == (6, 3)
    torch.testing.assert_close(surface(positions + 2 * math.pi, codes), found, atol=1e-4, rtol=1e-4)
    assert (surface(positions + 1.0, codes) - found).abs().max() > 0.01


def test_the_robust_loss_is_geman_and_mcclure_s() -> None:
    """Barron's general loss for alpha -2: ``|a - 2| / a ((s / (c^2 |a - 2|) + 1)^(a / 2) - 1)``, times c."""
    squares, scale, alpha = torch.tensor([0.0, 1e-8, 1e-6, 1e-2, 1e4], dtype=torch.float64), 1e-3, -2.0
    general = abs(alpha - 2) / alpha * ((squares / (scale**2 * abs(alpha - 2)) + 1) ** (alpha / 2) - 1)
    torch.testing.assert_close(robust(squares, scale), scale * general)
    assert float(robust(squares, scale)[-1]) == pytest.approx(2 * scale)
