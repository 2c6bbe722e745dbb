"""GridR2L: a sparse feature volume composited along each ray, a small convolutional network, pixel shuffle."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, max_pool2d, pad, pixel_shuffle, pixel_unshuffle

from nelf.encodings import spherical_harmonics
from nelf.kernels import multiplies_bfloat16
from nelf.kernels.ray_features import RayFeatures
from nelf.lightfields.light_field import LightField
from nelf.lightfields.mobile_r2l import activation_layer
from nelf.lightfields.visual_hull import tight_box, visual_hull
from nelf.lightfields.volume import SparseVolume
from nelf.lightfields.warm_start import bake, dense_cells, visible_cells
from nelf.rendering import Rendering

if TYPE_CHECKING:
    from nelf.cameras import Camera
    from nelf.data.scene import Scene

__all__ = ["GridR2L", "decoder_inputs"]

# A point of smaller optical depth is empty: while learning, since what is empty learns no more (3e-3 left holes and
# fog in the demo scene), and while rendering, where it saves a fifth of the time for 0.03 dB.
MIN_ALPHA, MIN_ALPHA_RENDERING = 2e-4, 3e-3
HULL_CELLS = 64
BOX_CELLS = 64
VOXEL = 1.25  # side of a voxel, in distances between neighboring rays at the middle of the scene
SIDES = (32, 256)  # smallest and largest number of corners along the longest side
WITHOUT_TEACHER = 72  # corners along the longest side where nobody knows which of them exist
RECEPTIVE = 3  # rays: one for each 3x3 convolution of a network of depth 6
WINDOW = 16  # rays; the decoder's windows have sides of whole multiples, since its kernels are built for each size


class _Block(nn.Module):
    """A residual block: 3x3 convolution, activation, 1x1 convolution."""

    def __init__(self, width: int, activation: str) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), activation_layer(activation), nn.Conv2d(width, width, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


def decoder_inputs(rays_d: Tensor, along: RayFeatures, factor: int) -> Tensor:
    b, height, width, _ = rays_d.shape
    looked_up = torch.cat([along.features, along.opacity[:, None]], dim=-1).view(b, height, width, -1).permute(0, 3, 1, 2)
    middle = nn.functional.normalize(avg_pool2d(rays_d.float().permute(0, 3, 1, 2), factor), dim=1).permute(0, 2, 3, 1)
    harmonics = spherical_harmonics(middle.reshape(-1, 3)).view(*middle.shape[:3], -1).permute(0, 3, 1, 2)
    return torch.cat([pixel_unshuffle(looked_up, factor), harmonics], 1)


class GridR2L(LightField):
    """The light field that trains in minutes on a CPU.
    """

    block_rays = False
    background: Tensor

    def __init__(
        self,
        width: int = 32,
        depth: int = 6,
        resolution: int | None = None,
        features: int = 8,
        sr_factor: int = 2,
        activation: str = "relu",
        feature_lr: float = 15.0,
        density_lr: float = 50.0,
        near: float | None = None,
        far: float | None = None,
    ) -> None:
        if depth < 2 or depth % 2:
            raise ValueError(f"Expected argument `depth` to be an even number from 2 on, but got {depth}.")
        if features < 3:
            raise ValueError(f"Expected argument `features` to be 3 or more, but got {features}.")
        super().__init__(sr_factor, near, far)
        self.resolution = resolution
        self.lr_factors = (feature_lr, density_lr)
        self.volume = SparseVolume((8, 8, 8), features)
        self.register_buffer("background", torch.ones(3))
        self.head = nn.Sequential(nn.Conv2d((features + 1) * sr_factor**2 + 16, width, 1), activation_layer(activation))
        self.body = nn.Sequential(*(_Block(width, activation) for _ in range((depth - 2) // 2)))
        self.tail = nn.Conv2d(width, 4 * sr_factor**2, 3, padding=1)
        nn.init.zeros_(self.tail.weight)
        nn.init.zeros_(self.tail.bias)
        for part in (self.head, self.body, self.tail):
            part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # what oneDNN is fast in

    def fit_scene(self, scene: Scene, teacher: Any = None) -> None:
        fitted = bool(self.fitted)
        super().fit_scene(scene)
        if fitted:
            return
        from nelf.data.scene import background_color
        self.background.copy_(background_color(scene.background))
        hull = visual_hull(scene.train, self.aabb, HULL_CELLS, scene.background)
        if teacher is not None:
            box = dense_cells(teacher, self.aabb, (BOX_CELLS,) * 3)
            self.aabb.copy_(tight_box(hull & box, self.aabb))
        else:
            self.aabb.copy_(tight_box(hull, self.aabb))
        sides = self.aabb[3:] - self.aabb[:3]
        resolution = self.resolution or self._resolution(scene.train.camera)
        if teacher is None:
            resolution = min(resolution, WITHOUT_TEACHER)
        voxel = float(sides.max()) / (resolution - 1)
        w, h, d = ((sides / voxel).ceil().long() + 1).tolist()
        # whole voxels
        self.aabb[3:] = self.aabb[:3] + voxel * torch.tensor([w - 1, h - 1, d - 1])
        cells = visual_hull(scene.train, self.aabb, (d - 1, h - 1, w - 1), scene.background)
        if teacher is not None:
            cells &= dense_cells(teacher, self.aabb, (d - 1, h - 1, w - 1))
            cells = nn.functional.max_pool3d(cells[None].float(), 3, 1, 1)[0] > 0
        exists = torch.nn.functional.max_pool3d(cells[None].float(), 2, stride=1, padding=1)[0] > 0
        self.volume.resize(exists)
        if teacher is not None:
            bake(self.volume, teacher, self.aabb, scene.train.camera)
            self.volume.keep(visible_cells(self, scene.train.camera))

    def _resolution(self, camera: Camera) -> int:
        center, sides = 0.5 * (self.aabb[:3] + self.aabb[3:]), self.aabb[3:] - self.aabb[:3]
        distance = (camera.c2w[:, :, 3] - center).norm(dim=-1).mean()
        spacing = distance * self.sr_factor / camera.intrinsics[:, 0].mean()
        return int(min(max(round(float(sides.max() / spacing) / VOXEL), SIDES[0]), SIDES[1]))

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Give the volume its own, higher learning rates; it learns from few rays at a time, so without decay."""
        volume = {"weight_decay": 0.0, "eps": 1e-12, "betas": (0.9, 0.99)}
        feature_lr, density_lr = self.lr_factors
        inside = {id(p) for p in self.volume.parameters()}
        network = [p for p in self.parameters() if id(p) not in inside]
        return [
            {"params": network, "lr": lr, "weight_decay": weight_decay},
            {"params": [self.volume.features], "lr": lr * feature_lr, **volume},
            {"params": [self.volume.density], "lr": lr * density_lr, **volume},
        ]

    @property
    def voxel(self) -> float:
        """Side of a voxel, scene unit."""
        return float((self.aabb[3] - self.aabb[0]) / (self.volume.shape[2] - 1))

    def composite(self, rays_o: Tensor, rays_d: Tensor) -> RayFeatures:
        """Look up rays of any shape (..., 3), flattened; see ``nelf.kernels.ray_features``."""
        rays_o, rays_d = rays_o.reshape(-1, 3).float(), rays_d.reshape(-1, 3).float()
        jitter = torch.rand_like(rays_o[:, 0]) if self.training else torch.full_like(rays_o[:, 0], 0.5)
        return self.volume.composite(
            rays_o, rays_d, self.aabb, jitter, self.voxel, MIN_ALPHA if self.training else MIN_ALPHA_RENDERING
        )

    def extent(self, camera: Camera) -> tuple[int, int, int, int]:
        low, high = self.aabb.cpu().view(2, 3)
        corners = torch.stack([torch.where(torch.tensor([i & 1, i & 2, i & 4]) > 0, high, low) for i in range(8)])
        local = (corners - camera.c2w[:, 3]) @ camera.c2w[:, :3]
        if (local[:, 2] > -1e-3).any():
            return super().extent(camera)
        fx, fy, cx, cy = camera.intrinsics.unbind(-1)
        x, y = cx - fx * local[:, 0] / local[:, 2], cy + fy * local[:, 1] / local[:, 2]
        x0, x1 = (int(v) for v in (x.min().clamp(0, camera.width - 1), x.max().ceil().clamp(1, camera.width)))
        y0, y1 = (int(v) for v in (y.min().clamp(0, camera.height - 1), y.max().ceil().clamp(1, camera.height)))
        return x0, y0, x1, y1

    def forward(self, rays_o: Tensor, rays_d: Tensor) -> Tensor:
        inputs = decoder_inputs(rays_d, self.composite(rays_o, rays_d), self.sr_factor)
        return self._decode_window(inputs)

    def _decode_window(self, inputs: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return self.decode(inputs)
        height, width = inputs.shape[-2:]
        s = self.sr_factor
        hit = (inputs[:, self._opacity] > 0).flatten(0, 1).any(0)
        rows, columns = hit.any(1).nonzero()[:, 0], hit.any(0).nonzero()[:, 0]
        if not len(rows):
            return inputs.new_zeros(len(inputs), 4, height * s, width * s)
        top, bottom = _window(rows, height)
        left, right = _window(columns, width)
        out = self.decode(inputs[:, :, top:bottom, left:right])
        return pad(out, (left * s, (width - right) * s, top * s, (height - bottom) * s))

    @property
    def _opacity(self) -> slice:
        block = self.sr_factor**2
        return slice(self.volume.channels * block, (self.volume.channels + 1) * block)

    def decode(self, inputs: Tensor) -> Tensor:
        # A trained network loses 0.001 dB in bfloat16 (lego); learning in it is the Trainer's choice.
        low = self.low_precision and not self.training and multiplies_bfloat16(inputs.device)
        with torch.autocast(inputs.device.type, torch.bfloat16) if low else nullcontext():
            x = self.tail(self.body(self.head(inputs)))
        opacity = inputs[:, self._opacity]
        mask = max_pool2d(2 * opacity.amax(1, keepdim=True), 3, 1, 1).clamp(max=1.0)
        base = torch.cat([inputs[:, : 3 * self.sr_factor**2], opacity], 1)
        out = pixel_shuffle(base + x.float() * mask, self.sr_factor)
        return out if self.training else torch.minimum(out.clamp(0.0, 1.0), out[:, 3:].clamp(0.0, 1.0))

    @torch.no_grad()
    def render(self, camera: Camera, time: float | None = None) -> Rendering:
        """Render one camera, see ``LightField.render``; with depth and opacity, of the low-resolution rays."""
        training = self.training
        self.eval()
        try:
            rays = camera.to(self.near.device).rays()
            along = self.composite(rays.rays_o, rays.rays_d)
            out = self._decode_window(decoder_inputs(rays.rays_d[None], along, self.sr_factor))[0].permute(1, 2, 0)
        finally:
            self.train(training)
        rgb, opacity = out[..., :3] + (1 - out[..., 3:]) * self.background, out[..., 3]
        return Rendering(rgb, along.depth.view(opacity.shape), opacity)


def _window(hit: Tensor, size: int) -> tuple[int, int]:
    """The rays to decode along one axis: those that are hit, and what the decoder looks at around them."""
    margin = RECEPTIVE + 1  # and one more for the opacity's neighbors
    first, last = max(int(hit[0]) - margin, 0), min(int(hit[-1]) + 1 + margin, size)
    length = min(-(-(last - first) // WINDOW) * WINDOW, size)
    first = min(first, size - length)
    return first, first + length
