"""A small bundle of each network, written once."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from nelf.data import Scene, read_scene
from nelf.export import onnx, write_bundle
from nelf.export.bundle import artifact
from nelf.export.inputs import output_of
from nelf.export.volume import rounded, write_volume
from nelf.lightfields import GridR2L, LightField, MobileR2L


class Exported(NamedTuple):
    """A network and the file that it was written to."""

    network: LightField
    path: Path
    kind: str
    error: float


@pytest.fixture(scope="session")
def scene(tiny_scene: Path) -> Scene:
    return read_scene(tiny_scene)


def grid_network() -> GridR2L:
    """Neither empty nor opaque, some of its corners missing; its network draws something of its own."""
    torch.manual_seed(3)
    network = GridR2L(width=8, depth=4, resolution=12, features=4)
    exists = torch.ones(12, 12, 12, dtype=torch.bool)
    exists[:3] = False
    exists[9:, 4:] = False
    exists[5, 6, 7] = False
    network.volume.resize(exists)
    torch.nn.init.normal_(network.volume.density, mean=-1.0, std=2.0)
    torch.nn.init.normal_(network.volume.features, mean=0.3, std=0.5)
    torch.nn.init.normal_(network.tail.weight, std=0.05)
    torch.nn.init.normal_(network.tail.bias, std=0.05)
    return network.eval()


def mobile_network(**changes: object) -> MobileR2L:
    torch.manual_seed(4)
    network = MobileR2L(**{"width": 16, "depth": 6, "sr_factor": 4, "sr_kernels": (8, 8), **changes})
    for norm in network.modules():  # a folded norm must not be told from none by luck
        if isinstance(norm, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(norm.running_mean)
            torch.nn.init.uniform_(norm.running_var, 0.5, 2.0)
            torch.nn.init.normal_(norm.weight)
    return network.eval()


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory, scene: Scene) -> dict[str, Exported]:
    """By name: a bundle each, with one graph."""
    made = {}
    for name, network, kind in (
        ("features", grid_network(), "features"),
        ("rays", grid_network(), "rays"),
        ("points", mobile_network(), "points"),
        ("pose", mobile_network(activation="relu", upsampling="shuffle"), "pose"),
    ):
        folder = tmp_path_factory.mktemp(f"bundle_{name}")
        path = folder / "model.onnx"
        volume = None
        if kind == "features":
            volume = write_volume(network, folder / "volume.bin.gz")
            network = rounded(network, "uint8").eval()
        error = onnx(network, path, scene.test.camera, kind)  # type: ignore[arg-type]
        size = (16, 16) if kind == "pose" else None
        about = {"output": output_of(network), "window": network.window, "max_abs_error": error}
        write_bundle(folder, scene, network, [artifact("fp32", path, kind, "fp32", volume, size, **about)])
        made[name] = Exported(network, path, kind, error)
    return made
