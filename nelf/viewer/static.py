"""The page that draws a bundle in a browser: plain files, no build step, no request beyond its own folder.

``page/`` is the page, which draws light fields on grids by itself (``kernels/``, compiled); ``web_runtime`` finds ONNX
Runtime Web (MIT, Microsoft), which it fetches for all others.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from nelf.errors import atomic_path
from nelf.viewer.web_runtime import runtime_folder

__all__ = ["page_files", "write"]

_PAGE = Path(__file__).parent / "page"


def page_files() -> dict[str, Path]:
    """All files of the page and of its runtime, by their paths below the bundle.

    Raises:
        UserError: the runtime is neither here nor can be fetched.
    """
    own = {path.name: path for path in sorted(_PAGE.iterdir()) if path.is_file()}
    return own | {f"runtime/{path.name}": path for path in sorted(runtime_folder().iterdir())}


def write(folder: Path | str) -> Path:
    """Put the page into a bundle, so that any static host serves it as it is.

    Args:
        folder: the bundle.

    Returns:
        The page, ``index.html``.

    Raises:
        UserError: the directory cannot be written, or the runtime is neither here nor can be fetched.
    """
    for name, path in page_files().items():
        with atomic_path(Path(folder) / name) as partial:
            shutil.copyfile(path, partial)
    return Path(folder) / "index.html"
