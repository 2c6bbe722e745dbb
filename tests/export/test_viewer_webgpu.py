"""The page's shaders draw what its WebAssembly draws, on an adapter that the processor computes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from nelf.export.graph import half_weights
from tests.export.conftest import drawn_by_both, in_8_bits
from tests.export.test_viewer_volume import moving_bundle

pytestmark = [pytest.mark.browser, pytest.mark.slow]

BOTH = drawn_by_both("""
    const { WebGpu } = await import("./webgpu.js");
    const gpu = await WebGpu.open(await navigator.gpu.requestAdapter(), own, artifact.volume, decoder);
    const theirs = async (camera, background) => {
        const pen = new OffscreenCanvas(camera.width, camera.height).getContext("2d");
        pen.drawImage(await gpu.draw(camera, background), 0, 0);
        return pen.getImageData(0, 0, camera.width, camera.height).data;
    };
""")

TIMED = """async () => {
    const { features } = await navigator.gpu.requestAdapter();
    return features.has("timestamp-query") ? ["lookup", "decoding"] : [];
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
        timed = opened.page.evaluate(TIMED) if runtime == "webgpu" else ()
        assert all(math.isfinite(float(opened.data[step])) for step in timed)
        drawn[runtime] = []
        for time in times:
            opened.page.locator("#time").fill(str(time))
            opened.drawn(f"d.time === '{time}'")
            drawn[runtime].append(opened.pixels().astype(int))
    for wasm, webgpu in zip(*drawn.values(), strict=True):
        assert np.abs(wasm - webgpu).max() <= 1
    assert np.abs(drawn["wasm"][1] - drawn["wasm"][0]).mean() > 2
    assert opened.complaints == []
