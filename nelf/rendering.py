"""Rendering, the result of every model's ``render``, and the protocol of anything that renders."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from nelf.cameras import Camera

__all__ = ["Renderable", "Rendering", "evaluating"]


class Rendering(NamedTuple):
    """A rendered image: ``rgb`` (H, W, 3) in [0, 1] on the model's background.

    ``depth`` (H, W), z-depth in scene units, and ``opacity`` (H, W) in [0, 1] are None if the model has none.
    """

    rgb: Tensor
    depth: Tensor | None = None
    opacity: Tensor | None = None

    @staticmethod
    def over(drawn: Tensor, background: Tensor | None = None, depth: Tensor | None = None) -> Rendering:
        """Composite the output of a network over a background.

        Args:
            drawn: (H, W, 3), or (H, W, 4) with opacity and the color on black.
            background: (3,) color; unused without opacity.
            depth: see ``Rendering``.

        Returns:
            The image, float32.
        """
        drawn = drawn.float()
        if drawn.shape[-1] == 3:
            return Rendering(drawn, depth)
        assert background is not None
        opacity = drawn[..., 3:]
        return Rendering(drawn[..., :3] + (1.0 - opacity) * background.to(drawn), depth, opacity[..., 0])

    def in_scene(self, camera: Camera) -> Rendering:
        """The same image with z-depth, if ``depth`` is in ``t`` of a camera's rays and these are in NDC.

        Before and after, the depth is not divided by the opacity, as in volume rendering.
        """
        if camera.ndc is None or self.depth is None:
            return self
        seen = self.opacity.clamp(min=1e-6) if self.opacity is not None else 1.0
        return self._replace(depth=seen * camera.to(self.depth.device).z_depth(self.depth / seen))

    def rgba(self, background: Tensor) -> Tensor:
        """The image with straight alpha, as for an image file.

        Args:
            background: (3,) color that it is composited over.

        Returns:
            (H, W, 4) in [0, 1], color not premultiplied; (H, W, 3) if there is no opacity.
        """
        if self.opacity is None:
            return self.rgb
        alpha = self.opacity[..., None].clamp(0.0, 1.0)
        own = (self.rgb - (1.0 - alpha) * background.to(self.rgb)) / alpha.clamp(min=1e-6)
        return torch.cat([own.clamp(0.0, 1.0), alpha], dim=-1)

    def cropped(self, height: int, width: int) -> Rendering:
        """The upper left part of this size."""
        depth, opacity = (part if part is None else part[:height, :width] for part in (self.depth, self.opacity))
        return Rendering(self.rgb[:height, :width], depth, opacity)


class Renderable(Protocol):
    """Anything that renders: teachers, students, compressed and exported models."""

    def render(self, camera: Camera) -> Rendering:
        """Render the image of one camera, at its controls."""


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode, and restore the mode of every module afterwards."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
