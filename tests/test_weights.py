"""Weights that are shared: what is written is what is loaded, and nothing of a stranger's runs."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch

import nelf
from nelf.errors import UserError
from nelf.lightfields import MobileR2L
from nelf.weights import save

ARGUMENTS = {"width": 8, "depth": 4, "sr_factor": 2}
CONFIG = {"_target_": "nelf.lightfields.MobileR2L", **ARGUMENTS}


@pytest.fixture
def path(tmp_path):
    return save(MobileR2L(**ARGUMENTS), tmp_path / "model.safetensors", CONFIG, "abc")


def test_a_network_comes_back_as_it_was(tmp_path) -> None:
    network = MobileR2L(**ARGUMENTS)
    network.near.fill_(1.25)
    path = save(network, tmp_path / "model.safetensors", CONFIG, "abc")
    for place in (path, tmp_path):
        again = nelf.load(place)
        assert not again.training
        for name, tensor in network.state_dict().items():
            assert torch.equal(again.state_dict()[name], tensor)
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata()["scene"] == "abc"


def test_a_network_of_one_s_own_is_filled(path) -> None:
    own = MobileR2L(**ARGUMENTS)
    assert nelf.load(path, own) is own


@pytest.mark.parametrize(
    "target", ["os.system", "nelf.cli.main", "nelf.fields.ngp.math.sqrt", "nelf.fields.Nothing", ""]
)
def test_a_header_cannot_name_what_is_no_network_of_nelf(tmp_path, target: str) -> None:
    header = {"config": json.dumps({"_target_": target, "command": "true"})}
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors.torch.save({"x": torch.zeros(1)}, header))
    with pytest.raises(UserError, match="describes"):
        nelf.load(path)


def test_weights_of_another_network_are_named(path) -> None:
    with pytest.raises(UserError, match=r"does not fit MobileR2L: .*weight is \(8, .*, not \(16, "):
        nelf.load(path, MobileR2L(width=16, depth=4, sr_factor=2))


def test_a_torn_or_absent_file_is_named(path, tmp_path) -> None:
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="is not a whole safetensors file"):
        nelf.load(path)
    with pytest.raises(UserError, match="no such file"):
        nelf.load(tmp_path / "elsewhere.safetensors")
