"""The look-up of a volume in the page, in WebAssembly and in JavaScript, at rest and moving, against PyTorch."""

from __future__ import annotations

import gzip
import json
import math
import re
import shutil
from dataclasses import asdict, replace
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
from nelf.rays import NDC

pytestmark = [pytest.mark.browser, pytest.mark.slow]

BOTH = pytest.mark.parametrize("kernels", ["WASM SIMD", "JavaScript"])

# What the page's modules look up for a camera: planes of features and opacities.
LOOK_UP = """async ([kernels, camera, s, controls]) => {
    const { readVolume } = await import("./volume.js");
    const { readMotion } = await import("./motion.js");
    const { compileKernels, openKernels } = await import("./kernels.js");
    const { Lookup } = await import("./lookup.js");
    const bundle = await (await fetch("bundle.json")).json();
    const about = bundle.artifacts[0].volume;
    const content = async (file) => new Uint8Array(await (await fetch(file)).arrayBuffer());
    const moves = about.motion;
    const motion = moves ? await readMotion(await content(moves.file), moves, bundle.aabb, controls.length) : null;
    const volume = await readVolume(await content(about.file), about, moves ? moves.canonical_aabb : bundle.aabb);
    const lookup = kernels === "JavaScript" ? new Lookup(volume, about, motion)
        : await openKernels(await compileKernels(), volume, about, motion);
    if (motion) lookup.set(controls);
    const { planes, hit } = lookup.composite(camera, s);
    return { planes: Array.from(planes), hit };
}"""


def looked_up(page: Any, kernels: str, camera: Camera, s: int, controls: list[float]) -> tuple[Tensor, dict[str, int]]:
    """(channels * s^2, h, w) of the page's modules, and the blocks that are hit."""
    fx, fy, cx, cy = camera.intrinsics.tolist()
    about = {"c2w": camera.c2w.flatten().tolist(), "fx": fx, "fy": fy, "cx": cx, "cy": cy}
    about |= {"width": camera.width, "height": camera.height}
    about["ndc"] = None if camera.ndc is None else asdict(camera.ndc)
    found = page.evaluate(LOOK_UP, [kernels, about, s, controls])
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
        write_bundle(
            tmp_path, scene, network, [artifact("m", tmp_path / "model.onnx", "features", "", volume, **about)]
        )
        return tmp_path, network

    return write


@BOTH
@pytest.mark.parametrize(("features", "size", "s"), [(4, (46, 34), 2), (3, (33, 27), 3), (9, (25, 31), 1)])
def test_a_volume_is_looked_up_as_it_is_defined(
    tab, still, kernels: str, features: int, size: tuple[int, int], s: int
) -> None:
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


@BOTH
def test_rays_may_run_in_ndc(tab, still, kernels: str) -> None:
    folder, network = still(4, "float16")
    c2w = torch.tensor([[0.96, 0.0, 0.28, 0.2], [0.0, 1.0, 0.0, -0.1], [-0.28, 0.0, 0.96, 0.3]])
    camera = replace(view(46, 34), c2w=c2w, ndc=NDC(0.9, 0.5, 0.4))
    planes, _ = looked_up(tab(folder).go().page, kernels, camera, 2, [])
    right = expected(volume_of(network), camera, 2, network.voxel)
    assert right.std() > 0.1
    assert (planes - right).abs().max() < 2e-4


class Motion(NamedTuple):
    """What moves a volume: masks (N, D, H, W) and the nodes (K, T, Z, Y, X, 4) over a box, in 16 bits as they stand."""

    masks: Tensor
    values: Tensor
    aabb: Tensor
    canonical_aabb: Tensor
    empty: float


def sampled(values: Tensor, aabb: Tensor, at: Tensor) -> Tensor:
    """Values (D, H, W, C) on the corners of a box, interpolated at places (P, 3): (P, C), in 64 bits."""
    low, high = aabb.double().view(2, 3)
    places = (at - low) / (high - low) * 2 - 1
    found = grid_sample(
        values.double().movedim(-1, 0)[None], places.view(1, -1, 1, 1, 3), padding_mode="border", align_corners=True
    )
    return found[0, :, :, 0, 0].T


