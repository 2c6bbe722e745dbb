"""Checkpoints of DyLiN, packed as its code packs them: what nelf's DyLiN is given of them."""

from __future__ import annotations

import argparse
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nelf.errors import UserError
from nelf.interop import dylin, r2l
from nelf.interop.recognize import conversion, convert
from nelf.interop.torch_file import read
from nelf.rays import Rays
from nelf.storage import load

L = 2  # frequencies; each number has 5 columns
EACH, POINTS, HYPER = 2 * L + 1, 3, 2


class Network(nn.Module):
    """A network of the ray, as the authors' classes have it."""

    def __init__(self, depth: int, width: int, outputs: dict[str, int]) -> None:
        super().__init__()
        self.D, self.W, self.input_ch, self.skips = depth, width, 7 * EACH, [4]
        inputs = [7 * EACH, *(width + 7 * EACH * (layer == 5) for layer in range(1, depth))]
        self.pts_linears = nn.ModuleList([nn.Linear(each, width) for each in inputs])
        for name, channels in outputs.items():
            self.add_module(name, nn.Linear(width, channels))

    def hidden(self, x: Tensor) -> Tensor:
        h = x
        for index, layer in enumerate(self.pts_linears):
            h = F.relu(layer(h))
            if index == 4:
                h = torch.cat([x, h], -1)
        return h


class Block(nn.Module):
    """A residual block of the trunk."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(width, width), nn.ReLU(True), nn.Linear(width, width))
        self.res_scale, self.outact = 1.0, None


class Trunk(nn.Module):
    """The trunk, with the options that it drags along."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        columns = (3 * POINTS + HYPER) * EACH
        self.head = nn.Sequential(nn.Linear(columns, width), nn.ReLU(True))
        self.body = nn.Sequential(*(Block(width) for _ in range(blocks)))
        self.tail = nn.Sequential(nn.Linear(width, 3), nn.Sigmoid())


class Options:
    """What the options under ``trial`` are stored as."""


AS = {
    Trunk: "model.nerf_raybased.NeRF_v3_2",
    Block: "model.nerf_raybased.ResMLP",
    Options: "smilelogging.utils.EmptyClass",
}


