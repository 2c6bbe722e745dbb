"""Fake quantization to 8 bits, and calibration of its ranges.

A network with fake quantization has the same class, parameters and names. Only its convolutions and linear layers are
replaced, each by one of a subclass, which shares its parameters and rounds weights, inputs and outputs as the files of
``nelf.export.int8`` do: inputs and outputs to 8 bits, weights within ``LARGEST_MULTIPLIED``. Unlike in these files, the
sum after a residual block is not rounded where it is added to the next one.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from copy import deepcopy
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import conv_transpose2d, linear

from nelf.compression.integers import LARGEST, LARGEST_MULTIPLIED, asymmetric, fake_quantize
from nelf.errors import UserError

if TYPE_CHECKING:
    from nelf.cameras import Camera

__all__ = [
    "Quantizer",
    "Ranges",
    "activation_ranges",
    "calibrate",
    "channel_axes",
    "is_exact",
    "prepare",
    "quantize_network",
    "quantized_layers",
    "quantizers",
    "restore_network",
]

#: Smallest and largest value of the tensors "LAYER.input" and "LAYER.output" of a network.
Ranges = dict[str, tuple[float, float]]
Method = Literal["minmax", "percentile", "mse"]

_SAMPLE = 2**14  # values kept of each tensor and view


def channel_axes(network: nn.Module) -> dict[str, int | None]:
    """The dimension of each parameter whose slices have a scale each; without biases and norms.

    That is the output channels of layers, and the last dimension of tables of features (K, C). None, a single scale,
    for parameters that a module names in ``single_scale``, such as the densities of a volume.
    """
    axes: dict[str, int | None] = {name: -1 for name, value in network.named_parameters() if value.dim() > 1}
    for name, layer in network.named_modules():
        for part in getattr(layer, "single_scale", ()):
            axes[f"{name}.{part}".lstrip(".")] = None
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            axes[f"{name}.weight".lstrip(".")] = _output_axis(layer)
    return axes


def _output_axis(layer: nn.Module) -> int:
    """The dimension of the output channels in a layer's weight."""
    return 1 if isinstance(layer, nn.ConvTranspose2d) else 0


