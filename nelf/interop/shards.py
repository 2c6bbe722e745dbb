"""Shards of rays in the format of R2L and DyLiN: folders of ``.npy`` files whose rows are rays with their colors.

A row holds origin, direction (OpenGL axes, camera z = -1, not normalized) and color on the background. Rows are
shuffled, and poses and pixels are lost, so only students of single rays can be trained on them. The rays go through the
upper left corners of pixels, so a student trained on them is shifted by half a pixel of their images;
``R2LShardsDataModule`` shifts the cameras of its scene accordingly.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from nelf.data import BlenderDataModule, RayBatch
from nelf.errors import UserError, did_you_mean
from nelf.files import finite, open_array
from nelf.rays import Rays
from nelf.scene import Scene, Split

__all__ = ["R2LShardsDataModule", "RayShards"]

#: By layout: number of columns, columns of the color, and column of the time.
_LAYOUTS: dict[str, tuple[int, slice, int | None]] = {
    "color": (9, slice(6, 9), None),
    "depth": (10, slice(6, 9), None),
    "surface": (12, slice(6, 9), None),
    "time": (12, slice(9, 12), 6),
}
_EITHER = "surface (R2L: o, d, rgb, point) or time (DyLiN: o, d, t t t, rgb)"


class RayShards(IterableDataset[RayBatch]):
    """An endless stream of batches from a folder of shards.

    Each pass reads the files in a new order and every row once. Batch ``k`` of a process is a pure function of
    ``(seed, rank, world, k)``; only the rows of the batch are read.

    Args:
        root: the folder, whose ``.npy`` files all have the same layout.
        size: rays per batch and process.
        layout: layout of a row: ``color`` (9 columns), ``depth`` (10) or ``surface`` (12), whose last columns R2L does
            not use, or ``time`` (12; DyLiN). None to infer it from the number of columns, which is ambiguous for 12.
        seed: seed of the stream.
        first: number of batches that have been drawn before.
        rank: index of this process.
        world: number of processes.

    Raises:
        UserError: there are no files, or a file does not fit the layout; on a batch, numbers that are not finite.

    Source:
        github.com/snap-research/R2L, ``utils/create_data.py``; DyLiN (arXiv 2303.14243), ``dataset/load_blender.py``.
    """

    def __init__(
        self,
        root: Path | str,
        size: int,
        layout: Literal["color", "depth", "surface", "time"] | None = None,
        seed: int = 0,
        first: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.root, self.size, self.seed, self.first = Path(root), size, seed, first
        self.rank, self.world = rank, world
        files = [path for path in self.root.glob("*.npy") if path.is_file()]
        self.files = sorted(files, key=lambda path: ([int(part) for part in re.findall(r"\d+", path.stem)], path.name))
        if not self.files:
            raise UserError(f"{self.root}: holds no .npy files; expected shards such as data_1.npy.")
        opened = open_array(self.files[0], (None, None))
        self.columns, self._row = opened.shape[1], opened.dtype.itemsize * opened.shape[1]
        self._header = self.files[0].stat().st_size - opened.nbytes
        self.layout = self._layout(opened, layout)
        self._counts = np.array([self._rows(path) for path in self.files])
        self._pass = self._shuffled(0)

    def __len__(self) -> int:
        """Number of rays."""
        return int(self._counts.sum())

    def batch(self, index: int) -> RayBatch:
        """Batch ``index`` of this process's stream."""
        rows = self._read((index * self.world + self.rank) * self.size)
        _, color, time = _LAYOUTS[self.layout]
        values = torch.from_numpy(rows)
        controls = None if time is None else values[:, time : time + 1]
        rgba = torch.cat([values[:, color], torch.ones(len(values), 1)], 1)
        return RayBatch(Rays(values[:, :3], values[:, 3:6], controls), rgba)

    def __iter__(self) -> Iterator[RayBatch]:
        """Yield batches endlessly; each of several loader workers yields every ``num_workers``-th batch."""
        worker = get_worker_info()
        index, step = (self.first, 1) if worker is None else (self.first + worker.id, worker.num_workers)
        while True:
            yield self.batch(index)
            index += step

    def _layout(self, rows: np.ndarray, stated: str | None) -> str:
        """The stated layout, or the only one with that number of columns."""
        path, names = self.files[0], ", ".join(_LAYOUTS)
        if stated is not None and stated not in _LAYOUTS:
            raise UserError(f"layout: there is no {stated!r}; allowed: {names}.{did_you_mean(stated, _LAYOUTS)}")
        fitting = [name for name, (columns, *_) in _LAYOUTS.items() if columns == self.columns]
        if not fitting or (stated is not None and stated not in fitting):
            described = f" for layout {stated}" if stated else ""
            allowed = str(_LAYOUTS[stated][0]) if stated else "9, 10 or 12"
            raise UserError(f"{path}: has {self.columns} columns; expected {allowed}{described}.")
        if len(fitting) == 1:
            return fitting[0]
        equal = bool((rows[:, 6:7] == rows[:, 6:9]).all())
        if stated is None:
            looks = "equal in every row, as in DyLiN's" if equal else "not equal in every row, as in R2L's"
            raise UserError(f"{path}: has 12 columns: {_EITHER}; columns 6 to 8 are {looks}. Say which by layout=.")
        if stated == "time" and not equal:
            raise UserError(f"{path}: holds no time: its columns 6 to 8 are not equal in every row.")
        return stated

    def _rows(self, path: Path) -> int:
        """The number of rays in a file, from its size; its header is checked when it is read."""
        rows, rest = divmod(path.stat().st_size - self._header, self._row)
        if rest or rows < 1:
            raise UserError(f"{path}: is not whole, or not of {self.columns} columns as {self.files[0].name} is.")
        return rows

    def _shuffled(self, number: int) -> tuple[int, np.ndarray, np.ndarray]:
        """A pass: its number, the order of the files, and the position of each file's first ray."""
        order = np.random.default_rng((self.seed, number)).permutation(len(self.files))
        return number, order, np.concatenate([[0], np.cumsum(self._counts[order])])

    def _read(self, place: int) -> np.ndarray:
        """The rows (size, columns) float32 that begin at a position of the endless stream."""
        parts, left = [], self.size
        while left:
            number, within = divmod(place, len(self))
            if number != self._pass[0]:
                self._pass = self._shuffled(number)
            _, order, firsts = self._pass
            at = int(np.searchsorted(firsts, within, side="right")) - 1
            first = within - int(firsts[at])
            part = self._part(int(order[at]), first, left)
            parts.append(part)
            left, place = left - len(part), place + len(part)
        return np.concatenate(parts)

    def _part(self, file: int, first: int, at_most: int) -> np.ndarray:
        """Rows of one file, checked to be finite."""
        path = self.files[file]
        rows = open_array(path, (int(self._counts[file]), self.columns))
        return finite(path, rows[first : first + at_most])


