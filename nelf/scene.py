"""Scene: the one in-memory form that every reader returns.

Conventions: poses and pixels as in ``nelf.cameras`` (OpenGL camera-to-world, pixel centers at +0.5, ``near``
and ``far`` are z-depths); images are uint8 (H, W, 3|4), alpha not premultiplied, display-referred. An image
is turned into floats in [0, 1] one view at a time, so a scene in memory costs its uint8 size.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nelf.cameras import Camera
from nelf.errors import UserError, did_you_mean

__all__ = ["BACKGROUNDS", "Scene", "Split", "View", "background_color", "composite_background"]

BACKGROUNDS: dict[str, tuple[float, float, float]] = {"white": (1.0, 1.0, 1.0), "black": (0.0, 0.0, 0.0)}
"""The named backgrounds. (A random one exists only inside a training step.)"""


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
    """Lay a color that is not premultiplied over a background: ``rgb * alpha + background * (1 - alpha)``.

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
    """

    camera: Camera
    image: np.ndarray
    name: str

    def rgb(self, background: str = "white") -> Tensor:
        """(H, W, 3) in [0, 1] on a named background, on the camera's device."""
        image = torch.from_numpy(np.array(self.image)).to(self.camera.c2w.device).float() / 255
        return composite_background(image, background) if image.shape[-1] == 4 else image


@dataclass(eq=False)
class Split:
    """The views of one purpose (train, val or test), of one size.

    Attributes:
        camera: a batch of N cameras.
        images: (N, H, W, 3|4) uint8; an array, or a read-only memory map where the split is large.
        names: N paths inside the scene, without extension.
    """

    camera: Camera
    images: np.ndarray
    names: list[str]

    def __post_init__(self) -> None:
        """Check that cameras, images and names belong together."""
        expected = (len(self.names), self.camera.height, self.camera.width)
        if self.images.shape[:3] != expected or len(self.camera) != len(self.names):
            raise ValueError(
                f"Expected `images` of shape {(*expected, 3)} or {(*expected, 4)} for {len(self.camera)} "
                f"cameras, but got {self.images.shape}."
            )

    def __len__(self) -> int:
        """Number of views."""
        return len(self.names)

    def __getitem__(self, index: int) -> View:
        """View ``index``; negative ones count from the end."""
        return View(self.camera[index], self.images[index], self.names[index])

    def view(self, index: int) -> View:
        """View ``index``; the same as ``split[index]``."""
        return self[index]

    def rgb(self, index: int, background: str = "white") -> Tensor:
        """(H, W, 3) in [0, 1] of view ``index`` on a named background."""
        return self[index].rgb(background)


@dataclass(eq=False)
class Scene:
    """What a reader returns: three different splits and what is known of the space around them.

    Attributes:
        name: the scene's name, for reports.
        root: the directory that it was read from, or None.
        train: views to learn from.
        val: views to look at during training.
        test: views for the final figures only.
        aabb: (6,) smallest xyz, largest xyz of the box in which the object may be, scene unit.
        near: smallest ``t`` (z-depth) at which something may be.
        far: largest ``t``.
        background: the named background of its evaluation.
        digest: 16 hex digits that identify the scene's files, wherever they lie and at whatever width they
            are read.
        license: what the files say about their license, or None.
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

    @property
    def background_color(self) -> Tensor:
        """Color (3,) in [0, 1] of the background of its evaluation."""
        return background_color(self.background)

    @property
    def has_alpha(self) -> bool:
        """Whether any training image is not wholly opaque."""
        images = self.train.images
        return images.shape[-1] == 4 and any(image[..., 3].min() < 255 for image in images)
