"""Checkpoints of four NeRF networks: their forward passes restated, against the one that nelf's NeRF is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nelf.cameras import Camera
from nelf.errors import UserError
from nelf.interop import nerf_pl, nerf_pytorch, nerf_pytorch_krrish94
from nelf.interop.conversion import Conversion
from nelf.interop.torch_file import read

State = dict[str, Tensor]
W, X, D = 12, 63, 27  # width, columns of a position with 10 frequencies, of a direction with 4


def layers(**sizes: tuple[int, int]) -> State:
    """Weights and biases in float64 by name; ``__`` stands for a dot."""
    state = {}
    for name, size in sizes.items():
        state[f"{name.replace('__', '.')}.weight"] = torch.randn(size, dtype=torch.float64) * 0.3
        bias = torch.randn(size[0], dtype=torch.float64) * 0.3
        if size[0] in (1, 4):  # of the density, so that there is some
            bias[-1] += 2.0
        state[f"{name.replace('__', '.')}.bias"] = bias
    return state


def apply(state: State, name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def encode(values: Tensor, frequencies: int) -> Tensor:
    parts = [values]
    for octave in range(frequencies):
        parts += [(2.0**octave * values).sin(), (2.0**octave * values).cos()]
    return torch.cat(parts, -1)


# ------------------------------------------------------------------------------------------------ the originals


def yenchenlin_state(outputs: str = "views") -> State:
    state = layers(pts_linears__0=(W, X), **{f"pts_linears__{i}": (W, X + W if i == 5 else W) for i in range(1, 8)})
    state |= layers(views_linears__0=(W // 2, D + W))
    if outputs == "views":
        return state | layers(feature_linear=(W, W), alpha_linear=(1, W), rgb_linear=(3, W // 2))
    return state | layers(output_linear=(4, W))


def yenchenlin(state: State, x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    h = x
    for index in range(8):
        h = F.relu(apply(state, f"pts_linears.{index}", h))
        if index == 4:
            h = torch.cat([x, h], -1)
    if "output_linear.weight" in state:
        out = apply(state, "output_linear", h)
        return out[:, :3].sigmoid(), F.relu(out[:, 3])
    alpha, feature = apply(state, "alpha_linear", h), apply(state, "feature_linear", h)
    h = F.relu(apply(state, "views_linears.0", torch.cat([feature, d], -1)))
    return apply(state, "rgb_linear", h).sigmoid(), F.relu(alpha[:, 0])


def nerf_pl_state() -> State:
    state = layers(
        xyz_encoding_1__0=(W, X), **{f"xyz_encoding_{i}__0": (W, X + W if i == 5 else W) for i in range(2, 9)}
    )
    return state | layers(xyz_encoding_final=(W, W), dir_encoding__0=(W // 2, W + D), sigma=(1, W), rgb__0=(3, W // 2))


def nerf_pl_forward(state: State, x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    h = x
    for index in range(8):
        if index == 4:
            h = torch.cat([x, h], -1)
        h = F.relu(apply(state, f"xyz_encoding_{index + 1}.0", h))
    sigma = apply(state, "sigma", h)
    h = torch.cat([apply(state, "xyz_encoding_final", h), d], -1)
    h = F.relu(apply(state, "dir_encoding.0", h))
    return apply(state, "rgb.0", h).sigmoid(), F.relu(sigma[:, 0])


def flexible_state(skip: int | None = None, directions: bool = True) -> State:
    wide = {i for i in range(1, 5) if skip and i % skip == 0}
    state = layers(layer1=(W, X), **{f"layers_xyz__{i}": (W, W + X if i in wide else W) for i in range(5)})
    if not directions:
        return state | layers(fc_out=(4, W))
    return state | layers(fc_feat=(W, W), fc_alpha=(1, W), layers_dir__0=(W // 2, W + D), fc_rgb=(3, W // 2))


def flexible(state: State, x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    h = apply(state, "layer1", x)
    for index in range(5):
        if state[f"layers_xyz.{index}.weight"].shape[1] > W:
            h = torch.cat([h, x], -1)
        h = F.relu(apply(state, f"layers_xyz.{index}", h))
    if "fc_out.weight" in state:
        out = apply(state, "fc_out", h)
        return out[:, :3].sigmoid(), F.relu(out[:, 3])
    feature, alpha = F.relu(apply(state, "fc_feat", h)), apply(state, "fc_alpha", h)
    h = F.relu(apply(state, "layers_dir.0", torch.cat([feature, d], -1)))
    return apply(state, "fc_rgb", h).sigmoid(), F.relu(alpha[:, 0])


def paper_state() -> State:
    state = layers(layers_xyz__0=(W, X), **{f"layers_xyz__{i}": (W, X + W if i == 4 else W) for i in range(1, 8)})
    state |= layers(layers_dir__0=(W // 2, W + D), **{f"layers_dir__{i}": (W // 2, W // 2) for i in range(1, 4)})
    return state | layers(fc_feat=(W, W), fc_alpha=(1, W), fc_rgb=(3, W // 2))


def paper(state: State, x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    h = x
    for index in range(8):
        h = F.relu(apply(state, f"layers_xyz.{index}", torch.cat([x, h], -1) if index == 4 else h))
    feature = apply(state, "fc_feat", h)
    alpha = apply(state, "fc_alpha", feature)
    h = torch.cat([feature, d], -1)
    for index in range(3):
        h = F.relu(apply(state, f"layers_dir.{index}", h))
    return apply(state, "fc_rgb", h).sigmoid(), F.relu(alpha[:, 0])


# ------------------------------------------------------------------------------------------------ nelf's


def restated(found: Conversion, network: str, positions: Tensor, viewdirs: Tensor) -> tuple[Tensor, Tensor]:
    """What nelf's NeRF does with its arguments and its state dict."""
    arguments = found.arguments
    prefix = f"{network}."
    state = {
        name.removeprefix(prefix): values.double() for name, values in found.state.items() if name.startswith(prefix)
    }
    x = encode(positions, arguments["frequencies"])
    d = encode(viewdirs, arguments["direction_frequencies"])
    h = x
    for index in range(arguments["depth"]):
        h = apply(state, f"layers.{index}", torch.cat([x, h], -1) if index in arguments["skips"] else h)
        h = F.relu(h) if index or arguments.get("first_activation", True) else h
    sigma = F.relu(apply(state, "density_layer", h)[:, 0])
    feature = apply(state, "feature_layer", h)
    h = torch.cat([F.relu(feature) if arguments.get("feature_activation", False) else feature, d], -1)
    for index in range(arguments["direction_depth"]):
        h = F.relu(apply(state, f"direction_layers.{index}", h))
    assert arguments["density_activation"] == "relu"
    assert arguments["infinite_end"]
    return apply(state, "color_layer", h).sigmoid(), sigma


