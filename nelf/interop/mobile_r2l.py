"""Checkpoints of MobileR2L's own code."""

from __future__ import annotations

from pathlib import Path

import torch

from nelf.errors import UserError, atomic_path
from nelf.lightfields import LightField, MobileR2L

__all__ = ["check_original", "save_tar"]

_OURS = ("near", "far", "aabb", "prepared")


def check_original(network: LightField) -> None:
    """Refuse a network that the original does not have.

    Raises:
        UserError: says what it has.
    """
    if not isinstance(network, MobileR2L):
        raise UserError(f"tar: MobileR2L's code has no {type(network).__name__}, only mobile_r2l.")
    if network.arguments["upsampling"] != "transposed":
        raise UserError(f"tar: MobileR2L's code has no tail {network.arguments['upsampling']!r}, only 'transposed'.")


def save_tar(network: LightField, path: Path | str) -> Path:
    """Write a checkpoint with the keys of the original's, but for the network that it pickles beside its weights.

    Args:
        network: of the original's architecture (its options are not stored, as the original takes them from its
            command line).
        path: the file, ``.tar``; tensors and numbers only, so it loads with ``weights_only=True``.

    Returns:
        The file.

    Raises:
        UserError: a network that the original does not have, or the directory cannot be written.

    Source:
        The checkpoints that the code of MobileR2L writes (github.com/snap-research/MobileR2L).
    """
    check_original(network)
    state = {name: tensor.cpu() for name, tensor in network.state_dict().items() if name not in _OURS}
    checkpoint = {
        "global_step": 0,
        "best_psnr": 0.0,
        "best_psnr_step": 0,
        "network_fn_state_dict": state,
        "optimizer_state_dict": None,
        "scaler": None,
    }
    with atomic_path(path) as partial:
        torch.save(checkpoint, partial)
    return Path(path)
