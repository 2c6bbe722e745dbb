"""Checkpoints of D-NeRF: its forward pass restated, against the field that nelf makes of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nelf.errors import UserError
from nelf.interop import dnerf
from nelf.interop.recognize import conversion, convert
from nelf.interop.torch_file import read
from nelf.storage import load

State = dict[str, Tensor]
W, X, T, D = 12, 63, 21, 27  # width, and columns of position, time and direction


def state_of(directions: bool = True, **changes: tuple[int, ...] | None) -> State:
    """Weights under D-NeRF's names; ``changes`` gives sizes of tensors, ``__`` for a dot; None leaves one out."""
    layers = {"_time.0": (W, X + T), "_time_out": (3, W), "_occ.pts_linears.0": (W, X)}
    for index in range(1, 8):
        columns = X + W if index == 5 else W
        layers |= {f"_time.{index}": (W, columns), f"_occ.pts_linears.{index}": (W, columns)}
    layers |= {"_occ.views_linears.0": (W // 2, D + W)}
    if directions:
        layers |= {"_occ.feature_linear": (W, W), "_occ.alpha_linear": (1, W), "_occ.rgb_linear": (3, W // 2)}
    else:
        layers |= {"_occ.output_linear": (4, W)}
    sizes: dict[str, tuple[int, ...] | None] = {}
    for name, size in layers.items():
        sizes |= {f"{name}.weight": size, f"{name}.bias": size[:1]}
    sizes |= {name.replace("__", "."): size for name, size in changes.items()}
    state = {name: 0.3 * torch.randn(size) for name, size in sizes.items() if size is not None}
    for name in ("_occ.alpha_linear.bias", "_occ.output_linear.bias"):
        if name in state:
            state[name][-1] += 2.0  # so that there is some density
    return state


def encode(values: Tensor, frequencies: int) -> Tensor:
    parts = [values]
    for octave in range(frequencies):
        parts += [(2.0**octave * values).sin(), (2.0**octave * values).cos()]
    return torch.cat(parts, -1)


def original(state: State, x: Tensor, d: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Density and color in float64, at times (S, 1) above 0."""
    state = {name: values.double() for name, values in state.items()}

    def apply(name: str, x: Tensor) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    position = encode(x, 10)
    h = torch.cat([position, encode(t, 10)], -1)
    for index in range(8):
        h = F.relu(apply(f"_time.{index}", h))
        h = torch.cat([position, h], -1) if index == 4 else h
    position = h = encode(x + apply("_time_out", h), 10)
    for index in range(8):
        h = F.relu(apply(f"_occ.pts_linears.{index}", h))
        h = torch.cat([position, h], -1) if index == 4 else h
    if "_occ.output_linear.weight" in state:
        out = apply("_occ.output_linear", h)
        return F.relu(out[:, 3]), out[:, :3].sigmoid()
    feature = torch.cat([apply("_occ.feature_linear", h), encode(d, 4)], -1)
    shaded = F.relu(apply("_occ.views_linears.0", feature))
    return F.relu(apply("_occ.alpha_linear", h)[:, 0]), apply("_occ.rgb_linear", shaded).sigmoid()


def content_of(state: State, **more: Any) -> dict[str, Any]:
    return {"global_step": 5, "network_fn_state_dict": state, "optimizer_state_dict": {"state": {}}, **more}


@pytest.mark.parametrize("directions", [True, False])
def test_an_import_computes_what_the_original_computes(tmp_path, directions) -> None:
    state = state_of(directions)
    torch.save(content_of(state), tmp_path / "800000.tar")
    shown = convert(tmp_path / "800000.tar", tmp_path / "run", {})
    assert "D-NeRF, 8 layers of 12, skips [5], 10 frequencies of the position, 10 of the time" in shown
    assert "stage.teacher.file=" in shown
    field = load(tmp_path / "run" / "teacher")
    field.canonical.low_precision = False
    x = torch.randn(50, 3) / 2
    d = F.normalize(torch.randn(50, 3), dim=-1)
    t = torch.rand(50, 1)
    sigma, rgb = original(state, x.double(), d.double(), t.double())
    # What is moved is rounded to 32 bits, and the highest octave multiplies that by 512.
    torch.testing.assert_close(field.sigma(x, t).double(), sigma, atol=2e-3, rtol=0)
    torch.testing.assert_close(field.rgb(x, d, t).double(), rgb, atol=2e-3, rtol=0)
    assert float(sigma.std()) > 0.05
    assert not field.displacement(x, torch.zeros(50, 1)).any()


def test_what_no_file_tells_is_in_the_arguments(tmp_path) -> None:
    torch.save(content_of({f"module.{name}": values for name, values in state_of().items()}), tmp_path / "x.tar")
    options = {"zero_canonical": False, "width": 800, "near": 1.0, "far": 3.0, "background": "black", "samples": 32}
    found = conversion(tmp_path / "x.tar", options)
    assert (found.role, found.kind) == ("teacher", "DNeRF")
    asked = {key: found.arguments[key] for key in ("zero_canonical", "samples", "fine_samples", "ray_shift")}
    assert asked == {"zero_canonical": False, "samples": 32, "fine_samples": 128, "ray_shift": 0.5 / 800}
    assert [found.state[key].sum().item() for key in ("near", "far", "background")] == [1.0, 3.0, 0.0]
    with pytest.raises(UserError, match=r"--radius: is no option of D-NeRF; allowed: .*--zero-canonical"):
        conversion(tmp_path / "x.tar", {"radius": 4.0})


def test_a_file_of_nerf_pytorch_is_none(tmp_path) -> None:
    state = {name.removeprefix("_occ."): values for name, values in state_of().items() if name.startswith("_occ.")}
    torch.save(content_of(state), tmp_path / "x.tar")
    assert not dnerf.recognizes(read(tmp_path / "x.tar").content)
    assert conversion(tmp_path / "x.tar", {}).kind == "NeRF"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"_time_out__bias": None}, r"is no checkpoint of D-NeRF: found .*; expected _time_out\.bias"),
        ({"_occ__rgb_linear__weight": None}, r"expected rgb_linear\.weight"),
        ({"_time__0__weight": (W, X)}, "has 0 columns for the encoded time; expected 2 L"),
        ({"_time__0__weight": (W, X + 4)}, "has 4 columns for the encoded time"),
        ({"_time__3__weight": (W,)}, r"_time\.3 has weight and bias of shapes \(12,\)"),
        (
            {"_time__7__weight": None, "_time__7__bias": None},
            r"its tensors do not fit together: deformation\.layers\.7",
        ),
        ({"_time__5__weight": (W, W)}, r"its tensors do not fit together: deformation\.layers\.5\.weight"),
    ],
)
def test_layers_that_are_missing_or_do_not_fit_are_named(tmp_path, changes, text) -> None:
    torch.save(content_of(state_of(**changes)), tmp_path / "x.tar")
    with pytest.raises(UserError, match=text):
        conversion(tmp_path / "x.tar", {}).network(tmp_path / "x.tar")


def test_what_is_no_single_network_is_refused(tmp_path) -> None:
    torch.save(content_of(state_of(), network_fine_state_dict=state_of()), tmp_path / "x.tar")
    with pytest.raises(UserError, match="has a second network for the fine samples; nelf's DNeRF has one for both"):
        conversion(tmp_path / "x.tar", {})
    torch.save(content_of({"_time_out.weight": torch.zeros(3, W)}), tmp_path / "x.tar")
    with pytest.raises(UserError, match=r"found _time_out\.weight; expected _occ\.pts_linears\.0\.weight"):
        conversion(tmp_path / "x.tar", {})
