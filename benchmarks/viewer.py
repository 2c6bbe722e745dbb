"""Time the models of a bundle in the browser page, in turns with ONNX Runtime outside the browser.

    python benchmarks/viewer.py runs/lego_cpu [--models fp32 "int8 static"] [--frames 21] [--width 800] [--webgpu]
        [--out PATH]

A frame is everything from the camera to the pixels; ``lookup`` is the part before the network. Models for which the
page has its own kernels are also rendered with ONNX Runtime Web: ``of ONNX Runtime`` is nelf's time divided by the
shortest of those, in the same turns. The first frame over a slow line is that of the first model, with an empty cache.
With ``--webgpu`` frames are also rendered by WebGPU on Chromium's software adapter, and compared with those of WASM;
there the network is timed, too, and the rest of a frame is painting and the way to the canvas. ``--width`` draws the
same models with another number of pixels.
"""

import argparse
import json
import math
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from _machine import RESULTS, write  # before torch, since it says how idle threads wait

# isort: split
import numpy as np
import torch
from playwright.sync_api import Browser, Page, sync_playwright
from rich.console import Console
from rich.table import Table

from nelf.cameras import Camera
from nelf.export import load
from nelf.viewer.server import Server
from nelf.viewer.static import page_files

FLAGS = ["--no-sandbox", "--disable-background-networking"]
WEBGPU = [
    *("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"),
    *("--enable-features=Vulkan", "--use-vulkan=swiftshader", "--use-angle=swiftshader"),
]
DATA = "({...document.getElementById('view').dataset})"
PATIENCE = 300_000  # timeout, milliseconds
SLOW_LINE = 2e6  # bits a second


@contextmanager
def serving(bundle: Path) -> Iterator[str]:
    server = Server(bundle)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.address
    server.shutdown()
    server.server_close()


@contextmanager
def resized(folder: Path, width: int | None) -> Iterator[Path]:
    """The bundle, or a temporary copy of it whose images have another width."""
    if width is None:
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(shutil.copytree(folder, Path(temporary) / folder.name))
        about = json.loads((copy / "bundle.json").read_text(encoding="utf-8"))
        factor = width / about["image"]["width"]
        about["image"] = {side: round(factor * pixels) for side, pixels in about["image"].items()}
        about["intrinsics"] = {key: factor * value for key, value in about["intrinsics"].items()}
        (copy / "bundle.json").write_text(json.dumps(about), encoding="utf-8")
        yield copy


def opened(browser: Browser, address: str, query: str) -> tuple[Page, float]:
    """A tab that has rendered its first frame, and the seconds until then."""
    page = browser.new_page(viewport={"width": 900, "height": 700})
    page.set_default_timeout(PATIENCE)
    begin = time.perf_counter()
    page.goto(f"{address}?resolution=1&{query}")
    page.wait_for_function("document.getElementById('view').dataset.frame")
    return page, time.perf_counter() - begin


def over_a_slow_line(browser: Browser, folder: Path, name: str) -> dict[str, float]:
    """Seconds until the first frame of a model, and the megabytes loaded for it."""
    context = browser.new_context(viewport={"width": 900, "height": 700})
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    loaded: list[int] = []
    page.on("response", lambda each: loaded.append(int(each.headers["content-length"])))
    line = context.new_cdp_session(page)
    line.send("Network.enable")
    rate = SLOW_LINE / 8
    conditions = {"offline": False, "latency": 0, "downloadThroughput": rate, "uploadThroughput": rate}
    line.send("Network.emulateNetworkConditions", conditions)
    with serving(folder) as address:
        begin = time.perf_counter()
        page.goto(f"{address}?model={quote(name)}")
        page.wait_for_function("document.getElementById('view').dataset.frame")
        seconds = time.perf_counter() - begin
    context.close()
    return {"first frame s": round(seconds, 2), "loaded MB": round(sum(loaded) / 1e6, 2)}


def next_frame(page: Page) -> dict[str, str]:
    """Rotate the camera a little, wait for the frame, and return the page's data about it."""
    azimuth = page.evaluate(DATA)["azimuth"]
    page.focus("#view")
    page.keyboard.press("ArrowRight")
    page.wait_for_function(f"document.getElementById('view').dataset.azimuth !== '{azimuth}'")
    return page.evaluate(DATA)


