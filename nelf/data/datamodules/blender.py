"""LightningDataModules of scenes in the format of Blender and D-NeRF."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from nelf.data.blender import read_scene
from nelf.data.datamodules.base import SceneDataModule, check_choice, check_option
from nelf.errors import Count, ImageWidth
from nelf.scene import Scene, background_color

__all__ = ["BlenderDataModule", "DNeRFDataModule"]


class BlenderDataModule(SceneDataModule):
    """A scene in the Blender, D-NeRF or ``transforms.json`` format.

    Args:
        root: the scene's directory.
        width: images are reduced to this width; None keeps theirs.
        background: named background of validation and test; None for the one that the scene's files state, or white.
        holdout: of every so many views one is held out for each of val and test, where they have no file.
        near: instead of the file's smallest z-depth (2 where it tells none).
        far: instead of the file's largest z-depth (6 where it tells none).
        aabb: instead of the file's box (+-1.5 where it tells none): smallest x y z, largest x y z.
        skip_missing: leave out frames whose image is not there, and say how many, in place of an error.
        **options: as of ``SceneDataModule``.

    Raises:
        UserError: an argument is out of range; on ``scene``, whatever ``read_scene`` raises.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        width: ImageWidth | None = None,
        background: str | None = None,
        holdout: int = 8,
        near: float | None = None,
        far: float | None = None,
        aabb: list[float] | None = None,
        skip_missing: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        check_option("width", width, width is None or width >= 1, "1 or more, or null")
        if background is not None:
            background_color(background)
        self.root = Path(root)
        self._reading: dict[str, Any] = {"width": width, "background": background, "holdout": holdout}
        self._reading |= {"near": near, "far": far, "aabb": aabb, "skip_missing": skip_missing}

    def read(self) -> Scene:
        """Read the scene from disk."""
        return read_scene(self.root, **self._reading)


class DNeRFDataModule(BlenderDataModule):
    """A scene in the D-NeRF format: Blender's with a time for each view, which is taken as it is stated.

    Where no frame of a file states a time, they are in the order of time and evenly spread over it.

    Args:
        root: the scene's directory.
        evaluate: whose views the final figures are of, ``test`` or ``val``; the other split takes the other's place and
            is looked at while training. Lego's shovel stands otherwise in its test views than in those that it is
            learned from, so its figures are better taken of ``val``.
        time_curriculum: steps over which a training on the scene's own views comes to know its moments one after the
            other (D-NeRF: 10,000 or 100,000 of 800,000); None for all at once.
        **options: as of ``BlenderDataModule``.

    Raises:
        UserError: an argument is out of range; on ``scene``, whatever ``read_scene`` raises.

    Source:
        Pumarola et al. 2021, "D-NeRF: Neural Radiance Fields for Dynamic Scenes" (arXiv 2011.13961).
    """

    def __init__(
        self,
        root: str | Path,
        *,
        evaluate: Literal["test", "val"] = "test",
        time_curriculum: Count | None = None,
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        check_choice("evaluate", evaluate, ("test", "val"))
        check_option(
            "time_curriculum", time_curriculum, time_curriculum is None or time_curriculum >= 1, "1 or more, or null"
        )
        self.evaluate, self.time_curriculum = evaluate, time_curriculum
        self._reading["moving"] = True

    def read(self) -> Scene:
        """Read the scene from disk."""
        scene = super().read()
        return replace(scene, val=scene.test, test=scene.val) if self.evaluate == "val" else scene
