"""GridR2L: a sparse feature volume, composited along each pixel's ray, and a small convolutional decoder."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, pad, pixel_shuffle

from nelf.cameras import pixel_size
from nelf.errors import Depth, NonNegative, Positive, Size, SizeOrZero
from nelf.kernels import gpu, multiplies_bfloat16, reference
from nelf.kernels.lookup import RayFeatures, most_points
from nelf.lightfields.base import LightField
from nelf.lightfields.decoder import ResidualBlock, decoder_inputs, decoder_window, whole_pixels
from nelf.lightfields.environment import Environment
from nelf.lightfields.mobile_r2l import activation_layer
from nelf.lightfields.visual_hull import tight_box, visual_hull
from nelf.lightfields.volume import MOST_CORNERS, SparseVolume, around, corners_of
from nelf.lightfields.warm_start import Reached, TeacherImages, bake, close_gaps, dense_cells, lit_cells
from nelf.rendering import Rendering

if TYPE_CHECKING:
    from collections.abc import Callable

    from nelf.cameras import Camera
    from nelf.lightfields.warm_start import Density
    from nelf.rays import Rays
    from nelf.scene import Geometry, Silhouettes

__all__ = ["GridR2L"]

# Points of lower alpha are skipped. Lower in training than in rendering, since skipped points get no gradient.
MIN_ALPHA, MIN_ALPHA_RENDERING = 2e-4, 3e-3
BOX_CELLS = 64  # along each side of the scene's box, to find its occupied part
VOXELS = (0.33, 0.67)  # sides of the smallest and largest voxel, in blocks at the cameras' mean distance
CORNERS, UNKNOWN = (32, 256), 72  # corners along the longest side: limits with a teacher, upper limit without
ROWS = 800_000  # upper limit if ``resolution`` is None: 4 MB in 8 bits, with four features
ROWS_PER_PIXEL = 6.5  # upper limit, by the size of the images, for a volume with voxels smaller than the largest
GROWTH = 2.4  # rows grow with this power of the resolution, somewhat faster than a surface
SMALLER = 0.97  # factor below the estimated resolution, so that the next attempt, which takes seconds, fits
FINER = 1.15  # a smaller gain in resolution is not worth another attempt
WINDOW = 16  # blocks; sides of decoded windows are multiples of it, since kernels are compiled for each size


class GridR2L(LightField):
    """The light field that trains in minutes on a CPU.

    A sparse volume of learned densities and features fills the box of the scene. Features are composited along each ray
    as volume rendering composites colors, so all views share them; the first three are rgb, a first estimate of the
    image. A small convolutional decoder, evaluated once for each block of pixels, takes the features and opacities of
    the block's rays and their mean direction, and corrects color and opacity. Blocks without opacity, in themselves and
    their neighbors, stay transparent, so the background is not learned and can be chosen freely.

    A teacher gives the initial density and color, and the corners: those near its visible surfaces. Without a teacher,
    all corners in the visual hull exist.

    For an unbounded scene, the volume fills ``reach`` times the scene's box, in front of an environment map, which
    depends on the ray direction alone: whatever shows parallax has to be inside the volume, whose voxels all have one
    size. Images are then opaque, and are decoded as a whole.

    Args:
        width: channels of head and body.
        depth: layers of head, body and final layer: ``(depth - 2) / 2`` residual blocks.
        resolution: voxel corners along the longest side of the volume. None chooses it by the training images: a voxel
            is two thirds of a block of pixels, larger where the volume would have over 800,000 rows, and down to a
            third of a block where a teacher shows that little space is occupied, as by thin structures.
        features: channels of the volume, beside the density; the first three are colors.
        sr_factor: pixels along one side of a block.
        activation: ``gelu`` or ``relu``.
        feature_lr: learning rate of the features, as a multiple of the network's.
        density_lr: learning rate of the density, as a multiple of the network's.
        environment: texels along each side of an environment map behind the volume; 0 for none, with a transparent
            background.
        reach: with an environment, sides of the volume's box as a multiple of those of the scene's.

    Raises:
        ValueError: an argument is outside what is listed above.

    Source:
        A grid of features in a light field: LightSpeed (arXiv 2310.16832). Diffuse color and features composited, one
        network after it, sparse and baked: SNeRG (arXiv 2103.14645). Density on a grid, activated after the
        interpolation: DVGO (arXiv 2111.11215).
    """

    stride = 1
    encoded = "features"
    low_precision = True
    environment: Environment | None

    def __init__(
        self,
        width: Size = 32,
        depth: Depth = 4,
        resolution: Size | None = None,
        features: Size = 4,
        sr_factor: int = 2,
        activation: str = "relu",
        feature_lr: NonNegative = 4.0,
        density_lr: NonNegative = 20.0,
        environment: SizeOrZero = 0,
        reach: Positive = 1.0,
    ) -> None:
        if depth < 2 or depth % 2:
            raise ValueError(f"Expected argument `depth` to be an even number of at least 2, but got {depth}.")
        if features < 3:
            raise ValueError(f"Expected argument `features` to be 3 or more, but got {features}.")
        if resolution is not None and not 2 <= resolution <= 512:
            raise ValueError(f"Expected argument `resolution` to be from 2 to 512, or None, but got {resolution}.")
        if environment < 0:
            raise ValueError(f"Expected argument `environment` to be 0 or more, but got {environment}.")
        if reach < 1 or (reach > 1 and not environment):
            raise ValueError(f"Expected argument `reach` to be 1, or more with an environment, but got {reach}.")
        super().__init__(sr_factor)
        self.resolution = resolution
        self.reach = reach
        self.lr_factors = (feature_lr, density_lr)
        # Blocks of margin: one for each 3x3 convolution, one for the neighbors' opacity.
        self.window = None if environment else {"margin": depth // 2 + 1, "multiple": WINDOW}
        self.volume = SparseVolume(features)
        self.environment = Environment(environment) if environment else None
        self.register_buffer("background", None if environment else torch.ones(3))
        self.encoded_channels = (features + 1) * sr_factor**2 + 16
        self.head = nn.Sequential(nn.Conv2d(self.encoded_channels, width, 1), activation_layer(activation))
        self.body = nn.Sequential(*(ResidualBlock(width, activation) for _ in range((depth - 2) // 2)))
        self.tail = nn.Conv2d(width, 4 * sr_factor**2, 3, padding=1)
        for values in (self.tail.weight, self.tail.bias):
            nn.init.zeros_(values)  # type: ignore[arg-type]  # no correction at the start
        for part in (self.head, self.body, self.tail):
            part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # fastest in oneDNN

    # ---------------------------------------------------------------------------------------- the scene

    def prepare(
        self, geometry: Geometry, silhouettes: Silhouettes | None = None, teacher: Density | None = None
    ) -> None:
        """Take box and background from a scene; find which corners of the volume exist, and initialize them.

        Args:
            geometry: of the scene to learn.
            silhouettes: of its training views, which carve the volume.
            teacher: a field with the scene's density, and maybe its color, to initialize from.
        """
        if self.prepared:
            return
        super().prepare(geometry)
        if self.background is not None:
            self.background.copy_(geometry.background)
        low, high = geometry.aabb.to(self.aabb).view(2, 3)
        self.aabb.copy_(torch.cat([low, high]) + (self.reach - 1) / 2 * torch.cat([low - high, high - low]))
        self.aabb.copy_(tight_box(self._matter((BOX_CELLS,) * 3, silhouettes, teacher), self.aabb))
        most, cameras = ROWS if self.resolution is None else MOST_CORNERS, geometry.cameras
        fine = min(ROWS_PER_PIXEL * cameras.width * cameras.height / ROWS, 1.0)
        images = TeacherImages(teacher, cameras) if hasattr(teacher, "render") else None
        start = partial(self._start, cameras=cameras, silhouettes=silhouettes, teacher=teacher, most=most)
        corners, reached = UNKNOWN, None
        if teacher is not None and (self.resolution is None or self.resolution > BOX_CELLS):
            reached, size = self._reached(start)
            corners = min(CORNERS[1], int(BOX_CELLS / size**0.5))  # most scenes are shells
        start = partial(start, reached=reached, images=images)
        self._try_resolutions(cameras, corners, start, fine if teacher is not None else 0.0)
        if self.environment is not None and images is not None:
            self.environment.paint(self.volume, images, self.aabb, self.voxel, MIN_ALPHA_RENDERING)

    def _try_resolutions(self, cameras: Camera, corners: int, start: Callable[[int], float], fine: float = 0.0) -> None:
        """Initialize at the resolution that the images call for; lower it until the size is at most 1.

        If the first size is below ``fine``, a higher resolution is tried before.

        Args:
            cameras: of the training views.
            corners: upper limit of the resolution, corners along the longest side.
            start: initializes the volume at a resolution; gives its size as a fraction of the largest allowed.
            fine: size below which smaller voxels are tried, in the same unit.
        """
        box = self.aabb.clone()
        resolution = self.resolution or self._sharp(cameras, VOXELS[1], corners)
        size = start(resolution)
        if self.resolution is None and size < fine:
            finer = min(int(resolution * (fine / size) ** (1 / GROWTH)), self._sharp(cameras, VOXELS[0], corners))
            if finer >= FINER * resolution:
                resolution = finer
                self.aabb.copy_(box)
                size = start(resolution)
        while size > 1 and resolution > CORNERS[0]:
            resolution = max(int(SMALLER * resolution / size**0.5), CORNERS[0])
            self.aabb.copy_(box)
            size = start(resolution)

    def _reached(self, start: Callable[[int], float]) -> tuple[Reached, float]:
        """The visible cells of a coarse volume, to which finer ones are confined, and its size over ``most``."""
        box = self.aabb.clone()
        size = start(BOX_CELLS)
        reached = Reached(around(self.volume.cells), self.voxel)
        self.aabb.copy_(box)
        return reached, size

    def _start(
        self,
        resolution: int,
        cameras: Camera,
        silhouettes: Silhouettes | None,
        teacher: Density | None,
        most: int,
        reached: Reached | None = None,
        images: TeacherImages | None = None,
    ) -> float:
        """Find which corners exist, and initialize them from the teacher; returns the number of rows over ``most``."""
        shape = self._divide(resolution)
        cells = self._matter(shape, silhouettes, teacher, reached)
        if teacher is None:
            self.volume.resize(corners_of(cells if cells.any() else torch.ones_like(cells)))
            return len(self.volume.density) / most
        self.volume.resize(corners_of(around(cells) if cells.any() else torch.ones_like(cells)))
        bake(self.volume, teacher, self.aabb, cameras)
        self.volume.keep(lit_cells(self.volume, self.aabb, cameras, self.voxel, MIN_ALPHA_RENDERING))
        if images is not None and len(self.volume.density) <= most:
            close_gaps(self.volume, images, self.aabb, cameras, self.voxel, MIN_ALPHA_RENDERING)
        return len(self.volume.density) / most

    @torch.no_grad()
    def trim(self, cameras: Camera) -> None:
        """Drop the corners of cells whose alpha is below the threshold, or that no camera sees.

        Args:
            cameras: the training cameras.
        """
        visible = self.volume.cells_at(torch.sigmoid(self.volume.density) > MIN_ALPHA_RENDERING)
        lit = lit_cells(self.volume, self.aabb, cameras, self.voxel, MIN_ALPHA_RENDERING)
        self.volume.keep(visible & lit)

    def _matter(
        self, shape: tuple[int, ...], silhouettes: Silhouettes | None, teacher: Any, reached: Reached | None = None
    ) -> Tensor:
        """The cells of the box (z, y, x) that are occupied by the teacher's density and in the visual hull."""
        cells = torch.ones(shape, dtype=torch.bool)
        if teacher is not None:
            among = None if reached is None else reached.finer(shape, float(self.aabb[3] - self.aabb[0]) / shape[2])
            cells = dense_cells(teacher, self.aabb, shape, among)
        return cells if silhouettes is None else visual_hull(silhouettes, self.aabb, cells)

    def _sharp(self, camera: Camera, voxel: float, most: int) -> int:
        """The corners along the longest side of the box at which a voxel is ``voxel`` blocks wide, within limits."""
        longest = float((self.aabb[3:] - self.aabb[:3]).max())
        return min(max(round(longest / (voxel * self.sr_factor * pixel_size(camera, self.aabb))), CORNERS[0]), most)

    def _divide(self, resolution: int) -> tuple[int, ...]:
        """Divide the box into cubic voxels, enlarging it to a whole number of them; returns their number (z, y, x)."""
        low, high = self.aabb.cpu().view(2, 3)
        voxel = float((high - low).max()) / (resolution - 1)
        cells = ((high - low) / voxel - 1e-3).ceil().long().clamp(min=1)
        self.aabb[3:] = (low + voxel * cells).to(self.aabb)
        return tuple(cells.flip(0).tolist())

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Give the volume its own, higher learning rates, and no weight decay, as each row is in few rays of a step."""
        volume = {"weight_decay": 0.0, "eps": 1e-12, "betas": (0.9, 0.99)}
        feature_lr, density_lr = self.lr_factors
        beyond = [] if self.environment is None else list(self.environment.parameters())
        network = [p for name, p in self.named_parameters() if not name.startswith(("volume.", "environment."))]
        return [
            {"params": network, "lr": lr, "weight_decay": weight_decay},
            {"params": [self.volume.features, *beyond], "lr": lr * feature_lr, **volume},
            {"params": [self.volume.density], "lr": lr * density_lr, **volume},
        ]

    @property
    def voxel(self) -> float:
        """Side of a voxel, which is also the step between the points of a ray, scene unit."""
        return self.box_side(self.volume.index.shape[2] - 1)

    def extent(self, camera: Camera) -> tuple[int, int, int, int]:
        """The bounding rectangle of the volume's box in the image, see ``LightField.extent``."""
        if self.environment is not None:
            return super().extent(camera)
        camera, (low, high) = camera.to("cpu"), self.box
        steps = torch.linspace(0, 1, 2 if camera.lens is None else 9)[:, None]  # a lens bends edges
        x, y, t = camera.project(torch.cartesian_prod(*(low + (high - low) * steps).unbind(1)))
        if (t < 1e-3).any() or x.isinf().any():  # the camera is inside or beside the box, or the lens folds it back
            return super().extent(camera)
        ranges = [whole_pixels(values, side) for values, side in ((x, camera.width), (y, camera.height))]
        return ranges[0][0], ranges[1][0], ranges[0][1], ranges[1][1]

    # ---------------------------------------------------------------------------------------- the picture

    def composite(self, rays: Rays) -> RayFeatures:
        """Composite the volume along rays of any shape, flattened; see ``nelf.kernels.lookup``."""
        rays_o, rays_d = (values.reshape(-1, 3).float() for values in (rays.origins, rays.directions))
        jitter = torch.rand_like(rays_o[:, 0]) if self.training else torch.full_like(rays_o[:, 0], 0.5)
        least = MIN_ALPHA if self.training else MIN_ALPHA_RENDERING
        return self.volume.composite(rays_o, rays_d, self.aabb, jitter, self.voxel, least)

    def encode(self, rays: Rays) -> Tensor:
        """The decoder's inputs for rays (B, h, w), both sides multiples of ``sr_factor``: see ``decoder_inputs``."""
        return decoder_inputs(rays, self.composite(rays), self.sr_factor)

    def forward(self, rays: Rays) -> Tensor:
        """Give color and opacity of each ray.

        Args:
            rays: (B, h, w), both sides multiples of ``sr_factor``.

        Returns:
            (B, h, w, 4): rgb on black and opacity; (B, h, w, 3) with an environment. In [0, 1] except in training,
            where values are not clamped, so that all have a gradient.
        """
        return self._decode_window(self.encode(rays)).movedim(1, -1)

    def draw(self, rays: Rays) -> Rendering:
        """See ``LightField.draw``; with the depth of the volume."""
        along = self.composite(rays)
        drawn = self._decode_window(decoder_inputs(rays[None], along, self.sr_factor))[0].movedim(0, -1)
        return Rendering.over(drawn, self.background, along.depth.view(rays.shape))

    def _decode_window(self, inputs: Tensor) -> Tensor:
        """``decode`` in the window that ``decoder_window`` finds, and zeros around it; without waiting for a GPU."""
        exporting = torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export()
        if self.window is None or exporting or (self.training and gpu.asynchronous(inputs.device)):
            return self.decode(inputs)
        height, width = inputs.shape[-2:]
        top, bottom, left, right = decoder_window(inputs[:, self._opacity], **self.window)
        if top == bottom and self.training:  # nothing to learn, but the loss needs a gradient
            bottom, right = min(WINDOW, height), min(WINDOW, width)
        if top == bottom:
            return inputs.new_zeros(len(inputs), 4, height * self.sr_factor, width * self.sr_factor)
        drawn = self.decode(inputs[:, :, top:bottom, left:right])
        around = (left, width - right, top, height - bottom)
        return pad(drawn, [side * self.sr_factor for side in around])

    @property
    def _opacity(self) -> slice:
        """The channels of the inputs of ``decode`` that are the opacities of a block's rays."""
        block = self.sr_factor**2
        return slice(self.volume.channels * block, (self.volume.channels + 1) * block)

    def decode(self, inputs: Tensor) -> Tensor:
        """Apply the decoder, and add its output to the composited colors and opacities.

        Args:
            inputs: (B, (C + 1) * sr_factor^2 + 16, h, w), see ``decoder_inputs``.

        Returns:
            (B, 4, h * sr_factor, w * sr_factor): rgb on black and opacity, as in ``forward``; (B, 3, ...) with an
            environment.
        """
        # bfloat16 is accurate enough for rendering; in training, precision is up to the Trainer.
        low = self.low_precision and not self.training and multiplies_bfloat16(inputs.device)
        with torch.autocast(inputs.device.type, torch.bfloat16) if low else nullcontext():
            x = self.tail(self.body(self.head(inputs)))
        opacity = inputs[:, self._opacity]
        near = max_pool2d(2.0 * opacity.amax(1, keepdim=True), 3, 1, 1).clamp(max=1.0)
        first = torch.cat([inputs[:, : 3 * self.sr_factor**2], opacity], 1)
        drawn = pixel_shuffle(first + near * x.float(), self.sr_factor)
        if not self.training:
            drawn = drawn.clamp(0.0, 1.0)
            drawn = torch.minimum(drawn, drawn[:, 3:])
        if self.environment is None:
            return drawn
        y, z, x = inputs[:, -15:-12].unbind(1)  # the harmonics of degree 1: the direction, up to a factor
        behind = self.environment.of_blocks(torch.stack([-x, -y, z], 1), self.sr_factor)
        over = drawn[:, :3] + (1.0 - drawn[:, 3:]) * behind
        return over if self.training else over.clamp(0.0, 1.0)

    # ---------------------------------------------------------------------------------------- export, compression

    def traceable(self) -> nn.Module:
        """See ``LightField.traceable``."""
        return _Traceable(self)

    def prunable(self) -> dict[str, dict[str, nn.Parameter]]:
        """See ``LightField.prunable``; ``volume`` has features alone: a density of zero is an alpha of a half."""
        return {**super().prunable(), "volume": {"volume.features": cast("nn.Parameter", self.volume.features)}}

    def widths(self) -> dict[str, Any]:
        """See ``LightField.widths``."""
        return {"width": self.head[0].out_channels}


class _Traceable(nn.Module):
    """The light field with look-ups as gathers, and sizes as constants."""

    index: Tensor

    def __init__(self, network: GridR2L) -> None:
        super().__init__()
        self.network, self.step = network, network.voxel
        self.points = most_points(network.aabb, self.step)
        self.register_buffer("index", network.volume.index.long())

    def forward(self, rays: Rays) -> Tensor:
        volume, aabb = self.network.volume, self.network.aabb
        flat_o, flat_d = rays.origins.reshape(-1, 3), rays.directions.reshape(-1, 3)
        along = reference.ray_features(
            volume.density, volume.features, self.index, flat_o, flat_d, aabb, torch.full_like(flat_o[:, 0], 0.5),
            self.step, MIN_ALPHA_RENDERING, self.points,
        )  # fmt: skip
        return self.network.decode(decoder_inputs(rays, along, self.network.sr_factor)).movedim(1, -1)
