"""Find or fetch the files of ONNX Runtime Web.

A wheel of nelf includes them; in a source tree they are fetched once, with npm, into the cache folder. Their checksums
are compared with those below when they are fetched. This module imports only the standard library and ``nelf.errors``,
since the build of the wheel runs it separately.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from nelf.errors import UserError, atomic_path

__all__ = ["FILES", "VERSION", "fetch", "runtime_folder"]

VERSION = "1.30.0"
#: SHA-256 of each file: the module and the WebAssembly of the two builds, without and with WebGPU.
FILES = {
    "ort.wasm.min.mjs": "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
    "ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
    "ort.webgpu.min.mjs": "3dffff71811bc13a3a3d9591c57ca5ee5735b8f5f3eaf789510b02bb040ae3a0",
    "ort-wasm-simd-threaded.asyncify.mjs": "3d1c85995364bb643302fc6fd877a0c3ba5ae72401815e0f24828a53d9191e28",
    "ort-wasm-simd-threaded.asyncify.wasm": "39f9f0894d478800487ed9f7dbe92618498db320cf55c8e3d89adff8dce658da",
}
_PACKAGED = Path(__file__).parent / "runtime"


def runtime_folder() -> Path:
    """Find the files, fetching them on first use.

    Returns:
        The folder that holds exactly ``FILES``.

    Raises:
        UserError: they are missing and npm cannot fetch them.
    """
    if _PACKAGED.is_dir():
        return _PACKAGED
    cache = Path(os.environ.get("NELF_CACHE") or Path.home() / ".cache" / "nelf")
    folder = cache / f"onnxruntime-web-{VERSION}"
    if not all((folder / name).is_file() for name in FILES):
        print(f"Fetching ONNX Runtime Web {VERSION} for the viewer, once for this machine: {folder}", flush=True)
        fetch(folder)
    return folder


def fetch(folder: Path) -> None:
    """Fetch the files from the npm registry that npm is configured with.

    Args:
        folder: the folder for them.

    Raises:
        UserError: npm is missing or fails, or a checksum differs.
    """
    what = f"onnxruntime-web@{VERSION}"
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(
            f"viewer: {what} is not in {folder}, and npm, which would fetch it, is not installed. Install Node.js, "
            f"or put {', '.join(FILES)} there."
        )
    with tempfile.TemporaryDirectory() as temporary:
        done = subprocess.run(
            [npm, "pack", what, "--json", "--fetch-retries=1", "--pack-destination", temporary],
            capture_output=True,
            text=True,
            check=False,
        )
        archives = list(Path(temporary).glob("*.tgz"))
        if done.returncode or not archives:
            raise UserError(f"viewer: npm could not fetch {what} ({_reason(done.stdout)}).")
        with tarfile.open(archives[0]) as archive:
            for name, digest in FILES.items():
                member = archive.extractfile(f"package/dist/{name}")
                content = member.read() if member else b""
                if hashlib.sha256(content).hexdigest() != digest:
                    raise UserError(f"viewer: {name} of {what} is not the file that this nelf knows; it is not used.")
                with atomic_path(folder / name) as partial:
                    partial.write_bytes(content)


def _reason(output: str) -> str:
    """The reason of a failure, from npm's JSON."""
    try:
        return str(json.loads(output)["error"]["summary"]).splitlines()[0][:200]
    except (ValueError, LookupError, TypeError):
        return "no reason given"
