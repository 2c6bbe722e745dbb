"""The page, in a real browser: it draws what PyTorch draws, follows the hand, and says what is wrong."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from nelf import viewer
from nelf.cameras import Camera
from nelf.export.bundle import artifact, read_bundle, write_bundle
from nelf.export.graph import exact
from nelf.export.inputs import output_of
from nelf.export.volume import rounded, write_volume
from nelf.paths.trajectories import frame, viewpoints
from nelf.viewer.static import write
from tests.export.conftest import orbit_pose

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.mark.parametrize("name", ["features", "environment", "rays", "points", "pose"])
def test_the_canvas_shows_what_pytorch_renders(tab, bundles, name: str) -> None:
    network, path, _, _ = bundles[name]
    opened = tab(path.parent).go("?runtime=wasm").drawn()
    about = read_bundle(path.parent)
    intrinsics = torch.tensor([about["intrinsics"][key] for key in ("fx", "fy", "cx", "cy")])
    camera = Camera(opened.pose(about), intrinsics, 16, 16)
    expected = 255 * exact(network).render(camera).rgb.numpy()
    assert expected.std() > 5
    error = np.mean((opened.pixels() - expected) ** 2) / 255**2
    assert -10 * np.log10(error) > 50  # rounding to 8 bits alone gives 59
    assert opened.complaints == []
    assert all(url.startswith((opened.server.address, "data:", "blob:")) for url in opened.requests)
    own = name in ("features", "environment")
    assert opened.data["network"] == ("nelf" if own else "ONNX Runtime")
    # Who does without ONNX Runtime does not fetch it.
    assert own != any("/runtime/" in url or url.endswith("/ort.js") for url in opened.requests)
    assert "WASM" in opened.data["runtime"]


@pytest.mark.parametrize(("choice", "level"), [("black", 0), ("gray", 128), ("white", 255)])
def test_the_background_can_be_another_one(tab, bundles, choice: str, level: int) -> None:
    network, path, _, _ = bundles["features"]
    opened = tab(path.parent).go("?runtime=wasm").drawn()
    select = opened.page.get_by_label("Background")
    select.focus()
    for letter in choice:  # as with any select, without a mouse
        opened.page.keyboard.press(letter)
    opened.page.wait_for_function(f"location.search.includes('background={choice}')")
    opened.drawn(f"d.background === '{level},{level},{level}'")
    about = read_bundle(path.parent)
    intrinsics = torch.tensor([about["intrinsics"][key] for key in ("fx", "fy", "cx", "cy")])
    drawn = exact(network).render(Camera(opened.pose(about), intrinsics, 16, 16))
    on_black = drawn.rgb - (1 - drawn.opacity)[..., None]  # the network's own background is white
    expected = 255 * on_black + level * (1 - drawn.opacity)[..., None]
    error = np.mean((opened.pixels() - expected.numpy()) ** 2) / 255**2
    assert -10 * np.log10(error) > 50
    pixels = opened.pixels()
    opened.page.reload()
    opened.drawn(f"d.background === '{level},{level},{level}'")
    assert np.array_equal(opened.pixels(), pixels)
    assert opened.complaints == []


def test_the_background_stays_where_the_colors_have_it(tab, bundles) -> None:
    opened = tab(bundles["points"].path.parent).go("?background=black").drawn("d.background === '255,255,255'")
    assert opened.page.get_by_label("Background").is_disabled()


@pytest.mark.parametrize("dtype", ["uint8", "float16"])
def test_most_of_a_large_picture_need_not_be_drawn(tab, bundles, scene, tmp_path, dtype: str) -> None:
    """A picture much larger than the decoder's window, and a volume of either kind of rows."""
    network, path, _, _ = bundles["features"]
    shutil.copy(path, tmp_path / "model.onnx")
    volume = write_volume(network, tmp_path / "volume.bin.gz", dtype)
    network = rounded(network, dtype)
    about = {"output": output_of(network), "window": network.window}
    write_bundle(tmp_path, scene, network, [artifact("m", path, "features", "fp32", volume, **about)])
    described = json.loads((tmp_path / "bundle.json").read_text())
    described["image"] = {"width": 160, "height": 160}
    described["intrinsics"] = {"fx": 90.0, "fy": 90.0, "cx": 70.0, "cy": 85.0}
    (tmp_path / "bundle.json").write_text(json.dumps(described))
    opened = tab(tmp_path).go("?runtime=wasm").drawn()
    camera = Camera(opened.pose(described), torch.tensor([90.0, 90.0, 70.0, 85.0]), 160, 160)
    expected = 255 * exact(network).render(camera).rgb.numpy()
    error = np.mean((opened.pixels() - expected) ** 2) / 255**2
    assert -10 * np.log10(error) > 50
    assert (opened.pixels()[0] == 255).all()
    assert opened.complaints == []


