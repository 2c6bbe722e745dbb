"""Networks, conditioned on latent codes, that warp points to a canonical space and to an ambient space."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from nelf.encodings import coarse_to_fine, frequency_encoding
from nelf.fields.ngp import run_padded

__all__ = ["SE3Warp", "SkipMLP", "SlicingSurface", "TranslationWarp", "moved_along", "robust"]

_SKIP = 4  # index of the layer that takes the input again
_TERMS = 8  # of a series, enough for float64 below an angle of 1


class SkipMLP(nn.Module):
    """ReLU layers, the fifth of which takes the input again, after the activations of the fourth.

    Args:
        inputs: C, number of inputs.
        width: of each layer.
        depth: number of layers.
        low_precision: see NGP.

    Source:
        HyperNeRF (Park et al. 2021, arXiv 2106.13228), ``modules.py``: Glorot-uniform weights, biases at zero.
    """

    def __init__(self, inputs: int, width: int, depth: int, low_precision: bool | None = None) -> None:
        super().__init__()
        self.low_precision = low_precision
        widths = [inputs] + [width] * depth
        self.layers = nn.ModuleList()
        for index, (width_in, width_out) in enumerate(pairwise(widths)):
            self.layers.append(_glorot(width_in + (inputs if index == _SKIP else 0), width_out))

    def forward(self, inputs: Tensor) -> Tensor:
        """The activations (S, width) float32 of the last layer, for inputs (S, C)."""
        return run_padded(self._activations, inputs, self.low_precision).float()

    def _activations(self, inputs: Tensor) -> Tensor:
        hidden = inputs
        for index, layer in enumerate(self.layers):
            if index == _SKIP:
                hidden = torch.cat([hidden, inputs.to(hidden.dtype)], 1)
            hidden = layer(hidden).relu_()
        return hidden


class TranslationWarp(nn.Module):
    """A displacement of each point by a network of its encoded position and a code.

    Args:
        codes: size of a code.
        width: of the network's layers.
        depth: number of layers.
        frequencies: of the encoded positions.
        low_precision: see NGP.

    Source:
        Nerfies and HyperNeRF, ``warping.py`` (arXiv 2011.12948, 2106.13228). The last layer is initialized from
        U(-1e-4, 1e-4), the original's from U[0, 1e-4), which favors one direction of the first displacements.
    """

    outputs = 3

    def __init__(
        self, codes: int = 8, width: int = 128, depth: int = 6, frequencies: int = 6, low_precision: bool | None = None
    ) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.trunk = SkipMLP(3 * (2 * frequencies + 1) + codes, width, depth, low_precision)
        self.head = nn.Linear(width, self.outputs)
        nn.init.uniform_(self.head.weight, -1e-4, 1e-4)
        nn.init.zeros_(self.head.bias)

    def forward(self, positions: Tensor, codes: Tensor, opened: Tensor) -> Tensor:
        """Give the displacements of positions under codes.

        Args:
            positions: (S, 3) in the field's space.
            codes: (S, C).
            opened: () fraction of the frequencies that are enabled, low ones first.

        Returns:
            (S, 3).
        """
        window = coarse_to_fine(opened * self.frequencies, self.frequencies)
        encoded = frequency_encoding(positions, self.frequencies, window=window)
        return self._displacement(positions, self.head(self.trunk(torch.cat([encoded, codes], 1))))

    def _displacement(self, positions: Tensor, motion: Tensor) -> Tensor:
        return motion


class SE3Warp(TranslationWarp):
    """A rotation and translation of each point, by a network of its encoded position and a code.

    Its network outputs a twist: ``w`` (3,), an axis times an angle, and ``v`` (3,), a velocity. The point moves by the
    exponential of the twist. With ``v = 0``, the axis passes through the origin of the field. The arguments are those
    of ``TranslationWarp``.
    """

    outputs = 6

    def _displacement(self, positions: Tensor, motion: Tensor) -> Tensor:
        return moved_along(motion[:, :3], motion[:, 3:], positions)


class SlicingSurface(nn.Module):
    """The ambient coordinates of each point at a moment: a deformable slicing surface through hyperspace.

    Args:
        codes: size of a code.
        outputs: dimensions of the ambient space.
        width: of the network's layers.
        depth: number of layers.
        frequencies: of the encoded positions.
        low_precision: see NGP.

    Source:
        HyperNeRF, ``modules.py`` (arXiv 2106.13228): of positions, only sines and cosines are inputs.
    """

    def __init__(
        self,
        codes: int = 8,
        outputs: int = 2,
        width: int = 64,
        depth: int = 6,
        frequencies: int = 6,
        low_precision: bool | None = None,
    ) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.trunk = SkipMLP(6 * frequencies + codes, width, depth, low_precision)
        self.head = nn.Linear(width, outputs)
        nn.init.normal_(self.head.weight, std=1e-5)
        nn.init.zeros_(self.head.bias)

    def forward(self, positions: Tensor, codes: Tensor) -> Tensor:
        """The ambient coordinates (S, outputs) of positions (S, 3) under codes (S, C)."""
        waves = frequency_encoding(positions, self.frequencies)[:, 3:]
        return self.head(self.trunk(torch.cat([waves, codes], 1)))  # type: ignore[no-any-return]


def moved_along(rotation: Tensor, velocity: Tensor, points: Tensor) -> Tensor:
    """The displacement of points under the exponential of twists: ``exp([w, v]) p - p``.

    With ``u = w x p + v`` it is ``u + (1 - cos a) / a^2 (w x u) + (a - sin a) / a^3 (w x (w x u))`` for an angle
    ``a = |w|``. Below an angle of 1, both factors are computed by series, which are smooth at 0.

    Args:
        rotation: (S, 3) ``w``, the axis times the angle, radians.
        velocity: (S, 3) ``v``.
        points: (S, 3) ``p``.

    Returns:
        (S, 3), differentiable everywhere.

    Source:
        Lynch and Park, Modern Robotics, eq. 3.51 and 3.88, multiplied out.
    """
    square = rotation.square().sum(-1, keepdim=True)
    small = square < 1.0
    angle = torch.where(small, 1.0, square).sqrt()  # the branch not chosen below needs a finite gradient, too
    near = torch.where(small, square, 0.0)
    half = torch.where(small, _series(near, 2), (1.0 - angle.cos()) / angle.square())
    sixth = torch.where(small, _series(near, 3), (angle - angle.sin()) / angle**3)
    first = torch.linalg.cross(rotation, points) + velocity
    second = torch.linalg.cross(rotation, first)
    return first + half * second + sixth * torch.linalg.cross(rotation, second)


def robust(squares: Tensor, scale: float) -> Tensor:
    """Geman and McClure's loss of squared residuals: ``2 c s / (s + 4 c^2)`` with scale ``c``, as in HyperNeRF.

    Source:
        Barron 2019 (arXiv 1701.03077), alpha -2, times the scale.
    """
    return 2.0 * scale * squares / (squares + 4.0 * scale**2)


def _series(square: Tensor, first: int) -> Tensor:
    """``sum_k (-square)^k / (2 k + first)!``, by Horner's rule."""
    total = torch.zeros_like(square)
    for k in reversed(range(_TERMS)):
        total = 1.0 / math.factorial(2 * k + first) - square * total
    return total


def _glorot(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
