"""Weights that are shared: what is written is what is loaded, and nothing of a stranger's runs."""

from __future__ import annotations

import json
import re

import pytest
import safetensors.torch
import torch

import nelf
from nelf.errors import UserError
from nelf.fields import NGP
from nelf.lightfields import GridR2L, MobileR2L
from nelf.storage import save

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


def test_equal_networks_make_equal_files(path, tmp_path) -> None:
    """Of four entries in a random order, one of twelve tries would differ by far."""
    contents = {
        save(nelf.load(path), tmp_path / f"{index}.safetensors", CONFIG, "é").read_bytes() for index in range(12)
    }
    assert len(contents) == 1
    size = int.from_bytes(contents.pop()[:8], "little")
    assert size % 8 == 0
    assert json.loads((tmp_path / "0.safetensors").read_bytes()[8 : 8 + size])["__metadata__"]["scene"] == "é"


def test_a_network_of_one_s_own_is_filled(path) -> None:
    own = MobileR2L(**ARGUMENTS)
    assert nelf.load(path, own) is own


@pytest.mark.parametrize(
    "target", ["os.system", "nelf.cli.command", "nelf.fields.ngp.math.sqrt", "nelf.fields.Nothing", ""]
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


def test_a_volume_has_the_rows_of_its_file(tmp_path) -> None:
    network = GridR2L(width=8, depth=4)
    network.volume.resize(torch.rand(5, 6, 7) > 0.5)
    config = {"_target_": "nelf.lightfields.GridR2L", **network.arguments}
    path = save(network, tmp_path / "model.safetensors", config, "abc")
    for again in (nelf.load(path), nelf.load(path, GridR2L(width=8, depth=4, resolution=9))):
        assert torch.equal(again.volume.index, network.volume.index)
        assert torch.equal(again.volume.features, network.volume.features)
    with pytest.raises(UserError, match=r"does not fit GridR2L: head\.0\.weight is"):
        nelf.load(path, GridR2L(width=8, depth=4, features=5))


@pytest.mark.parametrize("name", ["density", "features", "corners", "shape"])
def test_a_volume_whose_parts_do_not_belong_together_is_named(tmp_path, name: str) -> None:
    network = GridR2L(width=8, depth=4)
    config = {"_target_": "nelf.lightfields.GridR2L", **network.arguments}
    path = save(network, tmp_path / "model.safetensors", config, "abc")
    with safetensors.safe_open(path, "pt") as file:
        header, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors[f"volume.{name}"] = tensors[f"volume.{name}"] * 99 if name == "shape" else tensors[f"volume.{name}"][1:]
    path.write_bytes(safetensors.torch.save(tensors, header))
    with pytest.raises(UserError, match=r"model\.safetensors: volume\.corners: ") as caught:
        nelf.load(path)
    assert "\n" not in str(caught.value)


def test_a_torn_or_absent_file_is_named(path, tmp_path) -> None:
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="is not a whole safetensors file"):
        nelf.load(path)
    with pytest.raises(UserError, match="no such file"):
        nelf.load(tmp_path / "elsewhere.safetensors")


def described(path, config: object, **tensors: torch.Tensor):
    """A file with any description."""
    text = config if isinstance(config, str) else json.dumps(config)
    path.write_bytes(safetensors.torch.save(tensors or {"x": torch.zeros(1)}, {"config": text}))
    return path