def test_a_drag_turns_the_camera_and_a_double_click_brings_it_back(tab, bundles) -> None:
    opened = tab(bundles["points"].path.parent).go().drawn()
    page, before = opened.page, opened.data
    page.mouse.move(400, 250)
    page.mouse.down()
    page.mouse.move(425, 240, steps=5)
    page.mouse.up()
    azimuth, elevation = float(before["azimuth"]) - 25 * 0.4, float(before["elevation"]) - 10 * 0.4
    limits = read_bundle(bundles["points"].path.parent)["orbit"]["elevation"]
    opened.drawn(f"Math.abs(d.azimuth - {azimuth}) < 1e-6")
    assert float(opened.data["elevation"]) == pytest.approx(np.clip(elevation, limits["min"], limits["max"]))
    pixels = opened.pixels()
    page.mouse.dblclick(400, 250)
    opened.drawn(f"d.azimuth === '{before['azimuth']}'")
    assert (opened.pixels() != pixels).any()
    assert opened.complaints == []


@pytest.mark.parametrize("up", [(0.0, 0.0, 1.0), (0.1, -0.7, -0.7), (0.99, 0.1, 0.0), (0.0, -1.0, 0.0)])
def test_the_camera_turns_around_any_axis(browser, up) -> None:
    """Of an orbit around ``up``, as nelf's own poses have it, and from its definition where that is +z."""
    axis = np.array(up) / np.linalg.norm(up)
    limits = {"target": [1.0, 2.0, 3.0], "up": axis.tolist()}
    limits |= {
        name: {"min": -180.0, "max": 180.0, "value": value}
        for name, value in (("azimuth", 70.0), ("elevation", 25.0), ("radius", 4.0))
    }
    page = browser.new_page()
    source = (Path(viewer.__file__).parent / "page" / "camera.js").read_text()
    page.add_script_tag(type="module", content=f"{source}\nwindow.Orbit = Orbit;")
    page.wait_for_function("window.Orbit !== undefined")
    pose = np.reshape(page.evaluate("(limits) => Array.from(new Orbit(limits).pose())", limits), (3, 4))
    page.close()
    axes = np.column_stack([frame(axis), limits["target"]])
    expected = axes[:, :3] @ orbit_pose([0.0, 0.0, 0.0], 70.0, 25.0, 4.0).numpy()
    expected[:, 3] += axes[:, 3]
    np.testing.assert_allclose(pose, expected, atol=1e-5)
    stand = viewpoints(Camera.from_fov(torch.eye(3, 4)[None], 0.7, 8, 8))._replace(target=axes[:, 3], up=axis)
    np.testing.assert_allclose(pose, stand.poses(*np.array([[70.0], [25.0], [4.0]]))[0], atol=1e-5)


def test_keys_and_wheel_move_within_the_limits(tab, bundles) -> None:
    opened = tab(bundles["points"].path.parent).go().drawn()
    before, limits = opened.data, read_bundle(bundles["points"].path.parent)["orbit"]
    opened.page.focus("#view")
    opened.page.keyboard.press("ArrowRight")
    opened.drawn(f"Math.abs(d.azimuth - {float(before['azimuth'])} - 5) < 1e-6")
    for _ in range(40):
        opened.page.keyboard.press("ArrowUp")
    opened.drawn(f"Math.abs(d.elevation - {limits['elevation']['max']}) < 1e-6")
    opened.page.mouse.move(400, 250)
    opened.page.mouse.wheel(0, 10_000)
    opened.drawn(f"Math.abs(d.radius - {limits['radius']['max']}) < 1e-6")


