"""Files of fewer bits: as small as they say, and what comes back is what the numbers can hold."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.torch
import torch

import nelf
from nelf.compression.fold import fold_batch_norm
from nelf.compression.integers import LARGEST_MULTIPLIED, fake_quantize
from nelf.compression.quantization import activation_ranges, quantize_network
from nelf.compression.storage import SCHEMES, pack, unpack
from nelf.errors import UserError
from nelf.lightfields import GridR2L, MobileR2L
from nelf.storage import save

GRID = {"width": 8, "depth": 4, "features": 6}
MOBILE = {"width": 32, "depth": 6, "sr_factor": 4}


def grid() -> GridR2L:
    network = GridR2L(**GRID)
    network.near.fill_(1.2345678)
    network.volume.resize(torch.rand(24, 24, 24) > 0.5)
    torch.nn.init.normal_(network.volume.density, std=5.0)
    torch.nn.init.normal_(network.volume.features)
    torch.nn.init.normal_(network.tail.weight, std=0.1)  # a new one is zero
    return network


def write(network: torch.nn.Module, path, scheme: str, arguments: dict = GRID):
    config = {"_target_": f"nelf.lightfields.{type(network).__name__}", **arguments}
    return save(network, path / f"{scheme}.safetensors", config, "abc", scheme)


@pytest.mark.parametrize(
    ("scheme", "share"), [("fp16", 1 / 2), ("bf16", 1 / 2), ("int8_per_tensor", 1 / 4), ("int8_per_channel", 1 / 4)]
)
def test_a_file_holds_what_it_claims(scheme: str, share: float, tmp_path) -> None:
    network = grid()
    fixed = sum(value.nbytes for value in network.buffers())
    parameters = sum(value.nbytes for value in network.parameters())
    size = write(network, tmp_path, scheme).stat().st_size
    assert size == pytest.approx(share * parameters + fixed, rel=0.02, abs=6000)  # names and scales
    with safetensors.safe_open(tmp_path / f"{scheme}.safetensors", "pt") as file:
        assert file.get_tensor("volume.features").nbytes == share * network.volume.features.nbytes
        assert file.get_tensor("near").dtype == torch.float32


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_comes_back_is_an_ordinary_network(scheme: str, tmp_path) -> None:
    network = grid()
    again = nelf.load(write(network, tmp_path, scheme))
    bits = {"fp32": 0, "fp16": 2**-11, "bf16": 2**-8}.get(scheme)
    for name, value in network.state_dict().items():
        got = again.state_dict()[name]
        assert got.dtype == value.dtype
        if name not in dict(network.named_parameters()):
            assert torch.equal(got, value)
        elif bits is not None:
            torch.testing.assert_close(got, value, rtol=bits, atol=1e-7)
        else:
            # Half a step of the coarsest channel.
            assert float((got - value).abs().max()) <= float(value.abs().max()) / 254 * (1 + 1e-5)


def test_16_bits_round_as_numpy_does(tmp_path) -> None:
    network = grid()
    again = nelf.load(write(network, tmp_path, "fp16"))
    expected = network.volume.features.detach().numpy().astype(np.float16).astype(np.float32)
    assert np.array_equal(again.volume.features.detach().numpy(), expected)


def test_channels_have_their_own_scale(tmp_path) -> None:
    """Trap: one channel of large features takes the precision of all the others."""
    network = grid()
    with torch.no_grad():
        network.volume.features[..., 0] *= 1000
    errors = []
    for scheme in ("int8_per_tensor", "int8_per_channel"):
        again = nelf.load(write(network, tmp_path, scheme))
        errors.append(float((again.volume.features - network.volume.features).detach()[..., 1:].abs().max()))
    assert errors[0] > 100 * errors[1]
    for channel in range(GRID["features"]):
        step = float(network.volume.features.detach()[..., channel].abs().max()) / 127
        assert (
            float((again.volume.features - network.volume.features).detach()[..., channel].abs().max()) <= 0.5001 * step
        )


def test_the_volume_s_rows_have_a_scale_for_each_feature_and_one_for_the_density() -> None:
    packed = pack(grid(), grid().state_dict(), "int8_per_channel")
    assert packed["volume.features"].dtype == packed["volume.density"].dtype == torch.int8
    assert packed["volume.features.scale"].shape == (1, GRID["features"])
    assert packed["volume.density.scale"].numel() == 1
    assert packed["volume.corners"].dtype == torch.uint8


def test_a_transposed_convolution_s_channels_are_its_second_dimension() -> None:
    network = MobileR2L(**MOBILE)
    packed = pack(network, network.state_dict(), "int8_per_channel")
    assert packed["tail.0.weight.scale"].shape == (1, network.tail[0].out_channels, 1, 1)
    assert packed["head.0.weight.scale"].shape == (32, 1, 1, 1)
    assert packed["head.0.bias"].dtype == packed["body.0.conv_block.1.weight"].dtype == torch.float32
    assert packed["body.0.conv_block.1.running_var"].dtype == torch.float32


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_file_may_be_written_without_norms_and_with_ranges(scheme: str, tmp_path) -> None:
    network = fold_batch_norm(MobileR2L(**MOBILE).eval())
    ranges = {"head.0.input": (-3.0, 2.5), "head.0.output": (0.0, 1.0)}
    again = nelf.load(write(quantize_network(network, ranges), tmp_path, scheme, MOBILE))
    assert activation_ranges(again) == ranges
    assert again.state_dict().keys() == network.state_dict().keys()
    points = torch.randn(1, 24, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(again.decode(points), network.decode(points), atol=0.05, rtol=0)


def test_weights_that_are_computed_with_are_rounded_once(tmp_path) -> None:
    """Trap: stored in 127 steps and computed with in 64, a weight falls off both grids."""
    network = quantize_network(grid(), {"tail.input": (-3.0, 3.0)})
    again = nelf.load(write(network, tmp_path, "int8_per_channel"))
    expected = fake_quantize(network.tail.weight, 0, LARGEST_MULTIPLIED)
    torch.testing.assert_close(again.tail.weight, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(fake_quantize(again.tail.weight, 0, LARGEST_MULTIPLIED), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(again.head[0].weight, fake_quantize(network.head[0].weight, 0), rtol=1e-6, atol=0)


def test_dynamic_ranges_come_back_as_a_word(tmp_path) -> None:
    network = quantize_network(grid(), "dynamic")
    assert activation_ranges(nelf.load(write(network, tmp_path, "fp32"))) == "dynamic"


def test_an_unknown_scheme_is_named(tmp_path) -> None:
    network = grid()
    with pytest.raises(UserError, match=r"there is no 'int4'.*allowed: fp32, fp16"):
        pack(network, network.state_dict(), "int4")
    header = {"config": json.dumps({"_target_": "nelf.lightfields.GridR2L", **GRID}), "scheme": "int3"}
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors.torch.save({"x": torch.zeros(1)}, header))
    with pytest.raises(UserError, match=r"x\.safetensors: scheme: there is no 'int3'"):
        nelf.load(path)


def test_a_missing_scale_and_a_number_beyond_16_bits_are_named() -> None:
    network = grid()
    packed = pack(network, network.state_dict(), "int8_per_tensor")
    del packed["volume.features.scale"]
    with pytest.raises(UserError, match=r"volume\.features: .* scale volume\.features\.scale is missing"):
        unpack(packed, "int8_per_tensor")
    with torch.no_grad():
        network.volume.density[0] = 1e5
    with pytest.raises(UserError, match=r"volume\.density: holds numbers beyond fp16"):
        pack(network, network.state_dict(), "fp16")
    assert torch.isfinite(pack(network, network.state_dict(), "bf16")["volume.density"]).all()


def test_a_linear_layer_is_stored_as_it_is_computed_with() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3))
    quantize_network(network, {"2.input": (0.0, 3.0)})
    packed = pack(network, network.state_dict(), "int8_per_channel")
    for name, limit in (("0", 127), ("2", LARGEST_MULTIPLIED)):
        weight = network.state_dict()[f"{name}.weight"].numpy()
        largest = np.abs(weight).max(1, keepdims=True)
        assert packed[f"{name}.weight"].dtype == torch.int8
        assert np.abs(packed[f"{name}.weight"].numpy() - weight * limit / largest).max() <= 0.501
        np.testing.assert_allclose(packed[f"{name}.weight.scale"].numpy(), limit / largest, rtol=1e-6)
        assert packed[f"{name}.bias"].dtype == torch.float32
