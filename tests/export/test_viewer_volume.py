"""The look-up of a volume in the page, in WebAssembly and in JavaScript, at rest and moving, against PyTorch."""

from __future__ import annotations

import gzip
import json
import math
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import grid_sample, pixel_unshuffle

from nelf.cameras import Camera
from nelf.export.bundle import artifact, write_bundle
from nelf.export.graph import exact
from nelf.export.inputs import output_of
from nelf.export.volume import write_volume
from nelf.kernels import reference
from nelf.lightfields import GridR2L
from nelf.lightfields.grid_r2l import MIN_ALPHA_RENDERING

pytestmark = [pytest.mark.browser, pytest.mark.slow]

BOTH = pytest.mark.parametrize("kernels", ["WASM SIMD", "JavaScript"])

# What the page's modules look up for a camera: planes of features and opacities.
LOOK_UP = """async ([kernels, camera, s, controls, base]) => {
    const { unpacked } = await import("./files.js");
    const { readVolume } = await import("./volume.js");
    const { readMotion } = await import("./motion.js");
    const { openKernels } = await import("./kernels.js");
    const { Lookup } = await import("./lookup.js");
    const bundle = await (await fetch("bundle.json")).json();
    const about = bundle.artifacts[0].volume;
    const content = async (file) => new Uint8Array(await (await fetch(file)).arrayBuffer());
    const moves = about.motion;
    const motion = moves ? await readMotion(await content(moves.file), moves, bundle.aabb, controls.length) : null;
    const volume = await readVolume(await content(about.file), about, moves ? moves.canonical_aabb : bundle.aabb);
    const lookup = kernels === "JavaScript" ? new Lookup(volume, about, motion)
        : await openKernels(volume, about, motion);
    if (motion) lookup.set(controls);
    const { planes, hit } = lookup.composite(camera, s);
    return { planes: Array.from(planes), hit };
}"""


def looked_up(page: Any, kernels: str, camera: Camera, s: int, controls: list[float]) -> tuple[Tensor, dict[str, int]]:
    """(channels * s^2, h, w) of the page's modules, and the blocks that are hit."""
    fx, fy, cx, cy = camera.intrinsics.tolist()
    about = {"c2w": camera.c2w.flatten().tolist(), "fx": fx, "fy": fy, "cx": cx, "cy": cy}
    about |= {"width": camera.width, "height": camera.height}
    found = page.evaluate(LOOK_UP, [kernels, about, s, controls, ""])
    return torch.tensor(found["planes"]).view(-1, camera.height // s, camera.width // s), found["hit"]


class Rows(NamedTuple):
    """A volume: where its corners are, and what they have."""

    exists: Tensor
    density: Tensor
    features: Tensor
    aabb: Tensor


def expected(rows: Rows, camera: Camera, s: int, step: float) -> Tensor:
    """The same by the definition, in 64 bits."""
    index = torch.where(rows.exists, rows.exists.flatten().cumsum(0).view(rows.exists.shape) - 1, -1)
    rays = camera.rays()
    flat = [each.reshape(-1, 3).double() for each in (rays.origins, rays.directions)]
    along = reference.ray_features(
        rows.density.double(), rows.features.double(), index, *flat, rows.aabb.double(),
        torch.full((len(flat[0]),), 0.5, dtype=torch.float64), step, MIN_ALPHA_RENDERING,
    )  # fmt: skip
    planes = torch.cat([along.features, along.opacity[:, None]], 1).view(*rays.shape, -1).permute(2, 0, 1)
    return pixel_unshuffle(planes, s).float()


def volume_of(network: GridR2L) -> Rows:
    volume = network.volume
    return Rows(volume.exists, volume.density.detach(), volume.features.detach(), network.aabb)


def view(width: int, height: int, target: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Camera:
    """Beside the box, turned and not upright."""
    back = torch.tensor([2.1, -3.3, 1.7])
    middle = torch.tensor(target)
    z = back / back.norm()
    x = torch.linalg.cross(torch.tensor([0.2, 0.1, 1.0]), z)
    x = x / x.norm()
    c2w = torch.stack([x, torch.linalg.cross(z, x), z, middle + back], -1)
    return Camera(c2w, torch.tensor([1.1 * width, 1.0 * width, 0.45 * width, 0.55 * height]), width, height)


@pytest.fixture
def still(tmp_path, scene) -> Any:
    """Writes the bundle of a network with so many features of each corner; its graph is not one."""

    def write(features: int, dtype: str, width: int = 37) -> tuple[Path, GridR2L]:
        torch.manual_seed(features)
        network = GridR2L(width=8, depth=4, resolution=width, features=features)
        exists = torch.rand(9, 14, width) < 0.9
        exists[:, 4:7, 5:30] = False
        network.volume.resize(exists)
        network.aabb.copy_(torch.tensor([-1.0, -0.6, -0.4, 1.0, 0.5, 0.6]))
        with torch.no_grad():
            # In 16 bits as they stand, so that nothing is rounded.
            network.volume.density.copy_(torch.randn(int(exists.sum())).mul(3).sub(2).half())
            network.volume.features.copy_(torch.randn(int(exists.sum()), features).half())
        (tmp_path / "model.onnx").write_bytes(b"a graph")
        volume = write_volume(network, tmp_path / "volume.bin.gz", dtype)
        about = {"output": output_of(network), "window": network.window}
        write_bundle(tmp_path, scene, network, [artifact("m", tmp_path / "model.onnx", "features", "", volume, **about)])
        return tmp_path, network

    return write


@BOTH
@pytest.mark.parametrize(("features", "size", "s"), [(4, (46, 34), 2), (3, (33, 27), 3), (9, (25, 31), 1)])
def test_a_volume_is_looked_up_as_it_is_defined(tab, still, kernels: str, features: int, size: tuple[int, int], s: int) -> None:
    """Numbers of each kind of row, grids beyond 32 corners, blocks and images of odd sides."""
    folder, network = still(features, "float16")
    opened = tab(folder).go()
    camera = view(*size)
    planes, hit = looked_up(opened.page, kernels, camera, s, [])
    right = expected(volume_of(network), camera, s, network.voxel)
    assert right.std() > 0.1
    assert (planes - right).abs().max() < 2e-4
    blocks = (right[-s * s :] > 0).any(0).nonzero()
    (top, left), (bottom, right_) = blocks.amin(0).tolist(), blocks.amax(0).tolist()
    assert hit == {"top": top, "bottom": bottom, "left": left, "right": right_}
