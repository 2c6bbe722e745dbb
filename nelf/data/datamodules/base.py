"""The base class of nelf's LightningDataModules."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import copy
from typing import Any, Literal, TypeVar

import pytorch_lightning as pl
from torch.utils.data import DataLoader, Dataset

from nelf.data.batches import Batches, ImageBatch
from nelf.data.online import OnlineSplit
from nelf.data.resident import resident
from nelf.errors import UserError, did_you_mean
from nelf.scene import Scene, Split, View

__all__ = ["SceneDataModule", "check_choice", "check_option"]

T = TypeVar("T")


class SceneDataModule(pl.LightningDataModule):
    """A scene as batches. Either a subclass implements ``read``, or the scene is given.

    Args:
        scene: the scene; None for the one that ``read`` returns.
        batch: the kind of training batches: ``rays`` (``RayBatch``) or ``views`` (``ImageBatch``). A system states what
            it needs: ``SceneDataModule(..., **system.batches)``.
        batch_size: rays or views per training batch and process.
        ray_shift: offset of training rays to the left of and above pixel centers, in image widths, see
            ``LightField.ray_shift``. The cameras of validation and test views are not shifted.
        part: selects the part of a training batch of views that is sent to the device; None for all of it.
        sampling: ``all_images`` draws a view for each ray, ``same_image`` one view for all rays of a batch.
        num_workers: loader processes; they do not change the batches.
        seed: seed of the stream of training batches.

    Raises:
        UserError: an argument is out of range; on ``scene``, whatever ``read`` raises.
    """

    #: Steps over which later views are added to training, see ``time_curriculum`` of ``Batches``.
    time_curriculum: int | None = None

    def __init__(
        self,
        scene: Scene | None = None,
        /,
        *,
        batch: Literal["rays", "views"] = "rays",
        batch_size: int = 8192,
        ray_shift: float = 0.0,
        part: Callable[[ImageBatch], Any] | None = None,
        sampling: Literal["all_images", "same_image"] = "all_images",
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_option("batch_size", batch_size, batch_size >= 1, "1 or more")
        check_option("num_workers", num_workers, num_workers >= 0, "0 or more")
        check_choice("sampling", sampling, ("all_images", "same_image"))
        check_choice("batch", batch, ("rays", "views"))
        self.batch, self.batch_size, self.sampling = batch, batch_size, sampling
        self.ray_shift, self.part, self.num_workers, self.seed = ray_shift, part, num_workers, seed
        self._scene = scene

    def read(self) -> Scene:
        """Read the scene from disk."""
        raise NotImplementedError(f"{type(self).__name__}: has no method `read`, and no scene was given.")

    @property
    def scene(self) -> Scene:
        """The scene; read from disk on first access."""
        if self._scene is None:
            self.prepare_data()
            self._scene = self.read()
        return self._scene

    @property
    def rendered(self) -> float | None:
        """How many views a teacher has rendered online so far; None if the training views are stored."""
        train = self.scene.train
        return train.rendered if isinstance(train, OnlineSplit) else None

    def drawing(
        self,
        batch: Literal["rays", "views"],
        batch_size: int,
        ray_shift: float = 0.0,
        part: Callable[[ImageBatch], Any] | None = None,
        scene: Scene | None = None,
        stream: int = 0,
    ) -> SceneDataModule:
        """The same datamodule with other training batches; the scene is read once for both.

        Args:
            batch: see the class.
            batch_size: see the class.
            ray_shift: see the class.
            part: see the class.
            scene: replaces the scene, and switches the time curriculum off.
            stream: added to the seed.
        """
        other = copy(self)
        other.batch, other.batch_size, other.ray_shift, other.seed = batch, batch_size, ray_shift, self.seed + stream
        other.part = part
        other._scene = self.scene if scene is None else scene
        if scene is not None:  # for a student: a trained teacher's views need no curriculum
            other.time_curriculum = None
        return other

    def setup(self, stage: str) -> None:
        """Read the scene before the first batch is needed."""
        _ = self.scene

    def train_dataloader(self) -> Iterable[Any]:
        """Endless training batches, beginning with the first one that this run has not drawn yet."""
        trainer = self.trainer
        per_step = trainer.accumulate_grad_batches if trainer else 1
        split = self.scene.train
        if trainer and not self.num_workers:
            split = resident(split, trainer.strategy.root_device)
        batches = Batches(
            split.shifted(self.ray_shift),
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

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Select the part of a training batch that its system needs, before it is sent to the device."""
        is_wanted = self.part is not None and isinstance(batch, ImageBatch)
        return self.part(batch) if is_wanted else batch  # type: ignore[misc]

    def val_dataloader(self) -> Iterable[View]:
        """Validation views, one at a time."""
        return _loader(_Views(self.scene.val), 0)

    def test_dataloader(self) -> Iterable[View]:
        """Test views, one at a time."""
        return _loader(_Views(self.scene.test), 0)


class _Views(Dataset[View]):
    """The views of a split as a map-style dataset."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> View:
        return self.split[index]


def _loader(dataset: Dataset[Any], num_workers: int) -> DataLoader[Any]:
    """A loader that passes on the dataset's items unchanged."""
    return DataLoader(dataset, batch_size=None, collate_fn=_same, num_workers=num_workers)


def _same(item: T) -> T:
    """Collate function for items that are batches already."""
    return item


def check_option(key: str, value: object, good: bool, allowed: str) -> None:
    """Refuse an argument that is out of range.

    Args:
        key: its name.
        value: its value, for the message.
        good: whether the value is allowed.
        allowed: what is allowed, in words.

    Raises:
        UserError: the value is not allowed.
    """
    if not good:
        raise UserError(f"data.{key}: is {value}; allowed: {allowed}.")


def check_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a word that is not one of the choices."""
    check_option(
        key,
        repr(value),
        value in choices,
        f"{', '.join(choices)}.{did_you_mean(str(value), choices)}".rstrip("."),
    )
