"""Show a light field in a notebook: ``nelf.view(RUN)``."""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path
from typing import Any

from nelf.errors import UserError
from nelf.viewer.server import Server

__all__ = ["view"]


def view(model: Any, scene: Any = None, height: int = 560) -> Any:
    """Show a light field in a notebook, live.

    Args:
        model: a run directory or a bundle; or a light field (or a student with one), which is exported first.
        scene: for a light field, its scene, which gives size, lens and the limits of the camera.
        height: height of the frame, pixels.

    Returns:
        An IFrame with the page, which this process serves until it ends.

    Raises:
        UserError: there is no bundle, or a light field comes without its scene.
    """
    from IPython.display import IFrame

    folder = model if isinstance(model, str | Path) else _export(getattr(model, "network", model), scene)
    server = Server(folder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return IFrame(server.address, "100%", height)


def _export(network: Any, scene: Any) -> Path:
    """Write a bundle of one network into a temporary folder."""
    from nelf.export import onnx, write_bundle
    from nelf.export.bundle import artifact
    from nelf.export.inputs import output_of
    from nelf.export.volume import rounded, write_volume

    if scene is None:
        raise UserError("nelf.view: a light field needs its scene: nelf.view(network, data.scene).")
    folder = Path(tempfile.mkdtemp(prefix="nelf-view-"))
    kind = network.entries[0]
    volume = None
    if kind == "features":  # in 16 bits, since download size does not matter here
        volume = write_volume(network, folder / "volume.bin.gz", "float16")
        network = rounded(network, "float16")
    error = onnx(network, folder / "model.onnx", scene.test.camera[:1].pinhole(), kind)
    entry = artifact(
        type(network).__name__,
        folder / "model.onnx",
        kind,
        "fp32",
        volume,
        output=output_of(network),
        window=network.window,
        max_abs_error=error,
    )
    write_bundle(folder, scene, network, [entry])
    return folder
