"""DyLiN against the published counts and names, an oracle from the authors' layers, and its formula in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import onnx as onnx_format
import pytest
import torch
from torch import Tensor

from nelf import paths
from nelf.cameras import Camera
from nelf.compression.inference import optimize_for_inference
from nelf.compression.pruning import choose_weights
from nelf.compression.quantization import calibrate, quantize_network, quantizers
from nelf.compression.storage import pack
from nelf.compression.structured import prune_channels
from nelf.data import SceneDataModule, Split
from nelf.errors import UserError
from nelf.export import onnx
from nelf.export.bundle import artifact, write_bundle
from nelf.export.graph import half_weights
from nelf.export.inputs import feed_of
from nelf.export.int8 import quantize_dynamic, quantize_static
from nelf.export.runtime import load
from nelf.lightfields import DyLiN
from nelf.rays import Rays
from nelf.scene import Scene
from nelf.storage import load as load_network
from nelf.storage import save
from nelf.systems import Student

LIGHT_FIELD_BUFFERS = {"near", "far", "aabb", "prepared"}


def small(**changes: object) -> DyLiN:
    sizes = {"width": 16, "depth": 6, "points": 4, "multires": 3, "offset_width": 12, "hyper_width": 8, "hyper_dim": 3}
    return DyLiN(**{**sizes, **changes})


def wild(network: DyLiN, std: float = 0.3) -> DyLiN:
    """Weights of a size at which each layer matters."""
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return network.eval()


def rays(*shape: int, controls: int = 1) -> Rays:
    """Origins, directions and controls that are exact in 32 bits."""
    values = torch.randint(-128, 129, (2, *shape, 3)) / 64
    return Rays(values[0], values[1], torch.randint(0, 65, (*shape, controls)) / 64)


def restated(
    weights: dict[str, np.ndarray], along: Rays, *, points: int, multires: int, depths: tuple[int, int, int]
) -> np.ndarray:
    """The formula in float64, ray by ray and number by number; ``depths`` of offset, hyper and blocks."""
    weights = {name: values.astype(np.float64) for name, values in weights.items()}

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]

    def embed(numbers: list[float]) -> np.ndarray:
        out: list[float] = []
        for value in numbers:
            out += [math.sin(2.0**k * value) for k in range(multires)]
            out += [math.cos(2.0**k * value) for k in range(multires)]
            out += [value]
        return np.array(out)

    def layers(part: str, depth: int, ray: np.ndarray) -> np.ndarray:
        hidden = ray
        for layer in range(depth):
            hidden = np.maximum(linear(f"{part}.pts_linears.{layer}", hidden), 0)
            if layer == 4 and depth > 5:
                hidden = np.concatenate([ray, hidden])
        return hidden

    drawn = []
    flat = along.reshape(-1)
    parts = (part.double().numpy() for part in (flat.origins, flat.directions, flat.controls))
    for o, d, c in zip(*parts, strict=True):
        ray = embed([*o, *d, *c])
        hidden = layers("offset", depths[0], ray)
        o = o + linear("offset.output_linear_o", hidden)
        d = d + linear("offset.output_linear_d", hidden)
        w = linear("hyper.output_linear", layers("hyper", depths[1], ray))
        seen = [o[axis] + d[axis] * (2 + 4 * p / (points - 1)) for p in range(points) for axis in range(3)]
        head = np.maximum(linear("trunk.head.0", embed([*seen, *w])), 0)
        x = head
        for block in range(depths[2]):
            inside = np.maximum(linear(f"trunk.body.{block}.body.0", x), 0)
            x = x + linear(f"trunk.body.{block}.body.2", inside)
        drawn.append(1 / (1 + np.exp(-linear("trunk.tail.0", x + head))))
    return np.array(drawn).reshape(*along.shape, 3)


def original_shapes() -> dict[str, tuple[int, ...]]:
    """The three state dicts of the original, in the order of its optimizer."""
    layers: dict[str, tuple[int, int]] = {"trunk.head.0": (256, 1176)}
    layers |= {f"trunk.body.{block}.body.{layer}": (256, 256) for block in range(43) for layer in (0, 2)}
    layers |= {"trunk.tail.0": (3, 256), "offset.pts_linears.0": (128, 147)}
    layers |= {f"offset.pts_linears.{layer}": (128, 275 if layer == 5 else 128) for layer in range(1, 7)}
    layers |= {"offset.output_linear_o": (3, 128), "offset.output_linear_d": (3, 128)}
    layers |= {"hyper.pts_linears.0": (64, 147)}
    layers |= {f"hyper.pts_linears.{layer}": (64, 211 if layer == 5 else 64) for layer in range(1, 6)}
    layers |= {"hyper.output_linear": (8, 64)}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, size in layers.items():
        shapes |= {f"{name}.weight": size, f"{name}.bias": size[:1]}
    return shapes


# ------------------------------------------------------------------------------------------ layers and formula


def test_parameters_are_the_originals() -> None:
    network = DyLiN()
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in network.named_children()}
    assert parts == {"trunk": 5_960_195, "offset": 137_606, "hyper": 40_200}
    assert sum(parts.values()) == 6_138_001


def test_state_dicts_in_the_originals_layout_fit_key_for_key() -> None:
    shapes = original_shapes()
    assert [sum(name.startswith(part) for name in shapes) for part in ("trunk", "offset", "hyper")] == [176, 18, 14]
    original = {name: torch.randn(shape) for name, shape in shapes.items()}
    network = DyLiN()
    missing, unexpected = network.load_state_dict(original, strict=False)
    assert set(missing) == LIGHT_FIELD_BUFFERS
    assert not unexpected
    loaded = dict(network.named_parameters())
    assert all(torch.equal(loaded[name], values) for name, values in original.items())


def test_numbers_that_the_authors_own_layers_gave() -> None:
    """Element i of tensor j is sin(0.7 i + j) / sqrt(n); what their classes make of it in float64, for one ray."""
    network = DyLiN().double().eval()
    state = {}
    for j, (name, shape) in enumerate(original_shapes().items()):
        n = shape[1] if len(shape) == 2 else 100
        values = torch.sin(0.7 * torch.arange(math.prod(shape), dtype=torch.float64) + j) / math.sqrt(n)
        state[name] = values.view(shape)
    network.load_state_dict(state, strict=False)
    found: dict[str, Tensor] = {}
    for name in ("offset", "hyper"):
        network.get_submodule(name).register_forward_hook(lambda _, __, out, name=name: found.update({name: out}))
    ray = Rays(*(torch.tensor([values]).double() for values in ([0.5, -0.25, 4], [0.125, 0.25, -1], [0.375])))
    with torch.no_grad():
        rgb = network(ray)[0]
    moved = [0.267534442, -0.276642945, -0.242230322, -0.418536644, -0.149289473, 0.291612169]
    lifted = [0.070262878, -0.003855371, -0.069910977, -0.077687130]
    lifted += [-0.020434203, 0.060000784, 0.102287974, 0.069315827]
    np.testing.assert_allclose(found["offset"][0], moved, atol=6e-10)
    np.testing.assert_allclose(found["hyper"][0], lifted, atol=6e-10)
    np.testing.assert_allclose(rgb, [0.501576688, 0.465381084, 0.547101063], atol=6e-10)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"controls": 3},
        {"points": 7, "multires": 10},
        {"depth": 2, "hyper_dim": 1},
        {"offset_depth": 3, "hyper_depth": 1},  # too few for the ray to come again
    ],
)
def test_colors_are_those_of_the_formula(options: dict[str, int]) -> None:
    network = wild(small(**options))
    along = rays(2, 3, controls=options.get("controls", 1))
    weights = {name: values.detach().numpy() for name, values in network.named_parameters()}
    chosen = network.arguments
    depths = (chosen["offset_depth"], chosen["hyper_depth"], (chosen["depth"] - 2) // 2)
    expected = restated(weights, along, points=chosen["points"], multires=chosen["multires"], depths=depths)
    assert expected.std() > 0.05
    with torch.no_grad():
        exact = network.double()(along).numpy()
        decoded = network.decode(network.encode(along[None]))[0].movedim(0, -1).numpy()
    np.testing.assert_allclose(exact, expected, atol=1e-10)
    np.testing.assert_allclose(decoded, expected, atol=1e-10)


def test_colors_of_the_full_network_in_32_bits() -> None:
    network, along = DyLiN().eval(), rays(2, 2)
    weights = {name: values.detach().numpy() for name, values in network.named_parameters()}
    expected = restated(weights, along, points=16, multires=10, depths=(7, 6, 43))
    assert expected.std() > 0.1
    with torch.no_grad():
        drawn = network(along).numpy()
        exact = network.double()(along).numpy()
    np.testing.assert_allclose(exact, expected, atol=1e-10)
    # In 32 bits a point is not exact, and the highest octave multiplies its error by 512.
    np.testing.assert_allclose(drawn, expected, atol=2e-4)


def test_every_control_counts_and_those_beyond_are_ignored() -> None:
    network, along = wild(small(controls=2)), rays(50, controls=3)
    assert along.controls is not None
    with torch.no_grad():
        drawn = network(along)
        for index, counts in enumerate((True, True, False)):
            other = along.controls.clone()
            other[:, index] = 1 - other[:, index]
            assert torch.equal(network(replace(along, controls=other)), drawn) != counts


@pytest.mark.parametrize(("controls", "found"), [(None, 0), (torch.zeros(4, 1), 1)])
def test_rays_without_enough_controls_are_refused(controls: Tensor | None, found: int) -> None:
    along = Rays(torch.zeros(4, 3), torch.zeros(4, 3), controls)
    with pytest.raises(ValueError, match=f"to have 2 controls, the time first, but got {found}"):
        small(controls=2)(along)


def test_points_are_drawn_for_each_ray_in_training_and_fixed_in_evaluation() -> None:
    """What the trunk sees: its embedding has the coordinates themselves in every seventh place."""
    network = small(points=5)
    for parameter in network.offset.parameters():
        torch.nn.init.zeros_(parameter)  # rays stay where they are
    seen: list[Tensor] = []
    network.trunk.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    down = torch.tensor([0.0, 0.0, -1.0]).expand(12_000, 3)
    along = Rays(torch.zeros_like(down), down, torch.zeros(12_000, 1))
    with torch.no_grad():
        network.train()(along)
        network.eval()(along)
    drawn, fixed = (-each[:, 6::7][:, :15].view(-1, 5, 3)[..., 2].T for each in seen)
    edges = torch.tensor([2.0, 2.5, 3.5, 4.5, 5.5, 6.0])
    low, high = edges[:-1], edges[1:]
    assert ((drawn >= low[:, None]) & (drawn <= high[:, None])).all()
    # Uniform in its bin: mean and deviation of 12,000 draws, the end bins half as wide.
    torch.testing.assert_close(drawn.mean(1), (low + high) / 2, atol=0.02, rtol=0)
    torch.testing.assert_close(drawn.std(1), (high - low) / 12**0.5, atol=0.02, rtol=0)
    assert float(torch.corrcoef(drawn).fill_diagonal_(0).abs().max()) < 0.05
    torch.testing.assert_close(fixed, torch.linspace(2, 6, 5)[:, None].expand_as(fixed))


def test_gradient_reaches_every_parameter() -> None:
    network = small().train()
    network(rays(64)).square().sum().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_a_picture_is_drawn_in_chunks_at_the_time_of_its_camera() -> None:
    network = wild(small())
    camera = Camera.from_fov(torch.eye(3, 4), 0.7, width=9, height=5).at(0.25)
    pictures = []
    for network.chunk in (4, 1000):
        pictures.append(network.render(camera).rgb)
    assert pictures[0].shape == (5, 9, 3)
    torch.testing.assert_close(pictures[0], pictures[1], atol=1e-5, rtol=0)
    assert float((network.render(camera.at(0.75)).rgb - pictures[0]).abs().max()) > 0.02


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"depth": 7}, "even number"),
        ({"points": 1}, "`points` to be at least 2"),
        ({"controls": 0}, "`controls` to be at least 1"),
        ({"offset_depth": 0}, "`offset_depth` to be at least 1"),
        ({"hyper_depth": 0}, "`hyper_depth` to be at least 1"),
        ({"hyper_dim": 0}, "`hyper_dim` to be at least 1"),
    ],
)
def test_wrong_arguments_are_named(wrong: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        small(**wrong)


# ------------------------------------------------------------------------------------------ precision


def test_what_moves_a_ray_is_computed_in_32_bits_in_any_case() -> None:
    network = wild(small(multires=10), 0.2)
    low = optimize_for_inference(network).network
    low.trunk.to(torch.bfloat16)  # as where the processor multiplies it
    found: dict[str, list[Tensor]] = {"offset": [], "hyper": []}
    for each in (network, low):
        for name, kept in found.items():
            each.get_submodule(name).register_forward_hook(lambda _, __, out, kept=kept: kept.append(out))
    along = rays(50)
    with torch.no_grad():
        exact = network(along)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = network(along)
        lowered = low(along)
    for outputs in found.values():
        assert all(torch.equal(outputs[0], output) for output in outputs[1:])
    assert 0 < float((exact - rounded).abs().max()) < 0.03
    assert 0 < float((exact - lowered).abs().max()) < 0.03
    assert lowered.dtype == torch.float32


def test_8_bits_are_for_the_trunk() -> None:
    network = wild(small(), 0.2)
    trunk = {
        "trunk.head.0",
        "trunk.tail.0",
        *(f"trunk.body.{block}.body.{layer}" for block in (0, 1) for layer in (0, 2)),
    }
    c2w = torch.cat([torch.eye(3), torch.tensor([[0.0], [0.0], [4.0]])], 1)
    ranges = calibrate(network, [Camera.from_fov(c2w, 0.7, 8, 8).at(0.5)])
    assert {key.rpartition(".")[0] for key in ranges} == trunk
    stored = pack(network, network.state_dict(), "int8_per_channel")
    for name, tensor in network.named_parameters():
        eighth = name.startswith("trunk.") and name.endswith("weight")
        assert stored[name].dtype == (torch.int8 if eighth else tensor.dtype)
    for chosen in (ranges, "dynamic"):
        assert set(quantizers(quantize_network(small(), chosen))) == trunk  # type: ignore[arg-type]


def test_files_of_8_and_16_bits_leave_what_moves_a_ray(tmp_path) -> None:
    network = wild(small(), 0.2)
    c2w = torch.cat([torch.eye(3), torch.tensor([[0.0], [0.0], [4.0]])], 1)
    cameras = Camera.from_fov(c2w.expand(2, 3, 4), 0.7, 8, 8, time=torch.tensor([0.2, 0.8]))
    onnx(network, tmp_path / "model.onnx", cameras)
    feeds = [feed_of(network, "rays", cameras[index]) for index in (0, 1)]
    made = {
        "dynamic": quantize_dynamic(tmp_path / "model.onnx", tmp_path / "dynamic.onnx", network.exact_parts),
        "half": half_weights(tmp_path / "model.onnx", tmp_path / "half.onnx", network.exact_parts),
        "static": quantize_static(tmp_path / "model.onnx", tmp_path / "static.onnx", feeds, exact=network.exact_parts),
        "ranged": quantize_static(
            tmp_path / "model.onnx", tmp_path / "ranged.onnx", feeds, calibrate(network, [cameras[0], cameras[1]])
        ),
    }
    for path in made.values():
        held = onnx_format.load(path).graph.initializer
        kinds = {each.name: each.data_type for each in held if "weight" in each.name and len(each.dims) == 2}
        single = {name for name, kind in kinds.items() if kind == onnx_format.TensorProto.FLOAT}
        assert len(single) == 7 + 2 + 6 + 1, path  # the layers of offset and hyper
        assert len(kinds) - len(single) == 6, path  # those of the trunk
        if path is made["half"]:  # the depths of points are multiplied by the highest frequency, too
            constants = [
                each for each in held if "." not in each.name and each.data_type != onnx_format.TensorProto.INT64
            ]
            assert {each.data_type for each in constants} == {onnx_format.TensorProto.FLOAT}


# ------------------------------------------------------------------------------------------ pruning, export, files


def test_it_says_which_weights_may_be_pruned() -> None:
    network = small()
    counts = {word: len(weights) for word, weights in network.prunable().items()}
    assert counts == {"head": 1, "body": 4, "tail": 1, "offset": 9, "hyper": 7}
    assert set(choose_weights(network, ["head", "body", "norms"])) == {
        "trunk.head.0.weight",
        *(f"trunk.body.{block}.body.{layer}.weight" for block in range(2) for layer in (0, 2)),
    }


def test_narrowing_keeps_the_channels_that_count() -> None:
    """Channels that write nothing and are read by nothing: without them the colors are the same."""
    network = wild(small(width=32))
    with torch.no_grad():
        trunk = network.trunk
        idle = torch.randperm(32)[:16]
        trunk.head[0].weight[idle] = 0
        trunk.head[0].bias[idle] = 0
        trunk.tail[0].weight[:, idle] = 0
        for block in trunk.body:
            hidden = torch.randperm(32)[:16]
            block.body[0].weight[hidden] = 0
            block.body[0].bias[hidden] = 0
            block.body[2].weight[:, hidden] = 0
            block.body[0].weight[:, idle] = 0
            block.body[2].weight[idle] = 0
            block.body[2].bias[idle] = 0
    smaller, along = prune_channels(network, 0.5, round_to=4), rays(40)
    assert smaller.arguments == {**network.arguments, "width": 16}
    torch.testing.assert_close(smaller(along), network(along), atol=1e-5, rtol=0)
    assert network.trunk.head[0].out_features == 32
    with pytest.raises(ValueError, match="leaves a network of 32 channels as it is"):
        prune_channels(network, 0.01)


@pytest.fixture(scope="module")
def moving() -> Scene:
    """Cameras with two controls, and pictures of noise."""
    splits = {}
    for name, count in (("train", 5), ("val", 1), ("test", 2)):
        camera = Camera.from_fov(paths.hemisphere(count, 4.0, (-30.0, 60.0)), 0.7, 12, 12)
        camera = replace(camera, controls=torch.rand(count, 2))
        images = np.random.default_rng(0).integers(256, size=(count, 12, 12, 3), dtype=np.uint8)
        splits[name] = Split(camera, images, [f"{name}_{index}" for index in range(count)])
    box = torch.tensor([-1.5, -1.5, -1.5, 1.5, 1.5, 1.5])
    return Scene("noise", None, **splits, aabb=box, near=2.5, far=5.5, controls=("time", "smile"))


@pytest.mark.parametrize(("kind", "controls"), [("rays", 2), ("pose", 1)])
def test_its_graph_draws_what_it_draws_from_a_bundle(moving: Scene, tmp_path, kind: str, controls: int) -> None:
    network = wild(small(multires=6, depth=4, offset_depth=6, controls=controls), 0.2)
    network.prepare(moving.geometry)
    path = tmp_path / "model.onnx"
    error = onnx(network, path, moving.test.camera, kind)
    assert error <= 1e-4
    assert network.entries == ("rays", "pose")
    write_bundle(tmp_path, moving, network, [artifact("fp32", path, kind, "fp32", None, (12, 12), max_abs_error=error)])
    exported = load(tmp_path)
    for camera in (moving.train.camera[3], moving.train.camera[3].at(0.9, 0.2)):
        expected = network.render(camera).rgb
        assert float(expected.std()) > 0.03
        torch.testing.assert_close(exported.render(camera).rgb, expected, atol=1e-4, rtol=0)
    cost = exported.cost(camera)
    assert cost["parameters"] == sum(p.numel() for p in network.parameters())
    weights = sum(p.numel() for name, p in network.named_parameters() if name.endswith("weight"))
    assert cost["macs"] == 144 * (weights + (9 if kind == "pose" else 0))  # a pose turns the direction of each ray


def test_it_has_no_graph_from_points(moving: Scene, tmp_path) -> None:
    with pytest.raises(UserError, match="DyLiN cannot begin at 'points'; allowed: rays, pose"):
        onnx(small(), tmp_path / "model.onnx", moving.test.camera, "points")


def test_its_file_of_weights_describes_it(tmp_path) -> None:
    network, along = wild(small(controls=2)), rays(5, controls=2)
    save(network, tmp_path / "model.safetensors", {"_target_": "nelf.lightfields.DyLiN", **network.arguments}, "")
    again = load_network(tmp_path)
    assert again.arguments == network.arguments
    assert again.controls == 2
    assert torch.equal(again(along), network(along))


def test_it_does_not_learn_from_views_without_their_time(moving: Scene, tmp_path) -> None:
    import pytorch_lightning as pl

    def fit(scene: Scene, controls: int) -> int:
        student = Student(small(controls=controls), batch_size=64)
        quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        trainer = pl.Trainer(default_root_dir=tmp_path, accelerator="cpu", max_steps=2, limit_val_batches=0, **quiet)  # type: ignore[arg-type]
        trainer.fit(student, SceneDataModule(scene, **student.batches))
        return int(trainer.global_step)

    assert fit(moving, 2) == 2
    with pytest.raises(
        UserError,
        match=r"^noise: its training views have only time, smile, but DyLiN takes 3 controls, the time first; allowed",
    ):
        fit(moving, 3)
    still = replace(moving, train=Split(moving.train.camera.at(), moving.train.images, moving.train.names))
    with pytest.raises(UserError, match="its training views have no time"):
        fit(still, 1)
