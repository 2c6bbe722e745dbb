"""The formats of weights in a file: 32 or 16 bits, or 8 bits with a scale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from nelf.compression.integers import LARGEST, dequantize, quantize
from nelf.compression.quantization import channel_axes, is_exact, quantizers
from nelf.errors import UserError

__all__ = ["SCHEMES", "Scheme", "pack", "unpack"]

Scheme = Literal["fp32", "fp16", "bf16", "int8_per_tensor", "int8_per_channel"]
SCHEMES = get_args(Scheme)
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_SCALE = "{}.scale"


def pack(network: nn.Module, tensors: Mapping[str, Tensor], scheme: str) -> dict[str, Tensor]:
    """Convert the parameters among a network's tensors to a storage scheme.

    Buffers and the ``exact_parts`` of a light field are not converted, nor are its ``exact_in_8_bits`` to 8 bits.

    ``int8_per_tensor`` stores every parameter in 8 bits, with one scale each. ``int8_per_channel`` stores those of two
    and more dimensions in 8 bits, with a scale for each output channel, and the densities of a volume with a single
    scale; biases and the weights of norms stay in 32 bits. Weights with fake quantization are stored as it rounds them,
    without a second rounding.

    Args:
        network: the network of the tensors.
        tensors: its state, or a part of it.
        scheme: one of ``SCHEMES``.

    Returns:
        The tensors to write; the scale of an 8-bit one is named NAME.scale.

    Raises:
        UserError: the scheme is unknown, or a number is too large for it.
    """
    _check_scheme(scheme)
    parameters = dict(network.named_parameters())
    axes = channel_axes(network)
    limits = {f"{name}.weight": quantizer.limit for name, quantizer in quantizers(network).items()}
    packed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name not in parameters or is_exact(network, name, scheme.startswith("int8")):
            packed[name] = tensor
        elif scheme in _DTYPES:
            packed[name] = tensor.to(_DTYPES[scheme])
            if not packed[name].isfinite().all():
                raise UserError(f"{name}: holds numbers beyond {scheme}; bf16 has the range of fp32.")
        elif scheme == "int8_per_tensor":
            packed[name], packed[_SCALE.format(name)] = quantize(tensor)
        elif name in axes:
            packed[name], packed[_SCALE.format(name)] = quantize(tensor, axes[name], limits.get(name, LARGEST))
        else:
            packed[name] = tensor
    return packed


def unpack(tensors: Mapping[str, Tensor], scheme: str) -> dict[str, Tensor]:
    """Invert ``pack``, up to rounding.

    Raises:
        UserError: the scheme is unknown, or an 8-bit tensor has no scale, or one of a wrong shape.
    """
    _check_scheme(scheme)
    if scheme in _DTYPES:
        return dict(tensors)  # a network's load_state_dict converts
    unpacked = dict(tensors)
    for name, tensor in tensors.items():
        if tensor.dtype is torch.int8:
            scale = unpacked.pop(_SCALE.format(name), None)
            if scale is None:
                raise UserError(f"{name}: is stored in 8 bits, but its scale {_SCALE.format(name)} is missing.")
            if scale.dim() not in (0, tensor.dim()) or not all(
                s in (1, n) for s, n in zip(scale.shape, tensor.shape, strict=False)
            ):
                raise UserError(
                    f"{name}: has a scale of {tuple(scale.shape)}, which is not one for {tuple(tensor.shape)}."
                )
            unpacked[name] = dequantize(tensor, scale)
    return unpacked


def _check_scheme(scheme: str) -> None:
    """Refuse a scheme that does not exist."""
    if scheme not in SCHEMES:
        raise UserError(f"scheme: there is no {scheme!r} in this version of nelf; allowed: {', '.join(SCHEMES)}.")
