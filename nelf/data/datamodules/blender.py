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
        width: images are downsampled to this width; None keeps their size.
        background: name of the background in validation and test; None for the one in the scene's files, else white.
        holdout: of every ``holdout`` views, the first is held out for val and test if neither has a file.
        near: smallest z-depth; None for the file's, else derived, see ``nelf.data.bounds.find_bounds``.
        far: largest z-depth; None as for ``near``.
        aabb: box, smallest x y z, largest x y z; None as for ``near``.
        skip_missing: leave out frames whose image is missing, and print how many, instead of an error.
        **options: see ``SceneDataModule``.

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
    """A scene in the D-NeRF format: Blender's with a time for each view.

    If no frame of a file states a time, the frames are taken to be in order and evenly spaced from 0 to 1.

    Args:
        root: the scene's directory.
        evaluate: the split for the final figures, ``test`` or ``val``; with ``val`` the two splits are swapped. In
            lego, the shovel has another position in the test views than in the training views, so ``val`` is better.
        time_curriculum: steps over which later views are added to a training on the scene's own views (D-NeRF: 10,000
            or 100,000 of 800,000); None to train on all views at once.
        **options: see ``BlenderDataModule``.

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
