"""int8 ONNX files: what is stored, what is computed, and that it is what PyTorch foretold."""

from __future__ import annotations

import io
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from nelf.compression.fold import fold_batch_norm
from nelf.compression.integers import LARGEST_MULTIPLIED, fake_quantize
from nelf.compression.quantization import calibrate, quantize_network
from nelf.errors import UserError
from nelf.export.int8 import quantize_dynamic, quantize_static
from nelf.lightfields import GridR2L, MobileR2L


class Decoder(nn.Module):
    """The network behind the rays, alone; calibration renders feature images with it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, features: Tensor) -> Tensor:
        return self.network.decode(features)

    def render(self, features: Tensor) -> Tensor:
        return self(features)


def export(module: nn.Module, example: Tensor, path: Path) -> Path:
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        names = {"input_names": ["features"], "output_names": ["rgb"]}
        torch.onnx.export(module, (example,), path, dynamo=True, external_data=False, verbose=False, **names)
    return path


def run(path: Path, features: Tensor) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"features": features.numpy()})[0]


def grid_network(depth: int) -> GridR2L:
    """In training mode, so that it computes in 32 bits everywhere and cuts nothing off."""
    network = GridR2L(width=16, depth=depth, features=8).train()
    for values in (network.tail.weight, network.tail.bias):  # new ones draw nothing of their own
        nn.init.normal_(values, std=0.06)
    return network


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    torch.manual_seed(0)
    return Decoder(grid_network(depth=6))


@pytest.fixture(scope="module")
def features() -> Tensor:
    """Of blocks of four rays: eight features and an opacity of each, 16 harmonics."""
    values = torch.randn(3, 1, 52, 12, 14, generator=torch.Generator().manual_seed(1))
    values[:, :, 32:36].sigmoid_()
    return values


@pytest.fixture(scope="module")
def fp32(decoder: Decoder, features: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(decoder, features[0], tmp_path_factory.mktemp("int8") / "model.onnx")


def feeds(features: Tensor) -> list[dict[str, np.ndarray]]:
    return [{"features": each.numpy()} for each in features]


def operations(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def convolution_weights(path: Path) -> list[np.ndarray]:
    """What the convolutions' weights are stored as, before their DequantizeLinear."""
    graph = onnx.load(path).graph
    values = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    made = {node.output[0]: node for node in graph.node}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    return [values[made[n.input[1]].input[0] if n.input[1] in made else n.input[1]] for n in convolutions]


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy"])
def test_static_stores_8_bits_and_stays_near(
    method: str, fp32: Path, features: Tensor, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = quantize_static(fp32, tmp_path / "int8.onnx", feeds(features), method=method)
    assert capfd.readouterr().out == ""  # ONNX Runtime tells a lot
    assert {weight.dtype for weight in convolution_weights(out)} == {np.dtype(np.int8)}
    assert "Relu" not in operations(out)  # an unsigned output's lower end is the ReLU
    error = np.abs(run(out, features[0]) - run(fp32, features[0]))
    assert 0 < error.max() < 0.25
    assert error.mean() < 0.02


def test_weights_are_rounded_per_channel(fp32: Path, decoder: Decoder, features: Tensor, tmp_path: Path) -> None:
    out = quantize_static(fp32, tmp_path / "int8.onnx", feeds(features), method="minmax")
    for stored, layer in zip(
        convolution_weights(out), [m for m in decoder.modules() if isinstance(m, nn.Conv2d)], strict=True
    ):
        weight = layer.weight.detach().numpy()
        largest = np.abs(weight).max((1, 2, 3), keepdims=True)
        assert np.abs(stored - weight * LARGEST_MULTIPLIED / largest).max() <= 0.501
        assert (np.abs(stored).max((1, 2, 3)) == LARGEST_MULTIPLIED).all()


def integer_products(path: Path) -> list[tuple[np.ndarray, int]]:
    """Of each convolution that a file computes in integers: its weights, and the largest activation."""
    graph = onnx.load(path).graph
    values = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    made = {node.output[0]: node for node in graph.node}
    found = []
    for node in [node for node in graph.node if node.op_type == "Conv" and node.input[1] in made]:
        activation, weight = (made[name] for name in node.input[:2])
        assert activation.op_type == weight.op_type == "DequantizeLinear"
        assert not values[weight.input[2]].any()  # zero points: a kernel multiplies what is stored
        found.append((values[weight.input[0]], int(np.iinfo(values[activation.input[2]].dtype).max)))
    return found


@pytest.mark.parametrize("trained", [False, True], ids=["ranges found", "ranges given"])
def test_no_pair_of_products_leaves_16_bits(
    trained: bool, fp32: Path, decoder: Decoder, features: Tensor, tmp_path: Path
) -> None:
    """x86 without VNNI adds products two by two in int16; which two depends on the kernel, so any two must fit."""
    ranges = calibrate(decoder, features) if trained else None
    products = integer_products(quantize_static(fp32, tmp_path / "int8.onnx", feeds(features), ranges))
    assert len(products) == 6
    for weights, activation in products:
        assert weights.dtype == np.int8
        first, second = np.sort(np.abs(weights.astype(int)).reshape(len(weights), -1))[:, -2:].T
        assert (activation * (first + second) <= np.iinfo(np.int16).max).all()
    # It is the most that fits: one step more, and a pair of equal weights would not.
    assert max(np.abs(weights.astype(int)).max() for weights, _ in products) == LARGEST_MULTIPLIED
    assert 2 * 255 * LARGEST_MULTIPLIED <= np.iinfo(np.int16).max < 2 * 255 * (LARGEST_MULTIPLIED + 1)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("kernel", [1, 3])
def test_the_largest_sums_are_computed_right(kernel: int, sign: float, tmp_path: Path) -> None:
    """All activations and all weights at their ends, in convolutions that ONNX Runtime computes in integers."""
    module = nn.Sequential(nn.Conv2d(33, 16, kernel), nn.Conv2d(16, 6, 1))
    with torch.no_grad():
        module[0].weight.fill_(sign / 33 / kernel**2)
        module[0].bias.zero_()
    example = torch.ones(1, 33, 9, 7)
    path = export(module, example, tmp_path / "model.onnx")
    given = {"0.input": (0.0, 1.0), "0.output": (-2.0, 2.0), "1.input": (-2.0, 2.0), "1.output": (-2.0, 2.0)}
    out = quantize_static(path, tmp_path / "int8.onnx", feeds(example[None]), given)
    np.testing.assert_allclose(run(out, example), run(path, example), atol=0.04)  # a few steps of 4 / 255


def test_dynamic_weights_are_unsigned(fp32: Path, tmp_path: Path) -> None:
    """No kernel for unsigned weights adds products in 16 bits."""
    graph = onnx.load(quantize_dynamic(fp32, tmp_path / "dynamic.onnx")).graph
    values = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    weights = [values[node.input[1]] for node in graph.node if node.op_type == "ConvInteger"]
    assert {each.dtype for each in weights} == {np.dtype(np.uint8)}


def foretell(module: Decoder, ranges: dict[str, tuple[float, float]], features: Tensor) -> np.ndarray:
    with torch.no_grad():
        return quantize_network(Decoder(fold_batch_norm(module.network)), ranges)(features).numpy()


def test_without_residuals_the_fake_quantized_network_is_the_file(tmp_path: Path, features: Tensor) -> None:
    module = Decoder(grid_network(depth=2))
    path = export(module, features[0], tmp_path / "model.onnx")
    ranges = calibrate(module, features, "minmax")
    computed = run(quantize_static(path, tmp_path / "int8.onnx", feeds(features), ranges), features[1])
    equal = np.abs(computed - foretell(module, ranges, features[1])) < 1e-5
    assert equal.mean() > 0.95  # a sum on the edge between two levels may fall to either side
    assert (np.abs(computed - run(path, features[1])) < 1e-5).mean() < 0.1


def test_the_fake_quantized_network_foretells_the_error(
    fp32: Path, decoder: Decoder, features: Tensor, tmp_path: Path
) -> None:
    ranges = calibrate(decoder, features, "minmax")
    out = quantize_static(fp32, tmp_path / "int8.onnx", feeds(features), ranges)
    plain = run(fp32, features[1])
    error = np.abs(run(out, features[1]) - plain).mean()
    assert error > 2e-3
    assert np.abs(foretell(decoder, ranges, features[1]) - plain).mean() == pytest.approx(error, rel=0.3)


def test_given_ranges_are_exactly_those_of_the_file(fp32: Path, features: Tensor, tmp_path: Path) -> None:
    ranges = {"tail.input": (-3.0, 5.0), "tail.output": (-7.0, 1.0), "head.0.input": (-4.0, 4.0)}
    out = quantize_static(fp32, tmp_path / "int8.onnx", feeds(features), ranges)
    graph = onnx.load(out).graph
    values = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    quantizers = {node.input[0]: node for node in graph.node if node.op_type == "QuantizeLinear"}
    convolutions = [node for node in onnx.load(fp32).graph.node if node.op_type == "Conv"]
    for tensor, (low, high) in zip(
        (convolutions[-1].input[0], convolutions[-1].output[0], "features"), ranges.values(), strict=True
    ):
        node = quantizers[tensor]
        scale, zero = values[node.input[1]], values[node.input[2]]
        assert zero.dtype == np.uint8
        assert float(scale) == pytest.approx((high - low) / 255, rel=1e-6)
        assert int(zero) == round(-low / (high - low) * 255)
    # The layers between have no ranges: they stay as they were.
    assert [weight.dtype.kind for weight in convolution_weights(out)] == ["i", "f", "f", "f", "f", "i"]


def test_ends_may_stay_in_32_bits(fp32: Path, features: Tensor, tmp_path: Path) -> None:
    out = quantize_static(fp32, tmp_path / "int8.onnx", feeds(features), keep=["first", "last"])
    assert [weight.dtype.kind for weight in convolution_weights(out)] == ["f", "i", "i", "i", "i", "f"]


def test_dynamic_has_8_bit_weights(fp32: Path, features: Tensor, tmp_path: Path) -> None:
    out = quantize_dynamic(fp32, tmp_path / "dynamic.onnx")
    assert operations(out).count("ConvInteger") == 6
    assert out.stat().st_size < 0.75 * fp32.stat().st_size
    assert np.abs(run(out, features[0]) - run(fp32, features[0])).max() < 0.1


def test_a_mobile_r2l_with_transposed_convolutions(tmp_path: Path) -> None:
    network = fold_batch_norm(MobileR2L(width=16, depth=4, sr_factor=4, sr_kernels=(8, 8, 8)).eval())
    points = torch.randn(2, 1, 24, 6, 6)
    module = Decoder(network)
    fp32 = export(module, points[0], tmp_path / "model.onnx")
    ranges = calibrate(module, points, "minmax")
    out = quantize_static(fp32, tmp_path / "int8.onnx", feeds(points), ranges)
    assert operations(out).count("ConvTranspose") == 2
    with torch.no_grad():
        foretold = quantize_network(module, ranges)(points[0]).numpy()
    np.testing.assert_allclose(run(out, points[0]), foretold, atol=0.02)


def test_a_bad_input_is_named(fp32: Path, features: Tensor, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="calibration has no views"):
        quantize_static(fp32, tmp_path / "x.onnx", [])
    with pytest.raises(UserError, match=r"has no layer 'body\.7'.*norms folded"):
        quantize_static(fp32, tmp_path / "x.onnx", feeds(features), {"body.7.input": (0.0, 1.0)})
    other = tmp_path / "other.onnx"
    other.write_bytes(b"no such thing")
    for path in (other, tmp_path / "absent.onnx"):
        with pytest.raises(UserError, match=f"{path.name}: is not an ONNX file"):
            quantize_dynamic(path, tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()


def test_a_weight_on_the_grid_is_stored_as_it_is(decoder: Decoder, features: Tensor, tmp_path: Path) -> None:
    """Rounding twice is rounding once: an int8 file loaded, exported and rounded again is the same."""
    network = fold_batch_norm(decoder.network)
    with torch.no_grad():
        network.tail.weight.copy_(fake_quantize(network.tail.weight, 0, LARGEST_MULTIPLIED))
    path = export(Decoder(network), features[0], tmp_path / "model.onnx")
    stored = convolution_weights(quantize_static(path, tmp_path / "int8.onnx", feeds(features)))[-1]
    weight = network.tail.weight.detach().numpy()
    scale = np.abs(weight).max((1, 2, 3), keepdims=True) / LARGEST_MULTIPLIED
    np.testing.assert_allclose(stored * scale, weight, atol=1e-6)
