"""8-bit numbers: symmetric weights, asymmetric activations, and networks that compute as if they had no more.

A network with fake quantization is the same network: same class, same parameters and names. Only the classes of its
convolutions are others, whose weights, inputs and outputs are rounded as the files of ``nelf.export.int8`` round them:
inputs and outputs to 8 bits, weights within ``LARGEST_MULTIPLIED``. Not rounded here, though there: the sum after a
residual block, where it is added to the next.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from copy import deepcopy
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import conv_transpose2d

from nelf.errors import UserError

if TYPE_CHECKING:
    from nelf.cameras import Camera

__all__ = [
    "Quantizer",
    "Ranges",
    "activation_ranges",
    "asymmetric",
    "calibrate",
    "channel_axes",
    "dequantize",
    "fake_quantize",
    "prepare",
    "quantize",
    "quantize_network",
    "quantizers",
    "restore_network",
]

#: Smallest and largest value of the tensors "LAYER.input" and "LAYER.output" of a network.
Ranges = dict[str, tuple[float, float]]
Method = Literal["minmax", "percentile", "mse"]

LARGEST = 127  # -128 is not used, so that a number and its negative round alike
# Of a weight that meets unsigned activations: x86 without VNNI adds two products in 16 bits, cut at 32,767. That holds
# 2 * 255 * 64, but not 2 * 255 * 65.
LARGEST_MULTIPLIED = 64
_TINY = 2.0**-24  # a tensor whose largest number is below it counts as zero
_SAMPLE = 2**14  # values kept of each tensor and view


def quantize(values: Tensor, axis: int | None = None, limit: int = LARGEST) -> tuple[Tensor, Tensor]:
    """Round to 8-bit integers, symmetric about zero: ``clamp(round(v * scale), -127, 127)``, ``scale = 127 / max|v|``.

    Args:
        values: any shape.
        axis: the dimension whose slices have a scale each; None for one scale.
        limit: instead of 127.

    Returns:
        The integers, int8, and the scale that divides them back, float32; it broadcasts to ``values``. A slice of
        zeros has scale 1.

    Source:
        NVIDIA's pytorch-quantization, ``fake_tensor_quant``, which R2L-quant calls: same operations, same order,
        halves rounded to even.
    """
    values = values.detach().float()
    others = [dimension for dimension in range(values.dim()) if axis is None or dimension != axis % values.dim()]
    largest = values.abs().amax(others, keepdim=axis is not None) if others else values.abs()
    zero = largest <= _TINY
    # A tensor over a tensor is a division; a number over one is a product with the reciprocal, one bit off at times.
    scale = torch.where(zero, 0.0, torch.full_like(largest, limit) / largest)
    integers = (values * scale).round().clamp(-limit, limit).to(torch.int8)
    return integers, torch.where(zero, 1.0, scale)


def dequantize(integers: Tensor, scale: Tensor) -> Tensor:
    """Divide 8-bit integers by their scale; float32."""
    return integers.float() / scale


def fake_quantize(values: Tensor, axis: int | None = None, limit: int = LARGEST) -> Tensor:
    """Round to what 8 bits can hold, see ``quantize``; the gradient passes as if nothing were rounded."""
    return values + (dequantize(*quantize(values, axis, limit)) - values).detach()


def asymmetric(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point of unsigned 8-bit integers for values from ``low`` to ``high``.

    Zero is always among the numbers that are hit exactly: ``v`` becomes ``clamp(round(v / scale) + zero_point, 0,
    255)``.

    Returns:
        scale, float32, and zero point, int32.
    """
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    scale = ((high - low) / 255).clamp(min=torch.finfo(torch.float32).tiny)
    return scale, (-low / scale).round().int()


def channel_axes(network: nn.Module) -> dict[str, int | None]:
    """Which dimension of a parameter gets a scale for each of its slices; biases and norms are not in it.

    Output channels of layers; the last dimension of tables of features (K, C); None, a single scale, for what a module
    names in ``single_scale``, such as the densities of a volume.
    """
    axes: dict[str, int | None] = {name: -1 for name, value in network.named_parameters() if value.dim() > 1}
    for name, layer in network.named_modules():
        for part in getattr(layer, "single_scale", ()):
            axes[f"{name}.{part}".lstrip(".")] = None
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            axes[f"{name}.weight" if name else "weight"] = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
    return axes


