"""Training batches: rays from all views, or whole views, read from the uint8 images.

A batch is a pure function of the seed and its number: no state is carried from batch to batch. A run that is resumed
after ``k`` batches continues with batch ``k``, without replaying the earlier ones and without a generator's state in
the checkpoint. Loader workers and the processes of a training take the batches in turns, so the sequence of batches
does not depend on their number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from nelf.cameras import Camera
from nelf.data.online import OnlineSplit, order
from nelf.data.ray_cache import ShuffledSplit
from nelf.data.resident import ResidentSplit, sent
from nelf.errors import UserError
from nelf.rays import Rays
from nelf.scene import Split

__all__ = ["Batches", "ImageBatch", "RayBatch", "opening", "sample_rays", "sample_views"]

_FEWEST = 3  # minimum number of views of a time curriculum


class RayBatch(NamedTuple):
    """P rays with the colors of their pixels.

    Attributes:
        rays: (P,).
        rgba: (P, 4) in [0, 1], not premultiplied; alpha 1 where the files have none.
    """

    rays: Rays
    rgba: Tensor


class ImageBatch(NamedTuple):
    """B whole views.

    Attributes:
        camera: a batch of B cameras.
        rgba: (B, H, W, 4) uint8, not premultiplied; alpha 255 where the files have none.
        mask: (B, H, W) bool, False at pixels that are ignored; None if no view of the split has a mask.
    """

    camera: Camera
    rgba: Tensor
    mask: Tensor | None = None


def sample_rays(
    split: Split,
    n_rays: int,
    rng: np.random.Generator,
    sampling: Literal["all_images", "same_image"] = "all_images",
    among: np.ndarray | None = None,
) -> RayBatch:
    """Draw random unmasked pixels, with replacement.

    Args:
        split: the views.
        n_rays: number of rays, P.
        rng: the random generator.
        sampling: ``all_images`` draws a view for each ray, ``same_image`` one view for all rays.
        among: indices of the views to draw from; None for all.

    Returns:
        The rays through the centers of the pixels, with their colors.
    """
    height, width = split.images.shape[1:3]
    count = len(split) if among is None else len(among)
    cameras: Camera = getattr(split, "nearby", split.camera)
    device = cameras.c2w.device
    if sampling == "all_images":
        views, rows, columns = _places(split, n_rays, rng, among)
        camera = cameras[sent(views, device)]
    else:
        pixels = rng.integers(height * width, size=n_rays)
        view = int(rng.integers(count))
        view = view if among is None else int(among[view])
        mask = None if split.masks is None else split.masks[view]
        if mask is not None:
            pixels = rng.choice(np.flatnonzero(mask), n_rays)
        rows, columns = pixels // width, pixels % width
        views, camera = np.full(n_rays, view), cameras[view]
    colors = torch.as_tensor(split.pixels(views, rows, columns), device=device)
    rays = camera.pixel_rays(sent(columns, device), sent(rows, device))
    rgba = torch.ones(n_rays, 4, device=device)
    rgba[:, : colors.shape[1]] = colors
    rgba[:, : colors.shape[1]] /= 255
    return RayBatch(rays, rgba)


def _places(
    split: Split, count: int, rng: np.random.Generator, among: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Views, rows and columns, (count,) each, of random pixels; masked ones are drawn again."""
    height, width = split.images.shape[1:3]
    found = np.empty((3, count), np.int64)
    missing = np.arange(count)
    while len(missing):
        pixels = rng.integers(height * width, size=len(missing))
        views = rng.integers(len(split) if among is None else len(among), size=len(missing))
        views = views if among is None else among[views]
        found[:, missing] = views, pixels // width, pixels % width
        missing = missing[~split.seen(*found[:, missing])]
    return found[0], found[1], found[2]


