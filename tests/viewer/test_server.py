"""The viewer's server: what it serves, to whom, and what it refuses."""

from __future__ import annotations

import hashlib
import http.client
import json
import shutil
import socket
import struct
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import torch

import nelf
import nelf.viewer.static
from nelf import storage
from nelf.cameras import Camera
from nelf.errors import UserError
from nelf.export.bundle import artifact, write_bundle
from nelf.fields import NGP
from nelf.lightfields import GridR2L, MobileR2L
from nelf.report.pictures import to_uint8
from nelf.viewer import web_runtime as runtime
from nelf.viewer.server import Server, main

TEACHER = {"levels": 2, "log2_table": 8, "finest_resolution": 32, "hidden": 16, "grid_resolution": 16}


@pytest.fixture
def run(tmp_path, tiny_scene, monkeypatch) -> Path:
    """A run directory with a teacher and a bundle, whose model is any file; the runtime is a stand-in."""
    packaged = tmp_path / "packaged"
    packaged.mkdir()
    (packaged / "ort.wasm.min.mjs").write_text("export {}")
    monkeypatch.setattr(nelf.viewer.static, "runtime_folder", lambda: packaged)
    folder = tmp_path / "run"
    (folder / "export").mkdir(parents=True)
    (folder / "export" / "model.onnx").write_bytes(b"a graph")
    (folder / "secret.txt").write_text("secret")
    scene = nelf.data.read_scene(tiny_scene)
    network = NGP(**TEACHER, max_samples=32)
    torch.nn.init.uniform_(next(iter(network.parameters())), -1, 1)
    storage.save(network, folder / "teacher" / "model.safetensors", {"_target_": "nelf.fields.NGP", **TEACHER}, "d")
    entry = artifact("fp32", folder / "export" / "model.onnx", "points", "fp32")
    write_bundle(folder / "export", scene, MobileR2L(width=8, depth=2), [entry])
    return folder


@pytest.fixture
def server(run) -> Iterator[Server]:
    started = Server(run)
    threading.Thread(target=started.serve_forever, daemon=True).start()
    yield started
    started.shutdown()
    started.server_close()


def get(server: Server, path: str, host: str | None = None) -> tuple[int, bytes, dict[str, str]]:
    """Ask for a path as it is written."""
    connection = http.client.HTTPConnection(*server.server_address[:2])
    connection.putrequest("GET", path, skip_host=True)
    connection.putheader("Host", host or f"127.0.0.1:{server.server_address[1]}")
    connection.endheaders()
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content, dict(answer.getheaders())


def test_it_listens_on_this_machine_only(server) -> None:
    assert server.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/main.js", "text/javascript; charset=utf-8"),
        ("/runtime/ort.wasm.min.mjs", "text/javascript; charset=utf-8"),
        ("/model.onnx", "application/octet-stream"),
        ("/bundle.json", "application/json"),
    ],
)
def test_files_come_with_their_types_and_isolation(server, path: str, kind: str) -> None:
    status, content, headers = get(server, path)
    assert status == 200
    assert content
    assert headers["Content-Type"] == kind
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"


@pytest.mark.parametrize(
    "path",
    ["/../secret.txt", "/%2e%2e/secret.txt", "/runtime/../../secret.txt", "//etc/passwd", "/config.yaml", "/page"],
)
def test_nothing_else_is_served(server, path: str) -> None:
    assert get(server, path)[0] == 404