def converted(path: Path, module: Any, content: Any, **options: Any) -> Conversion:
    torch.save(content, path, _use_new_zipfile_serialization=path.suffix != ".ckpt")
    checkpoint = read(path)
    assert module.recognizes(checkpoint.content)
    found = module.convert(checkpoint, **options)
    assert (found.role, found.kind) == ("teacher", "NeRF")
    return found


YENCHENLIN = ("network_fn_state_dict", "network_fine_state_dict")
KRRISH94 = ("model_coarse_state_dict", "model_fine_state_dict")
CASES = {
    "yenchenlin": (nerf_pytorch, YENCHENLIN, yenchenlin_state, yenchenlin, [5]),
    "yenchenlin without directions": (nerf_pytorch, YENCHENLIN, lambda: yenchenlin_state("all"), yenchenlin, [5]),
    "krrish94": (nerf_pytorch_krrish94, KRRISH94, flexible_state, flexible, []),
    "krrish94 with skips": (nerf_pytorch_krrish94, KRRISH94, lambda: flexible_state(2), flexible, [3, 5]),
    "krrish94 without directions": (
        nerf_pytorch_krrish94,
        KRRISH94,
        lambda: flexible_state(3, directions=False),
        flexible,
        [4],
    ),
    "krrish94, the paper's": (nerf_pytorch_krrish94, KRRISH94, paper_state, paper, [4]),
    "nerf_pl": (nerf_pl, ("nerf_coarse", "nerf_fine"), nerf_pl_state, nerf_pl_forward, [4]),
}


