"""The page's shaders draw what its WebAssembly draws, on an adapter that the processor computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nelf.export.graph import half_weights
from tests.export.conftest import in_8_bits
from tests.export.test_viewer_volume import moving_bundle

pytestmark = [pytest.mark.browser, pytest.mark.slow]

# Draws a few views of a bundle with the page's modules, by WebAssembly and by WebGPU. Gives of each view the largest
# difference of a pixel, and how many colors there are.
BOTH = """async (sizes) => {
    const { readDecoder } = await import("./decoder.js");
    const { cameraOf, Orbit } = await import("./camera.js");
    const { compileKernels, openKernels } = await import("./kernels.js");
    const { readVolume } = await import("./volume.js");
    const { WebGpu } = await import("./webgpu.js");
    const bundle = await (await fetch("bundle.json")).json();
    const [artifact] = bundle.artifacts;
    const content = async (file) => new Uint8Array(await (await fetch(file)).arrayBuffer());
    const [graph, packed] = [await content(artifact.file), await content(artifact.volume.file)];
    const volume = await readVolume(packed, artifact.volume, bundle.aabb);
    const own = await openKernels(await compileKernels(), volume, artifact.volume, null);
    const decoder = readDecoder(graph, artifact, bundle.sr_factor);
    own.setDecoder(decoder);
    const gpu = await WebGpu.open(await navigator.gpu.requestAdapter(), own, artifact.volume, decoder);
    const orbit = new Orbit(bundle.orbit);
    const [differences, seen] = [[], []];
    for (const [width, height, radius, ndc] of sizes) {
        bundle.image = { width, height };
        bundle.ndc = ndc;
        orbit.radius *= radius;
        bundle.intrinsics = { fx: 1.1 * width, fy: 1.2 * width, cx: 0.45 * width, cy: 0.55 * height };
        const camera = cameraOf(bundle, orbit.pose(), 1);
        const expected = own.draw(camera, [10, 200, 90]).pixels.slice();
        const pen = new OffscreenCanvas(camera.width, camera.height).getContext("2d");
        pen.drawImage(await gpu.draw(camera, [10, 200, 90]), 0, 0);
        const pixels = pen.getImageData(0, 0, camera.width, camera.height).data;
        differences.push(pixels.reduce((most, value, i) => Math.max(most, Math.abs(value - expected[i])), 0));
        seen.push(new Set(new Uint32Array(expected.buffer)).size);
        orbit.azimuth += 40;
    }
    gpu.close();
    return [differences, seen];
}"""


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"environment": 16, "width": 12},  # channels that fill no vector
        {"sr_factor": 3, "features": 3, "depth": 8, "activation": "gelu"},
        {"sr_factor": 1, "features": 9, "width": 20, "depth": 2},
        {"convert": half_weights},
        {"convert": in_8_bits},
        {"convert": in_8_bits, "activation": "gelu"},
    ],
)
def test_shaders_draw_what_webassembly_draws(gpu_tab, bundle_of, changes: dict[str, Any]) -> None:
    """Blocks that fill no workgroup, and images that are all scene, and almost none."""
    opened = gpu_tab(bundle_of(**changes)).go("?runtime=wasm")
    opened.drawn()  # so that nothing else is going on
    differences, seen = opened.page.evaluate(BOTH, [[48, 36, 1], [57, 33, 0.5], [120, 96, 6]])
    assert max(differences) <= 1
    assert min(seen) > 100
    assert opened.complaints == []


def test_rays_may_run_in_ndc(gpu_tab, bundle_of) -> None:
    opened = gpu_tab(bundle_of()).go("?runtime=wasm").drawn()
    ndc = {"near": 0.3, "half_width": 0.5, "half_height": 0.4}
    differences, seen = opened.page.evaluate(BOTH, [[48, 36, 1, ndc]])
    assert max(differences) <= 1
    assert min(seen) > 100


def test_a_volume_moves(gpu_tab, bundles, tmp_path) -> None:
    """Through all masks of its motion, and back."""
    folder, _, _ = moving_bundle(tmp_path / "moving", bundles)
    opened = gpu_tab(folder)
    times = (0.25, 0.9, 0.5, 0.25)
    drawn: dict[str, list[np.ndarray]] = {}
    for runtime in ("wasm", "webgpu"):
        opened.go(f"?runtime={runtime}").drawn()
        assert opened.data["runtime"].lower() == runtime
        drawn[runtime] = []
        for time in times:
            opened.page.locator("#time").fill(str(time))
            opened.drawn(f"d.time === '{time}'")
            drawn[runtime].append(opened.pixels().astype(int))
    for wasm, webgpu in zip(*drawn.values(), strict=True):
        assert np.abs(wasm - webgpu).max() <= 1
    assert np.abs(drawn["wasm"][1] - drawn["wasm"][0]).mean() > 2
    assert opened.complaints == []