@pytest.fixture
def originals(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The modules that a pickle names, while it is written."""
    monkeypatch.undo()
    for name in ("model", "model.nerf_raybased", "smilelogging", "smilelogging.utils"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    return monkeypatch


def packed(path: Path, patch: pytest.MonkeyPatch, one_output: bool = False, **changes: Any) -> dict[str, nn.Module]:
    """Write a checkpoint; what it is read by must not be able to import the classes."""
    kinds: dict[str, Any] = {}
    for base, name in {**AS, "Net_offset": "model.nerf_raybased.Net_offset"}.items():
        module, _, own = name.rpartition(".")
        made = type(own, (Network if base == "Net_offset" else base,), {"__module__": module})
        patch.setattr(sys.modules[module], own, made, raising=False)
        kinds[own] = made
    hyper_kind = type("Net_hyper", (Network,), {"__module__": "model.nerf_raybased"})
    patch.setattr(sys.modules["model.nerf_raybased"], "Net_hyper", hyper_kind, raising=False)
    blocks = [kinds["ResMLP"](6) for _ in range(2)]
    trunk = kinds["NeRF_v3_2"](6, 0)
    trunk.body = nn.Sequential(*blocks)
    trial = kinds["EmptyClass"]()
    trial.__dict__.update({"ON": True, "body_arch": "resmlp", "res_scale": 1.0, "near": -1, "far": -1})
    trial.__dict__.update(changes.pop("trial", {}))
    trunk.args = argparse.Namespace(**{"use_residual": True, "multires": L, "trial": trial, **changes})
    outputs = {"output_linear": 3} if one_output else {"output_linear_o": 3, "output_linear_d": 3}
    offset = kinds["Net_offset"](7, 8, outputs)
    hyper = hyper_kind(6, 5, {"output_linear": HYPER})
    content = {
        "global_step": 7,
        "best_psnr": 30.5,
        "best_psnr_step": 5,
        "network_fn_state_dict": trunk.state_dict(),
        "optimizer_state_dict": torch.optim.Adam(trunk.parameters()).state_dict(),
        "network_fn": trunk,
        "network_fn_offset": offset,
        "network_fn_hyper": hyper,
    }
    torch.save(content, path)
    patch.undo()
    return {"trunk": trunk, "offset": offset, "hyper": hyper}


def original(parts: dict[str, Any], o: Tensor, d: Tensor, t: Tensor, near: float, far: float) -> Tensor:
    """What the authors' networks make of rays (N, .)."""

    def embed(x: Tensor) -> Tensor:
        y = x[..., None] * 2.0 ** torch.arange(L)
        return torch.cat([y.sin(), y.cos(), x[..., None]], -1).flatten(1)

    ray = embed(torch.cat([o, d, t], 1))
    offset, hyper, trunk = parts["offset"], parts["hyper"], parts["trunk"]
    h = offset.hidden(ray)
    outputs = (
        ("output_linear", "output_linear")
        if hasattr(offset, "output_linear")
        else ("output_linear_o", "output_linear_d")
    )
    o, d = o + getattr(offset, outputs[0])(h), d + getattr(offset, outputs[1])(h)
    depths = torch.linspace(near, far, POINTS)
    points = (o[:, None] + d[:, None] * depths[None, :, None]).flatten(1)
    x = trunk.head(embed(torch.cat([points, hyper.output_linear(hyper.hidden(ray))], 1)))
    inside = x
    for block in trunk.body:
        inside = inside + block.body(inside)
    return trunk.tail(inside + x)


@pytest.mark.parametrize("one_output", [False, True])
def test_an_import_draws_what_the_original_draws(tmp_path, originals, one_output) -> None:
    parts = packed(tmp_path / "ckpt.tar", originals, one_output)
    shown = convert(tmp_path / "ckpt.tar", tmp_path / "run", {})
    assert "DyLiN, 2 blocks of width 6, from 3 points and 2 coordinates of hyperspace" in shown
    network = load(tmp_path / "run" / "student")
    assert network.arguments == {
        **{"width": 6, "depth": 6, "points": 3, "multires": 2, "offset_width": 8, "offset_depth": 7},
        **{"hyper_width": 5, "hyper_depth": 6, "hyper_dim": 2, "controls": 1, "ray_shift": 0.5 / 400},
    }
    assert bool(network.prepared)
    along = Rays(torch.randn(30, 3), torch.randn(30, 3), torch.rand(30, 1))
    assert along.controls is not None
    with torch.no_grad():
        expected = original(parts, along.origins, along.directions, along.controls, 2.0, 6.0)
        torch.testing.assert_close(network(along), expected, atol=1e-5, rtol=0)
    assert expected.std() > 0.02


def test_depths_of_the_options_are_used_unless_others_are_chosen(tmp_path, originals) -> None:
    packed(tmp_path / "ckpt.tar", originals, trial={"near": 0.25, "far": 3})
    state = conversion(tmp_path / "ckpt.tar", {"width": 800}).state
    assert (float(state["near"]), float(state["far"])) == (0.25, 3.0)
    found = conversion(tmp_path / "ckpt.tar", {"far": 5.0, "width": 800})
    assert (float(found.state["near"]), float(found.state["far"])) == (0.25, 5.0)
    assert found.arguments["ray_shift"] == 0.5 / 800


def test_three_bare_state_dicts_are_read_too(tmp_path, originals) -> None:
    parts = packed(tmp_path / "ckpt.tar", originals)
    expected = conversion(tmp_path / "ckpt.tar", {})
    states = {part: module.state_dict() for part, module in parts.items()}
    states["offset"] = {f"module.{name}": values for name, values in states["offset"].items()}
    torch.save(states, tmp_path / "bare.pt")
    found = conversion(tmp_path / "bare.pt", {})
    assert found.arguments == expected.arguments
    assert {*found.state} == {*expected.state}
    assert all(torch.equal(found.state[name], values) for name, values in expected.state.items())


def test_a_file_of_r2l_is_none(tmp_path, originals) -> None:
    parts = packed(tmp_path / "ckpt.tar", originals)
    content = {"network_fn_state_dict": parts["trunk"].state_dict()}
    torch.save(content, tmp_path / "r2l.tar")
    found = read(tmp_path / "r2l.tar").content
    assert not dylin.recognizes(found)
    assert r2l.recognizes(found)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"use_residual": False}, "was trained without --use_residual; nelf's DyLiN has only"),
        ({"trial": {"res_scale": 0.1}}, r"another --trial\.res_scale than 1"),
        ({"trial": {"inact": "lrelu"}}, r"was trained with --trial\.inact 'lrelu'; nelf has only relu"),
    ],
)
def test_options_that_nelf_does_not_have_are_refused(tmp_path, originals, changes, text) -> None:
    packed(tmp_path / "ckpt.tar", originals, **changes)
    with pytest.raises(UserError, match=text):
        conversion(tmp_path / "ckpt.tar", {})


