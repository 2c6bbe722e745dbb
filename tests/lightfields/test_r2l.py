"""R2L against the published counts, names and shapes, and against its formula in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx as onnx_format
import pytest
import torch
from onnx import numpy_helper

from nelf.cameras import Camera
from nelf.compression.inference import optimize_for_inference
from nelf.compression.pruning import choose_weights
from nelf.compression.quantization import calibrate
from nelf.compression.storage import pack
from nelf.compression.structured import prune_channels
from nelf.errors import UserError
from nelf.export import onnx
from nelf.export.bundle import artifact, write_bundle
from nelf.export.inputs import feed_of
from nelf.export.int8 import quantize_dynamic, quantize_static
from nelf.export.runtime import load
from nelf.lightfields import R2L
from nelf.rays import Rays
from nelf.storage import load as load_network
from nelf.storage import save

LIGHT_FIELD_BUFFERS = {"near", "far", "aabb", "prepared"}


def small(**changes: object) -> R2L:
    return R2L(**{"width": 16, "depth": 6, "points": 4, "multires": 3, **changes})


def rays(*shape: int) -> Rays:
    """Origins and directions are multiples of 1/64, so where depths are, the points are exact in 32 bits."""
    values = torch.randint(-128, 129, (2, *shape, 3)) / 64
    return Rays(values[0], values[1])


def restated(weights: dict[str, np.ndarray], along: Rays, blocks: int, plucker: bool, **options: object) -> np.ndarray:
    """The formula of the paper in float64, ray by ray and number by number."""
    points, multires, skip, scale = (options[key] for key in ("points", "multires", "skip", "block_scale"))
    weights = {name: values.astype(np.float64) for name, values in weights.items()}

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]

    colors = []
    flat = along.reshape(-1)
    for o, d in zip(flat.origins.double().numpy(), flat.directions.double().numpy(), strict=True):
        if plucker:
            moment = [o[1] * d[2] - o[2] * d[1], o[2] * d[0] - o[0] * d[2], o[0] * d[1] - o[1] * d[0]]
            coordinates = [*d, *moment]
        else:
            coordinates = [o[axis] + d[axis] * (2 + 4 * p / (points - 1)) for p in range(points) for axis in range(3)]
        embedded = []
        for value in coordinates:
            embedded += [np.sin(2.0**k * value) for k in range(multires)]
            embedded += [np.cos(2.0**k * value) for k in range(multires)]
            embedded += [value]
        head = np.maximum(linear("head.0", np.array(embedded)), 0)
        x = head
        for block in range(blocks):
            hidden = np.maximum(linear(f"body.{block}.body.0", x), 0)
            x = x + scale * linear(f"body.{block}.body.2", hidden)
        if skip:
            x = x + head
        colors.append(1 / (1 + np.exp(-linear("tail.0", x))))
    return np.array(colors).reshape(*along.shape, 3)


@pytest.mark.parametrize(("inputs", "count"), [("points", 5_917_187), ("plucker", 5_691_395)])
def test_parameter_count_is_the_originals(inputs: str, count: int) -> None:
    assert sum(p.numel() for p in R2L(inputs=inputs).parameters()) == count


@pytest.mark.parametrize(("inputs", "columns"), [("points", 1008), ("plucker", 126)])
def test_a_state_dict_in_the_originals_layout_fits_key_for_key(inputs: str, columns: int) -> None:
    shapes = {"head.0.weight": (256, columns), "head.0.bias": (256,)}
    for block in range(43):
        for layer in (0, 2):
            shapes[f"body.{block}.body.{layer}.weight"] = (256, 256)
            shapes[f"body.{block}.body.{layer}.bias"] = (256,)
    shapes |= {"tail.0.weight": (3, 256), "tail.0.bias": (3,)}
    assert len(shapes) == 176
    original = {name: torch.randn(shape) for name, shape in shapes.items()}
    network = R2L(inputs=inputs)
    missing, unexpected = network.load_state_dict(original, strict=False)
    assert set(missing) == LIGHT_FIELD_BUFFERS
    assert not unexpected
    loaded = dict(network.named_parameters())
    assert all(torch.equal(loaded[name], values) for name, values in original.items())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"skip": False},
        {"block_scale": 0.1},
        {"inputs": "plucker"},
        {"points": 7, "multires": 10},
        {"depth": 2},
    ],
)
def test_colors_are_those_of_the_formula(options: dict[str, object]) -> None:
    network = small(**options).eval()
    for parameter in network.parameters():  # far from the middle of the sigmoid
        torch.nn.init.normal_(parameter, std=0.4)
    along = rays(2, 3)
    weights = {name: values.detach().numpy() for name, values in network.named_parameters()}
    chosen = {**network.arguments}
    plucker = chosen["inputs"] == "plucker"
    expected = restated(weights, along, (chosen["depth"] - 2) // 2, plucker, **chosen)
    assert expected.std() > 0.1
    with torch.no_grad():
        exact = network.double()(along).numpy()
        decoded = network.decode(network.encode(along[None]))[0].movedim(0, -1).numpy()
    np.testing.assert_allclose(exact, expected, atol=1e-10)
    np.testing.assert_allclose(decoded, expected, atol=1e-10)


def test_colors_of_the_full_network() -> None:
    network, along = R2L().eval(), rays(2, 2)
    weights = {name: values.detach().numpy() for name, values in network.named_parameters()}
    expected = restated(weights, along, 43, False, **network.arguments)
    with torch.no_grad():
        drawn = network(along).numpy()
        exact = network.double()(along).numpy()
    assert expected.std() > 0.1
    np.testing.assert_allclose(exact, expected, atol=1e-10)
    # In 32 bits a depth of 2 + 4 / 15 is not exact, and the highest octave multiplies its error by 512.
    np.testing.assert_allclose(drawn, expected, atol=2e-5)


def test_the_depth_range_is_that_of_the_scene() -> None:
    network = small().eval()
    network.near.fill_(1.0)
    network.far.fill_(4.0)
    points = network.encode(Rays(torch.zeros(1, 1, 1, 3), torch.tensor([[[[0.0, 0.0, -1.0]]]])))
    assert points.flatten().tolist() == [0, 0, -1, 0, 0, -2, 0, 0, -3, 0, 0, -4]


def test_points_are_drawn_for_each_ray_in_training_and_fixed_in_evaluation() -> None:
    network = small(points=5)
    down = torch.tensor([0.0, 0.0, -1.0]).expand(1, 300, 40, 3)
    along = Rays(torch.zeros_like(down), down)
    t = -network.train().encode(along)[0, 2::3].flatten(1)  # (P, rays)
    edges = torch.tensor([2.0, 2.5, 3.5, 4.5, 5.5, 6.0])
    low, high = edges[:-1], edges[1:]
    assert ((t >= low[:, None]) & (t <= high[:, None])).all()
    # Uniform in its bin: mean and deviation of 12,000 draws, the end bins half as wide.
    torch.testing.assert_close(t.mean(1), (low + high) / 2, atol=0.02, rtol=0)
    torch.testing.assert_close(t.std(1), (high - low) / 12**0.5, atol=0.02, rtol=0)
    assert float(torch.corrcoef(t).fill_diagonal_(0).abs().max()) < 0.05
    fixed = -network.eval().encode(along)[0, 2::3].flatten(1)
    torch.testing.assert_close(fixed, torch.linspace(2, 6, 5)[:, None].expand_as(fixed))


def test_plucker_coordinates_are_never_drawn() -> None:
    network, along = small(inputs="plucker").train(), rays(7)
    assert torch.equal(network(along), network(along))


@pytest.mark.parametrize("inputs", ["points", "plucker"])
def test_gradient_reaches_every_parameter(inputs: str) -> None:
    network = small(inputs=inputs)
    network(rays(64)).square().sum().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_a_picture_is_drawn_in_chunks_of_rays() -> None:
    network = small()
    camera = Camera.from_fov(torch.eye(3, 4), 0.7, width=9, height=5)
    pictures = []
    for network.chunk in (4, 1000):
        pictures.append(network.render(camera).rgb)
    assert network.training
    assert pictures[0].shape == (5, 9, 3)
    torch.testing.assert_close(pictures[0], pictures[1], atol=1e-6, rtol=0)
    torch.testing.assert_close(pictures[0], network.eval()(camera.rays()), atol=1e-6, rtol=0)


def test_embedding_stays_in_32_bits_under_autocast_and_in_bfloat16() -> None:
    network, along = small(multires=10).eval(), rays(50)
    low = optimize_for_inference(network).network
    with torch.no_grad():
        exact = network(along)
        for part in low.children():
            part.to(torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = network(along)
        assert float((exact - rounded).abs().max()) < 0.02
        assert float((exact - low(along)).abs().max()) < 0.02
        assert low(along).dtype == torch.float32


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"inputs": "rays"}, "'points' or 'plucker', but got 'rays'"),
        ({"depth": 7}, "even number"),
        ({"points": 1}, "at least 2"),
    ],
)
def test_wrong_arguments_are_named(wrong: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        small(**wrong)


def test_it_says_which_weights_may_be_pruned() -> None:
    network = small()
    assert set(network.prunable()) == {"head", "body", "tail"}
    assert set(choose_weights(network, ["head", "body", "norms"])) == {
        "head.0.weight",
        *(f"body.{block}.body.{layer}.weight" for block in range(2) for layer in (0, 2)),
    }


@pytest.mark.parametrize("inputs", ["points", "plucker"])
def test_narrowing_keeps_the_channels_that_count(inputs: str) -> None:
    """Channels that write nothing and are read by nothing: without them the colors are the same."""
    network = small(inputs=inputs, width=32).eval()
    idle = torch.randperm(32)[:16]
    with torch.no_grad():
        network.head[0].weight[idle] = 0
        network.head[0].bias[idle] = 0
        network.tail[0].weight[:, idle] = 0
        for block in network.body:
            hidden = torch.randperm(32)[:16]
            block.body[0].weight[hidden] = 0
            block.body[2].weight[:, hidden] = 0
            block.body[0].bias[hidden] = 0
            block.body[0].weight[:, idle] = 0
            block.body[2].weight[idle] = 0
            block.body[2].bias[idle] = 0
    smaller, along = prune_channels(network, 0.5, round_to=4), rays(40)
    assert smaller.arguments["width"] == 16
    torch.testing.assert_close(smaller(along), network(along), atol=1e-6, rtol=0)
    assert network.head[0].out_features == 32


@pytest.mark.parametrize("kind", ["points", "rays", "pose"])
def test_its_graph_draws_what_it_draws_from_a_bundle(tiny_scene, tmp_path, kind: str) -> None:
    from nelf.data import read_scene

    scene = read_scene(tiny_scene)
    network = small(multires=6)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    network.prepare(scene.geometry)
    path = tmp_path / "model.onnx"
    error = onnx(network, path, scene.test.camera, kind)
    assert error <= 1e-4
    size = (16, 16) if kind == "pose" else None
    write_bundle(tmp_path, scene, network, [artifact("fp32", path, kind, "fp32", None, size, max_abs_error=error)])
    exported = load(tmp_path)
    camera = scene.train.camera[3]
    expected = network.render(camera).rgb
    assert float(expected.std()) > 0.05
    torch.testing.assert_close(exported.render(camera).rgb, expected, atol=1e-4, rtol=0)
    if kind != "pose":
        bigger = camera.resized(24)
        torch.testing.assert_close(exported.render(bigger).rgb, network.render(bigger).rgb, atol=1e-4, rtol=0)
    cost = exported.cost(camera)
    assert cost["parameters"] == sum(p.numel() for p in network.parameters())
    weights = sum(p.numel() for name, p in network.named_parameters() if name.endswith("weight"))
    assert cost["macs"] == 256 * (weights + (9 if kind == "pose" else 0))  # a pose turns the direction of each ray


def test_plucker_has_no_graph_from_points(tiny_scene, tmp_path) -> None:
    from nelf.data import read_scene

    network, cameras = small(inputs="plucker"), read_scene(tiny_scene).test.camera
    assert network.entries == ("rays", "pose")
    assert onnx(network, tmp_path / "model.onnx", cameras) <= 1e-4
    assert set(feed_of(network, "rays", cameras[0])) == {"rays_o", "rays_d"}
    with pytest.raises(UserError, match="R2L cannot begin at 'points'; allowed: rays, pose"):
        onnx(network, tmp_path / "model.onnx", cameras, "points")


def test_its_file_of_weights_describes_it(tmp_path) -> None:
    network, along = small(inputs="plucker", skip=False).eval(), rays(5)
    save(network, tmp_path / "model.safetensors", {"_target_": "nelf.lightfields.R2L", **network.arguments}, "")
    again = load_network(tmp_path)
    assert again.arguments == network.arguments
    assert torch.equal(again(along), network(along))


def test_8_bits_leave_the_layer_that_draws(tmp_path: Path) -> None:
    """Its error would be the picture's. All other weights stay so small that two products fit into 16 bits."""
    torch.manual_seed(0)
    network = R2L(width=32, depth=6, points=4, multires=4).eval()
    c2w = torch.cat([torch.eye(3), torch.tensor([[0.0], [0.0], [4.0]])], 1)
    cameras = Camera.from_fov(c2w.expand(2, 3, 4), 0.7, 8, 8)
    ranges = calibrate(network, [cameras[0], cameras[1]])
    assert {key.partition(".")[0] for key in ranges} == {"head", "body"}
    assert pack(network, network.state_dict(), "int8_per_channel")["tail.0.weight"].dtype == torch.float32
    assert pack(network, network.state_dict(), "fp16")["tail.0.weight"].dtype == torch.float16
    onnx(network, tmp_path / "model.onnx", cameras)
    feeds = [feed_of(network, "points", cameras[index]) for index in (0, 1)]
    static = quantize_static(tmp_path / "model.onnx", tmp_path / "static.onnx", feeds, exact=network.exact_in_8_bits)
    dynamic = quantize_dynamic(tmp_path / "model.onnx", tmp_path / "dynamic.onnx", network.exact_in_8_bits)
    for path in (static, dynamic, quantize_static(tmp_path / "model.onnx", tmp_path / "ranged.onnx", feeds, ranges)):
        held = [each for each in onnx_format.load(path).graph.initializer if len(each.dims) == 2 and min(each.dims) > 1]
        single = [tuple(sorted(each.dims)) for each in held if each.data_type == onnx_format.TensorProto.FLOAT]
        assert single == [(3, 32)], path
        integers = [numpy_helper.to_array(each) for each in held if each.data_type == onnx_format.TensorProto.INT8]
        assert len(integers) == (0 if path is dynamic else 5)
        assert all(2 * 255 * int(abs(values.astype(int)).max()) < 2**15 for values in integers)
