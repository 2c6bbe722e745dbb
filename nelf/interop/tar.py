"""Write the ``.tar`` checkpoints of R2L's and MobileR2L's codes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from nelf.errors import atomic_path
from nelf.lightfields import LightField

__all__ = ["write_tar"]

_OURS = ("near", "far", "aabb", "prepared", "background")


def write_tar(network: LightField, path: Path | str, resume: bool, optimizer: Literal["Adam", "AdamW"]) -> Path:
    """Write a checkpoint with the originals' keys, except the network that they also pickle.

    To resume training, the originals load an optimizer, and weights into a wrapped network, whose names have the prefix
    ``module.``; to render or export, they load weights into a bare network.

    Args:
        network: a network with the original's names, except for the buffers of ``LightField``.
        path: the file; tensors and numbers only, so it loads with ``weights_only=True``.
        resume: write names with the prefix.
        optimizer: the optimizer whose initial state is written, with the original's learning rate 5e-4.

    Raises:
        UserError: the directory cannot be written.
    """
    prefix = "module." if resume else ""
    state = {f"{prefix}{name}": values.cpu() for name, values in network.state_dict().items() if name not in _OURS}
    fresh = getattr(torch.optim, optimizer)(network.parameters(), lr=5e-4)
    checkpoint = {
        "global_step": 0,
        "best_psnr": 0.0,
        "best_psnr_step": 0,
        "network_fn_state_dict": state,
        "optimizer_state_dict": fresh.state_dict(),
    }
    if optimizer == "AdamW":  # MobileR2L's, which may use a scaler
        checkpoint["scaler"] = None
    with atomic_path(path) as partial:
        torch.save(checkpoint, partial)
    return Path(path)