def bare(**sizes: Any) -> dict[str, dict[str, Tensor]]:
    """Three state dicts; a size is that of the tensor whose name it is, ``__`` for a dot; None leaves it out."""

    def layer(out: int, columns: int) -> tuple[Tensor, Tensor]:
        return torch.randn(out, columns), torch.randn(out)

    layers = {"trunk.head.0": layer(6, 55), "trunk.tail.0": layer(3, 6), "offset.pts_linears.0": layer(8, 35)}
    layers |= {"offset.output_linear_o": layer(3, 8), "offset.output_linear_d": layer(3, 8)}
    layers |= {"hyper.pts_linears.0": layer(5, 35), "hyper.output_linear": layer(2, 5)}
    flat = {
        f"{name}.{kind}": each
        for name, both in layers.items()
        for kind, each in zip(("weight", "bias"), both, strict=True)
    }
    for name, size in sizes.items():
        flat.pop(name.replace("__", "."), None)
        if size is not None:
            flat[name.replace("__", ".")] = torch.randn(size)
    states: dict[str, dict[str, Tensor]] = {"trunk": {}, "offset": {}, "hyper": {}}
    for name, values in flat.items():
        part, _, own = name.partition(".")
        states[part][own] = values
    return states


def test_of_few_layers_it_is_read_as_well(tmp_path) -> None:
    torch.save(bare(), tmp_path / "x.pt")
    found = conversion(tmp_path / "x.pt", {})
    sizes = {name: found.arguments[name] for name in ("depth", "offset_depth", "hyper_depth", "points")}
    assert sizes == {"depth": 2, "offset_depth": 1, "hyper_depth": 1, "points": 3}
    found.network(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("sizes", "text"),
    [
        ({"trunk__tail__0__bias": None}, r"is no checkpoint of DyLiN: found .*; expected trunk: tail\.0\.bias"),
        ({"offset__output_linear_d__weight": None}, r"expected offset: output_linear_d\.weight"),
        ({"hyper__output_linear__weight": (2,)}, r"hyper: output_linear\.weight has not the dimensions of a linear"),
        (
            {"offset__pts_linears__0__weight": (8, 36)},
            r"a ray has 36 columns and the trunk 55; expected 7 \(2 L \+ 1\)",
        ),
        ({"trunk__head__0__weight": (6, 60)}, "a ray has 35 columns and the trunk 60"),
        ({"trunk__head__0__weight": (6, 10)}, "a ray has 35 columns and the trunk 10"),
        ({"offset__pts_linears__0__weight": (8, 0)}, "a ray has 0 columns"),
        ({"hyper__pts_linears__0__weight": (5, 34)}, "its tensors do not fit together: .*hyper"),
        ({"offset__pts_linears__0__bias": (9,)}, "its tensors do not fit together: .*offset"),
    ],
)
def test_layers_that_are_missing_or_do_not_fit_are_named(tmp_path, sizes, text) -> None:
    torch.save(bare(**sizes), tmp_path / "x.pt")
    with pytest.raises(UserError, match=text):
        conversion(tmp_path / "x.pt", {}).network(tmp_path / "x.pt")


def test_files_of_another_kind_end_in_one_line(tmp_path, originals) -> None:
    states: dict[str, Any] = bare()
    del states["hyper"]
    torch.save(states, tmp_path / "x.pt")
    with pytest.raises(UserError, match="expected network_fn_hyper or hyper"):
        conversion(tmp_path / "x.pt", {})
    torch.save({**bare(), "offset": [1.0]}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="holds no state dict where one is expected, but list"):
        conversion(tmp_path / "x.pt", {})
    states = bare()
    states["trunk"]["tail.0.bias"][1] = torch.nan
    torch.save(states, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"trunk\.tail\.0\.bias holds numbers that are not finite"):
        conversion(tmp_path / "x.pt", {}).network(tmp_path / "x.pt")
    other = type("Net_other", (Network,), {"__module__": "model.nerf_raybased"})
    originals.setattr(sys.modules["model.nerf_raybased"], "Net_other", other, raising=False)
    torch.save({**bare(), "offset": other(2, 3, {})}, tmp_path / "x.pt")
    with pytest.raises(
        UserError, match=r"names 'model\.nerf_raybased\.Net_other', which is code that nelf does not run"
    ):
        conversion(tmp_path / "x.pt", {})


def test_a_module_that_holds_itself_is_read_once(tmp_path, originals) -> None:
    parts = packed(tmp_path / "ckpt.tar", originals)
    hyper = parts["hyper"]
    hyper._modules["again"] = hyper
    kind = type(hyper)
    originals.setitem(sys.modules, "model", types.ModuleType("model"))
    originals.setitem(sys.modules, "model.nerf_raybased", types.ModuleType("model.nerf_raybased"))
    originals.setattr(sys.modules["model.nerf_raybased"], "Net_hyper", kind, raising=False)
    states = {part: parts[part].state_dict() for part in ("trunk", "offset")}
    torch.save({**states, "hyper": hyper}, tmp_path / "x.pt")
    originals.undo()
    found = conversion(tmp_path / "x.pt", {})
    assert not any("again" in name for name in found.state)
    found.network(tmp_path / "x.pt")
