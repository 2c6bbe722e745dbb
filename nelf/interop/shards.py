"""Shards of rays, as R2L and DyLiN write and read them: folders of ``.npy`` files whose rows are rays with their color.

A row holds origin, direction (OpenGL axes, camera z -1, not normalized) and color on the background, shuffled; with
poses and pixels gone, so only a student that learns from single rays can use them. The rays go through the upper left
corners of pixels, so what is learned from them lies half a pixel of their images off: ``R2LShardsDataModule`` shifts
the cameras of its scene by as much.
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

#: By layout: columns of a row, those of the color, and that of the time.
_LAYOUTS: dict[str, tuple[int, slice, int | None]] = {
    "color": (9, slice(6, 9), None),
    "depth": (10, slice(6, 9), None),
    "surface": (12, slice(6, 9), None),
    "time": (12, slice(9, 12), 6),
}
_EITHER = "surface (R2L: o, d, rgb, point) or time (DyLiN: o, d, t t t, rgb)"


class RayShards(IterableDataset[RayBatch]):
    """An endless stream of batches from a folder of shards.

    Each pass takes the files in a new order and every row once. Batch ``k`` of a process is a pure function of
    ``(seed, rank, k)``; of a file, only the rows that a batch needs are read.

    Args:
        root: the folder; all ``.npy`` files in it, of one kind.
        size: rays per batch and process.
        layout: what is in a row: ``color`` (9 columns), ``depth`` (10) or ``surface`` (12), whose last columns R2L
            never reads, or ``time`` (12; DyLiN). None for what the number of columns tells; 12 may be two things, and
            have to be named.
        seed: which stream.
        first: number of batches that were drawn before.
        rank: index of this process.
        world: number of processes.

    Raises:
        UserError: there are no files, or a file that is not what is described; on a batch, numbers that are not finite.

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
        """Yield batches without end; of several loader workers each yields every ``num_workers``-th batch."""
        worker = get_worker_info()
        index, step = (self.first, 1) if worker is None else (self.first + worker.id, worker.num_workers)
        while True:
            yield self.batch(index)
            index += step

    def _layout(self, rows: np.ndarray, stated: str | None) -> str:
        """The layout that is stated, or the only one with so many columns."""
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
        """How many rays a file holds, by its size; its header is read with it."""
        rows, rest = divmod(path.stat().st_size - self._header, self._row)
        if rest or rows < 1:
            raise UserError(f"{path}: is not whole, or not of {self.columns} columns as {self.files[0].name} is.")
        return rows

    def _shuffled(self, number: int) -> tuple[int, np.ndarray, np.ndarray]:
        """A pass: its number, the order of the files, and the place of each one's first ray."""
        order = np.random.default_rng((self.seed, number)).permutation(len(self.files))
        return number, order, np.concatenate([[0], np.cumsum(self._counts[order])])

    def _read(self, place: int) -> np.ndarray:
        """The rows (size, columns) float32 from a place in the endless stream on."""
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
        """Rows of one file, checked."""
        path = self.files[file]
        rows = open_array(path, (int(self._counts[file]), self.columns))
        return finite(path, rows[first : first + at_most])


class R2LShardsDataModule(BlenderDataModule):
    """Training batches from shards; validation and test views from the Blender scene that they were made of.

    The scene's cameras are shifted by half a pixel of the images that the shards were made of, as their rays are.

    Args:
        root: the Blender scene.
        shards: the folder of shards.
        layout: see ``RayShards``.
        shard_width: of the images that the shards were made of, pixels (R2L's commands halve Blender's to 400).
        **options: as of ``BlenderDataModule``.

    Raises:
        UserError: as of ``BlenderDataModule`` and ``RayShards``; and for a network that learns from images.
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
        """Read the scene, and shift its cameras."""
        scene = super().read()
        for name in ("train", "val", "test"):
            split: Split = getattr(scene, name)
            setattr(scene, name, replace(split, camera=split.camera.shifted(0.5 / self.shard_width)))
        return scene

    def train_dataloader(self) -> Iterable[RayBatch]:
        """Batches of rays without end, from the first one that this run has not drawn yet."""
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
