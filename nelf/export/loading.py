"""Load any model that renders: weights of a network, a graph of a bundle, a program for phones."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import nn

from nelf import storage
from nelf.export.runtime import load as load_exported
from nelf.files import is_file

__all__ = ["EXPORTED", "load"]

#: Suffixes of files that need no PyTorch.
EXPORTED = (".onnx", ".pte")


def load(path: str | os.PathLike[str], network: nn.Module | None = None, device: str = "cpu") -> Any:
    """Load a model, ready to render.

    Args:
        path: a ``.safetensors`` file, or the folder of a run or stage that holds ``model.safetensors``; or a bundle,
            for its first artifact, or one of its ``.onnx`` or ``.pte`` files.
        network: a network of your own to load the weights into; None builds the one that the file describes.
        device: device of a network; graphs and programs run on the CPU.

    Returns:
        A network in evaluation mode, or an ``ExportedLightField``; both have ``render(camera)``.

    Raises:
        UserError: see ``nelf.storage.load`` and ``nelf.export.runtime.load``.
    """
    path = Path(path)
    if path.suffix in EXPORTED or is_file(path / "bundle.json"):
        return load_exported(path)
    return storage.load(path, network, device)