@pytest.mark.parametrize("network", [NGP(levels=2, log2_table=8), GridR2L(resolution=8), MobileR2L(**ARGUMENTS)])
def test_a_network_can_be_described_without_memory(network) -> None:
    """What loading a stranger's file relies on: a constructor that computes nothing from its own tensors."""
    with torch.device("meta"):
        again = type(network)(**getattr(network, "arguments", {"levels": 2, "log2_table": 8}))
    assert {name: value.shape for name, value in again.state_dict().items()} == {
        name: value.shape for name, value in network.state_dict().items()
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"_target_": "nelf.lightfields.GridR2L", "resolution": 4000}, "`resolution` to be from 2 to 512"),
        (
            {"_target_": "GridR2L", "features": 10**6},
            "whose features is 1000000; allowed: a whole number from 1",
        ),
        ({"_target_": "GridR2L", "features": 4000, "resolution": 400}, r"of \d+ numbers, but holds 1\."),
        ({"_target_": "GridR2L", "resolution": 10**6}, "GridR2L"),
        ({"_target_": "MobileR2L", "depth": 1000}, "more parameters than the file has tensors"),
        (
            {"_target_": "MobileR2L", "depth": 10**9},
            "whose depth is 1000000000; allowed: a whole number from 1",
        ),
        ({"_target_": "MobileR2L", "sr_kernels": [8, 10**12]}, "whose sr_kernels is beyond"),
        ({"_target_": "NGP", "levels": 10**7}, "whose levels is 10000000; allowed: "),
        ({"_target_": "NGP", "log2_table": 30}, r"of \d+ numbers, but holds 1\."),
        ({"_target_": "NGP", "scale": float("nan")}, "whose scale is nan; allowed: a number above 0"),
        (
            {"_target_": "NeRF", "fine_samples": 1.5},
            "whose fine_samples is 1.5; allowed: a whole number from 0",
        ),
        ({"_target_": "NGP", "color": "red"}, r"cannot be built \(.*color"),
        ({"_target_": "NGP", "scale": "wide"}, "whose scale is 'wide'; allowed: a number above 0"),
        ({"_target_": "nelf.lightfields.mobile_r2l.ResidualBlock", "width": 1}, "not one of nelf's"),
        ({"_target_": "nelf.lightfields.grid_r2l.nn.Linear", "in_features": 1}, "not one of nelf's"),
        ([1], "no description of a network"),
        ("{", "no description of a network"),
        ({"_target_": 3}, "not one of nelf's"),
    ],
)
def test_a_description_is_judged_before_memory_is_taken(tmp_path, arguments: object, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        nelf.load(described(tmp_path / "model.safetensors", arguments))
    assert "\n" not in str(caught.value)


def test_a_scale_does_not_blow_a_tensor_up(tmp_path) -> None:
    path = tmp_path / "model.safetensors"
    tensors = {"w": torch.zeros(2000, 1, dtype=torch.int8), "w.scale": torch.ones(1, 2000)}
    path.write_bytes(safetensors.torch.save(tensors, {"scheme": "int8_per_channel", "config": json.dumps(CONFIG)}))
    with pytest.raises(UserError, match=r"w: has a scale of \(1, 2000\), which is not one for \(2000, 1\)"):
        nelf.load(path)


@pytest.mark.parametrize(
    "ranges", ["{", "[1]", '{"head.0.input": 3}', '{"head.0.input": ["a", 1]}', '{"no.input": [0, 1]}']
)
def test_ranges_that_do_not_fit_are_named(path, ranges: str) -> None:
    with safetensors.safe_open(path, "pt") as file:
        header, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    path.write_bytes(safetensors.torch.save(tensors, {**header, "activation_ranges": ranges}))
    with pytest.raises(UserError, match="ranges of activations that do not fit"):
        nelf.load(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(tmp_path, value: float) -> None:
    path = save(MobileR2L(**ARGUMENTS), tmp_path / "model.safetensors", CONFIG, "abc")
    with safetensors.safe_open(path, "pt") as file:
        header, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    name = next(name for name in tensors if re.fullmatch(r"tail\.\d+\.weight", name))
    tensors[name].view(-1)[3] = value
    path.write_bytes(safetensors.torch.save(tensors, header))
    with pytest.raises(UserError, match=r"tail\.\d+\.weight holds numbers that are not finite"):
        nelf.load(path)


@pytest.mark.parametrize("config", ["[" * 100_000, "1" * 5000, json.dumps({**CONFIG, "width": 10**7})])
def test_a_header_that_is_none_is_refused_before_it_is_built(tmp_path, config: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors.torch.save({"x": torch.zeros(1)}, {"config": config}))
    with pytest.raises(UserError, match=r"holds no description of a network|whose width is 10000000; allowed: "):
        nelf.load(path)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.complex64])
def test_numbers_of_another_kind_are_refused(tmp_path, dtype: torch.dtype) -> None:
    tensors = {"head.0.weight": torch.zeros(2, 2).to(dtype)}
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors.torch.save(tensors, {"config": json.dumps(CONFIG)}))
    with pytest.raises(UserError, match=r"head\.0\.weight holds torch\.\w+, of which nelf writes none"):
        nelf.load(path)
