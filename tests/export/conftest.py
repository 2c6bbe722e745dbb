"""A small bundle of each network, written once."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from nelf.data import Scene, read_scene
from nelf.export import onnx, write_bundle
from nelf.export.bundle import artefact, write_volume
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
    """Neither empty nor opaque, some of its cells not occupied."""
    torch.manual_seed(3)
    network = GridR2L(width=8, depth=4, points=16, resolution=10, features=4)
    torch.nn.init.normal_(network.density, std=3.0)
    torch.nn.init.normal_(network.features)
    network.occupied[:3] = False
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
        error = onnx(network, path, scene.test.camera, kind)  # type: ignore[arg-type]
        volume = write_volume(network, folder / "volume.bin.gz", "float32") if kind == "features" else None
        size = (16, 16) if kind == "pose" else None
        write_bundle(folder, scene, network, [artefact("fp32", path, kind, "fp32", volume, size, max_abs_error=error)])
        made[name] = Exported(network, path, kind, error)
    return made