def moved(canonical: Rows, motion: Motion, frame_aabb: Tensor, controls: list[float]) -> Rows:
    """The volume of a moment, by interpolation in dense grids."""
    part = min(math.floor(controls[0] * len(motion.masks)), len(motion.masks) - 1)
    exists = motion.masks[part]
    steps = motion.values.shape[1]
    nodes: Any = 0
    for values, control in zip(motion.values.double(), controls, strict=True):
        before = min(math.floor(control * (steps - 1)), steps - 2)
        nodes = nodes + torch.lerp(values[before], values[before + 1], control * (steps - 1) - before)
    sides = torch.tensor(exists.shape).flip(0) - 1
    low, high = frame_aabb.double().view(2, 3)
    at = low + exists.nonzero().flip(-1) / sides * (high - low)
    motions = sampled(nodes, motion.aabb, at)
    dense = torch.zeros(*canonical.exists.shape, 1 + canonical.features.shape[1])
    dense[..., 0] = motion.empty
    dense[canonical.exists] = torch.cat([canonical.density[:, None], canonical.features], 1)
    rows = sampled(dense, motion.canonical_aabb, at + motions[:, :3])
    return Rows(exists, rows[:, 0] + motions[:, 3], rows[:, 1:], frame_aabb)


def add_motion(folder: Path, motion: Motion) -> None:
    """Let the volume of a bundle be the canonical one of a motion, with all controls."""
    masks, values = motion.masks, motion.values
    content = b"".join(np.packbits(mask.numpy()).tobytes() for mask in masks) + values.numpy().astype("<f2").tobytes()
    (folder / "motion.bin.gz").write_bytes(gzip.compress(content))
    about = json.loads((folder / "bundle.json").read_text())
    (entry,) = about["artifacts"]
    entry["volume"]["motion"] = {
        "file": "motion.bin.gz",
        "resolution": list(masks.shape[1:]),
        "windows": len(masks),
        "grid": list(values.shape[:-1]),
        "aabb": motion.aabb.tolist(),
        "canonical_aabb": motion.canonical_aabb.tolist(),
        "empty": motion.empty,
    }
    about["time"] = {"min": 0.0, "max": 1.0, "value": 0.25}
    about["controls"] = [{"name": f"control {k}", "min": 0.0, "max": 1.0, "value": 0.5} for k in range(1, len(values))]
    (folder / "bundle.json").write_text(json.dumps(about))


def a_motion(controls: int, windows: int = 3, width: int = 35) -> Motion:
    """Some corners are led out of the canonical box, some to where it has none."""
    torch.manual_seed(5)
    masks = torch.rand(windows, 10, 11, width) < 0.9
    masks[0, 3:6] = False
    masks[-1, :, 5:8] = False
    z, y, x = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in (4, 5, 6)), indexing="ij")
    steps = torch.linspace(0, 3, 3).view(-1, 1, 1, 1)
    values = torch.stack([0.3 * torch.sin(steps + y), 0.2 * torch.cos(steps * x), 0.2 * z * steps, x + steps / 2], -1)
    values = torch.stack([values / (k + 1) for k in range(controls)])
    aabb, canonical = torch.tensor([-0.9, -0.7, -0.5, 1.1, 0.6, 0.5]), torch.tensor([-1.0, -0.5, -0.4, 0.8, 0.5, 0.6])
    return Motion(masks, values.half().float(), aabb, canonical, -10.0)


