"""8-bit numbers against their formulas, written with numpy."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from nelf.cameras import Camera
from nelf.compression.fold import fold_batch_norm
from nelf.compression.integers import LARGEST_MULTIPLIED, asymmetric, dequantize, fake_quantize, quantize
from nelf.compression.quantization import (
    activation_ranges,
    calibrate,
    quantize_network,
    quantized_layers,
    restore_network,
)
from nelf.errors import UserError
from nelf.lightfields import GridR2L, MobileR2L


def original(values: np.ndarray, limit: int = 127) -> np.ndarray:
    """R2L-quant's rounding of a tensor, in float32 and in the order of its operations."""
    largest = np.abs(values).max()
    if largest <= np.float32(2.0**-24):
        return np.zeros_like(values)
    scale = np.float32(limit) / largest
    return np.clip(np.round(values * scale), np.float32(-limit), np.float32(limit)) / scale


@pytest.mark.parametrize("seed", range(4))
def test_a_tensor_is_rounded_as_the_original_does_bit_for_bit(seed: int) -> None:
    values = np.random.default_rng(seed).normal(0, 10.0 ** (seed - 2), (64, 33, 3)).astype(np.float32)
    got = dequantize(*quantize(torch.from_numpy(values))).numpy()
    assert np.array_equal(got, original(values))  # every bit but the sign of zero, which integers do not have


def test_halves_go_to_even_and_the_ends_are_127() -> None:
    integers, scale = quantize(torch.tensor([127.0, -127.0, 0.5, 1.5, 2.5, -0.5, -1.5]))
    assert integers.tolist() == [127, -127, 0, 2, 2, 0, -2]
    assert float(scale) == 1.0


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_zeros_stay_zeros(axis: int | None) -> None:
    values = torch.randn(3, 4)
    values[1] = 0.0
    values[:, 2] = 2.0**-25
    got = dequantize(*quantize(values, axis))
    assert torch.isfinite(got).all()
    assert (got[1] == 0).all()
    assert torch.equal(quantize(torch.zeros(3))[1], torch.tensor(1.0))


def test_per_channel_is_per_tensor_of_each_channel() -> None:
    values = torch.randn(5, 7, 3, 3) * torch.logspace(-3, 2, 7)[:, None, None]
    got = dequantize(*quantize(values, axis=1)).numpy()
    for channel in range(7):
        assert np.array_equal(got[:, channel], original(values.numpy()[:, channel]))


def test_gradients_pass_the_rounding() -> None:
    values = torch.randn(6, 5, requires_grad=True)
    factors = torch.randn(6, 5)
    (fake_quantize(values, 0) * factors).sum().backward()
    assert torch.equal(values.grad, factors)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.5, 2.0), (-2.0, -1.0), (-0.17, 4.0)])
def test_activations_hit_zero_and_both_ends(low: float, high: float) -> None:
    scale, zero = asymmetric(torch.tensor(low), torch.tensor(high))
    levels = (np.arange(256) - int(zero)) * float(scale)
    assert 0.0 in levels
    assert levels[0] == pytest.approx(min(low, 0.0), abs=0.51 * float(scale))
    assert levels[-1] == pytest.approx(max(high, 0.0), abs=0.51 * float(scale))


def rounded(values: np.ndarray, low: float, high: float) -> np.ndarray:
    scale = (max(high, 0.0) - min(low, 0.0)) / 255
    zero = np.round(-min(low, 0.0) / scale)
    return (np.clip(np.round(values / scale) + zero, 0, 255) - zero) * scale


@pytest.mark.parametrize("rectified", [True, False])
def test_a_convolution_computes_as_integers_would(rectified: bool) -> None:
    """1 x 1: a matrix product, so that numpy can say what an integer kernel gives."""
    block = nn.Sequential(nn.Conv2d(6, 4, 1), nn.ReLU(inplace=True) if rectified else nn.GELU())
    x = torch.randn(1, 6, 5, 5)
    quantize_network(block, {"0.input": (-2.0, 1.5), "0.output": (-1.5, 1.2)})
    weight = np.stack([original(row, LARGEST_MULTIPLIED) for row in block[0].weight.detach().numpy()[:, :, 0, 0]])
    y = (
        np.einsum("oc,bchw->bohw", weight, rounded(x.numpy(), -2.0, 1.5))
        + block[0].bias.detach().numpy()[:, None, None]
    )
    if not rectified:  # else the ReLU comes first, and its output is rounded as somebody's input
        y = rounded(y, -1.5, 1.2)
    with torch.no_grad():
        got = block[0](x).numpy()
    step = 2.7 / 255
    assert (np.abs(got - y) < 1e-5).mean() > 0.97  # a sum on the edge between two levels may fall to either side
    assert np.abs(got - y).max() < 1.01 * step


