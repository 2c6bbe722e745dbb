"""Channels: dead ones leave no trace in the picture, and what remains is a network of that size."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import nelf
from nelf import storage
from nelf.cameras import Camera
from nelf.compression.structured import prune_channels
from nelf.lightfields import GridR2L, LightField, MobileR2L

NETWORKS: dict[str, tuple[type[LightField], dict[str, Any], dict[str, Any]]] = {
    "grid": (
        GridR2L,
        {"width": 16, "depth": 8, "resolution": 8, "features": 4, "sr_factor": 4},
        {"width": 8},
    ),
    "mobile": (
        MobileR2L,
        {"width": 32, "depth": 8, "sr_factor": 8, "sr_kernels": [16, 32, 16]},
        {"width": 16, "sr_kernels": [8, 16, 8]},
    ),
    "mobile_12": (MobileR2L, {"width": 32, "depth": 4, "sr_factor": 12}, {"width": 16, "sr_kernels": [32, 32, 8]}),
    "shuffle": (
        MobileR2L,
        {"width": 16, "depth": 6, "sr_factor": 6, "upsampling": "shuffle", "activation": "relu", "points": 4},
        {"width": 8},
    ),
}


def camera() -> Camera:
    c2w = torch.eye(3, 4)
    c2w[2, 3] = 4.0
    return Camera.from_fov(c2w, 0.7, 24, 24)


def make(name: str) -> tuple[LightField, dict[str, Any]]:
    kind, arguments, smaller = NETWORKS[name]
    network = kind(**arguments)
    for part in network.modules():  # batch norms as after training
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias)
            nn.init.normal_(part.running_mean)
            nn.init.uniform_(part.running_var, 0.5, 2.0)
    if isinstance(network, GridR2L):
        nn.init.normal_(network.volume.density, std=2.0)
        nn.init.normal_(network.tail.weight, std=0.03)  # a new one is zero
    return network.eval(), {**arguments, **smaller}


def kill(network: LightField) -> None:
    """Silence half of the channels of every group, the same random half in all that are added to each other.

    Only what writes a channel is zero; what reads it stays as it is, so that a wrong choice or a wrong
    dependency shows in the picture.
    """

    def silence(dead: torch.Tensor, *writers: nn.Module) -> None:
        for writer in writers:
            axis = 1 if isinstance(writer, nn.ConvTranspose2d) else 0
            writer.weight.index_fill_(axis, dead, 0.0)  # type: ignore[union-attr, operator]
            writer.bias[dead] = 0.0  # type: ignore[index]

    def half(channels: int) -> torch.Tensor:
        return torch.randperm(channels)[: channels // 2]

    def section(first: Any, blocks: list[Any]) -> None:
        """Whatever writes into one residual stream, and the channels inside its blocks."""
        dead = half(first.out_channels)
        silence(dead, first)
        for block in blocks:
            *inside, last = _writers(block)
            inner = half(inside[0][0].out_channels)
            silence(inner, *inside[0])
            silence(dead, *last)

    with torch.no_grad():
        section(network.head[0], list(network.body))  # type: ignore[index, arg-type]
        tail = list(network.tail) if isinstance(network.tail, nn.Sequential) else []
        for place, part in enumerate(tail):
            if isinstance(part, nn.ConvTranspose2d):
                section(part, tail[place + 1 : place + 3])


def _writers(block: Any) -> list[list[nn.Module]]:
    """Each convolution of a block with its norm."""
    groups: list[list[nn.Module]] = []
    for part in block.conv_block:
        if isinstance(part, nn.Conv2d):
            groups.append([part])
        elif isinstance(part, nn.BatchNorm2d):
            groups[-1].append(part)
    return groups


@pytest.mark.parametrize("name", NETWORKS)
def test_without_dead_channels_the_picture_is_the_same(name: str, tmp_path: Path) -> None:
    network, arguments = make(name)
    kill(network)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    smaller = prune_channels(network, 0.5)
    torch.testing.assert_close(smaller.render(camera()).rgb, network.render(camera()).rgb, atol=2e-6, rtol=0)
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]), f"{key} of the network that was given has changed"

    fresh = type(network)(**arguments)
    assert {key: value.shape for key, value in smaller.state_dict().items()} == {
        key: value.shape for key, value in fresh.state_dict().items()
    }
    # By itself: the file alone makes the narrow network.
    config = {"_target_": f"nelf.lightfields.{type(network).__name__}", **smaller.arguments}
    loaded = nelf.load(storage.save(smaller, tmp_path / "small.safetensors", config, "scene"))
    assert torch.equal(loaded.render(camera()).rgb, smaller.render(camera()).rgb)


def test_the_weakest_channels_go() -> None:
    network, _ = make("grid")
    with torch.no_grad():
        for value in (network.head[0].weight, network.head[0].bias):  # type: ignore[index]
            value[3:11] *= 1e-3
        for block in network.body:  # type: ignore[union-attr]
            for value in (block.conv_block[2].weight, block.conv_block[2].bias):
                value[3:11] *= 1e-3
    smaller = prune_channels(network, 0.5)
    assert torch.equal(smaller.head[0].weight, torch.cat([network.head[0].weight[:3], network.head[0].weight[11:]]))  # type: ignore[index]


@pytest.mark.parametrize(("ratio", "round_to", "width"), [(0.3, 8, 24), (0.3, 1, 22), (0.95, 8, 8), (0.5, 4, 16)])
def test_widths_are_multiples(ratio: float, round_to: int, width: int) -> None:
    network = GridR2L(width=32, depth=4, resolution=4, features=4)
    smaller = prune_channels(network, ratio, round_to)
    assert smaller.arguments == {**network.arguments, "width": width}
    assert smaller.training


def test_bfloat16_inside_the_network_does_not_hide_dependencies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nelf.lightfields.grid_r2l.multiplies_bfloat16", lambda device: True)
    network, _ = make("grid")
    assert prune_channels(network, 0.5).head[0].out_channels == 8


@pytest.mark.parametrize(
    ("ratio", "round_to", "words"),
    [
        (0.0, 8, "ratio: is 0.0; allowed"),
        (1.5, 8, "ratio: is 1.5; allowed"),
        (0.5, 0, "round_to: is 0; allowed: 1 or more"),
        (0.5, 16, "16 channels as it is, none can be removed in steps of 16"),
    ],
)
def test_what_cannot_be_removed_is_refused(ratio: float, round_to: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        prune_channels(make("grid")[0], ratio, round_to)
