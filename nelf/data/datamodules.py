"""LightningDataModules: a scene's views as training batches, validation views and test views.

Training never ends by itself (no epochs): bound it with ``max_steps`` or ``max_time`` and give the Trainer an
integer ``val_check_interval`` with ``check_val_every_n_epoch=None``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import pytorch_lightning as pl
from torch.utils.data import DataLoader, Dataset

from nelf.data import demo, demo_dynamic, demo_handheld
from nelf.data.batches import Batches
from nelf.data.blender import read_scene
from nelf.data.hypernerf import read_capture
from nelf.errors import Count, ImageWidth, UserError, did_you_mean
from nelf.scene import Scene, Split, View, background_color

__all__ = [
    "BlenderDataModule",
    "DNeRFDataModule",
    "DemoDataModule",
    "DemoDynamicDataModule",
    "DemoHandheldDataModule",
    "HyperNeRFDataModule",
    "SceneDataModule",
]

T = TypeVar("T")

_DEMO_WIDTH = 200  # pixels


class SceneDataModule(pl.LightningDataModule):
    """A scene as batches. A subclass implements ``read``; or the scene is given.

    Args:
        scene: what to draw from; None for what ``read`` returns.
        batch: what a training batch is made of: ``rays`` (``RayBatch``) or ``views`` (``ImageBatch``). A system says
            what it wants: ``SceneDataModule(..., **system.batches)``.
        batch_size: rays, or views, of a training batch and process.
        ray_shift: how far left of and above the centers of pixels the rays of training batches lie, image widths, see
            ``LightField.ray_shift``. The cameras of validation and test views are left to what renders them.
        sampling: ``all_images`` draws the view of each ray anew, ``same_image`` one view for all rays of a batch.
        num_workers: loader processes; batches are the same for any number.
        seed: which stream of training batches.

    Raises:
        UserError: an argument is out of range; on ``scene``, whatever ``read`` raises.
    """

    #: Steps over which a training comes to know the moments of its scene one after the other, see ``Batches``.
    time_curriculum: int | None = None

    def __init__(
        self,
        scene: Scene | None = None,
        /,
        *,
        batch: Literal["rays", "views"] = "rays",
        batch_size: int = 8192,
        ray_shift: float = 0.0,
        sampling: Literal["all_images", "same_image"] = "all_images",
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        _check("batch_size", batch_size, batch_size >= 1, "1 or more")
        _check("num_workers", num_workers, num_workers >= 0, "0 or more")
        _choose("sampling", sampling, ("all_images", "same_image"))
        _choose("batch", batch, ("rays", "views"))
        self.batch, self.batch_size, self.sampling = batch, batch_size, sampling
        self.ray_shift, self.num_workers, self.seed = ray_shift, num_workers, seed
        self._scene = scene

    def read(self) -> Scene:
        """Read the scene from disk."""
        raise NotImplementedError(f"{type(self).__name__}: has no method `read`, and no scene was given.")

    @property
    def scene(self) -> Scene:
        """The scene; read from disk when it is first asked for."""
        if self._scene is None:
            self.prepare_data()
            self._scene = self.read()
        return self._scene

    def drawing(
        self,
        batch: Literal["rays", "views"],
        batch_size: int,
        ray_shift: float = 0.0,
        scene: Scene | None = None,
        stream: int = 0,
    ) -> SceneDataModule:
        """The same datamodule with other training batches; the scene is read once for both.

        Args:
            batch: see the class.
            batch_size: see the class.
            ray_shift: see the class.
            scene: to draw from instead, all moments from the first batch on.
            stream: added to the seed.
        """
        other = copy(self)
        other.batch, other.batch_size, other.ray_shift, other.seed = batch, batch_size, ray_shift, self.seed + stream
        other._scene = self.scene if scene is None else scene
        if scene is not None:  # a student's: its teacher knows all moments, and so do a teacher's views
            other.time_curriculum = None
        return other

    def setup(self, stage: str) -> None:
        """Read the scene before the first batch is needed."""
        _ = self.scene

    def train_dataloader(self) -> Iterable[Any]:
        """Training batches without end, from the first one that this run has not drawn yet."""
        trainer = self.trainer
        per_step = trainer.accumulate_grad_batches if trainer else 1
        split = self.scene.train
        batches = Batches(
            replace(split, camera=split.camera.shifted(self.ray_shift)),
            self.batch,
            self.batch_size,
            sampling=self.sampling,
            seed=self.seed,
            first=trainer.global_step * per_step if trainer else 0,
            time_curriculum=self.time_curriculum and self.time_curriculum * per_step,
            rank=trainer.global_rank if trainer else 0,
            world=trainer.world_size if trainer else 1,
        )
        return _loader(batches, self.num_workers)

    def val_dataloader(self) -> Iterable[View]:
        """Validation views, one at a time."""
        return _loader(_Views(self.scene.val), 0)

    def test_dataloader(self) -> Iterable[View]:
        """Test views, one at a time."""
        return _loader(_Views(self.scene.test), 0)


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
        _check("width", width, width is None or width >= 1, "1 or more, or null")
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
        _choose("evaluate", evaluate, ("test", "val"))
        _check(
            "time_curriculum", time_curriculum, time_curriculum is None or time_curriculum >= 1, "1 or more, or null"
        )
        self.evaluate, self.time_curriculum = evaluate, time_curriculum
        self._reading["moving"] = True

    def read(self) -> Scene:
        """Read the scene from disk."""
        scene = super().read()
        return replace(scene, val=scene.test, test=scene.val) if self.evaluate == "val" else scene


class DemoDataModule(BlenderDataModule):
    """The built-in procedural scene, written once to disk and read like any other.

    Args:
        root: where it is (to be) written; None for ``$NELF_CACHE/demo`` or ``~/.cache/nelf/demo``, one
            folder per scene and width.
        scene: which built-in scene, one of ``nelf.data.demo.SCENES``.
        width: image width in pixels; None for 200.
        **options: as of ``BlenderDataModule``.

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
        _choose("scene", scene, tuple(demo.SCENES))
        self._demo, self._size = scene, _DEMO_WIDTH if width is None else width
        super().__init__(_cache() / f"{scene}_{self._size}" if root is None else root, width=width, **options)

    def prepare_data(self) -> None:
        """Render and write the scene unless it is there."""
        demo.write(self.root, scene=self._demo, width=self._size)


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
        _check("image_scale", image_scale, image_scale >= 1, "1 or more")
        _choose("split", split, ("auto", "vrig", "interp"))
        _check("width", width, width is None or width >= 1, "1 or more, or null")
        self.root = Path(root)
        self._reading: dict[str, Any] = {"image_scale": image_scale, "split": split, "width": width}
        self._reading |= {"near": near, "far": far, "aabb": aabb}

    def read(self) -> Scene:
        """Read the scene from disk."""
        return read_capture(self.root, **self._reading)