def test_a_bundle_names_graphs_only(run) -> None:
    """A page of the bundle's own would be the viewer's equal, with its teacher and its files."""
    about = json.loads((run / "export" / "bundle.json").read_text())
    (run / "export" / "evil.html").write_text("<script>")
    about["artifacts"][0]["file"] = "evil.html"
    (run / "export" / "bundle.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match=r"fp32 lies in 'evil\.html'; allowed: names in \.onnx or \.pte"):
        Server(run)


def test_a_file_that_becomes_a_link_is_served_no_longer(server, run) -> None:
    assert get(server, "/model.onnx")[1] == b"a graph"
    (run / "export" / "model.onnx").unlink()
    (run / "export" / "model.onnx").symlink_to(run / "secret.txt")
    assert get(server, "/model.onnx")[:2] == (404, b"")


def test_head_is_answered_as_get_without_the_content(server) -> None:
    for path, expected in (("/", 200), ("/model.onnx", 200), ("/none", 404)):
        connection = http.client.HTTPConnection(*server.server_address[:2])
        connection.request("HEAD", path)
        answer = connection.getresponse()
        assert answer.status == expected
        assert int(answer.getheader("Content-Length")) == len(get(server, path)[1])
        assert answer.getheader("X-Content-Type-Options") == "nosniff"
        assert answer.read() == b""
        connection.close()


def test_connections_that_say_nothing_end_and_leave_room(run, monkeypatch) -> None:
    monkeypatch.setattr("nelf.viewer.server._MOST_CONNECTIONS", 3)
    monkeypatch.setattr("nelf.viewer.server._Handler.timeout", 0.2)
    with Server(run) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        silent = [socket.create_connection(server.server_address[:2]) for _ in range(3)]
        silent[0].sendall(b"GET / HTT")
        ended = [one.recv(1) for one in silent]  # they are ended, by the other side
        assert ended == [b""] * 3
        while True:  # their threads are at their end at once, but not before
            try:
                assert get(server, "/model.onnx")[1] == b"a graph"
                break
            except (http.client.HTTPException, ConnectionError):
                continue
        server.shutdown()
        for one in silent:
            one.close()


def test_of_too_many_connections_the_last_ones_are_ended(run, monkeypatch) -> None:
    monkeypatch.setattr("nelf.viewer.server._MOST_CONNECTIONS", 2)
    with Server(run) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        first = [socket.create_connection(server.server_address[:2]) for _ in range(2)]
        for one in first:  # and wait until it is being answered
            one.sendall(b"GET /model.onnx HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert one.recv(12) == b"HTTP/1.1 200"
        with socket.create_connection(server.server_address[:2]) as late:
            assert late.recv(1) == b""
        server.shutdown()
        for one in first:
            one.close()


def test_another_name_for_this_machine_is_refused(server) -> None:
    assert get(server, "/", host="example.org")[0] == 403


def test_the_teacher_is_drawn_as_asked(server, run) -> None:
    c2w = [1.0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 4]
    status, content, _ = get(server, f"/teacher.png?c2w={','.join(map(str, c2w))}&width=8")
    assert status == 200
    about = json.loads(get(server, "/bundle.json")[1])
    assert about["artifacts"][-1]["input"] == "server"
    intrinsics = torch.tensor([about["intrinsics"][key] for key in ("fx", "fy", "cx", "cy")])
    camera = Camera(torch.tensor(c2w).view(3, 4), intrinsics, 16, 16).resized(8)
    expected = to_uint8(nelf.load(run / "teacher").render(camera).rgb)
    assert np.array_equal(iio.imread(content), expected)


@pytest.mark.parametrize("query", ["", "?c2w=1,2&width=8", "?c2w=" + ",".join(["nan"] * 12) + "&width=8", "?width=x"])
def test_a_senseless_camera_is_refused(server, query: str) -> None:
    assert get(server, "/teacher.png" + query)[0] == 400


def test_a_page_that_is_left_early_leaves_no_traceback(server, run, capfd) -> None:
    (run / "export" / "model.onnx").write_bytes(bytes(50_000_000))  # more than any socket holds
    with socket.create_connection(server.server_address[:2]) as connection:
        connection.sendall(b"GET /model.onnx HTTP/1.1\r\nHost: localhost\r\n\r\n")
        connection.recv(1000)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # ends at once
    assert get(server, "/")[0] == 200
    server.shutdown()
    assert capfd.readouterr().err == ""


def test_a_run_without_a_bundle_ends_in_one_line(tmp_path, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path)])
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        f"{tmp_path}: holds neither bundle.json nor export/bundle.json; run stage export: stages=[export].\n"
    )


def test_a_port_that_is_taken_is_named(server, run) -> None:
    with pytest.raises(UserError, match=f"port {server.server_address[1]}: cannot be listened on"):
        Server(run, server.server_address[1])


