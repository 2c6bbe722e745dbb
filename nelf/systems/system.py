"""What both systems share: they take their place from the datamodule's scene, and show what they draw."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl

from nelf.metrics import psnr

if TYPE_CHECKING:
    from nelf.cameras import Camera
    from nelf.rendering import Rendering
    from nelf.scene import View

__all__ = ["System"]


class System(pl.LightningModule):
    """A network that learns a scene.

    Args:
        network: has ``fit_scene(scene)`` and ``render(camera)``.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.background = "white"
        self.has_alpha = True

    def setup(self, stage: str) -> None:
        """Take background, box and depth range from the scene of the datamodule."""
        scene = self.trainer.datamodule.scene  # type: ignore[attr-defined]
        self.background = scene.background
        if stage == "fit":
            self.has_alpha = scene.has_alpha
            self.network.fit_scene(scene)

    def validation_step(self, view: View, batch_idx: int) -> None:
        """Log the PSNR of one view, dB."""
        rgb = self.render(view.camera).rgb.permute(2, 0, 1)[None]
        target = view.rgb(self.background).to(rgb).permute(2, 0, 1)[None]
        self.log("val/psnr", psnr(rgb, target).mean(), prog_bar=True, batch_size=1)

    def render(self, camera: Camera, time: float | None = None) -> Rendering:
        """Render one camera with the network."""
        return self.network.render(camera, time)  # type: ignore[no-any-return]