@pytest.fixture
def moving(tmp_path, scene, bundles) -> Path:
    """A bundle of a scene that is all of one color: red is the time, green a control."""
    nodes = [
        helper.make_node("Slice", ["points", "zero", "one", "axis"], ["x"]),
        helper.make_node("Mul", ["x", "nought"], ["blank"]),
        helper.make_node("Add", ["blank", "time"], ["red"]),
        helper.make_node("Add", ["blank", "controls"], ["green"]),
        helper.make_node("Concat", ["red", "green", "blank"], ["rgb"], axis=1),
    ]
    constants = {"zero": np.array([0]), "one": np.array([1]), "axis": np.array([1]), "nought": np.float32(0)}
    graph = helper.make_graph(
        nodes,
        "moving",
        [
            helper.make_tensor_value_info("time", TensorProto.FLOAT, [1]),
            helper.make_tensor_value_info("points", TensorProto.FLOAT, [1, 6, "h", "w"]),
            helper.make_tensor_value_info("controls", TensorProto.FLOAT, [1, 1]),
        ],
        [helper.make_tensor_value_info("rgb", TensorProto.FLOAT, [1, 3, "h", "w"])],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")
    write_bundle(tmp_path, scene, bundles["points"].network, [artifact("m", tmp_path / "model.onnx", "points", "fp32")])
    about = json.loads((tmp_path / "bundle.json").read_text())
    about |= {"sr_factor": 1, "stride": 1, "time": {"min": 0, "max": 1, "value": 0.2}}
    about["controls"] = [{"name": "jaw", "min": 0, "max": 2, "value": 1}]
    (tmp_path / "bundle.json").write_text(json.dumps(about))
    return tmp_path


def test_sliders_set_the_moment_and_the_controls(tab, moving) -> None:
    opened = tab(moving).go().drawn()
    assert np.abs(opened.pixels()[..., 0].astype(int) - 51).max() <= 1
    assert (opened.pixels()[..., 1] == 255).all()
    assert (opened.pixels()[..., 2] == 0).all()
    opened.page.locator("#time").fill("0.8")
    opened.drawn("d.time === '0.8'")
    assert np.abs(opened.pixels()[..., 0].astype(int) - 204).max() <= 1
    opened.page.get_by_label("jaw").fill("0.5")
    green = "document.getElementById('view').getContext('2d').getImageData(8, 8, 1, 1).data[1]"
    opened.page.wait_for_function(f"Math.abs({green} - 127) <= 1")
    assert np.abs(opened.pixels()[..., 1].astype(int) - 127).max() <= 1
    opened.page.click("#play")
    opened.page.wait_for_function("Number(document.getElementById('view').dataset.time) !== 0.8")
    assert opened.complaints == []


def test_time_is_only_set_where_something_moves_and_the_model_takes_it(tab, moving, bundles) -> None:
    opened = tab(bundles["points"].path.parent)
    opened.server.bundle = {**opened.server.bundle, "time": {"min": 0, "max": 1, "value": 0.2}}
    opened.go().drawn()
    assert opened.page.locator("#inputs").is_hidden()
    opened = tab(moving)
    opened.server.bundle = {**opened.server.bundle, "time": {"min": 0.2, "max": 0.2, "value": 0.2}}
    opened.go().drawn()
    assert opened.page.locator("#time").count() == 0
    assert opened.page.get_by_label("jaw").is_visible()
    assert opened.complaints == []


def unchecked(about: dict[str, Any]) -> dict[str, Any]:
    """A bundle made by hand, with one model and no checksum of it."""
    return {**about, "artifacts": [{**about["artifacts"][0], "sha256": None}]}


@pytest.fixture
def damaged(tmp_path, bundles) -> Path:
    folder = tmp_path / "bundle"
    shutil.copytree(bundles["points"].path.parent, folder)
    return folder


def test_what_is_wrong_is_said_in_words(tab, damaged) -> None:
    opened = tab(damaged)
    about = opened.server.bundle
    opened.server.files["model.onnx"] = damaged / "gone.onnx"
    assert opened.go().words() == "model.onnx: is missing from the bundle (the server says 404)."
    opened.server.files["model.onnx"] = damaged / "bundle.json"
    assert opened.go().words() == "model.onnx: is damaged, or not the file that bundle.json describes."
    opened.server.bundle = unchecked(about)
    assert opened.go().words().startswith("model.onnx: cannot be opened with wasm. ")
    del opened.server.files["runtime/ort.wasm.min.mjs"]
    opened.server.files["model.onnx"] = damaged / "model.onnx"
    assert opened.go().words() == "runtime/ort.wasm.min.mjs: is missing beside the page."
    opened.server.bundle = {**about, "version": 7}
    assert opened.go().words() == "This bundle has version 7; this page reads version 4."
    opened.server.bundle = {**about, "version": 1}
    words = "This bundle has version 1; this page reads version 4. Export it again: stages=[export]."
    assert opened.go().words() == words
    opened.server.bundle = {"format": "else"}
    assert opened.go().words() == "bundle.json is damaged, or not that of a nelf bundle."
    opened.server.bundle = {key: value for key, value in about.items() if key not in ("orbit", "near")}
    assert opened.go().words() == "bundle.json is damaged: it lacks near, orbit."
    assert opened.page.get_by_role("alert").is_visible()
    opened.server.bundle = {**about, "artifacts": []}
    assert opened.go().words() == "bundle.json names no model that a browser can draw."


def test_a_model_that_needs_more_memory_than_there_is_says_so(tab, moving) -> None:
    """Its graph asks for all but a megabyte of the 2^32 bytes that WASM can address."""
    model = onnx.load(moving / "model.onnx")
    graph = model.graph
    constants = {"start": np.zeros(4, int), "end": np.ones(4, int), "repeats": np.array([1, 1, 1, 1_073_500_000])}
    graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in constants.items())
    slice_, *others = graph.node
    del graph.node[:]
    nodes = [
        helper.make_node("Slice", ["points", "start", "end"], ["corner"]),
        helper.make_node("Tile", ["corner", "repeats"], ["copies"]),
        helper.make_node("ReduceMax", ["copies"], ["huge"]),
        helper.make_node("Add", ["points", "huge"], ["more points"]),
    ]
    slice_.input[0] = "more points"
    graph.node.extend([*nodes, slice_, *others])
    onnx.save(model, moving / "model.onnx")
    opened = tab(moving)
    opened.server.bundle = unchecked(opened.server.bundle)
    assert opened.go().words().startswith("The browser has no memory left for this model; choose a smaller one.")


