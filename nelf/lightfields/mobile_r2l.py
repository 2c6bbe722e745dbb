"""MobileR2L: points on a low-resolution ray grid, a deep 1x1 residual network, a super-resolution tail."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nelf.errors import Depth, Frequencies, Size
from nelf.lightfields.base import LightField
from nelf.rays import Rays

__all__ = ["MobileR2L", "ResidualBlock", "activation_layer", "embed_points", "ray_points", "stratified"]

UPSAMPLING = {1: (), 2: (2,), 4: (2, 2), 6: (2, 3), 8: (2, 2, 2), 12: (2, 2, 3)}


def activation_layer(name: str) -> nn.Module:
    """Build an activation by name.

    Raises:
        ValueError: ``name`` is neither ``gelu`` nor ``relu``.
    """
    if name == "gelu":
        return nn.GELU()
    if name == "relu":
        return nn.ReLU(inplace=True)
    raise ValueError(f"Expected argument `activation` to be one of 'gelu' or 'relu', but got {name!r}.")


def stratified(t: Tensor, shape: Sequence[int]) -> Tensor:
    """Draw each depth uniformly between the mid-points to its neighbors.

    Args:
        t: (P,) increasing. The first is drawn between itself and the first mid-point, the last between the last
            mid-point and itself.
        shape: leading shape of the result.

    Returns:
        (*shape, P), on the device of ``t``.
    """
    middle = 0.5 * (t[1:] + t[:-1])
    lower, upper = torch.cat([t[:1], middle]), torch.cat([middle, t[-1:]])
    return lower + (upper - lower) * torch.rand(*shape, len(t), dtype=t.dtype, device=t.device)


def ray_points(rays: Rays, near: Tensor, far: Tensor, points: int, jitter: bool) -> Tensor:
    """Place points on rays, linear in z-depth from ``near`` to ``far``, both included.

    With ``jitter`` each depth is drawn between the mid-points to its neighbors, independently for each ray of the grid,
    but the same for the whole batch, as in MobileR2L.

    Args:
        rays: (B, h, w).
        near: () smallest ``t``.
        far: () largest ``t``.
        points: P, points per ray.
        jitter: draw the depths instead of spacing them evenly.

    Returns:
        (B, 3 P, h, w) coordinates, scene unit; channel ``point * 3 + coordinate``.
    """
    rays_o, rays_d = rays.origins.float(), rays.directions.float()
    t = near + (far - near) * torch.linspace(0.0, 1.0, points, device=rays_o.device)
    if jitter:
        t = stratified(t, rays_o.shape[1:3])
    positions = rays_o[..., None, :] + rays_d[..., None, :] * t[..., None]
    return positions.flatten(3).permute(0, 3, 1, 2)


# An octave follows from the one before by the double-angle formulas, which are cheaper in an exported graph than sines.
# Rounding errors double each time, so every sixth octave is computed directly.
_OCTAVES = 6


def embed_points(points: Tensor, multires: int) -> Tensor:
    """Embed coordinates by sines and cosines of doubling frequency.

    Args:
        points: (B, C, h, w) coordinates, one per channel.
        multires: L, the number of frequencies 2^0 .. 2^(L-1), in radians per scene unit.

    Returns:
        (B, C * (2 L + 1), h, w); channel ``c * (2 L + 1) + k``, where ``k`` counts L sines, L cosines and the
        coordinate itself.
    """
    sines: list[Tensor] = []
    cosines: list[Tensor] = []
    for octave in range(multires):
        if octave % _OCTAVES == 0:
            phase = points * 2.0**octave
            sine, cosine = phase.sin(), phase.cos()
        else:
            sine, cosine = 2 * sine * cosine, 1 - 2 * sine * sine
        sines.append(sine)
        cosines.append(cosine)
    return torch.stack([*sines, *cosines, points], dim=2).flatten(1, 2)


class ResidualBlock(nn.Module):
    """Two 1x1 convolutions with batch norm, an activation between them and none after the sum."""

    def __init__(self, width: int, activation: str) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(
            nn.Conv2d(width, width, 1),
            nn.BatchNorm2d(width),
            activation_layer(activation),
            nn.Conv2d(width, width, 1),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, width, h, w) to the same shape."""
        return x + self.conv_block(x)


def _transposed_tail(width: int, activation: str, sr_factor: int, sr_kernels: Sequence[int]) -> list[nn.Module]:
    """For each upsampling a transposed convolution and two residual blocks, then a 1x1 convolution to rgb."""
    if sr_factor not in UPSAMPLING:
        raise ValueError(f"Expected argument `sr_factor` to be 1, 2, 4, 6, 8 or 12, but got {sr_factor}.")
    factors = UPSAMPLING[sr_factor]
    if len(sr_kernels) < len(factors):
        raise ValueError(
            f"Expected argument `sr_kernels` to have at least {len(factors)} numbers for `sr_factor` {sr_factor}, "
            f"but got {list(sr_kernels)}."
        )
    tail: list[nn.Module] = []
    for factor, kernel in zip(factors, sr_kernels, strict=False):
        size, padding = (4, 1) if factor == 2 else (3, 0)
        tail += [nn.ConvTranspose2d(width, kernel, size, stride=factor, padding=padding)]
        tail += [ResidualBlock(kernel, activation) for _ in range(2)]
        width = kernel
    return [*tail, nn.Conv2d(width, 3, 1)]


