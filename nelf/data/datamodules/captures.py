"""LightningDataModules of real captures: the formats of HyperNeRF, LLFF and COLMAP, and photographs alone."""

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
        image_scale: selects the images: 4 for those in ``rgb/4x``.
        split: ``vrig`` for the splits in the files, ``interp`` for every fourth frame for training; ``auto`` is
            ``interp`` if the files name no validation views.
        width: images are downsampled further, to this width; None keeps their size.
        near: smallest z-depth; replaces the files'.
        far: largest z-depth; replaces the files'.
        aabb: box, smallest x y z, largest x y z; None for the box of what the cameras see.
        **options: see ``SceneDataModule``.

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
        factor: downsampling factor: 8 for the images in ``images_8``.
        width: images are downsampled further, to this width; None keeps their size.
        ndc: rays are in normalized device coordinates.
        spherify: the cameras surround an object; needs ``ndc=False``.
        holdout: of every ``holdout`` views, the first is held out, for val and test.
        near: smallest z-depth, scene units; None for 0.9 times the smallest bound.
        far: largest z-depth; None for the largest bound.
        aabb: box, smallest x y z, largest x y z; None for the box of what the cameras see.
        **options: see ``SceneDataModule``.

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
        width: images are downsampled to this width; None keeps their size.
        holdout: of every ``holdout`` views, sorted by name, the first is held out, for val and test.
        skip_missing: leave out views whose image is missing.
        near: smallest z-depth, scene units; None to derive it from the points.
        far: largest z-depth; None to derive it from the points.
        aabb: box, smallest x y z, largest x y z; None to derive it from the points.
        **options: see ``SceneDataModule``.

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
    """Photographs or a video, whose cameras COLMAP reconstructs once, see ``nelf.data.photos``.

    Args:
        root: a folder of photographs, or a video file.
        frames: number of frames taken from a video.
        width: images are downsampled to this width; None keeps their size, at most 1600 pixels for the longer side.
        holdout: see ``ColmapDataModule``.
        near: see ``ColmapDataModule``.
        far: see ``ColmapDataModule``.
        aabb: see ``ColmapDataModule``.
        **options: see ``SceneDataModule``.

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
        """Register the photographs, unless that has been done."""
        register_photos(self.root, self.frames)

    def read(self) -> Scene:
        """Read the scene from disk."""
        scene = read_colmap(registration_folder(self.root), **self._reading)
        return replace(scene, name=self.root.resolve().stem)
