"""LightningDataModules of the built-in scenes, which are written once to disk and read like any other."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from nelf.data import demo, demo_dynamic, demo_handheld
from nelf.data.datamodules.base import check_choice
from nelf.data.datamodules.blender import BlenderDataModule, DNeRFDataModule
from nelf.data.datamodules.captures import HyperNeRFDataModule
from nelf.errors import ImageWidth

__all__ = ["DemoDataModule", "DemoDynamicDataModule", "DemoHandheldDataModule"]

_DEMO_WIDTH = 200  # pixels


class DemoDataModule(BlenderDataModule):
    """The built-in procedural scene, written once to disk and read like any other.

    Args:
        root: the scene's directory, written if it does not exist; None for a folder per scene and width in
            ``$NELF_CACHE/demo`` or ``~/.cache/nelf/demo``.
        scene: which built-in scene, one of ``nelf.data.demo.SCENES``.
        width: image width in pixels; None for 200.
        **options: see ``BlenderDataModule``.

    Raises:
        UserError: an argument is out of range, or the directory cannot be written.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        *,
        scene: str = "blocks",
        width: ImageWidth | None = None,
        **options: Any,
    ) -> None:
        check_choice("scene", scene, tuple(demo.SCENES))
        self._demo, self._size = scene, _DEMO_WIDTH if width is None else width
        super().__init__(_cache() / f"{scene}_{self._size}" if root is None else root, width=width, **options)

    def prepare_data(self) -> None:
        """Render and write the scene unless it is there."""
        demo.write(self.root, scene=self._demo, width=self._size)


class DemoDynamicDataModule(DNeRFDataModule):
    """A built-in moving scene, written once to disk and read like any other.

    Args:
        root: the scene's directory, written if it does not exist; None for the cache, as in ``DemoDataModule``.
        scene: which built-in scene, one of ``nelf.data.demo_dynamic.SCENES``.
        width: image width in pixels; None for 200.
        **options: see ``DNeRFDataModule``.

    Raises:
        UserError: an argument is out of range, or the directory cannot be written.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        *,
        scene: str = "robot",
        width: ImageWidth | None = None,
        **options: Any,
    ) -> None:
        check_choice("scene", scene, tuple(demo_dynamic.SCENES))
        self._demo, self._size = scene, _DEMO_WIDTH if width is None else width
        super().__init__(_cache() / f"{scene}_{self._size}" if root is None else root, width=width, **options)

    def prepare_data(self) -> None:
        """Render and write the scene unless it is there."""
        demo_dynamic.write(self.root, scene=self._demo, width=self._size)


class DemoHandheldDataModule(HyperNeRFDataModule):
    """The built-in capture, written once to disk and read like any other.

    Args:
        root: the capture's directory, written if it does not exist; None for ``$NELF_CACHE/demo/handheld`` or
            ``~/.cache/nelf/demo/handheld``.
        image_scale: 1 for images of 120x160 pixels, 2 for 60x80.
        **options: see ``HyperNeRFDataModule``.

    Raises:
        UserError: an argument is out of range, or the directory cannot be written.
    """

    def __init__(self, root: str | Path | None = None, *, image_scale: int = 1, **options: Any) -> None:
        super().__init__(_cache() / "handheld" if root is None else root, image_scale=image_scale, **options)

    def prepare_data(self) -> None:
        """Render and write the capture unless it is there."""
        demo_handheld.write(self.root)


def _cache() -> Path:
    """The folder of the built-in scenes."""
    return Path(os.environ.get("NELF_CACHE") or Path.home() / ".cache" / "nelf") / "demo"