@pytest.mark.parametrize("rectified", [True, False])
def test_a_linear_layer_computes_as_integers_would(rectified: bool) -> None:
    """Inputs (..., C); 8-bit numbers times 8-bit numbers, added up exactly."""
    block = nn.Sequential(nn.Linear(6, 4), nn.ReLU() if rectified else nn.GELU())
    x = torch.randn(2, 5, 5, 6)
    quantize_network(block, {"0.input": (-2.0, 1.5), "0.output": (-1.5, 1.2)})
    weight = block[0].weight.detach().numpy().astype(float)
    steps = np.abs(weight).max(1) / LARGEST_MULTIPLIED
    step, zero = 3.5 / 255, round(2.0 / (3.5 / 255))
    activations = np.clip(np.round(x.numpy() / step) + zero, 0, 255).astype(int) - zero
    sums = activations @ np.round(weight / steps[:, None]).astype(int).T
    y = sums * step * steps + block[0].bias.detach().numpy()
    if not rectified:
        y = rounded(y, -1.5, 1.2)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        got = block[0](x).numpy()
    assert got.dtype == np.float32  # whatever the precision of what is around it
    assert (np.abs(got - y) < 1e-5).mean() > 0.97  # a sum on the edge between two levels may fall to either side
    assert np.abs(got - y).max() < 1.01 * 2.7 / 255


LAYERS = {"conv": nn.Conv2d(3, 3, 1), "transposed": nn.ConvTranspose2d(3, 3, 1), "linear": nn.Linear(3, 3)}


@pytest.mark.parametrize("kind", LAYERS)
def test_another_layer_stands_in_each_place_and_shares_all_it_has(kind: str) -> None:
    torch.manual_seed(0)  # for some weights, all is zero after the ReLU
    layer, x = copy.deepcopy(LAYERS[kind]), torch.randn(1, 3, 3, 3)
    layer.reset_parameters()
    calls: list[nn.Module] = []
    layer.register_forward_hook(lambda *_: calls.append(layer))
    network = nn.Sequential(layer, nn.Sequential(layer, nn.ReLU())).eval()
    plain, parameters = network(x), list(network.parameters())
    calls.clear()
    quantize_network(network, {"0.input": (-1.0, 1.0)})
    assert network[0] is network[1][0] is not layer  # one layer in two places stays one layer
    assert isinstance(network[0], type(layer))
    assert not network[0].training
    assert all(one is other for one, other in zip(network.parameters(), parameters, strict=True))
    assert not torch.equal(network(x), plain)
    assert len(calls) == 2
    again = copy.deepcopy(network)
    assert torch.equal(again(x), network(x))
    assert activation_ranges(again) == {"0.input": (-1.0, 1.0)}
    restore_network(network.train())
    assert type(network[0]) is type(network[1][0]) is type(layer)
    assert network[0].training
    assert torch.equal(network(x), plain)
    assert not torch.equal(again(x), plain)


def test_layers_of_somebody_else_and_a_layer_that_nothing_holds_are_left() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    network = nn.Sequential(Doubled(2, 2), nn.Linear(2, 2))
    assert list(quantized_layers(network)) == ["1"]
    assert list(quantized_layers(quantize_network(network, "dynamic"))) == ["1"]
    assert type(network[0]) is Doubled
    layer = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="got one itself"):
        quantize_network(layer, "dynamic")
    assert type(layer) is nn.Linear


def test_dynamic_takes_the_range_of_what_it_sees() -> None:
    layer = nn.Sequential(nn.ConvTranspose2d(3, 2, 2, stride=2, bias=False))
    x = torch.randn(1, 3, 4, 4)
    expected = nn.functional.conv_transpose2d(
        torch.from_numpy(rounded(x.numpy(), float(x.min()), float(x.max()))).float(),
        fake_quantize(layer[0].weight, 1),
        stride=2,
    )
    quantize_network(layer, "dynamic")
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)


def cameras(n: int = 2) -> Camera:
    c2w = torch.eye(3, 4).repeat(n, 1, 1)
    c2w[:, 2, 3] = 4.0 + torch.arange(n)
    return Camera.from_fov(c2w, 0.7, 16, 16)