def test_a_wrong_volume_is_refused(tab, bundles, tmp_path) -> None:
    opened = tab(bundles["features"].path.parent)
    about = opened.server.bundle
    (entry,) = about["artifacts"]

    def with_volume(**changes: Any) -> dict[str, Any]:
        return {**about, "artifacts": [{**entry, "volume": {**entry["volume"], **changes}}]}

    rows = entry["volume"]["rows"]
    opened.server.bundle = with_volume(resolution=[4096, 4096, 4096])
    assert opened.go().words() == "volume.bin.gz: describes more corners than a browser can hold."
    opened.server.bundle = with_volume(rows=rows + 1)
    assert re.fullmatch(r"volume.bin.gz: holds \d+ bytes, but bundle.json describes \d+\.", opened.go().words())
    content = bytearray(gzip.decompress(opened.server.files["volume.bin.gz"].read_bytes()))
    content[0] ^= 0x80
    (tmp_path / "other.gz").write_bytes(gzip.compress(bytes(content)))
    opened.server.files["volume.bin.gz"] = tmp_path / "other.gz"
    opened.server.bundle = about
    words = f"volume.bin.gz: has {rows + 1} corners, but bundle.json describes {rows} rows."
    assert opened.go().words() == words


def test_a_browser_without_webgpu_says_so_and_draws_with_wasm(tab, bundles) -> None:
    opened = tab(bundles["points"].path.parent)
    assert "offers no WebGPU adapter" in opened.go("?runtime=webgpu").words()
    opened.page.select_option("#runtime", "auto")
    opened.drawn()
    assert opened.page.is_hidden("#message")
    assert "WASM" in opened.page.inner_text("#status")