def sample_views(split: Split, n_views: int, seed: int, first: int) -> ImageBatch:
    """Take views from an endless sequence in which each pass over the split is a new permutation.

    Args:
        split: the views.
        n_views: number of views, B.
        seed: seed of the permutations.
        first: position of the first view in the sequence.

    Returns:
        Views ``first`` to ``first + n_views - 1`` of the sequence.
    """
    places = np.arange(first, first + n_views)
    parts = []
    for turn in np.unique(places // len(split)).tolist():
        views = split.of_round(turn) if isinstance(split, OnlineSplit) else split
        here = places[places // len(split) == turn] % len(split)
        parts.append(_views(views, order(len(split), seed, turn)[here]))
    return parts[0] if len(parts) == 1 else _joined(parts)


def opening(split: Split, share: float) -> np.ndarray:
    """The earliest views of a scene.

    Args:
        split: the views.
        share: the share of the views, 0 to 1, rounded down, but at least three views.

    Returns:
        Their indices, sorted by time.

    Raises:
        UserError: the views have no times.

    Source:
        D-NeRF, ``precrop_iters_time`` (Pumarola et al. 2021, arXiv 2011.13961).
    """
    times = split.camera.time
    if times is None:
        raise UserError("data.time_curriculum: is set, but the scene's views have no times; allowed: null.")
    count = min(max(int(share * len(split)), _FEWEST), len(split))
    return np.argsort(times.cpu().numpy(), kind="stable")[:count]


def _views(split: Split, views: np.ndarray) -> ImageBatch:
    """A batch of the views with these indices."""
    if isinstance(split, ResidentSplit):
        own = split.images[sent(views, split.images.device)]
    else:
        own = torch.from_numpy(split.images[views])
    images = own.new_full((*own.shape[:3], 4), 255)
    images[..., : own.shape[-1]] = own
    mask = None
    if split.masks is not None:
        known = [split.masks[view] for view in views]
        everywhere = np.ones(images.shape[1:3], bool)
        mask = sent(np.stack([everywhere if each is None else each for each in known]), own.device)
    return ImageBatch(split.camera[torch.from_numpy(views)], images, mask)


def _joined(parts: list[ImageBatch]) -> ImageBatch:
    """Concatenate batches of views."""
    masks = [part.mask for part in parts if part.mask is not None]  # in a scene, all batches have masks, or none
    images = torch.cat([part.rgba for part in parts])
    return ImageBatch(Camera.cat([part.camera for part in parts]), images, torch.cat(masks) if masks else None)


class Batches(IterableDataset[RayBatch | ImageBatch]):
    """An endless stream of batches.

    Args:
        split: the views to draw from.
        kind: ``rays`` or ``views``.
        size: rays or views per batch and process.
        sampling: how the rays of a batch are drawn, see ``sample_rays``.
        seed: seed of the stream.
        first: number of batches that have been drawn before.
        rank: index of this process.
        world: number of processes; together they draw each view once per pass.
        time_curriculum: number of batches over which later views are added: batch ``k`` draws from the earliest share
            ``k / time_curriculum`` of the views, see ``opening``. None to draw from all views at once.
    """

    def __init__(
        self,
        split: Split,
        kind: Literal["rays", "views"],
        size: int,
        sampling: Literal["all_images", "same_image"] = "all_images",
        seed: int = 0,
        first: int = 0,
        rank: int = 0,
        world: int = 1,
        time_curriculum: int | None = None,
    ) -> None:
        self.split, self.kind, self.size, self.sampling = split, kind, size, sampling
        self.seed, self.first, self.rank, self.world = seed, first, rank, world
        self.time_curriculum = time_curriculum

    def batch(self, index: int) -> RayBatch | ImageBatch:
        """Batch ``index`` of this process's stream."""
        number = index * self.world + self.rank  # in the sequence of all processes
        if self.time_curriculum is not None and index < self.time_curriculum:
            among = opening(self.split, index / self.time_curriculum)
            rng = np.random.default_rng((self.seed, number))
            if self.kind == "rays":
                return sample_rays(self.split, self.size, rng, self.sampling, among)
            return _views(self.split, among[rng.integers(len(among), size=self.size)])
        if isinstance(self.split, OnlineSplit):
            return self._online(self.split, index)
        if self.kind == "rays":
            if isinstance(self.split, ShuffledSplit) and self.sampling == "all_images":
                return RayBatch(*self.split.rays(number * self.size, self.size, self.seed))
            rng = np.random.default_rng((self.seed, number))
            return sample_rays(self.split, self.size, rng, self.sampling)
        return sample_views(self.split, self.size, self.seed, number * self.size)

    def _online(self, split: OnlineSplit, index: int) -> RayBatch | ImageBatch:
        """A batch of views that a teacher renders for it, or has rendered into its pool."""
        number = index * self.world + self.rank
        if split.pool is not None:
            pool = split.window(index, self.seed, self.rank, self.world)
            if self.kind == "views":
                return sample_views(pool, self.size, self.seed, index * self.size)
            return sample_rays(pool, self.size, np.random.default_rng((self.seed, number)), self.sampling)
        if self.kind == "views":
            return sample_views(split, self.size, self.seed, number * self.size)
        views = split.of_round(number * self.size // math.prod(split.images.shape[:3]))
        return sample_rays(views, self.size, np.random.default_rng((self.seed, number)), self.sampling)

    def __iter__(self) -> Iterator[RayBatch | ImageBatch]:
        """Yield batches endlessly; each of several loader workers yields every ``num_workers``-th batch."""
        worker = get_worker_info()
        index, step = (self.first, 1) if worker is None else (self.first + worker.id, worker.num_workers)
        while True:
            yield self.batch(index)
            index += step
