"""A teacher's views, rendered online while its student trains, instead of a stored pseudo set.

A round consists of the random views of one pseudo set and the scene's own, in random order; round 0 has the views of
the stored set, and each further round has new ones. Views are rendered either for a single batch, or into a pool from
which batches are drawn; every ``renew_every`` batches, the next view of the sequence replaces the oldest of the pool.

As with stored views, a batch is a function of the seed, its number and the process, so a resumed training has the same
pool as an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nelf.cameras import Camera
from nelf.data.images import progress_bar
from nelf.data.resident import ResidentSplit, sent
from nelf.errors import UserError
from nelf.rendering import Renderable
from nelf.scene import Scene, Silhouettes, Split

__all__ = ["OnlineSplit", "online_views", "order"]

_LOOKED_AT, _WIDTH = 4, 64  # number and width of the views from which it is decided whether images have alpha
_FEW = 4  # up to so many views are rendered without a progress bar


class _Renderer:
    """Renders a teacher's views as uint8 images, and counts them.

    Args:
        teacher: anything with ``render(camera)``.
        background: (3,) background color.
        device: device of the images.
    """

    def __init__(self, teacher: Renderable, background: Tensor, device: torch.device) -> None:
        self.teacher, self.background, self.device = teacher, background, device
        self.rendered = 0.0

    def image(self, camera: Camera) -> Tensor:
        """The image of a single camera, (H, W, 3|4) uint8, as it would be read from disk."""
        self.rendered += 1
        pixels = self.teacher.render(camera).rgba(self.background).to(self.device)
        return (pixels.float().clamp(0, 1) * 255 + 0.5).to(torch.uint8)

    @torch.no_grad()
    def pixels(self, cameras: Camera, rows: Tensor, columns: Tensor) -> Tensor:
        """The color of pixel p of camera p: (P, 3|4) in [0, 255], not rounded."""
        self.rendered += len(rows) / (cameras.width * cameras.height)
        shift: float = getattr(self.teacher, "ray_shift", 0.0)
        draw: Any = self.teacher.draw  # type: ignore[attr-defined]
        return 255 * draw(cameras.shifted(shift).pixel_rays(columns, rows)).rgba(self.background).to(self.device)

    @cached_property
    def draws_rays(self) -> bool:
        """Whether the teacher can render single rays."""
        return hasattr(self.teacher, "draw") and getattr(self.teacher, "batch", "rays") == "rays"


class _Images:
    """The images of some cameras with the interface of an array, rendered on access."""

    def __init__(self, renderer: _Renderer, cameras: Camera, channels: int) -> None:
        self._renderer, self._cameras = renderer, cameras
        self.shape = (len(cameras), cameras.height, cameras.width, channels)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        """Image ``index`` (H, W, C), or those of an array (B,) of indices (B, H, W, C)."""
        if isinstance(index, int | np.integer):
            return self._renderer.image(self._cameras[int(index)]).cpu().numpy()
        return np.stack([self[each] for each in np.asarray(index).tolist()])


@dataclass(eq=False)
class _Round(Split):
    """A round of views: first those that the teacher renders, then the scene's own.

    Attributes:
        renderer: renders the former.
        unshifted: (M,) their cameras, without ``ray_shift``.
        own: the scene's own views, or None.
    """

    renderer: _Renderer
    unshifted: Camera
    own: Split | None

    @cached_property
    def nearby(self) -> Camera:
        """See ``ResidentSplit.nearby``."""
        return self.camera.to(self.renderer.device)

    def image(self, index: int) -> Tensor:
        """Image ``index`` (H, W, C) on the renderer's device."""
        if index < len(self.unshifted):
            return self.renderer.image(self.unshifted[index])
        return torch.from_numpy(self.images[index]).to(self.renderer.device)

    def pixels(self, views: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> Tensor:  # type: ignore[override]
        """See ``Split.pixels``; floats in [0, 255], the teacher's rendered ray by ray."""
        count, device = len(self.unshifted), self.renderer.device
        found = torch.full((len(views), self.images.shape[-1]), 255.0, device=device)
        new, old = np.flatnonzero(views < count), np.flatnonzero(views >= count)
        if len(new):
            view, row, column = (sent(values[new], device) for values in (views, rows, columns))
            drawn = self.renderer.pixels(self.unshifted[view], row, column)
            found[sent(new, device), : drawn.shape[-1]] = drawn
        if len(old) and self.own is not None:
            colors = sent(self.own.pixels(views[old] - count, rows[old], columns[old]), device).float()
            found[sent(old, device), : colors.shape[-1]] = colors
        return found


@dataclass
class _Pool:
    """The views in memory: slot ``j % size`` holds view ``j`` of a process's sequence."""

    key: tuple[int, ...] = ()
    images: Tensor = field(default_factory=lambda: torch.empty(0))
    views: list[int] = field(default_factory=list)
    cameras: list[Camera] = field(default_factory=list)
    masks: list[np.ndarray | None] = field(default_factory=list)
    split: ResidentSplit | None = None


@dataclass(eq=False)
class OnlineSplit(Split):
    """Views that a teacher renders online. As a ``Split``, it has the views of round 0.

    Attributes:
        round: returns round ``r``, see the module.
        renderer: renders the views.
        real: the scene's own training views, whether or not the rounds include them.
        pool: number of views in memory from which batches are drawn; None to render each batch separately.
        renew_every: number of batches after which one view of the pool is replaced.
        ray_shift: shift of the cameras in batches, see ``Camera.shifted``.
    """

    round: Callable[[int], _Round]
    renderer: _Renderer
    real: Split
    pool: int | None
    renew_every: int
    ray_shift: float = 0.0
    _pool: _Pool = field(default_factory=_Pool, repr=False)

    @property
    def rendered(self) -> float:
        """How many views have been rendered so far."""
        return self.renderer.rendered

    @cached_property
    def has_alpha(self) -> bool:
        """Whether any image is not fully opaque, judged by the scene's own views and a few of the teacher's."""
        if self.real.has_alpha:
            return True
        first = self.round(0).unshifted[:_LOOKED_AT].resized(min(self.camera.width, _WIDTH))
        pictures = (self.renderer.teacher.render(first[index]) for index in range(len(first)))
        return any(each.opacity is not None and float(each.opacity.min()) < 254.5 / 255 for each in pictures)

    def silhouettes(self) -> Silhouettes | None:
        """See ``Split.silhouettes``: those of the scene's own views, which need no rendering."""
        return self.real.silhouettes()

    def shifted(self, widths: float) -> Split:
        """See ``Split.shifted``."""
        return replace(self, ray_shift=widths)

    def of_round(self, number: int) -> Split:
        """The views of a round, for batches."""
        return self.round(number).shifted(self.ray_shift)

    def window(self, index: int, seed: int, rank: int = 0, world: int = 1) -> ResidentSplit:
        """The pool from which batch ``index`` of a process is drawn.

        Args:
            index: number of the batch.
            seed: seed of the order of views.
            rank: rank of the process; each process has different views.
            world: number of processes.

        Returns:
            Views ``r`` to ``r + pool - 1`` of the process's sequence, where ``r`` is ``index // renew_every``, on the
            renderer's device.
        """
        assert self.pool is not None
        own, size, first = self._pool, self.pool, index // self.renew_every
        if own.key != (seed, rank, world, size):
            own.key, own.split, own.views = (seed, rank, world, size), None, [-1] * size
            own.cameras, own.masks = [self.camera[0]] * size, [None] * size
            own.images = torch.full((size, *self.images.shape[1:]), 255, dtype=torch.uint8, device=self.renderer.device)
        missing = [view for view in range(first, first + size) if own.views[view % size] != view]
        if len(missing) > _FEW:
            with progress_bar(f"rendering a pool of {size} views", len(missing)) as progress:
                for view in missing:
                    self._take(view, seed, rank, world)
                    progress.advance(progress.task_ids[0])
        else:
            for view in missing:
                self._take(view, seed, rank, world)
        if missing or own.split is None:
            masks = own.masks if any(mask is not None for mask in own.masks) else None
            own.split = ResidentSplit(
                Camera.stack(own.cameras), own.images, [str(view) for view in own.views], masks=masks
            )
        return own.split.shifted(self.ray_shift)  # type: ignore[return-value]

    def _take(self, view: int, seed: int, rank: int, world: int) -> None:
        """Render a view of a process's sequence into its slot of the pool."""
        number, place = divmod(view * world + rank, len(self))
        views, index = self.round(number), int(order(len(self), seed, number)[place])
        slot, image = view % len(self._pool.views), views.image(index)
        self._pool.images[slot, ..., : image.shape[-1]] = image
        self._pool.cameras[slot] = views.camera[index]
        self._pool.masks[slot] = None if views.masks is None else views.masks[index]
        self._pool.views[slot] = view


def order(count: int, seed: int, turn: int) -> np.ndarray:
    """The order of views in pass ``turn``: a permutation (count,) of their indices."""
    return np.random.default_rng((seed, turn)).permutation(count)


def online_views(
    scene: Scene,
    teacher: Renderable,
    cameras: Callable[[int], Camera],
    *,
    real_views: bool = True,
    for_rays: bool = False,
    pool: int | None = None,
    renew_every: int = 1,
    device: torch.device | str = "cpu",
) -> Scene:
    """A scene whose training views are rendered by a teacher during training.

    Args:
        scene: the real scene; everything except its training views is kept.
        teacher: anything with ``render(camera)``, in evaluation mode; also with ``draw(rays)`` for ``for_rays`` without
            a pool.
        cameras: returns the cameras of round ``r``; every round has the same number.
        real_views: include the scene's own training views in each round.
        for_rays: batches consist of rays; without a pool, each ray is rendered separately.
        pool: see ``OnlineSplit``.
        renew_every: see ``OnlineSplit``.
        device: device of the images and of batches from a pool.

    Raises:
        UserError: single rays have to be rendered, but the teacher renders whole views only.
    """
    renderer = _Renderer(teacher, scene.background_color, torch.device(device))
    if pool is None and for_rays and not renderer.draws_rays:
        raise UserError(
            f"stage.pseudo.pool: is null, but {type(teacher).__name__} draws whole views only; allowed: a number of "
            "views, from which rays are drawn."
        )
    own = scene.train if real_views else None
    looked_at = cameras(0)
    small = looked_at[0].resized(min(looked_at.width, _WIDTH))
    channels = 3 if teacher.render(small).opacity is None else 4

    @lru_cache(maxsize=2)
    def of_round(number: int) -> _Round:
        unshifted = looked_at if number == 0 else cameras(number)
        names = [f"{number}/{index:05d}" for index in range(len(unshifted))]
        drawn = Split(unshifted, _Images(renderer, unshifted, channels), names)  # type: ignore[arg-type]
        every = Split.cat([drawn] if own is None else [drawn, own])
        near = unshifted.to(renderer.device)
        return _Round(every.camera, every.images, every.names, renderer, near, own, masks=every.masks)

    first = of_round(0)
    train = OnlineSplit(
        first.camera,
        first.images,
        first.names,
        of_round,
        renderer,
        scene.train,
        pool,
        renew_every,
        masks=first.masks,
    )
    return replace(scene, train=train)
