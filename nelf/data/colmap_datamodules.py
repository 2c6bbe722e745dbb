"""LightningDataModules of photographs: with COLMAP's cameras, or with cameras that are yet to be found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from nelf.data.colmap import read_colmap
from nelf.data.datamodules import SceneDataModule
from nelf.data.photos import register_photos, registration_folder
from nelf.errors import UserError
from nelf.scene import Scene

__all__ = ["ColmapDataModule", "PhotosDataModule"]


class ColmapDataModule(SceneDataModule):
    """A COLMAP reconstruction with its photographs.

    Args:
        root: the scene's directory, with ``images/`` and ``sparse/0/``.
        images: the folder of the photographs in it, such as ``images_4``.
        width: images are reduced to this width; None keeps theirs.
        holdout: of every so many views, sorted by name, one is held out for each of val and test.
        skip_missing: leave out views whose image is missing.
        near: instead of what the points say: smallest z-depth, scene unit.
        far: largest z-depth.
        aabb: box, smallest x y z, largest x y z.
        **options: as of ``SceneDataModule``.

    Raises:
        UserError: an argument is out of range; on ``scene``, whatever ``read_colmap`` raises.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        images: str = "images",
        width: int | None = None,
        holdout: int = 8,
        skip_missing: bool = False,
        near: float | None = None,
        far: float | None = None,
        aabb: list[float] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.root = Path(root)
        self._reading: dict[str, Any] = {"images": images, "width": width, "holdout": holdout}
        self._reading |= {"skip_missing": skip_missing, "near": near, "far": far, "aabb": aabb}

    def read(self) -> Scene:
        """Read the scene from disk."""
        return read_colmap(self.root, **self._reading)


class PhotosDataModule(SceneDataModule):
    """Photographs, or a video, whose cameras COLMAP finds once, see ``nelf.data.photos``.

    Args:
        root: a folder of photographs, or a video file.
        frames: how many are taken of a video.
        width: images are reduced to this width; None keeps theirs, at most 1600 pixels for the longer side.
        holdout: as of ``ColmapDataModule``, and so are the next three.
        near: see there.
        far: see there.
        aabb: see there.
        **options: as of ``SceneDataModule``.

    Raises:
        UserError: an argument is out of range; on ``scene``, whatever ``register_photos`` or ``read_colmap`` raises.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        frames: int = 80,
        width: int | None = None,
        holdout: int = 8,
        near: float | None = None,
        far: float | None = None,
        aabb: list[float] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if frames < 5:
            raise UserError(f"data.frames: is {frames}; allowed: 5 or more.")
        self.root, self.frames = Path(root), frames
        self._reading: dict[str, Any] = {"width": width, "holdout": holdout, "near": near, "far": far, "aabb": aabb}

    def prepare_data(self) -> None:
        """Register the photographs unless that is done."""
        register_photos(self.root, self.frames)

    def read(self) -> Scene:
        """Read the scene from disk."""
        scene = read_colmap(registration_folder(self.root), **self._reading)
        return replace(scene, name=self.root.resolve().stem)
