"""What every light field shares: its rays, the scene that it was prepared for, and how it renders an image."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from nelf.rendering import Rendering, evaluating

if TYPE_CHECKING:
    from typing_extensions import Self

    from nelf.cameras import Camera
    from nelf.lightfields.warm_start import Density
    from nelf.rays import Rays
    from nelf.scene import Geometry, Silhouettes

__all__ = ["LightField"]


class LightField(nn.Module):
    """A network that is evaluated once for each ray, or once for each block of pixels.

    A subclass implements ``forward(rays)``. Where ``batch`` is ``"rays"``, no ray sees its neighbors: rays of any shape
    (...) give (..., C), and images are rendered in chunks of them. Where it is ``"views"``, a grid (B, h, w) of rays,
    those of ``Camera.rays(stride)``, gives the pictures (B, h * k, w * k, C), with k = ``sr_factor / stride``. C is 3,
    rgb; or 4, rgb on black and opacity, where the class has a ``background``.

    To be exported from something else than rays or pose, and to be narrowed, it implements ``encode`` and ``decode``.

    The depth range, the box and whether they were set are buffers, so they travel with the weights. The arguments of
    the constructor, which describe the architecture completely, are in ``arguments``.

    Args:
        sr_factor: pixels along one side of a block.

    Raises:
        ValueError: ``sr_factor`` is below one.
    """

    #: What it learns from, and whether its rays see each other.
    batch: Literal["rays", "views"] = "views"
    #: Pixels from one ray to the next; 0 stands for ``sr_factor``.
    stride: int = 0
    #: Rays that are rendered together, where no ray sees its neighbors.
    chunk: int = 2**16
    #: What ``decode`` takes, one of ``nelf.export.inputs``; None where it is none of them, or there is no ``decode``.
    encoded: str | None = None
    #: Channels of what ``decode`` takes; 0 where there is no ``decode``.
    encoded_channels: int = 0
    #: How far beyond the blocks that meet something the picture may differ from the background, and the multiple that
    #: the sides of a rectangle should have, blocks; None where it has to be drawn everywhere.
    window: Mapping[str, int] | None = None
    #: How far left of and above the centers of pixels its rays lie, image widths, if it learned from such; see
    #: ``Camera.shifted``. Training, rendering and exported graphs make its rays so.
    ray_shift: float = 0.0
    #: How many controls, such as the time, it takes beside each ray.
    controls: int = 0
    #: Whether rendering may compute in bfloat16 where the processor multiplies it: layers that are converted to it then
    #: get inputs that the class converts.
    low_precision = False
    #: Small parts that compression leaves as they are. They compute in 32 bits whatever the others do, because what
    #: they give is multiplied before it is looked at, as a point is by the highest frequency of an embedding.
    exact_parts: tuple[str, ...] = ()
    #: Further parts that stay in 32 bits where the others compute in 8: what rounding costs there outweighs the time.
    exact_in_8_bits: tuple[str, ...] = ()

    _box: tuple[Tensor, int, Tensor] | None = None

    near: Tensor
    far: Tensor
    aabb: Tensor
    prepared: Tensor
    background: Tensor | None
    arguments: dict[str, Any]

    def __new__(cls, *args: Any, **options: Any) -> Self:
        """Note the arguments of the constructor, those left out with their defaults."""
        network = super().__new__(cls)
        bound = inspect.signature(cls.__init__).bind_partial(network, *args, **options)
        bound.apply_defaults()
        network.arguments = dict(list(bound.arguments.items())[1:])  # without self
        return network

    def __init__(self, sr_factor: int = 1) -> None:
        super().__init__()
        if sr_factor < 1:
            raise ValueError(f"Expected argument `sr_factor` to be a positive integer, but got {sr_factor}.")
        self.sr_factor = sr_factor
        self.stride = self.stride or sr_factor
        # Until it is prepared for a scene: the values of the Blender scenes.
        self.register_buffer("near", torch.tensor(2.0))
        self.register_buffer("far", torch.tensor(6.0))
        self.register_buffer("aabb", torch.tensor([-1.5, -1.5, -1.5, 1.5, 1.5, 1.5]))
        self.register_buffer("prepared", torch.tensor(False))
        self.register_buffer("background", None)

    # ---------------------------------------------------------------------------------------- the scene

    def prepare(
        self, geometry: Geometry, silhouettes: Silhouettes | None = None, teacher: Density | None = None
    ) -> None:
        """Take depth range and box from a scene. Only the first one counts: weights that learned in it mean it.

        Args:
            geometry: of what is to be learned.
            silhouettes: of its training views, which a subclass may carve with.
            teacher: a field whose density, and maybe color, a subclass may start from.
        """
        if self.prepared:
            return
        self.near.fill_(geometry.near)
        self.far.fill_(geometry.far)
        self.aabb.copy_(geometry.aabb)
        self.prepared.fill_(True)

    @property
    def box(self) -> Tensor:
        """The corners (2, 3) of ``aabb`` in main memory: what each step asks for is read from a GPU only once."""
        if self._box is None or self._box[0] is not self.aabb or self._box[1] != self.aabb._version:
            self._box = self.aabb, self.aabb._version, self.aabb.cpu().view(2, 3).clone()
        return self._box[2]

    def trim(self, cameras: Camera) -> None:
        """Drop what no ray reads, once training has ended; most light fields have nothing of the kind.

        Args:
            cameras: those that it was trained with.
        """

    def extent(self, camera: Camera) -> tuple[int, int, int, int]:
        """Say where in an image there may be something but the background.

        Args:
            camera: a single camera.

        Returns:
            x0, y0, x1, y1: first pixels, and those after the last.
        """
        return 0, 0, camera.width, camera.height

    # ---------------------------------------------------------------------------------------- the picture

    def forward(self, rays: Rays) -> Tensor:
        """Give the colors of rays, see the class: what ``decode`` makes of ``encode``, channels last."""
        return self.decode(self.encode(rays)).movedim(1, -1)

    def encode(self, rays: Rays) -> Tensor:
        """Make what ``decode`` takes.

        Args:
            rays: a grid (B, h, w).

        Returns:
            (B, C, h', w'), the inputs ``encoded`` of ``nelf.export.inputs``.

        Raises:
            NotImplementedError: the subclass has only ``forward``.
        """
        raise NotImplementedError(f"{type(self).__name__}: has no method `encode`.")

    def decode(self, inputs: Tensor) -> Tensor:
        """The network from its encoded inputs on: (B, C, h', w') to (B, 3 or 4, H, W).

        Raises:
            NotImplementedError: the subclass has only ``forward``.
        """
        raise NotImplementedError(f"{type(self).__name__}: export from features and narrowing need a method `decode`.")

    def draw(self, rays: Rays) -> Rendering:
        """Draw a picture from the grid (H', W') of its rays; see ``render``, which gives the depth that this does."""
        if self.batch == "rays":
            drawn = torch.cat([self(part) for part in rays.chunks(self.chunk)]).view(*rays.shape, -1)
        else:
            drawn = self(rays[None])[0]
        return Rendering.over(drawn, self.background)

    @torch.no_grad()
    def render(self, camera: Camera) -> Rendering:
        """Render one camera of any size.

        Args:
            camera: a single camera.

        Returns:
            ``rgb`` (H, W, 3) in [0, 1] on the device of the weights; opacity and depth where the network has them.
        """
        with evaluating(self):
            drawn = self.draw(self.rays(camera.to(self.near.device)))
        return drawn.cropped(camera.height, camera.width).in_scene(camera)

    def rays(self, camera: Camera) -> Rays:
        """The rays that it draws the whole image of a camera, or of a batch of cameras (...), from.

        Returns:
            A grid (..., h, w): of an image whose sides are rounded up to whole blocks.
        """
        return camera.shifted(self.ray_shift).padded(self.sr_factor).rays(self.stride)

    # ---------------------------------------------------------------------------------------- training, compression

    @property
    def entries(self) -> tuple[str, ...]:
        """Where a graph of it may begin, see ``nelf.export.inputs``; what suits a viewer first."""
        return (*([self.encoded] if self.encoded else []), "rays", "pose")

    def traceable(self) -> nn.Module:
        """A module with the same ``forward``, whose operations every exporter knows."""
        return self

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Group the parameters for a ``torch.optim`` optimizer; one group unless a subclass wants more."""
        return [{"params": list(self.parameters()), "lr": lr, "weight_decay": weight_decay}]

    def prunable(self) -> dict[str, dict[str, nn.Parameter]]:
        """The weights that may be pruned, by word: those of the layers in each of its parts, and ``norms``.

        Returns:
            By word, weights by their names in the network; never biases.
        """
        found: dict[str, dict[str, nn.Parameter]] = {}
        for path, layer in self.named_modules():
            norm = isinstance(layer, nn.modules.batchnorm._BatchNorm)
            if (norm or isinstance(layer, nn.modules.conv._ConvNd | nn.Linear)) and layer.weight is not None:
                found.setdefault("norms" if norm else path.split(".")[0], {})[f"{path}.weight"] = layer.weight
        return found

    def widths(self) -> dict[str, Any]:
        """The arguments of the constructor that say how wide its layers are, as they are now.

        ``nelf.compression.structured`` builds the network again with them, once channels have been removed.

        Raises:
            NotImplementedError: the subclass cannot be narrowed.
        """
        raise NotImplementedError(f"{type(self).__name__}: has no method `widths`, so it cannot be narrowed.")
