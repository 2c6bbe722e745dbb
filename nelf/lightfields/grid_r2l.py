"""GridR2L: a sparse feature volume composited along each pixel's ray, a small convolutional network on blocks."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, pad, pixel_shuffle

from nelf.cameras import pixel_size
from nelf.errors import Depth, NonNegative, Positive, Size, SizeOrZero
from nelf.kernels import multiplies_bfloat16, reference
from nelf.kernels.lookup import RayFeatures, most_points
from nelf.lightfields.base import LightField
from nelf.lightfields.decoder import ResidualBlock, decoder_inputs, decoder_window, whole_pixels
from nelf.lightfields.environment import Environment
from nelf.lightfields.mobile_r2l import activation_layer
from nelf.lightfields.visual_hull import tight_box, visual_hull
from nelf.lightfields.volume import MOST_CORNERS, SparseVolume, around, corners_of
from nelf.lightfields.warm_start import Looks, Reached, bake, close_gaps, dense_cells, lit_cells
from nelf.rendering import Rendering

if TYPE_CHECKING:
    from collections.abc import Callable

    from nelf.cameras import Camera
    from nelf.lightfields.warm_start import Density
    from nelf.rays import Rays
    from nelf.scene import Geometry, Silhouettes

__all__ = ["GridR2L"]

# A point that absorbs less is empty: while learning, since what is empty learns no more, and while rendering.
MIN_ALPHA, MIN_ALPHA_RENDERING = 2e-4, 3e-3
BOX_CELLS = 64  # along each side of the scene's box, to find what is in it
VOXELS = (0.33, 0.67)  # sides of the smallest and largest voxel, in blocks as seen from the cameras' mean distance
CORNERS, UNKNOWN = (32, 256), 72  # corners along the longest side: limits of a choice; the most without a teacher
ROWS = 800_000  # of the volume, if a resolution is chosen: in 8 bits, with four features, 4 MB
ROWS_PER_PIXEL = 6.5  # of the images, which a volume of smaller voxels may have
GROWTH = 2.4  # rows grow with this power of the resolution, somewhat faster than a surface
SMALLER = 0.97  # than what would just be small enough: a start takes seconds, and the next one is to be the last
FINER = 1.15  # a smaller gain in resolution is not worth a second start
WINDOW = 16  # blocks; the decoder's windows have sides of whole multiples, since its kernels are built for each size


class GridR2L(LightField):
    """The light field that trains in minutes on a CPU.

    A sparse volume of learned densities and features fills the box of the scene. Features at the points of a ray are
    composited as volume rendering composites colors, so all views share them; the first three are a color. That is a
    first picture. A small convolutional network, evaluated once for each block of pixels, sees the features, the
    opacities and the direction of its rays and corrects color and opacity. Where no ray of a block or of its neighbors
    meets anything, nothing is drawn, so the background is never learned and can be any.

    What a teacher knows need not be learned: the volume starts with its density and its color, and has corners only
    where it has matter that light reaches. Without a teacher, all corners in the visual hull exist.

    In a scene without bounds, the volume fills ``reach`` times the scene's box, and an environment is behind it, which
    knows the direction of a ray alone: what moves against the sky as the camera moves has to be in the volume, and its
    voxels are all of one size. Pictures then are opaque, and are drawn everywhere.

    Args:
        width: channels of head and body.
        depth: layers of head, body and final layer: ``(depth - 2) / 2`` residual blocks.
        resolution: voxel corners along the longest side of the volume. None chooses it by the training images: a voxel
            is two thirds of a block of pixels, larger where the volume would have over 800,000 rows, and down to a
            third of a block where a teacher says that little space is filled, as by thin parts.
        features: channels of the volume, beside the density; the first three are colors.
        sr_factor: pixels along one side of a block.
        activation: ``gelu`` or ``relu``.
        feature_lr: learning rate of the features, as a multiple of the network's.
        density_lr: learning rate of the density, as a multiple of the network's.
        environment: texels along each side of a map of all directions that is behind the volume; 0 has none, and
            leaves the background out.
        reach: with an environment, how many times as large as the scene's box the volume's is.

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
            raise ValueError(f"Expected argument `depth` to be an even number from 2 on, but got {depth}.")
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
        # Blocks: one for each 3x3 convolution, one for the neighbors' opacity.
        self.window = None if environment else {"margin": depth // 2 + 1, "multiple": WINDOW}
        self.volume = SparseVolume(features)
        self.environment = Environment(environment) if environment else None
        self.register_buffer("background", None if environment else torch.ones(3))
        self.encoded_channels = (features + 1) * sr_factor**2 + 16
        self.head = nn.Sequential(nn.Conv2d(self.encoded_channels, width, 1), activation_layer(activation))
        self.body = nn.Sequential(*(ResidualBlock(width, activation) for _ in range((depth - 2) // 2)))
        self.tail = nn.Conv2d(width, 4 * sr_factor**2, 3, padding=1)
        for values in (self.tail.weight, self.tail.bias):
            nn.init.zeros_(values)  # type: ignore[arg-type]  # the first picture is that of the volume
        for part in (self.head, self.body, self.tail):
            part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # what oneDNN is fast in

    # ---------------------------------------------------------------------------------------- the scene

    def prepare(
        self, geometry: Geometry, silhouettes: Silhouettes | None = None, teacher: Density | None = None
    ) -> None:
        """Take box and background from a scene; find which corners of the volume exist, and start them.

        Args:
            geometry: of what is to be learned.
            silhouettes: of its training views, which carve what they see past.
            teacher: a field that knows the scene's density and maybe its color, to start from.
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
        looks = Looks(teacher, cameras) if hasattr(teacher, "render") else None
        start = partial(self._start, cameras=cameras, silhouettes=silhouettes, teacher=teacher, most=most)
        corners, reached = UNKNOWN, None
        if teacher is not None and (self.resolution is None or self.resolution > BOX_CELLS):
            reached, size = self._reached(start)
            corners = min(CORNERS[1], int(BOX_CELLS / size**0.5))  # most scenes are shells
        start = partial(start, reached=reached, looks=looks)
        self._try_resolutions(cameras, corners, start, fine if teacher is not None else 0.0)
        if self.environment is not None and looks is not None:
            self.environment.paint(self.volume, looks, self.aabb, self.voxel, MIN_ALPHA_RENDERING)

    def _try_resolutions(self, cameras: Camera, corners: int, start: Callable[[int], float], fine: float = 0.0) -> None:
        """Start with as many corners along the longest side as the images ask for, then fewer until it is not large.

        Where it is small, it starts again with more.

        Args:
            cameras: of the training views.
            corners: along the longest side, that are tried at the most.
            start: gives the size of the volume as a multiple of the largest one.
            fine: the size up to which smaller voxels are chosen, likewise.
        """
        box = self.aabb.clone()
        resolution = self.resolution or self._sharp(cameras, VOXELS[1], corners)
        size = start(resolution)
        if self.resolution is None and size < fine:
            finer = int(resolution * (fine / size) ** (1 / GROWTH))
            finer = min(finer, self._sharp(cameras, VOXELS[0], corners))
            if finer >= FINER * resolution:
                resolution = finer
                self.aabb.copy_(box)
                size = start(resolution)
        while size > 1 and resolution > CORNERS[0]:
            resolution = max(int(SMALLER * resolution / size**0.5), CORNERS[0])
            self.aabb.copy_(box)
            size = start(resolution)

    def _reached(self, start: Callable[[int], float]) -> tuple[Reached, float]:
        """What light reaches in a coarse volume, as a finer one has matter that counts nowhere else; and its size."""
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
        looks: Looks | None = None,
    ) -> float:
        """Find which corners of a volume exist, and give them what the teacher knows; its rows, over ``most``."""
        shape = self._divide(resolution)
        cells = self._matter(shape, silhouettes, teacher, reached)
        if teacher is None:
            self.volume.resize(corners_of(cells if cells.any() else torch.ones_like(cells)))
            return len(self.volume.density) / most
        self.volume.resize(corners_of(around(cells) if cells.any() else torch.ones_like(cells)))
        bake(self.volume, teacher, self.aabb, cameras)
        self.volume.keep(lit_cells(self.volume, self.aabb, cameras, self.voxel, MIN_ALPHA_RENDERING))
        if looks is not None and len(self.volume.density) <= most:
            close_gaps(self.volume, looks, self.aabb, cameras, self.voxel, MIN_ALPHA_RENDERING)
        return len(self.volume.density) / most

    @torch.no_grad()
    def trim(self, cameras: Camera) -> None:
        """Drop the corners that nobody reads: in cells too thin to be seen, or that light from no camera reaches.

        Args:
            cameras: those that it was trained with.
        """
        visible = self.volume.cells_at(torch.sigmoid(self.volume.density) > MIN_ALPHA_RENDERING)
        lit = lit_cells(self.volume, self.aabb, cameras, self.voxel, MIN_ALPHA_RENDERING)
        self.volume.keep(visible & lit)

    def _matter(
        self, shape: tuple[int, ...], silhouettes: Silhouettes | None, teacher: Any, reached: Reached | None = None
    ) -> Tensor:
        """The cells of the box (z, y, x) that teacher and silhouettes allow."""
        cells = torch.ones(shape, dtype=torch.bool)
        if teacher is not None:
            among = None if reached is None else reached.finer(shape, float(self.aabb[3] - self.aabb[0]) / shape[2])
            cells = dense_cells(teacher, self.aabb, shape, among)
        return cells if silhouettes is None else visual_hull(silhouettes, self.aabb, cells)

    def _sharp(self, camera: Camera, voxel: float, most: int) -> int:
        """How many corners along the longest side of the box make a voxel so many blocks of an image."""
        longest = float((self.aabb[3:] - self.aabb[:3]).max())
        return min(max(round(longest / (voxel * self.sr_factor * pixel_size(camera, self.aabb))), CORNERS[0]), most)

    def _divide(self, resolution: int) -> tuple[int, ...]:
        """Divide the box into cubic voxels, to whole ones of which it grows; how many there are along z, y, x."""
        low, high = self.aabb.cpu().view(2, 3)
        voxel = float((high - low).max()) / (resolution - 1)
        cells = ((high - low) / voxel - 1e-3).ceil().long().clamp(min=1)
        self.aabb[3:] = (low + voxel * cells).to(self.aabb)
        return tuple(cells.flip(0).tolist())

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Give the volume its own, higher learning rates; it learns from few rays at a time, so without decay."""
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
        """Side of a voxel, and distance of the points on a ray, scene unit."""
        return float((self.aabb[3] - self.aabb[0]) / (self.volume.shape[2] - 1))

    def extent(self, camera: Camera) -> tuple[int, int, int, int]:
        """The rectangle of pixels that the box of the volume covers, see ``LightField.extent``."""
        if self.environment is not None:
            return super().extent(camera)
        camera, (low, high) = camera.to("cpu"), self.box
        steps = torch.linspace(0, 1, 2 if camera.lens is None else 9)[:, None]  # a lens bends edges beyond corners
        x, y, t = camera.project(torch.cartesian_prod(*(low + (high - low) * steps).unbind(1)))
        if (t < 1e-3).any() or x.isinf().any():  # the camera stands inside or beside it, or the lens folds it back
            return super().extent(camera)
        ranges = [whole_pixels(values, side) for values, side in ((x, camera.width), (y, camera.height))]
        return ranges[0][0], ranges[1][0], ranges[0][1], ranges[1][1]

    # ---------------------------------------------------------------------------------------- the picture

    def composite(self, rays: Rays) -> RayFeatures:
        """Look up rays of any shape, flattened; see ``nelf.kernels.lookup``."""
        rays_o, rays_d = (values.reshape(-1, 3).float() for values in (rays.origins, rays.directions))
        jitter = torch.rand_like(rays_o[:, 0]) if self.training else torch.full_like(rays_o[:, 0], 0.5)
        least = MIN_ALPHA if self.training else MIN_ALPHA_RENDERING
        return self.volume.composite(rays_o, rays_d, self.aabb, jitter, self.voxel, least)

    def encode(self, rays: Rays) -> Tensor:
        """What lies along rays (B, h, w), both sides multiples of ``sr_factor``: see ``decoder_inputs``."""
        return decoder_inputs(rays, self.composite(rays), self.sr_factor)

    def forward(self, rays: Rays) -> Tensor:
        """Give color and opacity of each ray.

        Args:
            rays: (B, h, w), both sides multiples of ``sr_factor``.

        Returns:
            (B, h, w, 4): rgb on black and opacity; (B, h, w, 3) with an environment. In [0, 1] but while training,
            where what lies beyond has a gradient.
        """
        return self._decode_window(self.encode(rays)).movedim(1, -1)

    def draw(self, rays: Rays) -> Rendering:
        """See ``LightField.draw``; with the depth of the volume."""
        along = self.composite(rays)
        drawn = self._decode_window(decoder_inputs(rays[None], along, self.sr_factor))[0].movedim(0, -1)
        return Rendering.over(drawn, self.background, along.depth.view(rays.shape))

    def _decode_window(self, inputs: Tensor) -> Tensor:
        """``decode`` where there is something, and nothing around it."""
        if self.window is None or torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export():
            return self.decode(inputs)
        height, width = inputs.shape[-2:]
        top, bottom, left, right = decoder_window(inputs[:, self._opacity], **self.window)
        if top == bottom and self.training:  # nothing to learn from, but a loss must have a gradient
            bottom, right = min(WINDOW, height), min(WINDOW, width)
        if top == bottom:
            return inputs.new_zeros(len(inputs), 4, height * self.sr_factor, width * self.sr_factor)
        drawn = self.decode(inputs[:, :, top:bottom, left:right])
        around = (left, width - right, top, height - bottom)
        return pad(drawn, [side * self.sr_factor for side in around])

    @property
    def _opacity(self) -> slice:
        """The channels of ``decode``'s inputs that are the opacities of a block's rays."""
        block = self.sr_factor**2
        return slice(self.volume.channels * block, (self.volume.channels + 1) * block)

    def decode(self, inputs: Tensor) -> Tensor:
        """The convolutional network, and what it is added to.

        Args:
            inputs: (B, (C + 1) * sr_factor^2 + 16, h, w), see ``decoder_inputs``.

        Returns:
            (B, 4, h * sr_factor, w * sr_factor): rgb on black and opacity, as ``forward``; (B, 3, ...) with an
            environment.
        """
        # A trained network draws the same in bfloat16; learning in it is the Trainer's choice.
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
        y, z, x = inputs[:, -15:-12].unbind(1)  # what is linear of the harmonics: up to one factor the direction
        behind = self.environment.of_blocks(torch.stack([-x, -y, z], 1), self.sr_factor)
        over = drawn[:, :3] + (1.0 - drawn[:, 3:]) * behind
        return over if self.training else over.clamp(0.0, 1.0)

    # ---------------------------------------------------------------------------------------- export, compression

    def traceable(self) -> nn.Module:
        """See ``LightField.traceable``."""
        return _Traceable(self)

    def prunable(self) -> dict[str, dict[str, nn.Parameter]]:
        """See ``LightField.prunable``; ``volume`` are its features: a density of zero is a half-opaque corner."""
        return {**super().prunable(), "volume": {"volume.features": cast("nn.Parameter", self.volume.features)}}

    def widths(self) -> dict[str, Any]:
        """See ``LightField.widths``."""
        return {"width": self.head[0].out_channels}


class _Traceable(nn.Module):
    """The light field with its lookup as gathers, and its sizes as numbers."""

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
