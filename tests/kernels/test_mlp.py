"""Small networks: fused ones against PyTorch in float64, their gradients too."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nelf.fields import NGP
from nelf.kernels import gpu, reference
from nelf.kernels.mlp import mlp

SIDES = [(32, 64, 16), (48, 64, 64, 3), (20, 32, 32, 4), (16, 128, 128, 16)]


def network(sides: tuple[int, ...], rows: int = 150) -> list[Tensor]:
    """Inputs and weights, numbers that bfloat16 holds exactly."""
    shapes = [(rows, sides[0]), *zip(sides[1:], sides, strict=False)]
    return [(torch.randn(shape) / shape[1] ** (0.5 * (k > 0))).bfloat16().float() for k, shape in enumerate(shapes)]


def in_float64(inputs: Tensor, *weights: Tensor) -> Tensor:
    x = inputs
    for weight in weights[:-1]:
        x = (x @ weight.T).relu()
    return x @ weights[-1].T


@pytest.mark.parametrize("backend", ["reference", "triton"], indirect=True)
@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("sides", SIDES)
def test_equals_float64_to_the_rounding_of_activations(sides: tuple[int, ...]) -> None:
    values, results = network(sides), []
    grad = torch.randn(150, sides[-1]).bfloat16()
    for run, dtype in ((in_float64, torch.float64), (lambda x, *weights: mlp(x, weights), torch.float32)):
        leaves = [each.to(dtype, copy=True).requires_grad_() for each in values]
        out = run(*leaves)
        out.backward(grad.to(out.dtype))
        results.append([out.detach(), *(leaf.grad for leaf in leaves)])
    assert results[1][0].dtype is torch.bfloat16
    for expected, got in zip(*results, strict=True):
        assert got.shape == expected.shape
        difference = (got.double() - expected).abs()
        # Not the largest difference: a unit whose sum is rounded to the other side of zero has a gradient, or none.
        assert float(difference.mean()) < 0.03 * float(expected.abs().mean())


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("sides", [(16, 16, 16, 16, 4), (16, 256, 4), (16, 32, 16, 4)])
def test_others_are_left_to_pytorch(sides: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, *weights = network(sides, 5)
    expected = reference.mlp(inputs, weights)
    monkeypatch.setenv("NELF_KERNELS", "triton")
    assert torch.equal(mlp(inputs, weights), expected)


@pytest.mark.usefixtures("interpreted")
def test_no_rows_are_no_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NELF_KERNELS", "triton")
    inputs, *weights = (each.requires_grad_() for each in network((16, 16, 4), 0))
    mlp(inputs, weights).sum().backward()
    assert inputs.grad is not None
    assert inputs.grad.shape == (0, 16)
    assert not weights[0].grad.any()  # type: ignore[union-attr]


def test_refuses_wrong_shapes() -> None:
    with pytest.raises(ValueError, match="two layers or more"):
        mlp(torch.zeros(3, 16), [torch.zeros(4, 16)])
    with pytest.raises(ValueError, match=r"\(4, 15\)"):
        mlp(torch.zeros(3, 16), [torch.zeros(16, 16), torch.zeros(4, 15)])


@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize("color_layers", [0, 1, 2])
def test_a_field_runs_its_networks_by_it(color_layers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"levels": 4, "log2_table": 8, "finest_resolution": 32, "color_layers": color_layers}
    field = NGP(**options, low_precision=True)  # type: ignore[arg-type]
    with torch.no_grad():
        field.encoding.table.normal_(std=0.3)
    positions, directions, found = torch.rand(64, 3) - 0.5, torch.nn.functional.normalize(torch.randn(64, 3)), []
    for ahead in (True, False):
        monkeypatch.setattr(gpu, "asynchronous", lambda device, ahead=ahead: ahead)
        sigma, features = field.density(positions)
        rgb = field.color(features, directions)
        field.zero_grad()
        (sigma.sum() + rgb.sum()).backward()
        found.append([features.detach(), rgb.detach(), *(each.grad for each in field.parameters())])
    for fused, plain in zip(*found, strict=True):
        assert float((fused - plain).norm()) < 0.1 * float(plain.norm())