@pytest.mark.parametrize("suffix", [".tar", ".ckpt"], ids=["zip", "old"])
@pytest.mark.parametrize("case", CASES)
def test_an_import_computes_what_the_original_computes(tmp_path, case, suffix) -> None:
    module, keys, make, forward, skips = CASES[case]
    states = dict(zip(("coarse", "fine"), (make(), make()), strict=True))
    single = {name: {key: values.float() for key, values in state.items()} for name, state in states.items()}
    content: Any = dict(zip(keys, single.values(), strict=True))
    if module is nerf_pl:
        content = {f"{net}.{key}": values for net, state in content.items() for key, values in state.items()}
        content = {"state_dict": content, "epoch": 15} if suffix == ".tar" else content
    found = converted(tmp_path / f"x{suffix}", module, content)
    assert found.arguments["skips"] == skips
    assert (found.arguments["frequencies"], found.arguments["width"]) == (10, W)
    positions = torch.randn(50, 3, dtype=torch.float64)
    viewdirs = F.normalize(torch.randn(50, 3, dtype=torch.float64), dim=-1)
    for name, state in states.items():
        state = {key: values.float().double() for key, values in state.items()}
        rgb, sigma = forward(state, encode(positions, 10), encode(viewdirs, 4))
        ours_rgb, ours_sigma = restated(found, name, positions, viewdirs)
        assert torch.allclose(ours_rgb, rgb, atol=1e-5)
        assert torch.allclose(ours_sigma, sigma, atol=1e-5)
        assert float(sigma.max()) > 0.01


def test_nerf_pl_samples_between_distances_from_the_camera(tmp_path) -> None:
    """Its ``get_ray_directions``, ``get_rays`` and ``render_rays`` restated: unit directions, no half pixel."""
    width, height, focal, near, far, count = 6, 4, 3.0, 2.0, 6.0, 5
    state = {f"nerf_coarse.{key}": values.float() for key, values in nerf_pl_state().items()}
    options = {"width": width, "near": near, "far": far, "samples": count}
    field = converted(tmp_path / "x.ckpt", nerf_pl, state, **options).network(tmp_path / "x.ckpt")
    c2w = torch.cat([torch.linalg.qr(torch.randn(3, 3)).Q, torch.tensor([[0.3], [-1.0], [2.0]])], 1)
    asked: list[Tensor] = []
    density = type(field.coarse).density
    with patch.object(type(field.coarse), "density", lambda net, at: (asked.append(at), density(net, at))[1]):
        field.render(Camera(c2w, torch.tensor([focal, focal, width / 2, height / 2]), width, height))

    j, i = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    rays_d = torch.stack([(i - width / 2) / focal, -(j - height / 2) / focal, -torch.ones(height, width)], -1)
    rays_d = F.normalize(rays_d.double() @ c2w[:, :3].double().T, dim=-1)
    z_vals = torch.linspace(near, far, count, dtype=torch.float64)
    expected = c2w[:, 3].double() + rays_d[:, :, None] * z_vals[:, None]
    torch.testing.assert_close(torch.cat(asked).view_as(expected).double(), expected, atol=1e-5, rtol=0)


