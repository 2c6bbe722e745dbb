"""Scene, the in-memory form that every reader returns, and Geometry, the part of it that models are prepared with.

Conventions: poses and pixels as in ``nelf.cameras`` (OpenGL camera-to-world, pixel centers at +0.5, ``near``
and ``far`` are z-depths); images are uint8 (H, W, 3|4), alpha not premultiplied, display-referred. An image
is turned into floats in [0, 1] one view at a time, so a scene in memory costs its uint8 size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from nelf.cameras import Camera
from nelf.errors import UserError, did_you_mean
from nelf.paths import Trajectory, Viewpoints, viewpoints

__all__ = [
    "BACKGROUNDS",
    "Geometry",
    "ImageStack",
    "Scene",
    "Silhouettes",
    "Split",
    "View",
    "background_color",
    "compared",
    "composite_background",
]

_MASK_WIDTH, _MASKS = 160, 100  # silhouettes: width in pixels, approximately, and largest number
_MATTER = 12  # largest alpha, of 255, that counts as background: a teacher's floaters are fainter

BACKGROUNDS: dict[str, tuple[float, float, float]] = {"white": (1.0, 1.0, 1.0), "black": (0.0, 0.0, 0.0)}
"""The named backgrounds. (Random ones exist only inside a training step.)"""


def background_color(name: str) -> Tensor:
    """Color (3,) in [0, 1] of a named background.

    Raises:
        UserError: the name is not one of ``BACKGROUNDS``.
    """
    if name not in BACKGROUNDS:
        allowed = f"{', '.join(BACKGROUNDS)}.{did_you_mean(name, BACKGROUNDS)}"
        raise UserError(f"data.background: unknown background {name!r}; allowed: {allowed}")
    return torch.tensor(BACKGROUNDS[name])


def composite_background(rgba: Tensor, background: str | Tensor) -> Tensor:
    """Composite a color that is not premultiplied over a background: ``rgb * alpha + background * (1 - alpha)``.

    Args:
        rgba: (..., 4) in [0, 1].
        background: a name of ``BACKGROUNDS``, or a color that broadcasts to (..., 3).

    Returns:
        (..., 3) in [0, 1]; differentiable in both.

    Example:
        >>> composite_background(torch.tensor([1.0, 0.0, 0.0, 0.25]), "white")
        tensor([1.0000, 0.7500, 0.7500])
    """
    color = background_color(background).to(rgba) if isinstance(background, str) else background
    rgb, alpha = rgba[..., :3], rgba[..., 3:]
    return rgb * alpha + color * (1 - alpha)


class View(NamedTuple):
    """One image with its camera.

    Attributes:
        camera: a single camera.
        image: (H, W, 3|4) uint8, alpha not premultiplied.
        name: the file's path inside the scene, without extension.
        mask: (H, W) bool, False for pixels to ignore; None to use all of them.
    """

    camera: Camera
    image: np.ndarray
    name: str
    mask: np.ndarray | None = None

    def rgb(self, background: str = "white") -> Tensor:
        """(H, W, 3) in [0, 1] on a named background, on the camera's device."""
        image = torch.from_numpy(np.array(self.image)).to(self.camera.c2w.device).float() / 255
        return composite_background(image, background) if image.shape[-1] == 4 else image


def compared(rgb: Tensor, view: View, background: str = "white") -> tuple[Tensor, Tensor, Tensor | None]:
    """Bring a rendered image and the ground truth into the form that ``nelf.metrics`` compares.

    Args:
        rgb: (H, W, 3), the rendered image; its masked-out pixels are replaced by those of the ground truth.
        view: the ground truth.
        background: named background of the ground truth.

    Returns:
        Image and ground truth (1, 3, H, W) on the image's device, and the mask (1, H, W) of the pixels to compare, or
        None. PSNR is computed from these pixels, metrics with windows, such as SSIM, from the whole images.
    """
    target, mask = view.rgb(background).to(rgb), None
    counts = getattr(view, "mask", None)  # anything with ``rgb`` will do
    if counts is not None:
        mask = torch.from_numpy(counts).to(rgb.device)
        rgb, mask = torch.where(mask[..., None], rgb, target), mask[None]
    return rgb.permute(2, 0, 1)[None], target.permute(2, 0, 1)[None], mask


class Silhouettes(NamedTuple):
    """Foreground masks of views, from alpha alone, since a background color may also be that of an object.

    Attributes:
        camera: a batch of N cameras, of views that are not wholly opaque.
        masks: (N, h, w) bool, whether there is matter in a pixel; smaller than the images by an integer factor.
    """

    camera: Camera
    masks: Tensor


@dataclass(frozen=True, eq=False)
class Geometry:
    """The part of a scene that models are prepared with, without images.

    Attributes:
        aabb: (6,) smallest xyz, largest xyz of the box of the content, in the space of the cameras' rays: scene unit,
            or NDC.
        near: smallest ``t`` (z-depth, unless in NDC) of the content along a ray.
        far: largest ``t``.
        cameras: a batch of cameras, those of the training views.
        background: (3,) color in [0, 1] that images are composited over.
        controls: names of the controls of the scene's cameras; the first is the time.
        points: (N, 3) static points, scene unit; None if unknown.
    """

    aabb: Tensor
    near: float
    far: float
    cameras: Camera
    background: Tensor
    controls: tuple[str, ...] = ()
    points: Tensor | None = None