def test_a_port_that_cannot_be_is_named(run) -> None:
    with pytest.raises(UserError, match=r"port 70000: cannot be listened on \(bind\(\): port must be 0-65535\)\."):
        Server(run, 70000)


def bundle_behind(frame: Any) -> dict[str, Any]:
    """What the page in a notebook's frame will read."""
    with urllib.request.urlopen(frame.src + "bundle.json") as answer:
        return json.loads(answer.read())


def test_a_notebook_shows_a_run_or_a_light_field(run, tiny_scene) -> None:
    assert bundle_behind(nelf.view(run))["name"] == "sphere"
    network = MobileR2L(width=8, depth=2, sr_factor=4).eval()
    frame = nelf.view(network, nelf.data.read_scene(tiny_scene))
    (entry,) = bundle_behind(frame)["artifacts"]
    assert (entry["name"], entry["input"]) == ("MobileR2L", "points")
    with urllib.request.urlopen(frame.src + entry["file"]) as answer:
        assert hashlib.sha256(answer.read()).hexdigest() == entry["sha256"]
    grid = GridR2L(width=8, depth=2, resolution=8, features=4).eval()
    (entry,) = bundle_behind(nelf.view(grid, nelf.data.read_scene(tiny_scene)))["artifacts"]
    assert (entry["input"], entry["output"], entry["volume"]["dtype"]) == ("features", "rgba", "float16")
    with pytest.raises(UserError, match=r"a light field needs its scene: nelf.view\(network, data.scene\)"):
        nelf.view(network)


def test_a_static_folder_has_the_page_and_its_runtime(run, tmp_path) -> None:
    index = nelf.viewer.static.write(run / "export")
    names = {path.relative_to(run / "export").as_posix() for path in (run / "export").rglob("*") if path.is_file()}
    assert index.name == "index.html"
    assert {"index.html", "main.js", "worker.js", "runtime/ort.wasm.min.mjs", "bundle.json"} <= names


def test_the_page_weighs_less_than_a_picture() -> None:
    page = Path(nelf.viewer.static.__file__).parent / "page"
    assert sum(path.stat().st_size for path in page.iterdir()) < 180_000


def test_a_missing_npm_is_said_in_one_line(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("NELF_CACHE", str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(runtime, "_PACKAGED", tmp_path / "none")
    with pytest.raises(UserError, match=r"npm, which would fetch it, is not installed. Install Node.js") as caught:
        runtime.runtime_folder()
    assert "\n" not in str(caught.value)


def test_what_npm_complains_of_is_passed_on(tmp_path, monkeypatch) -> None:
    said = {"error": {"code": "E404", "summary": "404 Not Found\nmore", "detail": "long"}}
    done = type("Done", (), {"returncode": 1, "stdout": json.dumps(said), "stderr": "npm error A complete log ..."})
    monkeypatch.setattr(runtime.shutil, "which", lambda name: "npm")
    monkeypatch.setattr(runtime.subprocess, "run", lambda *command, **options: done)
    with pytest.raises(UserError, match=r"npm could not fetch onnxruntime-web@[\d.]+ \(404 Not Found\)\.$"):
        runtime.fetch(tmp_path)
    done.stdout = "not what npm says"
    with pytest.raises(UserError, match="no reason given"):
        runtime.fetch(tmp_path)


def test_another_file_under_the_runtime_s_name_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(runtime, "FILES", {"ort.wasm.min.mjs": "0" * 64})

    def pack(command: list[str], **options: object) -> object:
        import tarfile

        (tmp_path / "ort.wasm.min.mjs").write_text("other")
        with tarfile.open(Path(command[-1]) / "x.tgz", "w:gz") as archive:
            archive.add(tmp_path / "ort.wasm.min.mjs", "package/dist/ort.wasm.min.mjs")
        return type("Done", (), {"returncode": 0, "stdout": "", "stderr": ""})

    monkeypatch.setattr(runtime.shutil, "which", lambda name: "npm")
    monkeypatch.setattr(runtime.subprocess, "run", pack)
    with pytest.raises(UserError, match="is not the file that this nelf knows"):
        runtime.fetch(tmp_path / "runtime")
    assert not (tmp_path / "runtime" / "ort.wasm.min.mjs").exists()