@BOTH
@pytest.mark.parametrize("controls", [[0.0], [0.55], [1.0], [0.3, 0.8]])
def test_a_volume_is_moved_as_it_is_defined(tab, still, kernels: str, controls: list[float]) -> None:
    folder, network = still(4, "float16")
    motion = a_motion(len(controls))
    add_motion(folder, motion)
    opened = tab(folder).go()
    camera = view(40, 36)
    planes, _ = looked_up(opened.page, kernels, camera, 2, controls)
    rows = moved(volume_of(network), motion, network.aabb, controls)
    right = expected(rows, camera, 2, network.voxel)
    assert right.std() > 0.02  # forty times what may differ
    assert (planes - right).abs().max() < 5e-4


def moving_bundle(folder: Path, bundles: Any) -> tuple[Path, GridR2L, Motion]:
    """A bundle that can be drawn, of a network whose volume moves."""
    network, path, _, _ = bundles["features"]
    shutil.copytree(path.parent, folder)
    motion = a_motion(1)
    motion = motion._replace(aabb=2 * motion.aabb, canonical_aabb=network.aabb)
    add_motion(folder, motion)
    about = json.loads((folder / "bundle.json").read_text())
    # A network's points are one voxel apart, and that of the frames counts.
    about["artifacts"][0]["volume"]["step"] = float(network.aabb[3] - network.aabb[0]) / (motion.masks.shape[-1] - 1)
    (folder / "bundle.json").write_text(json.dumps(about))
    return folder, network, motion


@pytest.fixture
def moving(tmp_path, bundles) -> tuple[Path, GridR2L, Motion]:
    return moving_bundle(tmp_path / "moving", bundles)


def drawn_by(network: GridR2L, rows: Rows, camera: Camera) -> np.ndarray:
    """What PyTorch draws of a frame, (H, W, 3) in [0, 255]."""
    frame = exact(network)
    frame.volume.resize(rows.exists)
    with torch.no_grad():
        frame.volume.density.copy_(rows.density)
        frame.volume.features.copy_(rows.features)
    frame.aabb.copy_(rows.aabb)
    return 255 * frame.render(camera).rgb.numpy()


@BOTH
def test_the_canvas_shows_the_moment_that_is_set(tab, moving, kernels: str) -> None:
    folder, network, motion = moving
    opened = tab(folder).go(f"?runtime=wasm&kernels={'javascript' if kernels == 'JavaScript' else ''}").drawn()
    about = opened.server.bundle
    intrinsics = torch.tensor([about["intrinsics"][key] for key in ("fx", "fy", "cx", "cy")])
    pictures = []
    for time in (0.25, 0.9):
        opened.page.locator("#time").fill(str(time))
        opened.drawn(f"d.time === '{time}'")
        rows = moved(volume_of(network), motion, network.aabb, [time])
        right = drawn_by(network, rows, Camera(opened.pose(about), intrinsics, 16, 16))
        assert right.std() > 5
        error = np.mean((opened.pixels() - right) ** 2) / 255**2
        assert -10 * np.log10(error) > 50
        pictures.append(right)
    assert np.abs(pictures[1] - pictures[0]).mean() > 2
    assert opened.data["kernels"] == kernels
    assert opened.complaints == []


def test_a_narrow_volume_moves(tab, bundle_of) -> None:
    """One whose lines are shorter than what the network takes of a block."""
    folder = bundle_of(sr_factor=4)
    about = json.loads((folder / "bundle.json").read_text())
    motion = a_motion(1, width=14)
    motion = motion._replace(aabb=2 * motion.aabb, canonical_aabb=torch.tensor(about["aabb"]))
    add_motion(folder, motion)
    drawn: dict[str, list[np.ndarray]] = {}
    for kernels in ("javascript", ""):
        opened = tab(folder).go(f"?runtime=wasm&kernels={kernels}").drawn()
        drawn[kernels] = []
        for time in (0.25, 0.9, 0.5):
            opened.page.locator("#time").fill(str(time))
            opened.drawn(f"d.time === '{time}'")
            drawn[kernels].append(opened.pixels().astype(int))
        assert opened.complaints == []
    assert opened.data["network"] == "nelf"
    assert np.abs(drawn[""][1] - drawn[""][0]).mean() > 2
    for own, other in zip(drawn[""], drawn["javascript"], strict=True):
        assert np.abs(own - other).max() <= 1


