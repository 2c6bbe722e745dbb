"""The page's own network of a GridR2L draws what ONNX Runtime draws, and needs little to be loaded."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from nelf.export.graph import half_weights
from nelf.export.int8 import quantize_dynamic
from nelf.viewer.static import page_files
from tests.export.conftest import drawn_by_both, in_8_bits

pytestmark = [pytest.mark.browser, pytest.mark.slow]

BOTH = drawn_by_both("""
    const { OnnxRuntime } = await import("./ort.js");
    const ignore = () => undefined;
    const runtime = await OnnxRuntime.open({ bundle, artifact, graph, lookup: await openLookup(), wish: "wasm",
        threads: 1, progress: ignore, ready: ignore, readable: String, moveTo: ignore,
        trial: cameraOf(bundle, orbit.pose(), 1) });
    const theirs = async (camera, background) => (await runtime.draw(camera, 0, [], background)).pixels;
""")


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
def test_what_the_page_draws_is_what_onnx_runtime_draws(tab, bundle_of, changes: dict[str, Any]) -> None:
    """Blocks that fill no group, and pictures that are all scene, and almost none."""
    opened = tab(bundle_of(**changes)).go()
    opened.drawn()  # so that nothing else is going on
    differences, seen = opened.page.evaluate(BOTH, [[48, 36, 1], [57, 33, 0.5], [120, 96, 6]])
    assert max(differences) <= 1
    assert min(seen) > 100
    assert opened.data["network"] == "nelf"
    assert opened.complaints == []


def test_a_graph_of_another_kind_is_left_to_onnx_runtime(tab, bundle_of) -> None:
    opened = tab(bundle_of(quantize_dynamic)).go("?runtime=wasm").drawn()
    assert opened.data["network"] == "ONNX Runtime"
    assert opened.data["kernels"] == "WASM SIMD"
    assert opened.pixels().std() > 5
    assert opened.complaints == []


def test_little_is_loaded_before_the_first_picture(tab, bundles) -> None:
    """At 2 Mbit/s, a bundle of 1 MB and 0.2 MB of the page take five seconds; the runtime alone would take a minute."""
    folder = bundles["features"].path.parent
    opened = tab(folder)
    sizes: dict[str, int] = {}
    opened.page.on(
        "response", lambda each: sizes.update({each.url.split("/")[-1]: int(each.headers["content-length"])})
    )
    opened.go().drawn()
    own = sum(size for name, size in sizes.items() if not (folder / name).is_file())
    assert {"main.js", "worker.js", "kernels.wasm", "model.onnx", "volume.bin.gz"} <= set(sizes)
    assert own < 200_000
    assert not any(name.startswith("ort") for name in sizes)
    assert page_files()["kernels.wasm"].stat().st_size < 60_000


def spoiled(folder: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    """Change the graph of a bundle, and note no checksum of it."""
    model = onnx.load(folder / "model.onnx")
    change(model)
    onnx.save(model, folder / "model.onnx")


def replaced(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[onnx.ModelProto], None]:
    def act(model: onnx.ModelProto) -> None:
        (tensor,) = [each for each in model.graph.initializer if each.name.endswith(name)]
        tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), tensor.name))

    return act


def test_a_damaged_network_is_refused_in_one_line(tab, bundles, tmp_path) -> None:
    source = bundles["features"].path.parent
    folder = tmp_path / "bundle"
    shutil.copytree(source, folder)
    about = json.loads((folder / "bundle.json").read_text())
    about["artifacts"][0]["sha256"] = None
    opened = tab(folder)
    opened.server.bundle = about
    for change, words in (
        (replaced("head.0.weight", lambda values: values * math.nan), "layer 0 has numbers that are not finite"),
        (replaced("tail.bias", lambda values: values[:5]), "layer 3 gives 16 channels, but has 5 biases"),
        (replaced("head.0.weight", lambda values: values[:, :28]), "layer 0 takes 28 channels, but is given 36"),
        (replaced("tail.weight", lambda values: values[:, :4]), "layer 3 takes 4 channels, but is given 8"),
    ):
        shutil.copy(source / "model.onnx", folder / "model.onnx")
        spoiled(folder, change)
        assert opened.go().words() == f"model.onnx: {words}."
    whole = (source / "model.onnx").read_bytes()
    for content in (whole[: len(whole) // 2], b"\xff" * 100, b""):
        (folder / "model.onnx").write_bytes(content)
        words = opened.go().words()
        assert words.startswith("model.onnx: is not a whole ONNX file (")
        assert "\n" not in words
    assert not any("/runtime/" in url for url in opened.requests)
