"""Several workers of the page draw together what one draws."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nelf.viewer import static
from tests.export.conftest import Tab, drawn_by_both, in_8_bits
from tests.export.test_viewer_volume import moving_bundle

pytestmark = [pytest.mark.browser, pytest.mark.slow]

BOTH = drawn_by_both("""
    const { Bands } = await import("./bands.js");
    const volume = await readVolume(packed, artifact.volume, bundle.aabb);
    const bands = new Bands(3, { compiled, volume, walk: artifact.volume, motion: null, decoder });
    const first = await openLookup();
    first.setDecoder(decoder);
    while (bands.ready < 2) await new Promise((resolve) => setTimeout(resolve, 5));
    const theirs = async (camera, background) => {
        const draw = () => bands.draw(first, () => undefined, camera, [], background);
        await draw(); // so that the bands' heights are no longer equal
        const { pixels, workers } = await draw();
        if (workers !== 3) throw new Error(`${workers} workers drew`);
        return pixels;
    };
""")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"environment": 16, "width": 12},
        {"sr_factor": 3, "features": 3, "depth": 8, "activation": "gelu"},
        {"sr_factor": 1, "features": 9, "width": 20, "depth": 2},
        {"convert": in_8_bits},
    ],
)
def test_bands_meet_without_a_seam(tab, bundle_of, changes: dict[str, Any]) -> None:
    opened = tab(bundle_of(**changes)).go("?threads=1")
    opened.drawn()  # so that nothing else is going on
    ndc = {"near": 0.3, "half_width": 0.5, "half_height": 0.4}
    differences, seen = opened.page.evaluate(BOTH, [[48, 198, 1], [57, 210, 0.5], [60, 192, 6], [48, 198, 1, ndc]])
    assert max(differences) <= 1  # rounding of the principal point
    assert min(seen) > 100
    assert opened.complaints == []


def larger(folder: Path) -> Path:
    """A bundle whose image has enough rows for several bands."""
    about = json.loads((folder / "bundle.json").read_text())
    for sizes in (about["image"], about["intrinsics"]):
        sizes.update({key: 8 * size for key, size in sizes.items()})
    (folder / "bundle.json").write_text(json.dumps(about))
    return folder


def at(opened: Tab, time: float) -> Tab:
    """The page, after it has drawn a time."""
    opened.page.locator("#time").fill(str(time))
    return opened.drawn(f"d.time === '{time}'")


def test_a_volume_moves_in_all_workers(tab, bundles, tmp_path) -> None:
    folder, _, _ = moving_bundle(tmp_path / "moving", bundles)
    opened = tab(larger(folder))
    drawn: dict[int, list[np.ndarray]] = {}
    for threads in (1, 2):
        opened.go(f"?threads={threads}").drawn()
        for time in (0.75, 0.5) * 500:  # nothing is drawn again when the other worker is ready
            if at(opened, time).data["workers"] == str(threads):
                break
        assert opened.data["workers"] == str(threads)
        drawn[threads] = [at(opened, time).pixels() for time in (0.25, 0.9, 0.5, 0.25)]
    for alone, together in zip(*drawn.values(), strict=True):
        assert (alone == together).all()
    assert opened.complaints == []


STARTS_NOT = "onmessage = () => postMessage({ message: 'no' })"
FAILS_LATER = "onmessage = ({ data }) => postMessage(data.band ? { message: 'no memory' } : {})"
ENDS_SILENTLY = "onmessage = ({ data }) => data.band || postMessage({})"


@pytest.mark.parametrize("script", ["throw new Error('old')", STARTS_NOT, FAILS_LATER, ENDS_SILENTLY])
def test_where_another_worker_fails_one_draws_alone(tab, bundle_of, tmp_path, monkeypatch, script: str) -> None:
    (tmp_path / "helper.js").write_text(script)
    files = static.page_files() | {"helper.js": tmp_path / "helper.js"}
    monkeypatch.setattr(static, "page_files", lambda: files)
    opened = tab(larger(bundle_of()))
    opened.go("?threads=2").drawn()
    before = opened.pixels()
    for _ in range(4):  # by the last one, the other worker has started or failed
        azimuth = opened.data["azimuth"]
        opened.page.locator("#view").press("ArrowLeft")
        opened.drawn(f"d.azimuth !== '{azimuth}'")
    assert any(request.endswith("helper.js") for request in opened.requests)
    assert opened.data["workers"] == "1"
    assert opened.pixels().std() > 5
    assert (opened.pixels() != before).any()
