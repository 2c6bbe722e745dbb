"""Views in the memory of a device, from which batches are drawn without a detour through the processor's memory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from nelf.cameras import Camera
from nelf.scene import Split

__all__ = ["ResidentSplit", "on_device", "resident", "sent"]

_SHARE = 0.25  # of a GPU's free memory: what views may take of it; the rest is the training's


@dataclass(eq=False)
class ResidentSplit(Split):
    """Views whose images are a tensor on a device; what is drawn from them is there, too.

    Batches of views have their cameras in main memory, where windows are chosen by them.

    Attributes:
        images: (N, H, W, 3|4) uint8.
    """

    images: Tensor  # type: ignore[assignment]

    @cached_property
    def nearby(self) -> Camera:
        """The cameras where the images are."""
        return self.camera.to(self.images.device)

    def pixels(self, views: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> Tensor:  # type: ignore[override]
        """See ``Split.pixels``: a tensor on the device."""
        device = self.images.device
        return self.images[sent(views, device), sent(rows, device), sent(columns, device)]


def resident(split: Split, device: torch.device) -> Split:
    """Bring views to a GPU, if they are in memory and leave it most of what it has free.

    Args:
        split: the views. Those of a memory map, or of files, stay where they are.
        device: of a training.

    Returns:
        The same views.
    """
    images = split.images
    if device.type != "cuda" or type(split) is not Split or type(images) is not np.ndarray:
        return split
    if images.nbytes > _SHARE * torch.cuda.mem_get_info(device)[0]:
        return split
    return on_device(split, device)


def on_device(split: Split, device: torch.device) -> ResidentSplit:
    """Views of an array on any device."""
    images = torch.from_numpy(np.ascontiguousarray(split.images)).to(device)
    return ResidentSplit(split.camera, images, split.names, masks=split.masks)


def sent(values: np.ndarray, device: torch.device) -> Tensor:
    """An array as a tensor on a device, without waiting for what the device is doing."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
