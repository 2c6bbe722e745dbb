"""Fixtures that every folder of tests shares."""

from __future__ import annotations

import os
import platform
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

# Without a GPU, tests interpret Triton's kernels. Triton decides on that when it is loaded, as nelf's imports may do.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# isort: split
from nelf import paths
from nelf.cameras import Camera
from nelf.data import Scene, Split, write_scene
from nelf.kernels import gpu

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
    """A unit sphere colored by its normal: 8 training, 2 validation and 2 test views of 16 pixels."""
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
    fine = Camera.from_fov(c2w, 0.6911112, width * sub, width * sub)
    rays = fine.rays()
    rays_o, viewdirs = rays.origins.double().numpy(), rays.viewdirs.double().numpy()
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


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's kernels on the CPU. Interpreting costs time by the block, whatever its size: rays are in larger ones."""
    if platform.system() != "Linux" or find_spec("triton") is None:
        pytest.skip('needs Triton: pip install "nelf[dev]" on Linux')
    if torch.cuda.is_available():
        pytest.skip("Triton's kernels are compiled here: see test_gpu.py")
    import triton.language as tl

    from nelf.kernels import triton_lookup, triton_mlp, triton_rays

    for module in (triton_lookup, triton_rays):
        monkeypatch.setattr(module, "WARP", 64)
    monkeypatch.setattr(triton_mlp, "LOW", tl.float16)  # the interpreter multiplies no matrices in bfloat16


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch, interpreted: None) -> None:
    """What runs on a GPU, kernels and code that must not wait for them, on the CPU."""
    monkeypatch.setenv("NELF_KERNELS", "triton")
    monkeypatch.setattr(gpu, "asynchronous", lambda device: True)


class Outcome:
    """How a command ended."""

    def __init__(self, code: int | None, output: str, error: str) -> None:
        self.code, self.output, self.error = code, output, error.strip()
        # Reading shows its progress there too; the line of the error is the last one.
        self.line = self.error.splitlines()[-1] if self.error else ""


@pytest.fixture
def command(tmp_path, tiny_scene, monkeypatch, capfd):
    """Run a script in this process, from an empty directory; ``SCENE`` stands for the tiny scene."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def run(line: str) -> Outcome:
        script, *arguments = line.replace("SCENE", str(tiny_scene)).split()
        path = str(Path(__file__).parents[1] / f"{script}.py")
        monkeypatch.setattr(sys, "argv", [path, *arguments])
        capfd.readouterr()
        code: int | None = 0
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as leaving:
            code = leaving.code  # type: ignore[assignment]
        return Outcome(code, *capfd.readouterr())

    return run