class MobileR2L(LightField):
    """The light field of MobileR2L, with the original's layers.

    ``head`` (1x1 convolution) -> ``body`` (residual blocks, plus a skip around all of them) -> ``tail`` (for each
    upsampling a transposed convolution and two residual blocks; a 1x1 convolution and a sigmoid at the end).
    With the defaults 4,305,539 parameters; 4,298,371 with ``sr_factor=12``. Keys of the state dict are the
    original's, besides the buffers of ``LightField``.

    Args:
        width: channels of head and body.
        depth: layers of head, body and final layer: ``(depth - 2) / 2`` residual blocks.
        points: points per ray.
        multires: frequencies of the embedding.
        activation: ``gelu`` or ``relu``.
        sr_factor: pixels along one side of a ray's block: 1, 2, 4, 6 (the original's 12 with one doubling fewer), 8
            or 12.
        sr_kernels: channels after each upsampling; a factor below 8 uses the first of them.
        upsampling: ``transposed``, the original's tail; or ``shuffle``, one 3x3 convolution to all pixels of a block
            (any ``sr_factor``, ``sr_kernels`` unused), with no layer at full resolution.
        controls: K, number of controls in [0, 1], the first of which is the time, that are embedded with the points of
            each ray; 0 in the original. With controls, an exported graph takes rays or the pose.

    Raises:
        ValueError: an argument is outside what is listed above.

    Source:
        Cao et al. 2023, arXiv 2212.08057; layer sizes and order of channels as in the authors' code.
    """

    low_precision = True

    def __init__(
        self,
        width: Size = 256,
        depth: Depth = 60,
        points: Size = 8,
        multires: Frequencies = 6,
        activation: str = "gelu",
        sr_factor: int = 8,
        sr_kernels: Sequence[int] = (64, 64, 16),
        upsampling: Literal["transposed", "shuffle"] = "transposed",
        controls: int = 0,
    ) -> None:
        if controls < 0:
            raise ValueError(f"Expected argument `controls` to be 0 or more, but got {controls}.")
        if upsampling not in ("transposed", "shuffle"):
            raise ValueError(f"Expected argument `upsampling` to be 'transposed' or 'shuffle', but got {upsampling!r}.")
        if depth < 2 or depth % 2:
            raise ValueError(f"Expected argument `depth` to be an even number of at least 2, but got {depth}.")
        if points < 2:
            raise ValueError(f"Expected argument `points` to be at least 2, but got {points}.")
        super().__init__(sr_factor)
        self.points = points
        self.controls = controls
        self.encoded_channels = 3 * points + controls
        self.encoded = None if controls else "points"
        self.multires = multires
        channels = self.encoded_channels * (2 * multires + 1)
        self.head = nn.Sequential(nn.Conv2d(channels, width, 1), activation_layer(activation))
        self.body = nn.Sequential(*(ResidualBlock(width, activation) for _ in range((depth - 2) // 2)))
        if upsampling == "shuffle":
            # Zero padding lets the network tell the blocks at the edge from the others.
            tail: list[nn.Module] = [nn.Conv2d(width, 3 * sr_factor**2, 3, padding=1), nn.PixelShuffle(sr_factor)]
        else:
            tail = _transposed_tail(width, activation, sr_factor, sr_kernels)
        self.tail = nn.Sequential(*tail, nn.Sigmoid())

    def encode(self, rays: Rays) -> Tensor:
        """Points on rays (B, h, w), see ``ray_points``, and their controls: (B, 3 P + K, h, w)."""
        # Half precision cannot hold the phase of the highest frequency.
        with torch.autocast(rays.origins.device.type, enabled=False):
            points = ray_points(rays, self.near, self.far, self.points, self.training)
            if not self.controls:
                return points
            assert rays.controls is not None
            return torch.cat([points, rays.controls[..., : self.controls].float().movedim(-1, 1)], 1)

    def decode(self, points: Tensor) -> Tensor:
        """Apply the network to the points of each ray.

        Args:
            points: (B, 3 P + K, h, w) scene unit; channel ``point * 3 + coordinate``, then the controls.

        Returns:
            rgb (B, 3, h * sr_factor, w * sr_factor) in [0, 1].
        """
        with torch.autocast(points.device.type, enabled=False):
            x = embed_points(points.float(), self.multires)
        x = self.head(x.to(next(self.head.parameters()).dtype))
        return self.tail(self.body(x) + x).float()

    def prunable(self) -> dict[str, dict[str, nn.Parameter]]:
        """See ``LightField.prunable``; ``norms`` are those of the body alone, as in the original."""
        found = super().prunable()
        return found | {"norms": {name: values for name, values in found["norms"].items() if name.startswith("body.")}}

    def widths(self) -> dict[str, Any]:
        """See ``LightField.widths``."""
        kernels = [part.out_channels for part in self.tail.modules() if isinstance(part, nn.ConvTranspose2d)]
        return {"width": self.head[0].out_channels, **({"sr_kernels": kernels} if kernels else {})}
