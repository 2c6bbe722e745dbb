"""Batch norm folded away: the same function, ordinary layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nelf.compression.fold import fold_batch_norm
from nelf.lightfields import GridR2L, MobileR2L


def unsettle(network: nn.Module) -> nn.Module:
    """Statistics as after a training, far from those of a new norm."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 2.0)
            nn.init.normal_(layer.bias)
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.2, 3.0)
    return network.eval()


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_a_light_field_computes_the_same_without_its_norms(activation: str) -> None:
    network = unsettle(MobileR2L(width=16, depth=6, sr_factor=4, sr_kernels=(8, 8, 8), activation=activation))
    points = torch.randn(2, 24, 5, 6)
    folded = fold_batch_norm(network)
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in folded.modules())
    with torch.no_grad():
        expected, got = network.decode(points), folded.decode(points)
    assert float(expected.std()) > 1e-3
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("bias", [True, False])
def test_a_transposed_convolution_with_a_norm(bias: bool) -> None:
    block = unsettle(nn.Sequential(nn.ConvTranspose2d(3, 5, 4, 2, 1, bias=bias), nn.BatchNorm2d(5), nn.ReLU()))
    x = torch.randn(1, 3, 4, 4)
    torch.testing.assert_close(fold_batch_norm(block)(x), block(x), atol=1e-5, rtol=1e-5)


def test_a_norm_after_something_else_stays() -> None:
    block = unsettle(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)))
    x = torch.randn(1, 3, 4, 4)
    folded = fold_batch_norm(block)
    assert isinstance(folded[1], nn.BatchNorm2d)
    assert torch.equal(folded(x), block(x))


def test_in_place_or_not() -> None:
    block = unsettle(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)))
    assert fold_batch_norm(block) is not block
    assert isinstance(block[1], nn.BatchNorm2d)
    assert fold_batch_norm(block, inplace=True) is block
    assert isinstance(block[1], nn.Identity)
    plain = GridR2L(width=8, depth=4)
    assert fold_batch_norm(plain).state_dict().keys() == plain.state_dict().keys()