class Images(Protocol):
    """Images by index: an array, or files that are read on access."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, 3|4)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any) -> np.ndarray: ...


class ImageStack:
    """Images of several sources, concatenated without a copy.

    Args:
        parts: (N, H, W, 3|4) uint8 each, of one size; if only some have alpha, the others count as opaque.
    """

    def __init__(self, parts: Sequence[Images | ImageStack]) -> None:
        self._parts: list[Images] = []
        for part in parts:
            self._parts += part._parts if isinstance(part, ImageStack) else [part]
        self._first = np.cumsum([0, *map(len, self._parts)])
        sizes = {part.shape[1:3] for part in self._parts}
        if len(sizes) != 1:
            raise ValueError(f"Expected images of one size, but got {sorted(sizes)}.")
        self.shape = (int(self._first[-1]), *sizes.pop(), max(part.shape[3] for part in self._parts))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | np.ndarray) -> np.ndarray:
        """Image ``index`` (H, W, C); for an array (B,) of indices, images (B, H, W, C)."""
        if isinstance(index, int | np.integer):
            return self[np.array([index])][0]
        images = np.full((len(index), *self.shape[1:]), 255, np.uint8)
        for place, (part, within) in enumerate(self._places(index)):
            image = self._parts[part][within]
            images[place, ..., : image.shape[-1]] = image
        return images

    def pixels(self, views: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """The pixels (P, C) at ``rows`` and ``columns`` (P,) of ``views`` (P,)."""
        colors = np.full((len(views), self.shape[3]), 255, np.uint8)
        parts = np.searchsorted(self._first, views, side="right") - 1
        for part, images in enumerate(self._parts):
            here = parts == part
            colors[here, : images.shape[3]] = images[views[here] - self._first[part], rows[here], columns[here]]
        return colors

    def _places(self, index: np.ndarray) -> Iterator[tuple[int, int]]:
        """Yield, for each view, the index of its part and its index in that part."""
        for view in np.asarray(index).tolist():
            view = view + len(self) if view < 0 else view
            if not 0 <= view < len(self):
                raise IndexError(f"Expected a view below {len(self)}, but got {view}.")
            part = int(np.searchsorted(self._first, view, side="right")) - 1
            yield part, view - int(self._first[part])


@dataclass(eq=False)
class Split:
    """The views of one split (train, val or test), of one size.

    Attributes:
        camera: a batch of N cameras.
        images: (N, H, W, 3|4) uint8; an array, a read-only memory map if the split is large, or a stack of these.
        names: N paths inside the scene, without extension.
        masks: for each of the N views (H, W) bool, False for pixels to ignore, or None to use all of them; None if no
            view has a mask.
    """

    camera: Camera
    images: np.ndarray | ImageStack
    names: list[str]
    masks: list[np.ndarray | None] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Check that cameras, images and names belong together."""
        expected = (len(self.names), self.camera.height, self.camera.width)
        if self.images.shape[:3] != expected or len(self.camera) != len(self.names):
            raise ValueError(
                f"Expected `images` of shape {(*expected, 3)} or {(*expected, 4)} for {len(self.camera)} "
                f"cameras, but got {self.images.shape}."
            )
        if self.masks is not None:
            shapes = [expected[1:] if mask is None else mask.shape for mask in self.masks]
            if shapes != [expected[1:]] * len(self.names):
                raise ValueError(
                    f"Expected `masks` of shape {expected}, but got {len(shapes)} of {sorted(set(shapes))}."
                )
            if not all(mask is None or mask.any() for mask in self.masks):
                raise ValueError("Expected `masks` that each leave a pixel, but got one that leaves none.")

    def __len__(self) -> int:
        """Number of views."""
        return len(self.names)

    def __getitem__(self, index: int) -> View:
        """View ``index``; negative indices count from the end."""
        mask = None if self.masks is None else self.masks[index]
        return View(self.camera[index], self.images[index], self.names[index], mask)

    def view(self, index: int) -> View:
        """View ``index``; the same as ``split[index]``."""
        return self[index]

    def numbered(self) -> Split:
        """The same views with their indices as ``view`` of their cameras, for parameters that are learned per image."""
        return replace(self, camera=replace(self.camera, view=torch.arange(len(self))))

    @staticmethod
    def cat(splits: Sequence[Split]) -> Split:
        """Concatenate splits of one image size; controls and ``view`` are dropped unless all splits have them.

        Raises:
            ValueError: their images differ in size.
        """
        cameras = [split.camera for split in splits]
        if any(camera.controls is None for camera in cameras):  # a static teacher's views have no time
            cameras = [camera.at() for camera in cameras]
        if any(camera.view is None for camera in cameras):  # rendered views are not training photographs
            cameras = [replace(camera, view=None) for camera in cameras]
        names = [name for split in splits for name in split.names]
        masks = None
        if any(split.masks is not None for split in splits):
            masks = [mask for split in splits for mask in split.masks or [None] * len(split)]
        return Split(Camera.cat(cameras), ImageStack([split.images for split in splits]), names, masks=masks)

    @property
    def has_alpha(self) -> bool:
        """Whether any image is not wholly opaque."""
        return self.images.shape[-1] == 4 and any(
            self.images[index][..., 3].min() < 255 for index in range(len(self.images))
        )

    def shifted(self, widths: float) -> Split:
        """The same views with offset rays, see ``Camera.shifted``."""
        return replace(self, camera=self.camera.shifted(widths)) if widths else self

    def rgb(self, index: int, background: str = "white") -> Tensor:
        """(H, W, 3) in [0, 1] of view ``index`` on a named background."""
        return self[index].rgb(background)

    def pixels(self, views: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """The pixels (P, 3|4) uint8 at ``rows`` and ``columns`` (P,) of ``views`` (P,)."""
        if isinstance(self.images, ImageStack):
            return self.images.pixels(views, rows, columns)
        return self.images[views, rows, columns]

    def seen(self, views: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Whether masks keep the pixels at ``rows`` and ``columns`` (P,) of ``views`` (P,): (P,) bool."""
        count = np.ones(len(views), bool)
        if self.masks is not None:
            for view in np.unique(views):
                mask = self.masks[view]
                if mask is not None:
                    here = views == view
                    count[here] = mask[rows[here], columns[here]]
        return count

    def silhouettes(self) -> Silhouettes | None:
        """The silhouettes of at most 100 views, evenly spaced; None if all of these are opaque.

        Masked-out pixels count as foreground, since there may be matter.
        """
        if self.images.shape[-1] < 4:
            return None
        chosen = torch.linspace(0, len(self) - 1, min(_MASKS, len(self))).round().long().tolist()
        chosen = [index for index in chosen if self.images[index][..., 3].min() < 255]
        if not chosen:
            return None
        shrink = max(1, self.camera.width // _MASK_WIDTH)
        alpha = torch.stack([torch.from_numpy(self._matter(index)) for index in chosen])
        masks = torch.nn.functional.max_pool2d(alpha.float(), shrink, ceil_mode=True) > 0
        return Silhouettes(self.camera[torch.tensor(chosen)], masks)

    def _matter(self, index: int) -> np.ndarray:
        """The pixels of a view that may show matter, (H, W) bool."""
        matter: np.ndarray = self.images[index][..., 3] > _MATTER
        mask = None if self.masks is None else self.masks[index]
        return matter if mask is None else matter | ~mask


@dataclass(eq=False)
class Scene:
    """A scene as a reader returns it: three different splits, and the geometry of their space.

    Attributes:
        name: the scene's name, for reports.
        root: the directory that it was read from, or None.
        train: views to train on.
        val: views for validation during training.
        test: views for the final figures only.
        aabb: (6,) smallest xyz, largest xyz of the box of the content, see ``Geometry``.
        near: smallest z-depth of the content, scene unit.
        far: largest z-depth of the content, scene unit.
        background: the named background that it is evaluated on.
        digest: 16 hex digits that identify the scene's files, wherever they lie and at whatever width they
            are read.
        license: the license that the files state, or None.
        controls: names of the controls of its cameras, see ``Geometry``.
        points: (N, 3) static points, see ``Geometry``.
        trajectory: the arrangement of its cameras, which decides where new ones may be: ``orbit`` around an object,
            ``forward`` side by side, or ``between``, only between the given ones. If a format does not state it, the
            reader finds it from the training cameras by ``nelf.paths.trajectory``.
        from_colmap: (4, 4) float64 similarity from the world of the COLMAP reconstruction that it was read from to the
            scene's world; None for others.
    """

    name: str
    root: Path | None
    train: Split
    val: Split
    test: Split
    aabb: Tensor
    near: float
    far: float
    background: str = "white"
    digest: str = ""
    license: str | None = None
    controls: tuple[str, ...] = ()
    points: Tensor | None = None
    trajectory: Trajectory = "orbit"
    from_colmap: np.ndarray | None = None

    @property
    def geometry(self) -> Geometry:
        """The part that models are prepared with."""
        near, far = (self.near, self.far) if self.train.camera.ndc is None else (0.0, 1.0)
        known = self.train.camera, self.background_color, self.controls, self.points
        return Geometry(self.aabb, near, far, *known)

    @property
    def viewpoints(self) -> Viewpoints:
        """The viewpoints of its training cameras, see ``nelf.paths``."""
        return viewpoints(self.train.camera, self.trajectory, (self.near, self.far))

    @property
    def background_color(self) -> Tensor:
        """Color (3,) in [0, 1] of ``background``."""
        return background_color(self.background)

    @property
    def has_alpha(self) -> bool:
        """Whether any training image is not wholly opaque."""
        return self.train.has_alpha