def test_time_runs_in_a_loop_and_turns_stand_beside_it(tab, moving) -> None:
    folder, _, _ = moving
    opened = tab(folder).go("?runtime=wasm").drawn()
    assert "JavaScript" not in opened.data["kernels"]
    page = opened.page
    page.evaluate(
        "(() => { window.times = []; const view = document.getElementById('view');"
        " const note = () => times.push(Number(view.dataset.time));"
        " new MutationObserver(note).observe(view, { attributes: true, attributeFilter: ['data-frame'] }) })()"
    )
    page.click("#play")
    assert page.inner_text("#play") == "Pause"
    page.wait_for_function("times.some((time, k) => k && time < times[k - 1])")  # began again
    page.focus("#view")
    page.keyboard.press("ArrowRight")
    azimuth = float(opened.data["azimuth"])
    page.click("#play")
    opened.drawn(f"Math.abs(d.azimuth - {azimuth}) < 6")
    times = page.evaluate("times")
    assert min(times) >= 0
    assert max(times) <= 1
    assert len(set(times)) > 3
    assert re.search(r"16 . 16 . \d+ ms . WASM", page.inner_text("#status"))
    assert opened.complaints == []


def test_a_browser_without_simd_draws_the_same(tab, bundles) -> None:
    folder = bundles["features"].path.parent
    opened = tab(folder).go("?runtime=wasm").drawn()
    assert opened.data["kernels"] == "WASM SIMD"
    pixels = opened.pixels().astype(int)
    opened.page.route("**/kernels.wasm", lambda route: route.fulfill(body=b"\0asm of another kind"))
    opened.go("?runtime=wasm").drawn("d.kernels === 'JavaScript'")
    assert np.abs(opened.pixels() - pixels).max() <= 1
    assert opened.complaints == []
    opened.page.unroute("**/kernels.wasm")
    del opened.server.files["kernels.wasm"]
    assert opened.go().words() == "kernels.wasm: is missing beside the page."


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("resolution", [1, 8, 8]),
        ("resolution", [4096, 4096, 4096]),
        ("windows", 65),
        ("grid", [2, 3, 4, 5, 6]),
        ("grid", [1, 4096, 4096, 4096, 4096]),
        ("aabb", [0, 0, 0, 1, 1, 0]),
        ("canonical_aabb", [0, 0, 0, 1, 1]),
        ("empty", 1.0),
    ],
)
def test_a_motion_that_cannot_be_is_named(tab, moving, key: str, value: Any) -> None:
    opened = tab(moving[0])
    opened.server.bundle["artifacts"][0]["volume"]["motion"][key] = value
    words = f"motion.bin.gz: bundle.json describes no motion that can be drawn ({key})."
    assert opened.go().words() == words


def test_a_wrong_motion_file_is_refused(tab, moving, tmp_path) -> None:
    folder, _, _ = moving
    opened = tab(folder)
    content = bytearray(gzip.decompress((folder / "motion.bin.gz").read_bytes()))
    other = tmp_path / "other.gz"
    opened.server.files["motion.bin.gz"] = other
    for held, described in ((content[:-1], str(len(content) - 1)), (content + b"1", "more")):
        other.write_bytes(gzip.compress(bytes(held)))
        words = f"motion.bin.gz: holds {described} bytes, but bundle.json describes {len(content)}."
        assert opened.go().words() == words
    other.write_bytes(b"no gzip file" * 100)
    assert opened.go().words() == "motion.bin.gz: is not a whole gzip file."
    content[-2:] = np.array([math.inf], "<f2").tobytes()
    other.write_bytes(gzip.compress(bytes(content)))
    assert opened.go().words() == "motion.bin.gz: holds numbers that are not finite."
    other.unlink()
    assert opened.go().words() == "motion.bin.gz: is missing from the bundle (the server says 404)."
