"""Checkpoints of R2L and of R2L-quant: what nelf's R2L is given of them."""

from __future__ import annotations

import argparse
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nelf.errors import UserError
from nelf.interop import r2l
from nelf.interop.torch_file import read


def state_of(columns: int = 1008, width: int = 8, blocks: int = 3) -> dict[str, torch.Tensor]:
    """Weights under R2L's names."""
    layers = {"head.0": (width, columns), "tail.0": (3, width)}
    layers |= {f"body.{block}.body.{layer}": (width, width) for block in range(blocks) for layer in (0, 2)}
    state = {f"{name}.weight": torch.randn(size) for name, size in layers.items()}
    return state | {f"{name}.bias": torch.randn(size[0]) for name, size in layers.items()}


def converted(path: Path, content: Any, **options: Any) -> Any:
    torch.save(content, path)
    checkpoint = read(path)
    assert r2l.recognizes(checkpoint.content)
    return r2l.convert(checkpoint, **options)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_layout_is_read_from_the_tensors(tmp_path, prefix) -> None:
    state = state_of()
    content = {"network_fn_state_dict": {f"{prefix}{name}": values for name, values in state.items()}}
    found = converted(tmp_path / "ckpt.tar", content, residual=True)
    assert (found.role, found.kind) == ("student", "R2L")
    assert found.arguments == {
        **{"width": 8, "depth": 8, "inputs": "points", "points": 16, "multires": 10, "skip": True, "block_scale": 1.0},
        "ray_shift": 0.5 / 400,
    }
    assert all(torch.equal(found.state[name], values) for name, values in state.items())
    assert {*found.state} == {*state, "near", "far", "aabb", "prepared"}
    assert (float(found.state["near"]), float(found.state["far"]), bool(found.state["prepared"])) == (2.0, 6.0, True)


def test_126_columns_are_plucker_coordinates(tmp_path) -> None:
    found = converted(tmp_path / "ckpt.tar", state_of(126), residual=False, width=800)
    assert (found.arguments["inputs"], found.arguments["skip"]) == ("plucker", False)
    assert found.arguments["ray_shift"] == 0.5 / 800


def test_the_options_beside_a_pickled_network_are_used(tmp_path, monkeypatch) -> None:
    for name in ("model", "model.nerf_raybased", "smilelogging", "smilelogging.utils"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    network_class = type("NeRF_v3_2", (nn.Module,), {"__module__": "model.nerf_raybased"})
    options_class = type("EmptyClass", (), {"__module__": "smilelogging.utils"})
    monkeypatch.setattr(sys.modules["model.nerf_raybased"], "NeRF_v3_2", network_class, raising=False)
    monkeypatch.setattr(sys.modules["smilelogging.utils"], "EmptyClass", options_class, raising=False)
    network, trial = network_class(), options_class()
    trial.res_scale, trial.body_arch = 0.5, "resmlp"  # type: ignore[attr-defined]
    network.args = argparse.Namespace(use_residual=False, multires=2, plucker=False, trial=trial)
    content = {"network_fn": network, "network_fn_state_dict": state_of(6 * 5)}
    torch.save(content, tmp_path / "x.tar")
    trial.inact = "lrelu"  # type: ignore[attr-defined]
    torch.save(content, tmp_path / "other.tar")
    monkeypatch.undo()
    found = r2l.convert(read(tmp_path / "x.tar"))
    asked = {key: found.arguments[key] for key in ("skip", "multires", "inputs", "points", "block_scale")}
    assert asked == {"skip": False, "multires": 2, "inputs": "points", "points": 2, "block_scale": 0.5}
    with pytest.raises(UserError, match=r"was trained with --trial\.inact 'lrelu'; nelf has only relu"):
        r2l.convert(read(tmp_path / "other.tar"))


def test_of_a_quantized_file_the_rounded_weights_are_read(tmp_path) -> None:
    state = state_of()
    rounded = {name: values.bfloat16() for name, values in state.items()}
    found = converted(tmp_path / "lego_quant16.tar", {**state, "network_fn_state_dict": rounded}, residual=True)
    assert all(torch.equal(found.state[name], values.float()) for name, values in rounded.items())


def test_what_the_file_does_not_tell_is_asked_for(tmp_path) -> None:
    with pytest.raises(
        UserError, match=r"does not tell whether it was trained with --use_residual.*say --residual yes"
    ):
        converted(tmp_path / "x.tar", state_of())


def test_what_is_missing_is_said(tmp_path) -> None:
    state = state_of()
    del state["tail.0.bias"]
    with pytest.raises(UserError, match=r"is no checkpoint of R2L: found .* more; expected tail\.0\.bias"):
        converted(tmp_path / "x.tar", state, residual=True)
    with pytest.raises(UserError, match=r"head.0.weight has 1000 columns; expected 63 for each point of a ray, or 126"):
        converted(tmp_path / "x.tar", state_of(1000), residual=True)
