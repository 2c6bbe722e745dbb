"""Structured pruning: remove whole channels, so that a smaller dense network remains."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from nelf.compression.pruning import check_amount
from nelf.errors import UserError
from nelf.lightfields import LightField

__all__ = ["prune_channels"]

_LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


def prune_channels(network: LightField, ratio: float, round_to: int = 8) -> Any:
    """Make a narrower copy of a light field from its strongest channels.

    Channels that are added to each other (the skips of residual blocks, the skip around the body) are removed together;
    a channel's importance is the L2 norm of all weights that write, scale and read it. Every layer loses the same
    fraction, so the result has the architecture that the constructor makes with smaller arguments, those of
    ``LightField.widths``.

    Args:
        network: not changed; the volume and the ``exact_parts`` of the copy are not pruned.
        ratio: fraction of the channels to remove, between 0 and 1.
        round_to: the number of channels that remain is rounded to a multiple of it, since kernels work in blocks of 8
            or 16.

    Returns:
        A network of the same class with fewer channels, on the same device; its ``arguments`` describe it.

    Raises:
        ValueError: ``ratio`` or ``round_to`` is out of range, or no channel can be removed.
        UserError: the class cannot be narrowed.

    Source:
        Dependency graph and group norm: DepGraph (arXiv 2301.12900), by the library torch-pruning.
    """
    import torch_pruning

    check_amount(ratio, "ratio")
    if round_to < 1:
        raise ValueError(f"round_to: is {round_to}; allowed: 1 or more.")
    if not network.encoded_channels or type(network).widths is LightField.widths:
        raise UserError(f"{type(network).__name__}: cannot be narrowed; it needs the methods `decode` and `widths`.")
    pruned: Any = copy.deepcopy(network).eval()
    children = [part for name, part in pruned.named_children() if name not in pruned.exact_parts]
    parts = [part for part in children if any(isinstance(layer, _LAYERS) for layer in part.modules())]
    *inner, last = (layer for part in parts for layer in part.modules() if isinstance(layer, _LAYERS))
    kept = {layer: max(round(_width(layer) * (1 - ratio) / round_to), 1) * round_to for layer in inner}
    kept = {layer: channels for layer, channels in kept.items() if channels < _width(layer)}
    if not kept:
        widths = ", ".join(map(str, sorted({_width(layer) for layer in inner})))
        raise ValueError(
            f"ratio: {ratio} leaves a network of {widths} channels as it is, none can be removed in steps of "
            f"{round_to}; allowed: a larger ratio, a smaller round_to, or a wider network."
        )
    torch_pruning.pruner.BasePruner(
        nn.ModuleList(parts),  # without a volume
        torch.zeros(1, pruned.encoded_channels, 4, 4, device=network.near.device),
        torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.0,
        # Half a channel more, because the library rounds the number that remains down.
        pruning_ratio_dict={layer: 1 - (remain + 0.5) / _width(layer) for layer, remain in kept.items()},
        ignored_layers=[last],
        forward_fn=lambda _, sample: pruned.decode(sample),
    ).step()
    smaller = type(network)(**{**network.arguments, **pruned.widths()})
    smaller.load_state_dict(pruned.state_dict())
    return smaller.to(network.near.device).train(network.training)


def _width(layer: nn.Module) -> int:
    """The number of output channels of a layer."""
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)  # type: ignore[arg-type]