class R2LShardsDataModule(BlenderDataModule):
    """Training batches from shards; validation and test views from the Blender scene that they were made from.

    The scene's cameras are shifted, like the rays, by half a pixel of the images that the shards were made from.

    Args:
        root: the Blender scene.
        shards: the folder of shards.
        layout: see ``RayShards``.
        shard_width: width of the images that the shards were made from, pixels (R2L's commands halve Blender's to 400).
        **options: see ``BlenderDataModule``.

    Raises:
        UserError: see ``BlenderDataModule`` and ``RayShards``; or the network is trained on whole views.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        shards: str | Path,
        layout: Literal["color", "depth", "surface", "time"] | None = None,
        shard_width: int = 400,
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        if shard_width < 1:
            raise UserError(f"data.shard_width: is {shard_width}; allowed: 1 or more.")
        self.shards, self.layout, self.shard_width = Path(shards), layout, shard_width

    def read(self) -> Scene:
        """Read the scene, and shift its cameras; look whether there are shards."""
        RayShards(self.shards, 1, self.layout)
        scene = super().read()
        for name in ("train", "val", "test"):
            split: Split = getattr(scene, name)
            setattr(scene, name, replace(split, camera=split.camera.shifted(0.5 / self.shard_width)))
        return scene

    def train_dataloader(self) -> Iterable[RayBatch]:
        """Endless batches of rays, beginning with the first one that this run has not drawn yet."""
        if self.batch != "rays":
            raise UserError(f"{self.shards}: holds single rays, but this network learns from {self.batch}; choose r2l.")
        trainer = self.trainer
        batches = RayShards(
            self.shards,
            self.batch_size,
            self.layout,
            seed=self.seed,
            first=trainer.global_step * trainer.accumulate_grad_batches if trainer else 0,
            rank=trainer.global_rank if trainer else 0,
            world=trainer.world_size if trainer else 1,
        )
        return DataLoader(batches, batch_size=None, num_workers=self.num_workers)