def test_what_no_file_tells_is_in_the_arguments(tmp_path) -> None:
    state = {key: values.float() for key, values in yenchenlin_state().items()}
    found = converted(tmp_path / "x.tar", nerf_pytorch, {"network_fn_state_dict": state})
    asked = {key: found.arguments[key] for key in ("samples", "fine_samples", "ray_shift")}
    assert asked == {"samples": 64, "fine_samples": 0, "ray_shift": 0.5 / 400}  # there is no fine network
    assert {key: found.state[key].tolist() for key in ("near", "far", "center", "unit", "background")} == {
        **{"near": 2.0, "far": 6.0, "center": [0.0, 0.0, 0.0], "unit": 1.0, "background": [1.0, 1.0, 1.0]}
    }
    options = {"width": 800, "near": 1.0, "far": 3.0, "background": "black", "samples": 32}
    found = converted(tmp_path / "x.tar", nerf_pytorch, {"network_fn_state_dict": state}, **options)
    assert (found.arguments["samples"], found.arguments["ray_shift"]) == (32, 0.5 / 800)
    assert [found.state[key].sum().item() for key in ("near", "far", "background")] == [1.0, 3.0, 0.0]


def test_other_frequencies_are_read_from_the_columns(tmp_path) -> None:
    state = layers(layer1=(W, 39), layers_xyz__0=(W, W), fc_feat=(W, W), fc_alpha=(1, W), fc_rgb=(3, 5))
    state |= layers(layers_dir__0=(5, W + 15))
    found = converted(tmp_path / "x.ckpt", nerf_pytorch_krrish94, {"model_coarse_state_dict": state})
    asked = ("frequencies", "direction_frequencies", "depth", "direction_width")
    assert [found.arguments[key] for key in asked] == [6, 2, 2, 5]


def test_layers_that_are_missing_or_do_not_fit_are_named(tmp_path) -> None:
    state = flexible_state()
    del state["fc_rgb.bias"]
    with pytest.raises(UserError, match=r"no checkpoint of nerf-pytorch \(krrish94\): found .*; expected fc_rgb\.bias"):
        converted(tmp_path / "x.ckpt", nerf_pytorch_krrish94, {"model_coarse_state_dict": state})
    state = {"layers_xyz.0.weight": torch.zeros(2, 2)}
    with pytest.raises(UserError, match=r"found layers_xyz\.0\.weight; expected layer1\.weight .* or layers_xyz\.7"):
        converted(tmp_path / "x.ckpt", nerf_pytorch_krrish94, {"model_coarse_state_dict": state})
    state = yenchenlin_state()
    state["pts_linears.0.weight"] = torch.zeros(W, 60)
    with pytest.raises(UserError, match="has 60 columns for the encoded position; expected 3"):
        converted(tmp_path / "x.tar", nerf_pytorch, {"network_fn_state_dict": state})
    states = {"network_fn_state_dict": yenchenlin_state(), "network_fine_state_dict": yenchenlin_state("all")}
    with pytest.raises(UserError, match="its coarse and its fine network differ"):
        converted(tmp_path / "x.tar", nerf_pytorch, states)
    state = {**yenchenlin_state(), "alpha_linear.weight": torch.zeros(W)}
    with pytest.raises(UserError, match=r"alpha_linear has weight and bias of shapes \(12,\) and \(1,\)"):
        converted(tmp_path / "x.tar", nerf_pytorch, {"network_fn_state_dict": state})


def test_a_real_checkpoint(data) -> None:
    path = data / "checkpoints" / "nerf-pytorch_lego-lowres" / "checkpoint199999.ckpt"
    found = nerf_pytorch_krrish94.convert(read(path))
    assert {key: found.arguments[key] for key in ("depth", "width", "skips", "direction_width")} == {
        **{"depth": 4, "width": 128, "skips": [], "direction_width": 64}
    }
    assert sum(values.numel() for key, values in found.state.items() if key.startswith("fine.")) == 84_548