class Quantizer:
    """What a convolution with fake quantization carries beside its parameters.

    Args:
        rectified: a ReLU follows; int8 kernels do it in the same step, so that nothing is rounded between the two,
            and what is rounded after it is the next layer's input.
        axis: of the weight's output channels.

    Attributes:
        ranges: smallest and largest value of ``input`` and ``output``; what has none is not rounded.
        dynamic: take the range of each input from itself, and do not round the output.
        watch: is shown inputs and outputs before they are rounded.
    """

    def __init__(self, rectified: bool, axis: int) -> None:
        self.rectified = rectified
        self.axis = axis
        self.ranges: dict[str, Tensor] = {}
        self.dynamic = False
        self.watch: Callable[[str, Tensor], None] | None = None

    @property
    def limit(self) -> int:
        """Largest integer of the weight; a kernel with dynamic ranges takes unsigned weights, all 8 bits of them."""
        return LARGEST_MULTIPLIED if self.ranges and not self.dynamic else LARGEST

    def __call__(self, x: Tensor, weight: Tensor, convolve: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Convolve, rounded."""
        # An 8-bit kernel accumulates exactly; arithmetic of low precision would only blur what is looked at.
        with torch.autocast(x.device.type, enabled=False):
            x = self._round("input", x.float())
            y = convolve(x, fake_quantize(weight, self.axis, self.limit) if self.ranges or self.dynamic else weight)
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


class _Conv2d(nn.Conv2d):
    quantizer: Quantizer

    def forward(self, x: Tensor) -> Tensor:
        return self.quantizer(x, self.weight, lambda x, weight: self._conv_forward(x, weight, self.bias))


class _ConvTranspose2d(nn.ConvTranspose2d):
    quantizer: Quantizer

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        def convolve(x: Tensor, weight: Tensor) -> Tensor:
            options: Any = (self.stride, self.padding, self.output_padding, self.groups, self.dilation)
            return conv_transpose2d(x, weight, self.bias, *options)

        return self.quantizer(x, self.weight, convolve)


_QUANTIZED: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: _Conv2d, nn.ConvTranspose2d: _ConvTranspose2d}


def quantizers(network: nn.Module) -> dict[str, Quantizer]:
    """What the convolutions of a network carry, by the name of the layer; empty without fake quantization."""
    return {
        name: layer.quantizer
        for name, layer in network.named_modules()
        if isinstance(layer, _Conv2d | _ConvTranspose2d)
    }


def prepare(network: nn.Module) -> dict[str, Quantizer]:
    """Make every convolution of a network one that can be watched and rounded; it computes as before.

    Args:
        network: changed in place; its batch norms have to be folded, as int8 kernels know none.

    Returns:
        As ``quantizers``.
    """
    rectified = {
        id(layer)
        for block in network.modules()
        if isinstance(block, nn.Sequential)
        for layer, following in pairwise(part for part in block if not isinstance(part, nn.Identity))
        if isinstance(following, nn.ReLU)
    }
    for layer in list(network.modules()):
        if type(layer) in _QUANTIZED:
            layer.__class__ = _QUANTIZED[type(layer)]
            axis = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
            layer.quantizer = Quantizer(id(layer) in rectified, axis)  # type: ignore[assignment]
    return quantizers(network)


def quantize_network(network: nn.Module, ranges: Ranges | Literal["dynamic"]) -> nn.Module:
    """Make a network compute as int8 kernels do: rounded weights (per channel) and activations (per tensor).

    Args:
        network: changed in place; its batch norms have to be folded.
        ranges: of ``calibrate`` or of quantization-aware training; a layer that is not in it computes in 32 bits.
            ``dynamic``: each input's own range, outputs not rounded.

    Returns:
        The network. ``restore_network`` undoes it; its weights are never changed.

    Raises:
        ValueError: a range of a layer that the network does not have.
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
    """Take fake quantization off a network again, in place; its weights are what they are."""
    plain = {quantized: kind for kind, quantized in _QUANTIZED.items()}
    for layer in list(network.modules()):
        if type(layer) in plain:
            layer.__class__ = plain[type(layer)]
            del layer.quantizer
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
    """Find the range of every convolution's input and output while a network renders views.

    Args:
        network: a light field whose batch norms are folded; not changed.
        cameras: what to render; a dozen views or so.
        method: ``minmax`` takes all that occurs; ``percentile`` cuts ``100 - percentile`` % off each side;
            ``mse`` shrinks the range to where the squared error of rounding is least.
        percentile: for that method.

    Returns:
        Ranges by "LAYER.input" and "LAYER.output"; a layer before a ReLU has no output of its own.

    Raises:
        UserError: there are no cameras.
        ValueError: ``method`` is not one of the words above.
    """
    if method not in get_args(Method):
        raise ValueError(f"Expected argument `method` to be one of {get_args(Method)}, but got {method!r}.")
    network = restore_network(deepcopy(network))
    seen: dict[str, _Seen] = defaultdict(_Seen)
    for name, quantizer in prepare(network).items():
        quantizer.watch = lambda side, values, name=name: seen[f"{name}.{side}"].add(values)  # type: ignore[misc]
    for camera in cameras:
        network.render(camera)  # type: ignore[operator]
    if not seen:
        raise UserError("calibrate: there are no views to render; at least one is needed.")
    return {key: each.limits(method, percentile) for key, each in seen.items()}


class _Seen:
    """The values of one tensor over all views: their extremes, and a sample of them."""

    def __init__(self) -> None:
        self.low, self.high = float("inf"), float("-inf")
        self.sample: list[Tensor] = []

    def add(self, values: Tensor) -> None:
        low, high = values.aminmax()
        self.low, self.high = min(self.low, float(low)), max(self.high, float(high))
        flat = values.flatten()
        # Drawn, as a stride might always see the same column; the same draw for the same network.
        drawn = torch.randint(len(flat), (_SAMPLE,), generator=torch.Generator().manual_seed(len(self.sample)))
        self.sample.append(flat[drawn.to(flat.device)])

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