def small() -> GridR2L:
    network = GridR2L(width=8, depth=4, resolution=8, features=4)
    nn.init.normal_(network.volume.density, std=2.0)
    nn.init.normal_(network.tail.weight, std=0.2)  # a new one is zero
    return network.eval()


def test_calibration_sees_what_passes_through_every_layer() -> None:
    network = small()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    seen = {}
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda _, x, y, name=name: seen.setdefault(name, []).append((x[0], y)))
    batch = cameras()
    ranges = calibrate(network, [batch[0], batch[1]], "minmax")
    assert type(network.tail) is nn.Conv2d
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    seen.clear()
    network.train(False)
    for index in range(2):
        rays = batch[index].rays()
        with torch.no_grad():
            inputs = network.encode(rays[None])
            network.train().decode(inputs)  # in training it computes in 32 bits on every processor
            network.eval()
    assert {key.rpartition(".")[0] for key in ranges} == set(seen)
    x, y = zip(*seen["tail"], strict=True)
    assert ranges["tail.input"] == pytest.approx((float(torch.stack(x).min()), float(torch.stack(x).max())), abs=1e-5)
    assert ranges["tail.output"] == pytest.approx((float(torch.stack(y).min()), float(torch.stack(y).max())), abs=1e-5)
    assert "head.0.output" not in ranges  # what follows its ReLU is another layer's input
    assert ranges["body.0.conv_block.0.input"][0] == 0.0


def test_percentile_and_mse_cut_outliers() -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, 1))
    values = torch.randn(1, 1, 256, 256)
    values[0, 0, 0, 0] = 1000.0
    network.render = network.forward
    full = calibrate(network, [values], "minmax")["0.input"]
    cut = calibrate(network, [values], "percentile", percentile=99.0)["0.input"]
    assert full[1] == 1000.0
    assert cut == pytest.approx(np.percentile(values.numpy(), [1.0, 99.0]), abs=0.15)
    few = values.clamp(-2.0, 2.0)
    few[0, 0, :2] = 6.0
    least = calibrate(network, [few], "mse")["0.input"]
    assert 2.0 < least[1] <= 6.0


def test_a_view_in_chunks_counts_as_one() -> None:
    """What is seen of a chunk is its share of the view, and one view's sample is as large as another's."""

    class Chunked(nn.Sequential):
        def render(self, view: torch.Tensor) -> None:
            for part in view.split(30_000):
                self(part)

    network = Chunked(nn.Linear(1, 1))
    low, high = torch.zeros(90_000, 1), torch.full((10_000, 1), 8.0)
    low[:100] = -1.0
    ranges = [
        calibrate(network, views, "percentile", percentile=100 - share)["0.input"][1]
        for views in ([torch.cat([low, high])], [low, high[:1]])
        for share in (9.0, 11.0, 49.0, 51.0)
    ]
    # A tenth of the one view is eight, though it is a fourth of its chunks; of two views the second is, one half.
    assert [value > 4.0 for value in ranges] == [True, False, False, False, True, True, True, False]


def test_calibration_without_views_or_with_another_word_is_refused() -> None:
    with pytest.raises(UserError, match="no views"):
        calibrate(small(), [])
    with pytest.raises(ValueError, match="`method`"):
        calibrate(small(), [cameras()[0]], "best")


def test_the_quantized_network_is_near_and_comes_back() -> None:
    network = fold_batch_norm(MobileR2L(width=16, depth=6, sr_factor=4, activation="relu").eval())
    camera = cameras()[0]
    plain = network.render(camera).rgb
    keys = list(network.state_dict())
    ranges = calibrate(network, [camera], "minmax")
    quantize_network(network, ranges)
    assert list(network.state_dict()) == keys
    assert activation_ranges(network).keys() == ranges.keys()
    assert ranges["body.0.conv_block.3.input"][0] == 0.0
    assert "body.0.conv_block.0.output" not in ranges  # a folded norm does not hide the ReLU
    rounded_rgb = network.render(camera).rgb
    assert 0 < float((rounded_rgb - plain).abs().max()) < 0.1
    assert torch.equal(restore_network(network).render(camera).rgb, plain)
    assert activation_ranges(network) == {}


def test_a_layer_without_a_range_computes_in_full() -> None:
    network = nn.Sequential(nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1))
    x = torch.randn(1, 2, 3, 3)
    plain = network[1](x)
    quantize_network(network, {"0.input": (-1.0, 1.0)})
    assert torch.equal(network[1](x), plain)
    with pytest.raises(ValueError, match=r"'2\.input'"):
        quantize_network(network, {"2.input": (0.0, 1.0)})
