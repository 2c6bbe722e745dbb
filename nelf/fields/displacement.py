"""Displacements of points into a canonical field, on a grid of space and controls or by a network."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nelf.encodings import frequency_encoding
from nelf.kernels import space_time_lookup

__all__ = ["DisplacementGrid", "DisplacementNetwork"]


class DisplacementGrid(nn.Module):
    """Displacements at the nodes of a coarse grid, interpolated linearly in space and in each control.

    Each control has a grid, and their displacements are summed. All are initialized to zero. No moment is forced to be
    the canonical one.

    Args:
        cells: nodes along each side of space.
        times: nodes along each control.
        controls: K, the first of which is the time.

    Raises:
        ValueError: a side has fewer than two nodes.
    """

    def __init__(self, cells: int = 16, times: int = 16, controls: int = 1) -> None:
        super().__init__()
        if min(cells, times) < 2:
            raise ValueError(f"Expected `cells` and `times` to be 2 or more, but got {cells} and {times}.")
        self.values = nn.Parameter(torch.zeros(controls, times, cells, cells, cells, 3))

    def forward(self, positions: Tensor, controls: Tensor) -> Tensor:
        """Displacements (S, 3) at positions (S, 3) in [0, 1] and controls (S, K) in [0, 1]."""
        parts = [space_time_lookup(positions, controls[:, k], grid) for k, grid in enumerate(self.values)]
        return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]

    def roughness(self) -> Tensor:
        """Half the sum of the squared differences between neighbors in space and in each control: ()."""
        return _Roughness.apply(self.values)  # type: ignore[no-any-return,no-untyped-call]


class _Roughness(torch.autograd.Function):
    """See ``DisplacementGrid.roughness``; its gradient, a Laplacian, is computed with the value."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        gradient, total = torch.zeros_like(values), values.new_zeros(())
        for side in range(1, 5):
            steps = values.diff(dim=side)
            total += 0.5 * steps.square().sum()
            gradient.narrow(side, 1, steps.shape[side]).add_(steps)
            gradient.narrow(side, 0, steps.shape[side]).sub_(steps)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> Tensor:
        return grad_out * ctx.saved_tensors[0]  # type: ignore[no-any-return]


class DisplacementNetwork(nn.Module):
    """Displacements by a network of encoded positions and controls.

    Args:
        controls: K, the first of which is the time.
        hidden: neurons of its hidden layers.
        layers: number of hidden layers.
        frequencies: of the encoded positions.
        control_frequencies: of the encoded controls.

    Source:
        torch-ngp's D-NeRF: a network with frequency encoding, without biases, whose output is not zeroed at time 0.
    """

    def __init__(
        self, controls: int = 1, hidden: int = 128, layers: int = 4, frequencies: int = 10, control_frequencies: int = 6
    ) -> None:
        super().__init__()
        self.frequencies, self.control_frequencies = frequencies, control_frequencies
        inputs = 3 * (2 * frequencies + 1) + controls * (2 * control_frequencies + 1)
        widths = [inputs] + [hidden] * layers
        parts: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            parts += [nn.Linear(width_in, width_out, bias=False), nn.ReLU()]
        self.layers = nn.Sequential(*parts, nn.Linear(hidden, 3, bias=False))
        nn.init.uniform_(self.layers[-1].weight, -1e-4, 1e-4)  # type: ignore[arg-type]

    def forward(self, positions: Tensor, controls: Tensor) -> Tensor:
        """See ``DisplacementGrid.forward``."""
        place = frequency_encoding(2.0 * positions - 1.0, self.frequencies)
        moment = frequency_encoding(controls, self.control_frequencies)
        return self.layers(torch.cat([place, moment], -1))  # type: ignore[no-any-return]
