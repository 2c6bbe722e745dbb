"""Parts that R2L and DyLiN share: points on rays, their embedding, the deep residual network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nelf.lightfields.mobile_r2l import stratified

__all__ = ["colors", "embed", "points_along", "residual_layers"]


class _ResidualBlock(nn.Module):
    """Two linear layers with a ReLU between them and none after the sum."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.body = nn.Sequential(nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, self.body(x), alpha=self.scale)


def residual_layers(
    columns: int, width: int, depth: int, block_scale: float = 1.0
) -> tuple[nn.Sequential, nn.Sequential, nn.Sequential]:
    """Build ``head`` (linear, ReLU), ``body`` (residual blocks) and ``tail`` (linear, sigmoid).

    Args:
        columns: number of embedded inputs.
        width: of all layers.
        depth: layers of head, body and tail: ``(depth - 2) / 2`` residual blocks.
        block_scale: factor on what a block adds to its input.

    Raises:
        ValueError: ``depth`` is odd, or below 2.
    """
    if depth < 2 or depth % 2:
        raise ValueError(f"Expected argument `depth` to be an even number of at least 2, but got {depth}.")
    head = nn.Sequential(nn.Linear(columns, width), nn.ReLU(inplace=True))
    body = nn.Sequential(*(_ResidualBlock(width, block_scale) for _ in range((depth - 2) // 2)))
    return head, body, nn.Sequential(nn.Linear(width, 3), nn.Sigmoid())


def colors(head: nn.Sequential, body: nn.Sequential, tail: nn.Sequential, x: Tensor, skip: bool = True) -> Tensor:
    """Apply ``residual_layers``.

    Args:
        head: first layer.
        body: residual blocks.
        tail: last layer.
        x: (N, columns) embedded inputs.
        skip: add the output of the head to that of the body.

    Returns:
        (N, 3) in [0, 1], in the precision of the weights.
    """
    x = head(x.to(next(head.parameters()).dtype))
    return tail(body(x) + x if skip else body(x))  # type: ignore[no-any-return]


def points_along(rays_o: Tensor, rays_d: Tensor, near: Tensor, far: Tensor, points: int, jitter: bool) -> Tensor:
    """Place points on rays, linear in z-depth from ``near`` to ``far``, both included.

    Args:
        rays_o: (..., 3) origins.
        rays_d: (..., 3) directions.
        near: () smallest ``t``.
        far: () largest ``t``.
        points: P, at least two.
        jitter: draw each depth between the mid-points to its neighbors, independently for every ray.

    Returns:
        (..., 3 P), scene unit: ``point * 3 + coordinate``.
    """
    t = near + (far - near) * torch.linspace(0.0, 1.0, points, dtype=near.dtype, device=near.device)
    if jitter:
        t = stratified(t, rays_o.shape[:-1])
    return (rays_o[..., None, :] + rays_d[..., None, :] * t[..., None]).flatten(-2)


def embed(values: Tensor, multires: int) -> Tensor:
    """Sines and cosines of doubling frequency, the lowest one radian per unit.

    Args:
        values: (N, C).
        multires: L, the number of frequencies.

    Returns:
        (N, C * (2 L + 1)): for each value L sines, L cosines, and the value itself.
    """
    octaves = 2.0 ** torch.arange(multires, dtype=values.dtype, device=values.device)
    phases = values[..., None] * octaves
    return torch.cat([phases.sin(), phases.cos(), values[..., None]], dim=-1).flatten(1)
