"""Time a viewer of Gaussian splats in Chromium, for comparison with nelf's; a table and JSON.

    python benchmarks/splats.py [--splats 20000 100000] [--pixels 400] [--frames 15] [--out PATH]

The viewer is npm's @mkkellogg/gaussian-splats-3d with three, fetched into a cache folder; the splats form a colored
sphere, written as a .ply of 3D Gaussian Splatting without higher spherical harmonics. Chromium renders with its
software adapter. Compare with ``viewer.py``, which renders a light field on the same machine. A frame includes
requesting a sort, rendering and reading back a pixel; the sort itself runs concurrently in a worker.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from _machine import RESULTS, write  # before torch, since it says how idle threads wait

# isort: split
import numpy as np
from playwright.sync_api import Browser, sync_playwright
from rich.console import Console
from rich.table import Table

#: npm packages, and the file of each that the page loads.
PACKAGES = {
    "@mkkellogg/gaussian-splats-3d@0.4.7": "gaussian-splats-3d.module.js",
    "three@0.160.0": "three.module.js",
}
FLAGS = ["--no-sandbox", "--disable-background-networking", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
PATIENCE = 300_000  # milliseconds

PAGE = """<!doctype html><body style="margin:0"><div id="view" style="width:%(pixels)dpx;height:%(pixels)dpx"></div>
<script type="importmap">{"imports": {"three": "./three.module.js"}}</script>
<script type="module">
import * as Splats from './gaussian-splats-3d.module.js';
const begin = performance.now();
const viewer = new Splats.Viewer({
  rootElement: document.getElementById('view'), selfDrivenMode: false, useBuiltInControls: false,
  sharedMemoryForWorkers: false, gpuAcceleratedSort: false, ignoreDevicePixelRatio: true,
  cameraUp: [0, 0, 1], initialCameraPosition: [4, 0, 1], initialCameraLookAt: [0, 0, 0],
});
const wait = ms => new Promise(go => setTimeout(go, ms));
const frame = () => {
  viewer.update(); viewer.render();
  const gl = viewer.renderer.getContext();
  gl.readPixels(0, 0, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(4));
};
window.turn = async frames => {
  const times = [];
  for (let i = 0; i < frames; i++) {
    const angle = 0.1 * i;
    viewer.camera.position.set(4 * Math.cos(angle), 4 * Math.sin(angle), 1);
    viewer.camera.lookAt(0, 0, 0);
    const start = performance.now();
    frame();
    times.push(performance.now() - start);
    await wait(0);
  }
  return times;
};
window.color = () => {
  frame();
  const gl = viewer.renderer.getContext(), pixel = new Uint8Array(4);
  gl.readPixels(gl.drawingBufferWidth / 2, gl.drawingBufferHeight / 2, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, pixel);
  return [...pixel];
};
try {
  await viewer.addSplatScene('ball.ply', { showLoadingUI: false, progressiveLoad: false });
  const drawn = () => color().slice(0, 3).some(value => value > 0);
  for (let i = 0; i < 200 && !drawn(); i++) await wait(100); // splats are sorted in a worker
  window.loaded = performance.now() - begin;
} catch (error) { window.failed = String(error); }
</script>"""


def ball(path: Path, count: int) -> None:
    """Write splats that cover the unit sphere, colored by position."""
    index = np.arange(count) + 0.5
    z, angle = 1 - 2 * index / count, np.pi * (1 + 5**0.5) * index
    ring = np.sqrt(1 - z * z)
    places = np.stack([ring * np.cos(angle), ring * np.sin(angle), z], -1)
    names = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", "opacity"]
    names += [f"scale_{axis}" for axis in range(3)] + [f"rot_{axis}" for axis in range(4)]
    rows = np.zeros((count, len(names)), "<f4")
    rows[:, :3] = places
    rows[:, 6:9] = places / 2 / 0.28209479177387814  # zeroth-order coefficient; color is 0.5 + C0 * coefficient
    rows[:, 9] = 4.0  # logit
    rows[:, 10:13] = np.log(0.7 * np.sqrt(4 * np.pi / count))
    rows[:, 13] = 1.0
    head = f"ply\nformat binary_little_endian 1.0\nelement vertex {count}\n"
    head += "".join(f"property float {name}\n" for name in names) + "end_header\n"
    path.write_bytes(head.encode() + rows.tobytes())


def fetched() -> Path:
    """The folder with the viewer's files, which are fetched from npm if they are missing."""
    folder = Path(os.environ.get("NELF_CACHE") or Path.home() / ".cache" / "nelf") / "splats-0.4.7"
    for package, name in PACKAGES.items():
        if (folder / name).is_file():
            continue
        npm = shutil.which("npm")
        if npm is None:
            raise SystemExit(f"{package}: is not cached, and npm, which would fetch it, is not installed.")
        with TemporaryDirectory() as temporary:
            command = [npm, "pack", package, "--silent", "--pack-destination", temporary]
            subprocess.run(command, check=True, capture_output=True)
            (archive,) = Path(temporary).glob("*.tgz")
            with tarfile.open(archive) as packed:
                content = packed.extractfile(f"package/build/{name}")
                assert content is not None
                folder.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content.read())
    return folder


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder without logging."""

    def log_message(self, *_: Any) -> None:
        """Discard the message."""


def measured(browser: Browser, library: Path, count: int, pixels: int, frames: int) -> dict[str, Any]:
    """Load ``count`` splats, and time frames while the camera orbits."""
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        ball(folder / "ball.ply", count)
        (folder / "index.html").write_text(PAGE % {"pixels": pixels})
        for name in PACKAGES.values():
            shutil.copy(library / name, folder / name)
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=temporary))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = browser.new_page(viewport={"width": pixels + 20, "height": pixels + 20})
        page.set_default_timeout(PATIENCE)
        page.goto(f"http://127.0.0.1:{server.server_port}/")
        page.wait_for_function("window.loaded || window.failed")
        if failed := page.evaluate("window.failed"):
            raise SystemExit(f"the viewer says: {failed}")
        times, loaded, color = (page.evaluate(each) for each in (f"turn({frames})", "window.loaded", "color()"))
        if sum(color[:3]) == 0:
            raise SystemExit("the viewer has drawn nothing")
        size = (folder / "ball.ply").stat().st_size
        page.close()
        server.shutdown()
        server.server_close()
    told = {"load s": round(loaded / 1e3, 2), "frame ms": round(statistics.median(times), 1)}
    return {"splats": count, "MB": round(size / 1e6, 2), **told}


def main() -> None:
    """Fetch the viewer, and time it for each number of splats."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splats", type=int, nargs="+", default=[20_000, 100_000, 300_000])
    parser.add_argument("--pixels", type=int, default=400)
    parser.add_argument("--frames", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULTS / "splats.json")
    options = parser.parse_args()
    library = fetched()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        rows = [measured(browser, library, count, options.pixels, options.frames) for count in options.splats]
        browser.close()
    table = Table(*rows[0], title=f"Gaussian splats, {options.pixels} x {options.pixels} pixels, software adapter")
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(width=100).print(table)
    write(options.out, pixels=options.pixels, packages=list(PACKAGES), rows=rows)


if __name__ == "__main__":
    main()