class Quantizer:
    """The fake quantization of one layer.

    Args:
        rectified: a ReLU follows; int8 kernels fuse it, so that only its output is rounded, as the next layer's input.
        axis: of the weight's output channels.

    Attributes:
        ranges: smallest and largest value of ``input`` and ``output``; a side without a range is not rounded.
        dynamic: take the range of each input from its own values, and do not round the output.
        watch: is called with inputs and outputs before they are rounded.
    """

    def __init__(self, rectified: bool, axis: int) -> None:
        self.rectified = rectified
        self.axis = axis
        self.ranges: dict[str, Tensor] = {}
        self.dynamic = False
        self.watch: Callable[[str, Tensor], None] | None = None

    @property
    def limit(self) -> int:
        """Largest integer of the weight; kernels with dynamic ranges take unsigned weights of full 8 bits."""
        return LARGEST_MULTIPLIED if self.ranges and not self.dynamic else LARGEST

    def __call__(self, x: Tensor, weight: Tensor, multiply: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Apply the layer to rounded inputs and weights."""
        # An 8-bit kernel accumulates exactly, so lower precision than float32 would add errors that it does not have.
        with torch.autocast(x.device.type, enabled=False):
            x = self._round("input", x.float())
            y = multiply(x, fake_quantize(weight, self.axis, self.limit) if self.ranges or self.dynamic else weight)
            return y if self.rectified else self._round("output", y)

    def _round(self, name: str, values: Tensor) -> Tensor:
        if self.watch is not None:
            self.watch(name, values.detach())
        if self.dynamic and name == "input":
            limits = torch.stack(values.detach().aminmax())
        elif name in self.ranges:
            limits = self.ranges[name].to(values)
        else:
            return values
        return torch.fake_quantize_per_tensor_affine(values, *asymmetric(*limits), 0, 255)


class _Quantized(nn.Module):
    """Base class of layers with fake quantization; each is also a subclass of the plain layer that it replaces."""

    weight: Tensor
    quantizer: Quantizer

    def forward(self, x: Tensor) -> Tensor:
        return self.quantizer(x, self.weight, self.multiply)

    def multiply(self, x: Tensor, weight: Tensor) -> Tensor:
        """Apply the plain layer with another weight."""
        raise NotImplementedError


class _Conv2d(_Quantized, nn.Conv2d):
    def multiply(self, x: Tensor, weight: Tensor) -> Tensor:
        return self._conv_forward(x, weight, self.bias)


class _ConvTranspose2d(_Quantized, nn.ConvTranspose2d):  # type: ignore[misc]  # it takes no output_size
    def multiply(self, x: Tensor, weight: Tensor) -> Tensor:
        options: Any = (self.stride, self.padding, self.output_padding, self.groups, self.dilation)
        return conv_transpose2d(x, weight, self.bias, *options)


class _Linear(_Quantized, nn.Linear):
    def multiply(self, x: Tensor, weight: Tensor) -> Tensor:
        return linear(x, weight, self.bias)


# By exact class: how other subclasses use their weights is not known.
_QUANTIZED: dict[type[nn.Module], type[_Quantized]] = {
    nn.Conv2d: _Conv2d,
    nn.ConvTranspose2d: _ConvTranspose2d,
    nn.Linear: _Linear,
}
_PLAIN: dict[type[nn.Module], type[nn.Module]] = {quantized: plain for plain, quantized in _QUANTIZED.items()}


def quantized_layers(network: nn.Module) -> dict[str, nn.Module]:
    """The layers that run in 8-bit kernels, by name: convolutions and linear layers, with fake quantization or not."""
    return {
        name: layer
        for name, layer in network.named_modules()
        if type(layer) in (*_QUANTIZED, *_PLAIN) and not is_exact(network, name, in_8_bits=True)
    }


def is_exact(network: nn.Module, name: str, in_8_bits: bool = False) -> bool:
    """Whether a layer or tensor stays in 32 bits when the others have 16 bits, or 8; see ``LightField``."""
    part = name.partition(".")[0]
    exact = getattr(network, "exact_parts", ())
    return part in exact or (in_8_bits and part in getattr(network, "exact_in_8_bits", ()))


def quantizers(network: nn.Module) -> dict[str, Quantizer]:
    """The quantizers of a network, by the name of the layer; empty without fake quantization."""
    return {name: layer.quantizer for name, layer in network.named_modules() if isinstance(layer, _Quantized)}


def prepare(network: nn.Module) -> dict[str, Quantizer]:
    """Add quantizers to the layers of ``quantized_layers``, without ranges, so the network's results do not change.

    Args:
        network: changed in place; its batch norms have to be folded, since int8 kernels have none.

    Returns:
        As ``quantizers``.

    Raises:
        ValueError: the network itself is a layer, which cannot be replaced in place.
    """
    rectified = {
        layer
        for block in network.modules()
        if isinstance(block, nn.Sequential)
        for layer, following in pairwise(part for part in block if not isinstance(part, nn.Identity))
        if isinstance(following, nn.ReLU)
    }

    chosen = set(quantized_layers(network).values())

    def quantized(layer: nn.Module) -> nn.Module:
        if layer not in chosen or type(layer) in _PLAIN:
            return layer
        other = _as(_QUANTIZED[type(layer)], layer)
        other.quantizer = Quantizer(layer in rectified, _output_axis(layer))
        return other

    _exchange(network, quantized)
    return quantizers(network)


def _exchange(network: nn.Module, change: Callable[[nn.Module], nn.Module]) -> None:
    """Replace each layer by ``change`` of it, at all places where it is used."""
    changed: dict[nn.Module, nn.Module] = {}
    for name, layer in list(network.named_modules(remove_duplicate=False)):
        other = changed[layer] = changed[layer] if layer in changed else change(layer)
        if other is layer:
            continue
        if not name:
            raise ValueError(
                "Expected argument `network` to hold layers, but got one itself; `nn.Sequential` can hold it."
            )
        network.set_submodule(name, other)


Layer = TypeVar("Layer", bound=nn.Module)


def _as(kind: type[Layer], layer: nn.Module) -> Layer:
    """A layer of another class that shares parameters, settings and hooks with a given one."""
    other = kind.__new__(kind)
    other.__dict__.update(layer.__dict__)
    return other


def quantize_network(network: nn.Module, ranges: Ranges | Literal["dynamic"]) -> nn.Module:
    """Make a network compute as int8 kernels do: rounded weights (per channel) and activations (per tensor).

    Args:
        network: changed in place; its batch norms have to be folded.
        ranges: of ``calibrate`` or of quantization-aware training; layers that are not in it compute in float32.
            ``dynamic``: each input's own range, outputs not rounded.

    Returns:
        The network. ``restore_network`` undoes it; its weights are not changed.

    Raises:
        ValueError: ``ranges`` has a layer that the network does not have; or the network itself is a layer.
    """
    layers = prepare(network)
    if ranges == "dynamic":
        for quantizer in layers.values():
            quantizer.dynamic = True
        return network
    for key, limits in ranges.items():
        name, _, side = key.rpartition(".")
        if name not in layers or side not in ("input", "output"):
            raise ValueError(f"Expected argument `ranges` to name layers of the network, but got {key!r}.")
        layers[name].ranges[side] = torch.tensor(limits)
    return network


def restore_network(network: nn.Module) -> nn.Module:
    """Remove fake quantization from a network, in place; its weights are not changed."""

    def plain(layer: nn.Module) -> nn.Module:
        if type(layer) not in _PLAIN:
            return layer
        other = _as(_PLAIN[type(layer)], layer)
        del other.quantizer
        return other

    _exchange(network, plain)
    return network


def activation_ranges(network: nn.Module) -> Ranges | Literal["dynamic"]:
    """The ranges of a network with fake quantization, as ``quantize_network`` takes them; empty for any other."""
    layers = quantizers(network)
    if any(quantizer.dynamic for quantizer in layers.values()):
        return "dynamic"
    return {
        f"{name}.{side}": (float(limits[0]), float(limits[1]))
        for name, quantizer in layers.items()
        for side, limits in quantizer.ranges.items()
    }


@torch.no_grad()
def calibrate(
    network: nn.Module, cameras: Iterable[Camera], method: Method = "percentile", percentile: float = 99.99
) -> Ranges:
    """Find the range of every layer's input and output while a network renders views.

    Args:
        network: a light field whose batch norms are folded; not changed.
        cameras: to be rendered; about a dozen views.
        method: ``minmax`` takes the extremes; ``percentile`` cuts ``100 - percentile`` % off each side; ``mse`` shrinks
            the range to minimize the squared error of rounding.
        percentile: for the method ``percentile``.

    Returns:
        Ranges by "LAYER.input" and "LAYER.output"; a layer before a ReLU has no output of its own.

    Raises:
        UserError: there are no cameras, or none of them sees anything.
        ValueError: ``method`` is none of the above.
    """
    if method not in get_args(Method):
        raise ValueError(f"Expected argument `method` to be one of {get_args(Method)}, but got {method!r}.")
    network = restore_network(deepcopy(network))
    seen: dict[str, _Seen] = defaultdict(_Seen)
    for name, quantizer in prepare(network).items():
        quantizer.watch = lambda side, values, name=name: seen[f"{name}.{side}"].add(values)  # type: ignore[misc]
    shown = 0
    for camera in cameras:
        network.render(camera)  # type: ignore[operator]
        shown += 1
        for each in seen.values():
            each.end_view()
    if not seen:
        drawn = f"{shown} views, in which it draws nothing" if shown else "no views"
        raise UserError(f"calibrate: the network has been shown {drawn}; allowed: views of what it has learned.")
    return {key: each.limits(method, percentile) for key, each in seen.items()}


class _Seen:
    """The values of one tensor over all views: their extremes, and a sample of them."""

    def __init__(self) -> None:
        self.low, self.high = float("inf"), float("-inf")
        self.sample: list[Tensor] = []
        self.parts: list[tuple[int, Tensor]] = []  # sizes of the chunks of a view, and their sampled values

    def add(self, values: Tensor) -> None:
        low, high = values.aminmax()
        self.low, self.high = min(self.low, float(low)), max(self.high, float(high))
        flat = values.flatten()
        # Random, since a stride might always hit the same column; with a fixed seed, for reproducible ranges.
        generator = torch.Generator().manual_seed(len(self.sample) + len(self.parts))
        drawn = torch.randint(len(flat), (_SAMPLE,), generator=generator)
        self.parts.append((len(flat), flat[drawn.to(flat.device)]))

    def end_view(self) -> None:
        """Keep samples of each chunk in proportion to its size."""
        whole = sum(size for size, _ in self.parts)
        shares = [values[: math.ceil(_SAMPLE * size / whole)] for size, values in self.parts]
        self.sample += [torch.cat(shares)] if shares else []
        self.parts.clear()

    def limits(self, method: Method, percentile: float) -> tuple[float, float]:
        if method == "minmax":
            return self.low, self.high
        sample = torch.cat(self.sample)
        if method == "percentile":
            low, high = np.percentile(sample.cpu().numpy(), (100 - percentile, percentile))
            return float(low), float(high)
        candidates = [(share * self.low, share * self.high) for share in np.linspace(0.3, 1.0, 71).tolist()]
        return min(candidates, key=lambda limits: _rounding_error(sample, limits))


def _rounding_error(values: Tensor, limits: tuple[float, float]) -> float:
    scale, zero = asymmetric(*torch.tensor(limits, device=values.device))
    return float((torch.fake_quantize_per_tensor_affine(values, scale, zero, 0, 255) - values).square().sum())
