"""Fixtures that every folder of tests shares."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from nelf import paths
from nelf.cameras import Camera
from nelf.data import Scene, Split, write_scene

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Each test draws the same numbers, whichever tests ran before it."""
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(scope="session")
def data() -> Path:
    """Folder of the real scenes: ``NELF_DATA``, or ``../shared/data`` beside the repository."""
    root = Path(os.environ.get("NELF_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not root.is_dir():
        pytest.skip(f"real scenes are not here: set NELF_DATA to a folder that holds nerf_synthetic/ (not {root})")
    return root


@pytest.fixture(scope="session")
def tiny_scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A unit sphere coloured by its normal: 8 training, 2 validation and 2 test views of 16 pixels."""
    splits = {
        "train": _sphere_split(paths.hemisphere(8, 4.0, (-60.0, 60.0))),
        "val": _sphere_split(paths.orbit(2, 4.0, 20.0)),
        "test": _sphere_split(paths.orbit(2, 4.0, -15.0, turns=-0.3)),
    }
    aabb = torch.tensor([-1.2, -1.2, -1.2, 1.2, 1.2, 1.2])
    scene = Scene("sphere", None, **splits, aabb=aabb, near=2.5, far=5.5)
    return write_scene(tmp_path_factory.mktemp("tiny") / "sphere", scene)


def _sphere_split(c2w: torch.Tensor, width: int = 16, sub: int = 4) -> Split:
    """Views of the sphere, each pixel the mean of ``sub`` x ``sub`` rays."""
    fine = Camera.from_fov(c2w, 0.6911112, width * sub, width * sub, near=2.5, far=5.5)
    rays = fine.rays()
    rays_o, viewdirs = rays.rays_o.double().numpy(), rays.viewdirs.double().numpy()
    middle = -(rays_o * viewdirs).sum(-1)
    inside = 1.0 - ((rays_o**2).sum(-1) - middle**2)
    distance = middle - np.sqrt(np.maximum(inside, 0.0))
    hit = (inside > 0).astype(np.float64)[..., None]
    rgb = 0.5 + 0.5 * (rays_o + distance[..., None] * viewdirs)
    premultiplied = np.concatenate([rgb * hit, hit], -1)
    blocks = premultiplied.reshape(len(c2w), width, sub, width, sub, 4).mean((2, 4))
    blocks[..., :3] /= np.maximum(blocks[..., 3:], 1e-9)
    images = np.round(blocks * 255).astype(np.uint8)
    return Split(fine.resized(width), images, [f"{index:05d}" for index in range(len(c2w))])