def pixels(page: Page) -> np.ndarray:
    """(n, 4) uint8 of the canvas, once no frame has followed for three times as long as the last one took."""
    seen = None
    while seen != (data := page.evaluate(DATA))["frame"]:
        seen = data["frame"]
        page.wait_for_timeout(max(1000, 3 * float(data["ms"])))
    flat = page.evaluate("""() => { const c = document.getElementById('view');
        return Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data) }""")
    return np.array(flat, np.uint8).reshape(-1, 4)


def frames_while_dragging(page: Page, seconds: float = 3.0) -> float:
    """Frames a second while the mouse is dragged continuously."""
    page.mouse.move(200, 300)
    page.mouse.down()
    first, begin = int(page.evaluate(DATA)["frame"]), time.perf_counter()
    for step in range(100_000):
        page.mouse.move(200 + step % 400, 300)
        if time.perf_counter() - begin > seconds:
            break
    drawn = int(page.evaluate(DATA)["frame"]) - first
    elapsed = time.perf_counter() - begin
    page.mouse.up()
    return drawn / elapsed


def frame_while_playing(page: Page, seconds: float = 4.0) -> float | None:
    """Median milliseconds of a frame while time plays; None for a static scene."""
    if not page.locator("#play").is_visible():
        return None
    page.evaluate("""() => { window.times = []; const view = document.getElementById('view');
        const note = () => times.push(Number(view.dataset.ms));
        new MutationObserver(note).observe(view, { attributes: true, attributeFilter: ['data-ms'] }) }""")
    page.click("#play")
    page.wait_for_timeout(1000 * seconds)
    page.click("#play")
    return statistics.median(page.evaluate("times"))


def measured(browsers: dict[str, Browser], folder: Path, entry: dict[str, Any], frames: int) -> list[dict[str, Any]]:
    """The rows of one model, one for each way to render it."""
    model = load(folder / entry["file"])
    about = model.bundle
    intrinsics = torch.tensor([about["intrinsics"][key] for key in ("fx", "fy", "cx", "cy")])
    size = about["image"]["width"], about["image"]["height"]
    c2w = torch.cat([torch.eye(3), torch.tensor([[0.0], [0.0], [about["orbit"]["radius"]["value"]]])], -1)
    camera = Camera(c2w, intrinsics, *size)
    with serving(folder) as address:
        name = quote(entry["name"])
        ways = {f"ONNX Runtime, {threads} threads": f"kernels=lookup&threads={threads}" for threads in (1, 2)}
        if entry["input"] == "features":
            own = {f"nelf, {threads} threads": f"threads={threads}" for threads in (1, 2)}
            ways = {**own, **ways, "lookup in JavaScript": "threads=1&kernels=javascript"}
        tabs = {
            how: opened(browsers["wasm"], address, f"runtime=wasm&model={name}&{query}") for how, query in ways.items()
        }
        if "webgpu" in browsers:
            tabs["WebGPU"] = opened(browsers["webgpu"], address, f"runtime=webgpu&model={name}")
        said: dict[str, list[dict[str, str]]] = {how: [] for how in tabs}
        native = []
        for _ in range(frames):
            for how, (page, _) in tabs.items():
                said[how].append(next_frame(page))
            begin = time.perf_counter()
            model.render(camera)
            native.append(time.perf_counter() - begin)
        rows = [_row(entry["name"], "no browser", frame_ms=1000 * statistics.median(native[1:]))]
        for how, (page, first) in tabs.items():
            middle = [statistics.median(float(each[key]) for each in said[how]) for key in ("ms", "lookup", "decoding")]
            rate = None if how == "WebGPU" else frames_while_dragging(page)
            rows.append(
                _row(entry["name"], _drawn_by(how, said[how][0]), first, *middle, rate, frame_while_playing(page))
            )
        _compare(rows)
        if "webgpu" in browsers:
            pages = [page for page, _ in tabs.values()]
            for page in pages:
                page.click("#reset")
            drawn = [pixels(page).astype(int) for page in pages]
            rows[-1]["differs from WASM, of 255"] = int(np.abs(drawn[-1] - drawn[0]).max())
        for page, _ in tabs.values():
            page.close()
    return rows


