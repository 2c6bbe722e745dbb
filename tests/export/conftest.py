"""A small bundle of each network, written once; and a browser."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from nelf.data import Scene, read_scene
from nelf.errors import UserError
from nelf.export import onnx as write_graph
from nelf.export import write_bundle
from nelf.export.bundle import artifact
from nelf.export.inputs import output_of
from nelf.export.int8 import quantize_static
from nelf.export.volume import rounded, write_volume
from nelf.lightfields import GridR2L, LightField, MobileR2L
from nelf.viewer.server import Server
from nelf.viewer.web_runtime import runtime_folder

SOFTWARE_WEBGPU = [
    *("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"),
    *("--enable-features=Vulkan", "--use-vulkan=swiftshader", "--use-angle=swiftshader"),  # for its canvas
]
FLAGS = ["--no-sandbox", "--disable-background-networking", "--disable-component-update"]


class Exported(NamedTuple):
    """A network and the file that it was written to."""

    network: LightField
    path: Path
    kind: str
    error: float


@pytest.fixture(scope="session")
def scene(tiny_scene: Path) -> Scene:
    return read_scene(tiny_scene)


def grid_network(**changes: object) -> GridR2L:
    """Neither empty nor opaque, some of its corners missing; its network draws something of its own."""
    torch.manual_seed(3)
    network = GridR2L(**{"width": 8, "depth": 4, "resolution": 12, "features": 4, **changes})  # type: ignore[arg-type]
    exists = torch.ones(12, 12, 12, dtype=torch.bool)
    exists[:3] = False
    exists[9:, 4:] = False
    exists[5, 6, 7] = False
    network.volume.resize(exists)
    torch.nn.init.normal_(network.volume.density, mean=-1.0, std=2.0)
    torch.nn.init.normal_(network.volume.features, mean=0.3, std=0.5)
    torch.nn.init.normal_(network.tail.weight, std=0.05)
    torch.nn.init.normal_(network.tail.bias, std=0.05)
    if network.environment is not None:
        torch.nn.init.uniform_(network.environment.texels)
    return network.eval()


def mobile_network(**changes: object) -> MobileR2L:
    torch.manual_seed(4)
    network = MobileR2L(**{"width": 16, "depth": 6, "sr_factor": 4, "sr_kernels": (8, 8), **changes})
    for norm in network.modules():  # a folded norm must not be told from none by luck
        if isinstance(norm, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(norm.running_mean)
            torch.nn.init.uniform_(norm.running_var, 0.5, 2.0)
            torch.nn.init.normal_(norm.weight)
    return network.eval()


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory, scene: Scene) -> dict[str, Exported]:
    """By name: a bundle each, with one graph."""
    made = {}
    for name, network, kind in (
        ("features", grid_network(), "features"),
        ("rays", grid_network(), "rays"),
        ("environment", grid_network(environment=16), "features"),
        ("points", mobile_network(), "points"),
        ("pose", mobile_network(activation="relu", upsampling="shuffle"), "pose"),
    ):
        network.ray_shift = 0.5 / 16 if name in ("rays", "points", "pose") else 0.0  # as of other programs' networks
        folder = tmp_path_factory.mktemp(f"bundle_{name}")
        path = folder / "model.onnx"
        volume = None
        if kind == "features":
            volume = write_volume(network, folder / "volume.bin.gz")
            network = rounded(network, "uint8").eval()
        error = write_graph(network, path, scene.test.camera, kind)  # type: ignore[arg-type]
        size = (16, 16) if kind == "pose" else None
        about = {"output": output_of(network), "window": network.window, "max_abs_error": error}
        write_bundle(folder, scene, network, [artifact("fp32", path, kind, "fp32", volume, size, **about)])
        made[name] = Exported(network, path, kind, error)
    return made


def orbit_pose(target: list[float], azimuth: float, elevation: float, radius: float) -> torch.Tensor:
    """Camera to world of an orbit with z up, from its definition: (3, 4)."""
    a, e = np.radians([azimuth, elevation])
    back = np.array([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)])
    right = np.array([-np.sin(a), np.cos(a), 0.0])
    above = np.cross(back, right)
    return torch.tensor(np.stack([right, above, back, np.array(target) + radius * back], -1), dtype=torch.float32)


@pytest.fixture(scope="module")  # its event loop would be in the way of others'
def launch() -> Iterator[Callable[..., Any]]:
    """Starts a browser with some flags; all of them end with the module."""
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if executable is None:
        pytest.skip("no browser is here: install chromium")
    try:
        runtime_folder()
    except UserError as error:
        pytest.skip(str(error))
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        yield lambda *flags: playwright.chromium.launch(executable_path=executable, args=[*FLAGS, *flags])


@pytest.fixture(scope="module")
def browser(launch) -> Iterator[Any]:
    opened = launch("--disable-gpu")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def software_gpu(launch) -> Iterator[Any]:
    """A browser whose WebGPU is computed by the processor, slowly."""
    opened = launch(*SOFTWARE_WEBGPU)
    page = opened.new_page()
    page.route("http://localhost/", lambda route: route.fulfill(body=""))
    page.goto("http://localhost/")  # a secure context, as WebGPU needs
    found = page.evaluate("navigator.gpu?.requestAdapter().then(Boolean) ?? false")
    page.close()
    if not found:
        pytest.skip("this browser has no WebGPU adapter")
    yield opened
    opened.close()


def drawn_by_both(prepare: str) -> str:
    """JavaScript that draws a few views of a bundle with the page's WebAssembly, and in another way.

    Args:
        prepare: defines ``theirs(camera, background)``, which gives the bytes of an image.

    Returns:
        A function of sizes: width, height, factor of the camera's distance, and maybe NDC. It gives of each view the
        largest difference of a pixel, and how many colors there are.
    """
    return f"""async (sizes) => {{
        const {{ readDecoder }} = await import("./decoder.js");
        const {{ cameraOf, Orbit }} = await import("./camera.js");
        const {{ compileKernels, openKernels }} = await import("./kernels.js");
        const {{ readVolume }} = await import("./volume.js");
        const bundle = await (await fetch("bundle.json")).json();
        const [artifact] = bundle.artifacts;
        const content = async (file) => new Uint8Array(await (await fetch(file)).arrayBuffer());
        const [graph, packed] = [await content(artifact.file), await content(artifact.volume.file)];
        const compiled = await compileKernels();
        const openLookup = async () =>
            openKernels(compiled, await readVolume(packed, artifact.volume, bundle.aabb), artifact.volume, null);
        const own = await openLookup();
        const decoder = readDecoder(graph, artifact, bundle.sr_factor);
        own.setDecoder(decoder);
        const orbit = new Orbit(bundle.orbit);
        {prepare}
        const [differences, seen] = [[], []];
        for (const [width, height, radius, ndc] of sizes) {{
            bundle.image = {{ width, height }};
            bundle.ndc = ndc;
            orbit.radius *= radius;
            bundle.intrinsics = {{ fx: 1.1 * width, fy: 1.2 * width, cx: 0.45 * width, cy: 0.55 * height }};
            const camera = cameraOf(bundle, orbit.pose(), 1);
            const expected = await theirs(camera, [10, 200, 90]);
            const {{ pixels }} = own.draw(camera, [10, 200, 90]);
            differences.push(pixels.reduce((most, value, i) => Math.max(most, Math.abs(value - expected[i])), 0));
            seen.push(new Set(new Uint32Array(expected.buffer)).size);
            orbit.azimuth += 40;
        }}
        return [differences, seen];
    }}"""


class Tab:
    """A page on a bundle, with all that it asked for and complained about."""

    def __init__(self, page: Any, server: Any) -> None:
        self.page, self.server = page, server
        self.complaints: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: message.type == "error" and self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))

    def go(self, query: str = "") -> Tab:
        self.page.goto(self.server.address + query)
        return self

    @property
    def data(self) -> dict[str, str]:
        return self.page.evaluate("({...document.getElementById('view').dataset})")

    def drawn(self, condition: str = "true") -> Tab:
        """Wait for a full frame of the present view."""
        data = "const d = document.getElementById('view').dataset"
        self.page.wait_for_function(f"(() => {{ {data}; return d.sharp === 'true' && ({condition}) }})()")
        return self

    def pixels(self) -> np.ndarray:
        """(H, W, 3) uint8 of the canvas."""
        flat = self.page.evaluate(
            "(() => { const c = document.getElementById('view');"
            " return Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data) })()"
        )
        side = int(np.sqrt(len(flat) / 4))
        return np.array(flat, np.uint8).reshape(side, side, 4)[..., :3]

    def pose(self, bundle: dict[str, Any]) -> torch.Tensor:
        """Camera to world, (3, 4), of the picture that is shown."""
        angles = (float(self.data[key]) for key in ("azimuth", "elevation", "radius"))
        return orbit_pose(bundle["orbit"]["target"], *angles)

    def words(self) -> str:
        self.page.wait_for_selector("#message.failed", timeout=20_000)
        return self.page.inner_text("#words")


@pytest.fixture
def tab_of() -> type[Tab]:
    """For a page that a test opens by itself."""
    return Tab


def _tabs(browser: Any, patience: int) -> Iterator[Callable[[Path], Tab]]:
    opened: list[tuple[Any, Server]] = []

    def open_tab(folder: Path) -> Tab:
        server = Server(folder)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = browser.new_page(viewport={"width": 800, "height": 600})
        page.set_default_timeout(patience)
        opened.append((page, server))
        return Tab(page, server)

    yield open_tab
    for page, server in opened:
        page.close()
        server.shutdown()
        server.server_close()


@pytest.fixture
def tab(browser) -> Iterator[Callable[[Path], Tab]]:
    """Opens pages on bundles."""
    yield from _tabs(browser, 20_000)


@pytest.fixture
def gpu_tab(software_gpu) -> Iterator[Callable[[Path], Tab]]:
    """The same in a browser with WebGPU."""
    yield from _tabs(software_gpu, 60_000)


@pytest.fixture
def bundle_of(tmp_path, scene) -> Callable[..., Path]:
    """Writes the bundle of a network; another file may be made of its graph."""

    def write(convert: Callable[[Path, Path], Path] | None = None, **changes: Any) -> Path:
        network = grid_network(**changes)
        volume = write_volume(network, tmp_path / "volume.bin.gz")
        network = rounded(network, "uint8").eval()
        path = tmp_path / "model.onnx"
        write_graph(network, path, scene.test.camera, "features")
        if convert:
            path = convert(path, tmp_path / "converted.onnx")
        about = {"output": output_of(network), "window": network.window}
        write_bundle(tmp_path, scene, network, [artifact("m", path, "features", "", volume, **about)])
        return tmp_path

    return write


def in_8_bits(path: Path, out: Path) -> Path:
    """With ranges of inputs as a volume gives them."""
    features = np.random.default_rng(0).random((1, 36, 16, 16), np.float32)
    return quantize_static(path, out, [{"features": features}])
