"""GridR2L: a feature volume composited along each ray, a small convolutional network, pixel shuffle."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool3d, pixel_shuffle, softplus

from nelf.encodings import spherical_harmonics
from nelf.kernels import multiplies_bfloat16
from nelf.kernels.ray_features import RayFeatures, ray_features
from nelf.lightfields.light_field import LightField
from nelf.lightfields.mobile_r2l import activation_layer
from nelf.lightfields.visual_hull import tight_box, visual_hull
from nelf.rendering import Rendering

if TYPE_CHECKING:
    from nelf.cameras import Camera
    from nelf.data.scene import Scene

__all__ = ["GridR2L", "decoder_inputs"]

INITIAL_DENSITY = -4.6  # a softplus of 0.01: a ray through a hundred voxels keeps a third of its light
# A point of smaller optical depth is empty: while learning, since what is empty learns no more (3e-3 left holes and
# fog in the demo scene), and while rendering, where it saves a fifth of the time for 0.03 dB.
MIN_TAU, MIN_TAU_RENDERING = 2e-4, 3e-3
EMPTY = 1e-3  # optical depth of a voxel below which it counts as empty
OCCUPANCY_STEPS = 50  # between two looks at which cells are empty
HULL_CELLS = 64


class _Block(nn.Module):
    """A residual block: 3x3 convolution, activation, 1x1 convolution."""

    def __init__(self, width: int, activation: str) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), activation_layer(activation), nn.Conv2d(width, width, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


def decoder_inputs(rays_d: Tensor, along: RayFeatures) -> Tensor:
    """What the network of ``GridR2L`` sees of rays.

    Args:
        rays_d: (B, h, w, 3) directions.
        along: what lies along the B * h * w rays, C features each.

    Returns:
        (B, C + 17, h, w): composited features, opacity, the 16 spherical harmonics of the viewdirs.
    """
    viewdirs = nn.functional.normalize(rays_d.float(), dim=-1).reshape(-1, 3)
    inputs = torch.cat([along.features, along.opacity[:, None], spherical_harmonics(viewdirs)], dim=-1)
    return inputs.view(*rays_d.shape[:3], -1).permute(0, 3, 1, 2)


class GridR2L(LightField):
    """The light field that trains in minutes on a CPU.

    A dense volume of learned densities and features fills the box of the scene. Features at the points of a ray are
    composited as volume rendering composites colours, so all views share them; their sum, the ray's opacity and the
    spherical harmonics of its direction go through a small convolutional ``body``, evaluated once per ray, and a
    pixel shuffle.

    Measured on lego's own 100 views at 200 pixels (test views, equal steps): features side by side, as MobileR2L's
    points are, 20.5 dB where composited ones reach 21.4; blocks of 4 x 4 pixels 24.8 where 2 x 2 reach 26.5 in half
    the steps; without carving 26.2; 16 features 26.8 and width 48 26.7, both slower. In five minutes of training 96
    points give 28.7 dB, 72 points 28.6 and a fifth less time a view.

    Args:
        width: channels of head and body.
        depth: layers of head, body and final layer: ``(depth - 2) / 2`` residual blocks.
        points: points per ray, between where it enters the box and where it leaves.
        resolution: voxel corners along each side of the volume.
        features: channels of the volume, beside the density.
        sr_factor: pixels along one side of a ray's block.
        activation: ``gelu`` or ``relu``.
        feature_lr: learning rate of the features, as a multiple of the network's.
        density_lr: learning rate of the density, as a multiple of the network's.
        near: smallest ``t``; kept for whoever asks, rays are cut by the box.
        far: largest ``t``, likewise.

    Raises:
        ValueError: an argument is outside what is listed above.

    Source:
        A grid of features in a light field: LightSpeed (arXiv 2310.16832). One network after compositing: SNeRG
        (arXiv 2103.14645). Density and known free space on a dense grid: DVGO (arXiv 2111.11215).
    """

    density: Tensor
    occupied: Tensor
    steps: Tensor

    def __init__(
        self,
        width: int = 32,
        depth: int = 6,
        points: int = 72,
        resolution: int = 72,
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
        for name, value in (("points", points), ("features", features), ("resolution", resolution - 1)):
            if value < 1:
                raise ValueError(f"Expected argument `{name}` to be larger, but got {value}.")
        super().__init__(sr_factor, near, far)
        self.points = points
        self.lr_factors = (feature_lr, density_lr)
        self.density = nn.Parameter(torch.full((resolution,) * 3, INITIAL_DENSITY))
        self.features = nn.Parameter(0.1 * torch.randn(*(resolution,) * 3, features))
        self.register_buffer("occupied", torch.ones((resolution - 1,) * 3, dtype=torch.bool))
        self.register_buffer("steps", torch.tensor(0))
        self.head = nn.Sequential(nn.Conv2d(features + 17, width, 1), activation_layer(activation))
        self.body = nn.Sequential(*(_Block(width, activation) for _ in range((depth - 2) // 2)))
        self.tail = nn.Conv2d(width, 3 * sr_factor**2, 3, padding=1)
        for part in (self.head, self.body, self.tail):
            part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # what oneDNN is fast in

    def fit_scene(self, scene: Scene) -> None:
        """Take the box from ``scene``, shrink it to the visual hull of its training views and carve it.

        Raises:
            UserError: the images cannot be cut into blocks of ``sr_factor`` pixels.
        """
        fitted = bool(self.fitted)
        super().fit_scene(scene)
        if fitted:
            return
        hull = visual_hull(scene.train, self.aabb, HULL_CELLS, scene.background)
        self.aabb.copy_(tight_box(hull, self.aabb))
        self.occupied.copy_(visual_hull(scene.train, self.aabb, self.occupied.shape[0], scene.background))

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Give the volume its own, higher learning rates; it learns from few rays at a time, so without decay."""
        volume = {"weight_decay": 0.0, "eps": 1e-12, "betas": (0.9, 0.99)}
        feature_lr, density_lr = self.lr_factors
        network = [p for p in self.parameters() if p is not self.density and p is not self.features]
        return [
            {"params": network, "lr": lr, "weight_decay": weight_decay},
            {"params": [self.features], "lr": lr * feature_lr, **volume},
            {"params": [self.density], "lr": lr * density_lr, **volume},
        ]

    @property
    def density_scale(self) -> Tensor:
        """Density per scene unit that a softplus of one stands for, (): that of one voxel of this side."""
        return (self.occupied.numel() / (self.aabb[3:] - self.aabb[:3]).prod()) ** (1 / 3)

    def composite(self, rays_o: Tensor, rays_d: Tensor) -> RayFeatures:
        """Look up rays of any shape (..., 3), flattened; see ``nelf.kernels.ray_features``."""
        rays_o, rays_d = rays_o.reshape(-1, 3).float(), rays_d.reshape(-1, 3).float()
        jitter = torch.rand_like(rays_o[:, 0]) if self.training else torch.full_like(rays_o[:, 0], 0.5)
        return ray_features(
            self.density,
            self.features,
            self.occupied,
            rays_o,
            rays_d,
            self.aabb,
            jitter,
            self.points,
            self.density_scale,
            min_tau=MIN_TAU if self.training else MIN_TAU_RENDERING,
        )

    def forward(self, rays_o: Tensor, rays_d: Tensor) -> Tensor:
        """Give the pixels of each ray's block.

        Args:
            rays_o: (B, h, w, 3) origins, scene unit.
            rays_d: (B, h, w, 3) directions, camera z = -1.

        Returns:
            rgb (B, 3, h * sr_factor, w * sr_factor) in [0, 1].
        """
        if self.training:
            self._update_occupancy()
        return self.decode(decoder_inputs(rays_d, self.composite(rays_o, rays_d)))

    def decode(self, inputs: Tensor) -> Tensor:
        """The convolutional network alone.

        Args:
            inputs: (B, features + 17, h, w), see ``decoder_inputs``.

        Returns:
            rgb (B, 3, h * sr_factor, w * sr_factor) in [0, 1].
        """
        # A trained network loses 0.001 dB in bfloat16 (lego); learning in it is the Trainer's choice.
        low = self.low_precision and not self.training and multiplies_bfloat16(inputs.device)
        with torch.autocast(inputs.device.type, torch.bfloat16) if low else nullcontext():
            x = self.tail(self.body(self.head(inputs)))
        return torch.sigmoid(pixel_shuffle(x.float(), self.sr_factor))

    @torch.no_grad()
    def _update_occupancy(self) -> None:
        """Every few steps drop the cells all of whose corners are empty; a running statistic, as in batch norm."""
        self.steps += 1
        if self.steps % OCCUPANCY_STEPS == 0 and self.steps >= 2 * OCCUPANCY_STEPS:
            matter = (softplus(self.density) > EMPTY).float()
            self.occupied &= max_pool3d(matter[None], 2, stride=1)[0] > 0

    def unread(self) -> dict[str, Tensor]:
        """Find the entries of the volume at corners that no occupied cell touches: no ray ever reads them.

        Returns:
            By parameter name, True there: ``density`` (D, H, W), ``features`` (D, H, W, C).
        """
        touched = max_pool3d(self.occupied.float()[None], 2, stride=1, padding=1)[0] > 0
        return {"density": ~touched, "features": ~touched[..., None].expand_as(self.features)}

    @torch.no_grad()
    def render(self, camera: Camera, time: float | None = None) -> Rendering:
        """Render one camera, see ``LightField.render``; with depth and opacity, of the low-resolution rays."""
        training = self.training
        self.eval()
        try:
            rays = camera.to(self.near.device).rays(stride=self.sr_factor)
            along = self.composite(rays.rays_o, rays.rays_d)
            rgb = self.decode(decoder_inputs(rays.rays_d[None], along))[0].permute(1, 2, 0)
        finally:
            self.train(training)
        low = torch.stack([along.depth, along.opacity]).view(1, 2, *rays.rays_d.shape[:2])
        depth, opacity = interpolate(low, rgb.shape[:2], mode="bilinear")[0]
        return Rendering(rgb, depth, opacity)
