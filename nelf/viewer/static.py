"""The page that renders a bundle in a browser: plain files, no build step, no requests outside its own folder.

``page/`` is the page, which renders GridR2L and GridDyLiN with its own kernels (compiled from ``kernels/``). For other
networks it loads ONNX Runtime Web (MIT, Microsoft), see ``web_runtime``.
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
        UserError: the runtime is missing and cannot be fetched.
    """
    own = {path.name: path for path in sorted(_PAGE.iterdir()) if path.is_file()}
    return own | {f"runtime/{path.name}": path for path in sorted(runtime_folder().iterdir())}


def write(folder: Path | str) -> Path:
    """Copy the page into a bundle, so that any static host can serve it.

    Args:
        folder: the bundle.

    Returns:
        The page, ``index.html``.

    Raises:
        UserError: the directory cannot be written, or the runtime is missing and cannot be fetched.
    """
    for name, path in page_files().items():
        with atomic_path(Path(folder) / name) as partial:
            shutil.copyfile(path, partial)
    return Path(folder) / "index.html"
