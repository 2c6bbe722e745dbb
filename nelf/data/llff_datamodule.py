"""The LightningDataModule of captures in the format of LLFF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nelf.data.datamodules import SceneDataModule
from nelf.data.llff import read_llff
from nelf.errors import UserError
from nelf.scene import Scene

__all__ = ["LLFFDataModule"]


class LLFFDataModule(SceneDataModule):
    """A forward-facing capture in the format of LLFF.

    Args:
        root: the capture's directory.
        factor: how many times smaller the images are to be: those of ``images_8`` for 8.
        width: images are reduced further, to this width; None keeps theirs.
        ndc: rays run in normalized device coordinates.
        spherify: the cameras stand around something; needs ``ndc=False``.
        holdout: of every so many views one is held out for each of val and test.
        near: instead of 0.9 times the smallest bound: smallest z-depth, in the unit of the scene.
        far: instead of the largest bound.
        aabb: instead of the box of what the cameras see: smallest x y z, largest x y z.
        **options: as of ``SceneDataModule``.

    Raises:
        UserError: an argument is out of range; on ``scene``, whatever ``read_llff`` raises.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        factor: int = 8,
        width: int | None = None,
        ndc: bool = True,
        spherify: bool = False,
        holdout: int = 8,
        near: float | None = None,
        far: float | None = None,
        aabb: list[float] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if factor < 1:
            raise UserError(f"data.factor: is {factor}; allowed: 1 or more.")
        if width is not None and width < 1:
            raise UserError(f"data.width: is {width}; allowed: 1 or more, or null.")
        if ndc and spherify:
            raise UserError("data.spherify: is true, and so is data.ndc; allowed: one of them.")
        self.root = Path(root)
        self._reading: dict[str, Any] = {"factor": factor, "width": width, "ndc": ndc, "spherify": spherify}
        self._reading |= {"holdout": holdout, "near": near, "far": far, "aabb": aabb}

    def read(self) -> Scene:
        """Read the scene from disk."""
        return read_llff(self.root, **self._reading)
