"""LightningDataModules of real captures: in the formats of HyperNeRF and LLFF, COLMAP's, and photographs alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from nelf.data.colmap import read_colmap
from nelf.data.datamodules.base import SceneDataModule, check_choice, check_option
from nelf.data.hypernerf import read_capture
from nelf.data.llff import read_llff
from nelf.data.photos import register_photos, registration_folder
from nelf.errors import Count, ImageWidth, UserError
from nelf.scene import Scene

__all__ = ["ColmapDataModule", "HyperNeRFDataModule", "LLFFDataModule", "PhotosDataModule"]


class HyperNeRFDataModule(SceneDataModule):
    """A hand-held capture in the format of Nerfies and HyperNeRF.

    Args:
        root: the capture's directory.
        image_scale: which images: those of ``rgb/4x`` for 4.
        split: ``vrig`` as the files say, ``interp`` with every fourth frame for training; ``auto`` is ``interp`` where
            the files name no validation views.
        width: images are reduced further, to this width; None keeps theirs.
        near: instead of the files' smallest z-depth.
        far: instead of the files' largest z-depth.
        aabb: instead of the box of what the cameras see: smallest x y z, largest x y z.
        **options: as of ``SceneDataModule``.

    Raises:
        UserError: an argument is out of range; on ``scene``, whatever ``read_capture`` raises.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        image_scale: Count = 4,
        split: Literal["auto", "vrig", "interp"] = "auto",
        width: ImageWidth | None = None,
        near: float | None = None,
        far: float | None = None,
        aabb: list[float] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        check_option("image_scale", image_scale, image_scale >= 1, "1 or more")
        check_choice("split", split, ("auto", "vrig", "interp"))
        check_option("width", width, width is None or width >= 1, "1 or more, or null")
        self.root = Path(root)
        self._reading: dict[str, Any] = {"image_scale": image_scale, "split": split, "width": width}
        self._reading |= {"near": near, "far": far, "aabb": aabb}

    def read(self) -> Scene:
        """Read the scene from disk."""
        return read_capture(self.root, **self._reading)


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
        factor: Count = 8,
        width: ImageWidth | None = None,
        ndc: bool = True,
        spherify: bool = False,
        holdout: int = 8,
        near: float | None = None,
        far: float | None = None,
        aabb: list[float] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        check_option("factor", factor, factor >= 1, "1 or more")
        check_option("width", width, width is None or width >= 1, "1 or more, or null")
        if ndc and spherify:
            raise UserError("data.spherify: is true, and so is data.ndc; allowed: one of them.")
        self.root = Path(root)
        self._reading: dict[str, Any] = {"factor": factor, "width": width, "ndc": ndc, "spherify": spherify}
        self._reading |= {"holdout": holdout, "near": near, "far": far, "aabb": aabb}

    def read(self) -> Scene:
        """Read the scene from disk."""
        return read_llff(self.root, **self._reading)


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
        width: ImageWidth | None = None,
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
        frames: Count = 80,
        width: ImageWidth | None = None,
        holdout: int = 8,
        near: float | None = None,
        far: float | None = None,
        aabb: list[float] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        check_option("frames", frames, frames >= 5, "5 or more")
        self.root, self.frames = Path(root), frames
        self._reading: dict[str, Any] = {"width": width, "holdout": holdout, "near": near, "far": far, "aabb": aabb}

    def prepare_data(self) -> None:
        """Register the photographs unless that is done."""
        register_photos(self.root, self.frames)

    def read(self) -> Scene:
        """Read the scene from disk."""
        scene = read_colmap(registration_folder(self.root), **self._reading)
        return replace(scene, name=self.root.resolve().stem)