class DemoHandheldDataModule(HyperNeRFDataModule):
    """The built-in capture, written once to disk and read like any other.

    Args:
        root: where it is (to be) written; None for ``$NELF_CACHE/demo/handheld`` or ``~/.cache/nelf/demo/handheld``.
        image_scale: 1 for images of 120x160 pixels, 2 for half of that.
        **options: as of ``HyperNeRFDataModule``.

    Raises:
        UserError: an argument is out of range, or the directory cannot be written.
    """

    def __init__(self, root: str | Path | None = None, *, image_scale: int = 1, **options: Any) -> None:
        super().__init__(_cache() / "handheld" if root is None else root, image_scale=image_scale, **options)

    def prepare_data(self) -> None:
        """Render and write the capture unless it is there."""
        demo_handheld.write(self.root)


class DemoDynamicDataModule(DNeRFDataModule):
    """A built-in moving scene, written once to disk and read like any other.

    Args:
        root: where it is (to be) written; None for the cache, as of ``DemoDataModule``.
        scene: which built-in scene, one of ``nelf.data.demo_dynamic.SCENES``.
        width: image width in pixels; None for 200.
        **options: as of ``DNeRFDataModule``.

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
        _choose("scene", scene, tuple(demo_dynamic.SCENES))
        self._demo, self._size = scene, _DEMO_WIDTH if width is None else width
        super().__init__(_cache() / f"{scene}_{self._size}" if root is None else root, width=width, **options)

    def prepare_data(self) -> None:
        """Render and write the scene unless it is there."""
        demo_dynamic.write(self.root, scene=self._demo, width=self._size)


class _Views(Dataset[View]):
    """The views of a split as a map-style dataset."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> View:
        return self.split[index]


def _cache() -> Path:
    """Where built-in scenes are written."""
    return Path(os.environ.get("NELF_CACHE") or Path.home() / ".cache" / "nelf") / "demo"


def _loader(dataset: Dataset[Any], num_workers: int) -> DataLoader[Any]:
    """A loader that passes on what the dataset yields as it is."""
    return DataLoader(dataset, batch_size=None, collate_fn=_same, num_workers=num_workers)


def _same(item: T) -> T:
    """Collate nothing: an item is a batch already."""
    return item


def _check(key: str, value: object, good: bool, allowed: str) -> None:
    """Refuse an argument that is out of range."""
    if not good:
        raise UserError(f"data.{key}: is {value}; allowed: {allowed}.")


def _choose(key: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a word that is none of the choices."""
    _check(
        key,
        repr(value),
        value in choices,
        f"{', '.join(choices)}.{did_you_mean(str(value), choices)}".rstrip("."),
    )
