"""int8 ONNX files of linear layers: integers times integers, as numpy and PyTorch foretell them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from nelf.cameras import Camera
from nelf.compression.integers import LARGEST_MULTIPLIED
from nelf.compression.quantization import Ranges, calibrate, quantize_network
from nelf.export.graph import half_weights
from nelf.export.graph import onnx as write
from nelf.export.inputs import feed_of
from nelf.export.int8 import quantize_dynamic, quantize_static
from nelf.lightfields import LightField
from nelf.rays import Rays


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Residual(LightField):
    """A small R2L: points on a ray, and linear layers; of rays in rows (N, C), or of as many dimensions as they have.

    A product with constants comes first, which is an encoding and no layer.
    """

    batch = "rays"
    chunk = 100
    frequencies: Tensor

    def __init__(self, in_rows: bool, depth: int, width: int = 24) -> None:
        super().__init__()
        self.in_rows = in_rows
        self.register_buffer("frequencies", torch.randn(12, 30))
        self.head = nn.Sequential(nn.Linear(30, width), nn.ReLU())
        self.body = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.tail = nn.Linear(width, 3)

    def forward(self, rays: Rays) -> Tensor:
        t = torch.linspace(2.0, 6.0, 4)[:, None]
        x = (rays.origins[..., None, :] + rays.directions[..., None, :] * t).flatten(-2)
        x = x.flatten(0, -2) if self.in_rows else x
        return self.tail(self.body(self.head((x @ self.frequencies).sin()))).view(*rays.shape, 3)


def cameras(n: int = 3) -> Camera:
    c2w = torch.eye(3, 4).repeat(n, 1, 1)
    c2w[:, :, 3] = torch.tensor([0.3, -0.2, 4.0]) + 0.3 * torch.arange(n)[:, None]
    return Camera.from_fov(c2w, 0.7, 24, 20)


LAYERS = 6  # head, two blocks of two, tail


@pytest.fixture(scope="module", params=[True, False], ids=["rows", "any shape"])
def network(request: pytest.FixtureRequest) -> Residual:
    torch.manual_seed(0)
    return Residual(in_rows=request.param, depth=2).eval()


@pytest.fixture(scope="module")
def fp32(network: Residual, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("linear") / "model.onnx"
    write(network, path, cameras(), "rays")
    kinds = {node.op_type for node in onnx.load(path).graph.node}
    assert ("Gemm" in kinds) is network.in_rows
    return path


def test_16_bits_hold_every_weight_once(network: Residual, fp32: Path, tmp_path: Path) -> None:
    """Those of layers that torch's exporter has transposed, too, and nothing that no node reads."""
    path = half_weights(fp32, tmp_path / "half.onnx")
    graph = onnx.load(path).graph
    read = {name for node in graph.node for name in node.input}
    assert {each.name for each in graph.initializer} <= read
    halves = {
        each.name.removesuffix("_fp16") for each in graph.initializer if each.data_type == onnx.TensorProto.FLOAT16
    }
    weights = {f"network.{name}" for name, values in network.named_parameters() if values.numel() >= 16}
    assert weights <= halves
    feed = feeds(network)[0]
    difference = np.abs(run(path, feed) - run(fp32, feed)).max()
    assert 0 < difference < 5e-3


@pytest.fixture(scope="module")
def ranges(network: Residual) -> Ranges:
    batch = cameras()
    return calibrate(network, [batch[index] for index in range(len(batch))], "minmax")


def feeds(network: Residual) -> list[dict[str, np.ndarray]]:
    batch = cameras()
    return [feed_of(network, "rays", batch[index]) for index in range(len(batch))]


def run(path: Path, feed: dict[str, np.ndarray]) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, feed)[0]


def constants(path: Path) -> dict[str, np.ndarray]:
    return {each.name: onnx.numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer}


def integer_layers(path: Path) -> list[tuple[np.ndarray, np.ndarray, float, int]]:
    """Of each Gemm of a file: its integer weights (out, in), their scales, and scale and zero point of its input."""
    graph, values = onnx.load(path).graph, constants(path)
    made = {node.output[0]: node for node in graph.node}
    found = []
    for node in [node for node in graph.node if node.op_type == "Gemm"]:
        activation, weight = (made[name] for name in node.input[:2])
        assert activation.op_type == weight.op_type == "DequantizeLinear"
        assert made[activation.input[0]].op_type == "QuantizeLinear"
        assert values[activation.input[2]].dtype == np.uint8
        assert not values[weight.input[2]].any()
        scale, zero = (values[name].item() for name in activation.input[1:])
        found.append((values[weight.input[0]], values[weight.input[1]], scale, zero))
    return found