def _compare(rows: list[dict[str, Any]]) -> None:
    """Note the frame times of nelf's own network as multiples of the best of ONNX Runtime's."""
    theirs = min(row["frame ms"] for row in rows if row["drawn by"].startswith("ONNX Runtime, WASM"))
    for row in rows:
        if row["drawn by"].startswith("nelf, WASM"):
            row["of ONNX Runtime"] = round(row["frame ms"] / theirs, 2)


def _drawn_by(how: str, data: dict[str, str]) -> str:
    """What drew, as the page says."""
    several = f", {data['workers']} threads" if int(data["workers"]) > 1 else ""
    return f"{data['network']}, {data['runtime']}{several}{', lookup in JavaScript' if 'JavaScript' in how else ''}"


def _rounded(value: float | None, digits: int = 1) -> float | None:
    """None for what is not measured, or not by the page."""
    return None if value is None or math.isnan(value) else round(value, digits)


def _row(
    model: str,
    drawn_by: str,
    first_frame_s: float | None = None,
    frame_ms: float | None = None,
    lookup_ms: float | None = None,
    network_ms: float | None = None,
    rate: float | None = None,
    playing_ms: float | None = None,
) -> dict[str, Any]:
    return {
        "model": model,
        "drawn by": drawn_by,
        "first frame s": _rounded(first_frame_s, 2),
        "frame ms": _rounded(frame_ms),
        "lookup ms": _rounded(lookup_ms),
        "network ms": _rounded(network_ms),
        "dragging, frames/s": _rounded(rate),
        "playing, frame ms": _rounded(playing_ms),
        "of ONNX Runtime": None,
        "differs from WASM, of 255": None,
    }


def weights(chosen: list[dict[str, Any]]) -> dict[str, float]:
    """What a browser loads: page, runtime and the first of the models, with its volume."""
    size = {name: path.stat().st_size for name, path in page_files().items()}
    runtime = sum(each for name, each in size.items() if name.startswith("runtime/"))
    model = chosen[0]["bytes"] if chosen else 0
    return {
        "page kB": round((sum(size.values()) - runtime) / 1e3, 1),
        "runtime MB": round(runtime / 1e6, 1),
        "model MB": round(model / 1e6, 2),
    }


def main() -> None:
    """Open the bundle in Chromium, and time its models one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="a run directory or a bundle")
    parser.add_argument("--models", nargs="+", help="names in bundle.json; default: all")
    parser.add_argument("--frames", type=int, default=21)
    parser.add_argument("--width", type=int, help="of the images, pixels; default: the bundle's")
    parser.add_argument("--webgpu", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS / "viewer.json")
    options = parser.parse_args()
    with Server(options.bundle) as server:
        folder, entries = server.folder, [each for each in server.bundle["artifacts"] if each["input"] != "server"]
    chosen = [each for each in entries if options.models is None or each["name"] in options.models]
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    rows: list[dict[str, Any]] = []
    with sync_playwright() as playwright, resized(folder, options.width) as folder:
        flags = {"wasm": ["--disable-gpu"], **({"webgpu": WEBGPU} if options.webgpu else {})}
        browsers = {
            kind: playwright.chromium.launch(executable_path=chromium, args=[*FLAGS, *more])
            for kind, more in flags.items()
        }
        slowly = over_a_slow_line(browsers["wasm"], folder, chosen[0]["name"]) if chosen else {}
        for entry in chosen:
            rows += measured(browsers, folder, entry, options.frames)
        for browser in browsers.values():
            browser.close()
    table = Table(*_row("", ""), title=str(folder))
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    Console(width=120).print(table)
    sizes = weights(chosen)
    print(", ".join(f"{name}: {size}" for name, size in sizes.items()))
    print(f"at {SLOW_LINE / 1e6:.0f} Mbit/s:", ", ".join(f"{name}: {figure}" for name, figure in slowly.items()))
    write(options.out, bundle=options.bundle.name, width=options.width, **sizes, slow_line=slowly, rows=rows)


if __name__ == "__main__":
    main()
