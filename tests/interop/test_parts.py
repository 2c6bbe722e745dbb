"""Foreign checkpoints whose parts are something else than their names say: one line, and little memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nelf.errors import UserError
from nelf.interop.recognize import conversion
from nelf.interop.torch_file import read

W, X = 8, 63


def layer(name: str, rows: int, columns: int) -> dict[str, Tensor]:
    return {f"{name}.weight": torch.randn(rows, columns), f"{name}.bias": torch.randn(rows)}


def refused(tmp_path: Path, content: Any) -> str:
    torch.save(content, tmp_path / "x.tar")
    with pytest.raises(UserError) as caught:
        conversion(tmp_path / "x.tar", {"radius": 4.0} if "state_dict" in content else {}).network(tmp_path / "x.tar")
    return str(caught.value)


@pytest.mark.parametrize("state", [7, None, [1], "model.density_bitfield"], ids=str)
def test_a_state_dict_that_is_none(tmp_path, state: object) -> None:
    for key in ("state_dict", "network_fn_state_dict"):
        assert "is no checkpoint of a program that nelf knows" in refused(tmp_path, {key: state})


def test_tensors_that_are_none(tmp_path) -> None:
    names = ("xyz_max", "density_bitfield", "xyz_encoder.params", "rgb_net.params")
    state: dict[str, object] = {f"model.{name}": torch.full((3,), 0.5) for name in names}
    assert "model.rgb_net.params is no tensor" in refused(
        tmp_path, {"state_dict": {**state, "model.rgb_net.params": 7}}
    )
    flat = {"pts_linears.0.weight": 7, **layer("output_linear", 4, W)}
    assert "has no layers of the position" in refused(tmp_path, {"network_fn_state_dict": flat})


@pytest.mark.parametrize("key", [7, None, 1.5])
def test_names_that_are_none(tmp_path, key: object) -> None:
    state = {"pts_linears.0.weight": torch.zeros(W, X), key: torch.zeros(1)}
    assert "holds no state dict" in refused(tmp_path, {"network_fn_state_dict": state})


def test_no_coarse_network(tmp_path) -> None:
    for content in ({"model_coarse_state_dict": None}, {"model_coarse_state_dict": {}, "model_fine_state_dict": {}}):
        assert "expected a state dict as model_coarse_state_dict" in refused(tmp_path, content)
    assert "has no coarse network" in refused(tmp_path, {"nerf_coarse.xyz_encoding_1.0.weight": 7})


@pytest.mark.parametrize("shape", [(2, W), (4, 5), (4, 100_000), (1, W)])
def test_a_last_layer_of_another_shape(tmp_path, shape: tuple[int, int]) -> None:
    """Its square would be 40 GB at the largest."""
    state = {**layer("pts_linears.0", W, X), **layer("output_linear", *shape)}
    assert "its last layer has shape" in refused(tmp_path, {"network_fn_state_dict": state})


def test_a_fifth_row_is_not_used(tmp_path) -> None:
    """nerf-pytorch has one in networks without directions that were trained with fine samples."""
    state = {**layer("pts_linears.0", W, X), **layer("output_linear", 5, W)}
    made = []
    for rows in (5, 4):
        cut = {name: values[:rows] if name.startswith("output") else values for name, values in state.items()}
        torch.save({"network_fn_state_dict": cut}, tmp_path / "x.tar")
        made.append(conversion(tmp_path / "x.tar", {}).network(tmp_path / "x.tar").state_dict())
    assert made[0].keys() == made[1].keys()
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])


def test_layers_without_numbers(tmp_path) -> None:
    state = {"head.0.weight": torch.zeros(0, 312, 1, 1), "tail.0.weight": torch.zeros(3, 3, 4, 4)}
    assert "is no MobileR2L of nelf's" in refused(tmp_path, {"network_fn_state_dict": state})


@pytest.mark.parametrize("zipped", [True, False])
def test_a_storage_is_read_once(tmp_path, zipped: bool) -> None:
    """However many tensors lie in it: else a small pickle makes a large storage be read a thousand times."""
    numbers = torch.arange(100.0)
    state = {str(index): numbers[index : index + 1] for index in range(100)}
    torch.save(state, tmp_path / "x.tar", _use_new_zipfile_serialization=zipped)
    checkpoint, count = read(tmp_path / "x.tar"), 0
    for storage in {id(each.storage): each.storage for each in checkpoint.content.values()}.values():

        def counted(fetch=storage.fetch) -> bytes:
            nonlocal count
            count += 1
            return fetch()

        storage.fetch = counted
    found = checkpoint.tensors(checkpoint.content)
    assert all(torch.equal(found[name], values) for name, values in state.items())
    assert count == 1