def optimized(path: Path, folder: Path) -> list[str]:
    """The nodes that ONNX Runtime makes of a file."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]


def test_every_layer_is_one_integer_kernel(network: Residual, fp32: Path, ranges: Ranges, tmp_path: Path) -> None:
    out = quantize_static(fp32, tmp_path / "int8.onnx", feeds(network), ranges)
    kinds = optimized(out, tmp_path)
    assert kinds.count("QGemm") == LAYERS
    assert "Relu" not in kinds
    assert kinds.count("MatMul") == 1  # the encoding


def test_weights_are_those_of_the_formula(network: Residual, fp32: Path, ranges: Ranges, tmp_path: Path) -> None:
    out = quantize_static(fp32, tmp_path / "int8.onnx", feeds(network), ranges)
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, nn.Linear)}
    for (weight, scales, scale, zero), (name, layer) in zip(integer_layers(out), layers.items(), strict=True):
        exact = layer.weight.detach().numpy()
        largest = np.abs(exact).max(1)
        np.testing.assert_allclose(scales, largest / LARGEST_MULTIPLIED, rtol=1e-6)
        assert np.abs(weight - exact * LARGEST_MULTIPLIED / largest[:, None]).max() <= 0.501
        low, high = min(ranges[f"{name}.input"][0], 0.0), max(ranges[f"{name}.input"][1], 0.0)
        assert scale == pytest.approx((high - low) / 255, rel=1e-6)
        assert zero == round(-low / (high - low) * 255)


@pytest.mark.parametrize("trained", [False, True], ids=["ranges found", "ranges given"])
def test_no_pair_of_products_leaves_16_bits(
    trained: bool, network: Residual, fp32: Path, ranges: Ranges, tmp_path: Path
) -> None:
    """x86 without VNNI adds products two by two in int16; which two depends on the kernel, so any two must fit."""
    out = quantize_static(fp32, tmp_path / "int8.onnx", feeds(network), ranges if trained else None)
    layers = integer_layers(out)
    assert len(layers) == LAYERS
    for weight, *_ in layers:
        assert weight.dtype == np.int8
        pairs = np.sort(np.abs(weight.astype(int)), axis=1)[:, -2:].sum(1)
        assert (255 * pairs <= np.iinfo(np.int16).max).all()
    assert max(np.abs(weight.astype(int)).max() for weight, *_ in layers) == LARGEST_MULTIPLIED


def test_the_file_computes_with_integers_as_numpy_does(tmp_path: Path) -> None:
    """Three layers and no sum: activations of 8 bits times weights of 8, added up exactly, with the bias as well."""
    torch.manual_seed(1)
    network = Residual(in_rows=False, depth=0).eval()
    network.body.append(nn.Linear(24, 24))  # no ReLU after it: its output is rounded
    path = tmp_path / "model.onnx"
    write(network, path, cameras(), "rays")
    batch = cameras()
    ranges = calibrate(network, [batch[0]], "minmax")
    out = quantize_static(path, tmp_path / "int8.onnx", feeds(network), ranges)

    rays = batch[1].rays()
    t = np.linspace(2.0, 6.0, 4, dtype=np.float32)[:, None]
    x = (rays.origins.numpy()[..., None, :] + rays.directions.numpy()[..., None, :] * t).reshape(-1, 12)
    x = np.sin(x @ network.frequencies.numpy())
    for name, layer in (("head.0", network.head[0]), ("body.0", network.body[0]), ("tail", network.tail)):
        weight, bias = layer.weight.detach().numpy().astype(float), layer.bias.detach().numpy().astype(float)
        scales = np.abs(weight).max(1) / LARGEST_MULTIPLIED
        low, high = ranges[f"{name}.input"]
        scale = (max(high, 0.0) - min(low, 0.0)) / 255
        zero = round(-min(low, 0.0) / scale)
        activations = np.clip(np.round(x / scale) + zero, 0, 255).astype(np.int64) - zero
        sums = activations @ np.round(weight / scales[:, None]).astype(np.int64).T
        sums += np.round(bias / (scale * scales)).astype(np.int64)
        x = sums * (scale * scales)
        if name == "head.0":
            x = x.clip(0.0)
        elif name == "tail":
            low, high = ranges["tail.output"]
            scale = (max(high, 0.0) - min(low, 0.0)) / 255
            zero = round(-min(low, 0.0) / scale)
            x = (np.clip(np.round(x / scale) + zero, 0, 255) - zero) * scale
    expected = x.reshape(20, 24, 3).transpose(2, 0, 1)[None]
    step = scale
    computed = run(out, feeds(network)[1])
    with torch.no_grad():
        foretold = quantize_network(network, ranges)(rays[None]).movedim(-1, 1).numpy()
    for got in (computed, foretold):
        assert (np.abs(got - expected) < 0.01 * step).mean() > 0.95  # on the edge between two levels, either side
        assert np.abs(got - expected).max() < 2.01 * step


def test_the_fake_quantized_network_foretells_the_error(
    network: Residual, fp32: Path, ranges: Ranges, tmp_path: Path
) -> None:
    out = quantize_static(fp32, tmp_path / "int8.onnx", feeds(network), ranges)
    feed = feeds(network)[1]
    plain = run(fp32, feed)
    error = np.abs(run(out, feed) - plain).mean()
    assert error > 1e-3
    foretold = quantize_network(copy_of(network), ranges).render(cameras()[1]).rgb.movedim(-1, 0)[None].numpy()
    assert np.abs(foretold - plain).mean() == pytest.approx(error, rel=0.3)


def copy_of(network: Residual) -> Residual:
    copy = Residual(network.in_rows, depth=2)
    copy.load_state_dict(network.state_dict())
    return copy.eval()


def test_layers_that_have_no_range_and_those_at_the_ends_may_stay(
    network: Residual, fp32: Path, ranges: Ranges, tmp_path: Path
) -> None:
    some = {key: limits for key, limits in ranges.items() if key.startswith("body.1.layers.2.")}
    out = quantize_static(fp32, tmp_path / "some.onnx", feeds(network), some)
    assert optimized(out, tmp_path).count("QGemm") == 1
    out = quantize_static(fp32, tmp_path / "ends.onnx", feeds(network), ranges, keep=["first", "last"])
    assert optimized(out, tmp_path).count("QGemm") == LAYERS - 2


def test_dynamic_files_have_unsigned_weights_of_layers_alone(network: Residual, fp32: Path, tmp_path: Path) -> None:
    """No kernel for unsigned weights adds products in 16 bits; an encoding's frequencies are no layer."""
    out = quantize_dynamic(fp32, tmp_path / "dynamic.onnx")
    graph, values = onnx.load(out).graph, constants(out)
    products = [node for node in graph.node if node.op_type == "MatMulInteger"]
    assert len(products) == LAYERS
    assert {values[node.input[1]].dtype for node in products} == {np.dtype(np.uint8)}
    assert [values[node.input[1]].shape for node in graph.node if node.op_type == "MatMul"] == [(12, 30)]
    feed = feeds(network)[0]
    assert 0 < np.abs(run(out, feed) - run(fp32, feed)).max() < 0.1


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_largest_sums_are_computed_right(sign: float, tmp_path: Path) -> None:
    """All activations and all weights at their ends."""
    module = nn.Sequential(nn.Linear(67, 16), nn.Linear(16, 6)).eval()
    with torch.no_grad():
        module[0].weight.fill_(sign / 67)
        module[0].bias.zero_()
    example = torch.ones(9, 67)
    path = tmp_path / "model.onnx"
    names = {"input_names": ["x"], "output_names": ["y"]}
    torch.onnx.export(module, (example,), path, dynamo=True, external_data=False, verbose=False, **names)
    given = {"0.input": (0.0, 1.0), "0.output": (-2.0, 2.0), "1.input": (-2.0, 2.0), "1.output": (-2.0, 2.0)}
    out = quantize_static(path, tmp_path / "int8.onnx", [{"x": example.numpy()}], given)
    with torch.no_grad():
        np.testing.assert_allclose(run(out, {"x": example.numpy()}), module(example).numpy(), atol=0.04)
