"""Serve a light field to a browser: ``python -m nelf.viewer RUN``.

A small server on the loopback address. It serves only the files named in bundle.json, the page and its runtime; for a
run with a trained teacher, it also renders the teacher for comparison.
"""

from __future__ import annotations

import io
import json
import math
import sys
import threading
import webbrowser
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from nelf.errors import UserError, lies_in
from nelf.files import ArgumentParser, escape_output, is_file

__all__ = ["Server", "main"]

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".wasm": "application/wasm",
    ".png": "image/png",
}
_MAX_PREVIEW = 400  # pixels
_PATIENCE = 30.0  # timeout of a connection, seconds
_MOST_CONNECTIONS = 64  # at a time; a browser uses six


class Server(ThreadingHTTPServer):
    """Serves one bundle on 127.0.0.1.

    Args:
        path: a bundle, or a run directory whose stage export is done.
        port: the port; 0 for any free one.

    Raises:
        UserError: there is no bundle, the page's runtime is missing, or the port is in use.
    """

    daemon_threads = True

    def __init__(self, path: Path | str, port: int = 0) -> None:
        from nelf.export.bundle import files_beside, read_bundle
        from nelf.viewer.static import page_files

        self.folder = _bundle_of(Path(path))
        self.bundle = read_bundle(self.folder)
        entries = self.bundle["artifacts"]
        named = [name for each in entries for name in (each["file"], *files_beside(each["volume"]))]
        self._free = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        self.files = {name: self.folder / name for name in named} | page_files()
        weights = self.folder.parent / "teacher" / "model.safetensors"
        self.teacher = _Teacher(weights, self.bundle) if weights.is_file() else None
        if self.teacher:
            # For this entry, the page requests images from the server instead of running a graph.
            about = {"file": "teacher.png", "input": "server", "output": "rgb", "size": None}
            entries.append({"name": "teacher (slow)", **about})
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except (OSError, OverflowError) as error:
            reason = str(error.args[-1]).rstrip(".")
            raise UserError(f"port {port}: cannot be listened on ({reason}). Choose another with --port.") from None

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a new thread, unless there are too many connections."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, then release the connection's slot."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def read(self, name: str) -> bytes | None:
        """A file of the bundle or the page; None if it does not exist, or has become a link out of its folder."""
        path = self.files.get(name)
        if path is None or (path.parent == self.folder and not lies_in(self.folder, name)) or not is_file(path):
            return None
        return path.read_bytes()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore connections that the browser has closed; other errors keep their traceback."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)

    @property
    def address(self) -> str:
        """The address of the page."""
        return f"http://127.0.0.1:{self.server_address[1]}/"


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    timeout = _PATIENCE

    def do_GET(self) -> None:
        """Answer with a file of the bundle or the page, or with an image of the teacher."""
        asked = urlsplit(self.path)
        host = (self.headers.get("Host") or "").rsplit(":", 1)[0]
        name = asked.path.lstrip("/") or "index.html"
        if host not in ("127.0.0.1", "localhost"):  # DNS rebinding: another site's name that points here
            self._send(HTTPStatus.FORBIDDEN, b"", ".txt")
        elif name == "bundle.json":
            self._send(HTTPStatus.OK, json.dumps(self.server.bundle).encode(), ".json")
        elif name == "teacher.png" and self.server.teacher:
            self._send_teacher(parse_qs(asked.query))
        elif (content := self.server.read(name)) is not None:
            self._send(HTTPStatus.OK, content, Path(name).suffix)
        else:
            self._send(HTTPStatus.NOT_FOUND, b"", ".txt")

    do_HEAD = do_GET  # noqa: N815, the name is http.server's; ``_send`` leaves out the content

    def _send_teacher(self, query: dict[str, list[str]]) -> None:
        assert self.server.teacher is not None
        try:
            c2w = [float(number) for number in query["c2w"][0].split(",")]
            width = int(query["width"][0])
            if len(c2w) != 12 or not all(map(math.isfinite, c2w)) or not 1 <= width <= _MAX_PREVIEW:
                raise ValueError
        except (KeyError, ValueError):
            self._send(HTTPStatus.BAD_REQUEST, b"", ".txt")
            return
        self._send(HTTPStatus.OK, self.server.teacher.png(c2w, width), ".png")

    def _send(self, status: HTTPStatus, content: bytes, suffix: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", _TYPES.get(suffix, "application/octet-stream"))
        self.send_header("Content-Length", str(len(content)))
        # Cross-origin isolation: required for shared memory between threads.
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("Cross-Origin-Resource-Policy", "cross-origin")  # a notebook shows the page in a frame
        self.send_header("Cache-Control", "no-cache")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Do not log requests."""


class _Teacher:
    """Renders a run's teacher, one image at a time; it is loaded on the first request."""

    def __init__(self, weights: Path, bundle: dict[str, Any]) -> None:
        self._weights, self._bundle = weights, bundle
        self._network: Any = None
        self._lock = threading.Lock()

    def png(self, c2w: list[float], width: int) -> bytes:
        """Render the view of a camera (c2w as 12 numbers, row by row)."""
        import imageio.v3 as iio
        import torch

        from nelf.cameras import Camera
        from nelf.export.bundle import ndc_of
        from nelf.report.pictures import to_uint8
        from nelf.storage import load

        with self._lock:
            if self._network is None:
                self._network = load(self._weights)
            about = self._bundle
            intrinsics = torch.tensor([about["intrinsics"][key] for key in ("fx", "fy", "cx", "cy")])
            size = about["image"]["width"], about["image"]["height"]
            camera = Camera(torch.tensor(c2w).view(3, 4), intrinsics, *size, ndc=ndc_of(about))
            rgb = self._network.render(camera.resized(width)).rgb
        picture = io.BytesIO()
        iio.imwrite(picture, to_uint8(rgb), extension=".png")
        return picture.getvalue()


def _bundle_of(path: Path) -> Path:
    """The bundle of a run, or the bundle itself."""
    for folder in (path, path / "export"):
        if is_file(folder / "bundle.json"):
            return folder
    raise UserError(f"{path}: holds neither bundle.json nor export/bundle.json; run stage export: stages=[export].")


def main(arguments: list[str] | None = None) -> None:
    """``python -m nelf.viewer RUN``: serve until Ctrl-C."""
    escape_output()
    parser = ArgumentParser(prog="python -m nelf.viewer", description=__doc__.split("\n", 1)[0] if __doc__ else "")
    parser.add_argument("run", help="a run directory or a bundle")
    parser.add_argument("--port", type=int, default=0, help="port; any free one by default")
    parser.add_argument("--no-browser", action="store_true", help="only print the address")
    options = parser.parse_args(arguments)
    try:
        server = Server(options.run, options.port)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print(f"{server.folder}: {server.address}  (Ctrl-C ends it)", flush=True)
    if not options.no_browser:
        webbrowser.open(server.address)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()
    finally:
        server.server_close()
