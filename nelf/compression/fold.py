"""Folding of batch norms into the convolutions before them."""

from __future__ import annotations

from copy import deepcopy
from itertools import pairwise
from typing import TypeVar

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

__all__ = ["fold_batch_norm"]

Network = TypeVar("Network", bound=nn.Module)


def fold_batch_norm(network: Network, inplace: bool = False) -> Network:
    """Fold each batch norm into the convolution that it follows in a ``Sequential``.

    Args:
        network: any module; norms that follow no convolution are kept.
        inplace: change ``network`` itself instead of a copy.

    Returns:
        The network, with ``Identity`` in place of the folded norms; in evaluation mode equivalent up to rounding.
    """
    network = network if inplace else deepcopy(network)
    for block in [module for module in network.modules() if isinstance(module, nn.Sequential)]:
        for index, (conv, norm) in enumerate(pairwise(block)):
            if not isinstance(conv, nn.Conv2d | nn.ConvTranspose2d) or not isinstance(norm, _BatchNorm):
                continue
            if norm.running_mean is None or norm.running_var is None:  # it always uses batch statistics
                continue
            conv.weight, conv.bias = fuse_conv_bn_weights(
                conv.weight,
                conv.bias,
                norm.running_mean,
                norm.running_var,
                norm.eps,
                norm.weight,
                norm.bias,
                transpose=isinstance(conv, nn.ConvTranspose2d),
            )
            block[index + 1] = nn.Identity()
    return network
