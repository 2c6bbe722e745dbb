"""Views in the memory of a device, from which batches are drawn without transfers from the host."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from nelf.cameras import Camera
from nelf.scene import Split

__all__ = ["ResidentSplit", "on_device", "resident", "sent"]

_SHARE = 0.25  # maximum share of a GPU's free memory that views may take; the rest is left for training


@dataclass(eq=False)
class ResidentSplit(Split):
    """Views whose images are a tensor on a device; batches are drawn on this device.

    The cameras of batches of views stay in main memory, where crops are chosen.

    Attributes:
        images: (N, H, W, 3|4) uint8.
    """

    images: Tensor  # type: ignore[assignment]

    @cached_property
    def nearby(self) -> Camera:
        """The cameras on the device of the images."""
        return self.camera.to(self.images.device)

    def pixels(self, views: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> Tensor:  # type: ignore[override]
        """See ``Split.pixels``: a tensor on the device."""
        device = self.images.device
        return self.images[sent(views, device), sent(rows, device), sent(columns, device)]


def resident(split: Split, device: torch.device) -> Split:
    """Move views to a GPU, if they are in memory and take at most a quarter of its free memory.

    Args:
        split: the views. Memory-mapped views, and those read from files, stay where they are.
        device: the device of the training.

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
    """Copy in-memory views to a device."""
    images = torch.from_numpy(np.ascontiguousarray(split.images)).to(device)
    return ResidentSplit(split.camera, images, split.names, masks=split.masks)


def sent(values: np.ndarray, device: torch.device) -> Tensor:
    """Copy an array to a device, on a GPU asynchronously."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
