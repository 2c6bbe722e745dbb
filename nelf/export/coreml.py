"""Export a light field as a Core ML package, which only Apple's devices can run. Needs the extra ``coreml``."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

from nelf.cameras import Camera
from nelf.errors import UserError, atomic_path
from nelf.export.graph import exact, graph_module, quiet
from nelf.export.inputs import check_kind, feed_of, output_of
from nelf.lightfields import LightField

__all__ = ["check_installed", "mlpackage"]


def check_installed() -> None:
    """Check that coremltools is installed.

    Raises:
        UserError: it is not; the message says how to install it.
    """
    if importlib.util.find_spec("coremltools") is None:
        raise UserError("coreml: coremltools is not installed: pip install 'nelf[coreml]'.")


def mlpackage(network: LightField, path: Path | str, camera: Camera, kind: str | None = None) -> Path:
    """Write a light field as an ML program with 16-bit arithmetic, for images of one size.

    Args:
        network: a trained light field.
        path: the package, a folder whose name ends in ``.mlpackage``.
        camera: a single camera, which gives the size.
        kind: kind of its inputs, see ``nelf.export.inputs``; None for the one that suits a viewer.

    Returns:
        The package. Its output is not compared with the network's, since only macOS can run it.

    Raises:
        UserError: coremltools is not installed, the network has no such kind of input, or the package cannot be
            written.
    """
    check_installed()
    kind = kind or network.entries[0]
    check_kind(network, kind)
    network = exact(network)
    feeds = feed_of(network, kind, camera)
    with quiet(("coremltools",)), torch.no_grad():
        import coremltools

        example = tuple(torch.from_numpy(array) for array in feeds.values())
        model = coremltools.convert(
            torch.jit.trace(graph_module(network, kind, camera), example),
            inputs=[coremltools.TensorType(name, array.shape) for name, array in feeds.items()],
            outputs=[coremltools.TensorType(output_of(network))],
            convert_to="mlprogram",
        )
        with atomic_path(path) as partial:
            model.save(str(partial))
    return Path(path)