def test_the_table_of_models_tells_size_quality_and_time(tab, bundles, tmp_path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(bundles["points"].path.parent, folder)
    about = json.loads((folder / "bundle.json").read_text())
    first = about["artifacts"][0] | {"bytes": 2_345_678, "psnr": 28.473}
    about["artifacts"] = [
        first,
        first | {"name": "for a phone", "file": "m.pte"},
        first | {"name": "again", "psnr": None},
    ]
    (folder / "bundle.json").write_text(json.dumps(about))
    opened = tab(folder).go("?model=again").drawn()
    rows = opened.page.locator("#models tr")
    assert opened.page.inner_text("#chosen") == "again"
    assert rows.nth(0).inner_text().split("\t") == ["fp32", "2.3 MB", "28.47 dB", "\u2013"]
    opened.page.wait_for_function("/^[0-9]+ ms$/.test(document.querySelectorAll('#models td')[7].textContent)")
    assert rows.nth(1).inner_text().split("\t")[:3] == ["again", "2.3 MB", "\u2013"]
    opened.page.get_by_label("again").press("ArrowUp")  # as in any group of radio buttons
    opened.page.wait_for_function("/^[0-9]+ ms$/.test(document.querySelectorAll('#models td')[3].textContent)")
    assert opened.page.inner_text("#chosen") == "fp32"
    assert opened.complaints == []


def test_fewer_rays_are_drawn_while_it_moves(tab, bundles) -> None:
    opened = tab(bundles["points"].path.parent).go("?resolution=0.5").drawn()
    opened.page.mouse.move(400, 250)
    opened.page.mouse.down()
    opened.page.mouse.move(420, 250)
    opened.page.wait_for_function("document.getElementById('view').width === 8")
    opened.drawn("document.getElementById('view').width === 16")


@pytest.fixture
def plain_host(tmp_path, bundles) -> Iterator[ThreadingHTTPServer]:
    """A host that knows nothing of nelf, and has the bundle in a folder of its own."""
    shutil.copytree(bundles["features"].path.parent, tmp_path / "host" / "scenes" / "lego")
    write(tmp_path / "host" / "scenes" / "lego")

    class Host(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None: ...

        def end_headers(self) -> None:
            if self.path.endswith("encoded"):  # as some hosts declare all files in .gz
                self.send_header("Content-Encoding", "gzip")
            super().end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Host, directory=str(tmp_path / "host")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_any_static_host_serves_the_folder(browser, plain_host, tab, tab_of, bundles) -> None:
    page = browser.new_page()
    opened = tab_of(page, plain_host)
    address = f"http://127.0.0.1:{plain_host.server_address[1]}/"
    page.goto(address + "scenes/lego/?kernels=lookup&threads=2")
    opened.drawn()
    assert opened.data["runtime"] == "WASM, 1 thread"  # memory is shared only where the host says so
    assert opened.complaints == []
    assert all(url.startswith((address, "data:", "blob:")) for url in opened.requests)
    there = tab(bundles["features"].path.parent).go("?kernels=lookup&threads=2").drawn()
    assert there.data["runtime"] == "WASM, 2 threads"
    assert np.array_equal(opened.pixels(), there.pixels())
    page.close()


def test_a_phone_has_the_picture_and_two_fingers_zoom(browser, tab, tab_of, bundles) -> None:
    opened = tab(bundles["points"].path.parent)
    context = browser.new_context(viewport={"width": 360, "height": 640}, has_touch=True, color_scheme="dark")
    page = context.new_page()
    page.goto(opened.server.address)
    phone = tab_of(page, opened.server).drawn()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.locator("#panel").bounding_box()["height"] < 64  # closed at first
    before = float(phone.data["radius"])
    fingers = context.new_cdp_session(page)
    for kind, gap in (("touchStart", 60), ("touchMove", 61), ("touchMove", 60.5)):
        points = [{"x": 180 - gap / 2, "y": 300, "id": 0}, {"x": 180 + gap / 2, "y": 300, "id": 1}]
        fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    fingers.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    phone.drawn(f"d.radius !== '{before}'")
    assert float(phone.data["radius"]) == pytest.approx(before * 60 / 60.5, rel=1e-3)
    card = page.locator("#panel").evaluate("each => getComputedStyle(each).backgroundColor")
    assert sum(map(float, re.findall(r"[\d.]+", card)[:3])) < 200  # dark
    context.close()


def test_a_host_may_declare_the_volume_as_an_encoding(browser, plain_host, tab_of) -> None:
    page = browser.new_page()
    page.route("**/volume.bin.gz", lambda route: route.continue_(url=f"{route.request.url}?encoded"))
    page.goto(f"http://127.0.0.1:{plain_host.server_address[1]}/scenes/lego/")
    opened = tab_of(page, plain_host).drawn()
    assert opened.pixels().std() > 5
    assert page.is_hidden("#message")
    page.close()


class FakeTeacher:
    """Draws one gray after the other: 0, 1, ... The first picture waits for ``gate``."""

    def __init__(self) -> None:
        self.gate, self.asked = threading.Event(), []

    def png(self, c2w: list[float], width: int) -> bytes:
        self.asked.append(c2w)
        number = len(self.asked) - 1
        if number == 0:
            assert self.gate.wait(20)
        return iio.imwrite("<bytes>", np.full((width, width, 3), 40 * number, np.uint8), extension=".png")


def test_the_teacher_is_drawn_by_the_server(tab, bundles) -> None:
    opened = tab(bundles["points"].path.parent)
    opened.server.teacher = teacher = FakeTeacher()  # type: ignore[assignment]
    entry = {"name": "teacher", "file": "teacher.png", "input": "server", "output": "rgb", "size": None}
    opened.server.bundle["artifacts"].append(entry)
    page = opened.go().drawn().page
    azimuth = float(opened.data["azimuth"])
    gray = "document.getElementById('view').getContext('2d').getImageData(8, 8, 1, 1).data[0] === {}"
    page.click("#models tr:has-text('teacher')")
    page.click("#models tr:has-text('fp32')")
    page.wait_for_function("/WASM/.test(document.getElementById('status').textContent)")
    page.focus("#view")
    page.keyboard.press("ArrowRight")
    page.click("#models tr:has-text('teacher')")
    page.wait_for_function(gray.format(40))
    assert "drawn by the server" in page.inner_text("#status")
    expected = opened.pose(read_bundle(bundles["points"].path.parent))
    assert np.allclose(np.reshape(teacher.asked[1], (3, 4)), expected, atol=1e-5)
    teacher.gate.set()  # the first choice's picture comes at last, and is of no interest
    page.wait_for_timeout(500)
    assert page.evaluate(gray.format(40))
    page.focus("#view")
    page.keyboard.press("ArrowRight")
    opened.drawn(f"Math.abs(d.azimuth - {azimuth} - 10) < 1e-6")
    assert opened.complaints == []


@pytest.mark.parametrize("name", ["features", "points"])
def test_webgpu_draws_what_wasm_draws(gpu_tab, bundles, name: str) -> None:
    opened = gpu_tab(bundles[name].path.parent).go("?runtime=wasm").drawn()
    expected = opened.pixels().astype(int)
    opened.go("?runtime=webgpu").drawn()
    assert opened.data["runtime"] == "WebGPU"
    assert opened.data["network"] == ("nelf" if name == "features" else "ONNX Runtime")
    assert np.abs(opened.pixels() - expected).max() <= 1
    opened.go().drawn()  # by trying: either is right
    assert np.abs(opened.pixels() - expected).max() <= 1
    if opened.data["network"] == "ONNX Runtime" and opened.data["runtime"] != "WebGPU":
        why = opened.page.text_content("#notes")
        assert re.search("WebGPU is not used: it (is slower here|does not come to an end)", why)
    assert opened.complaints == []
