"""The base class of light fields: their rays, preparation for a scene, and rendering."""

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

    A subclass implements ``forward(rays)``. With ``batch = "rays"``, each ray is evaluated independently: rays of any
    shape (...) give (..., C), and images are rendered in chunks of rays. With ``batch = "views"``, a grid (B, h, w) of
    rays, as ``Camera.rays(stride)`` makes it, gives images (B, h * stride, w * stride, C). C is 3 (rgb), or 4 (rgb on
    black and opacity) if ``background`` is not None.

    Exporting it with inputs other than rays or pose, and narrowing it, need ``encode`` and ``decode``.

    The depth range, the box and whether they were set are buffers, so they are saved with the weights. ``arguments``
    holds the arguments of the constructor, which describe the architecture completely.

    Args:
        sr_factor: pixels along one side of a block.

    Raises:
        ValueError: ``sr_factor`` is below one.
    """

    #: What a training batch holds: independent rays, or views whose rays depend on their neighbors.
    batch: Literal["rays", "views"] = "views"
    #: Distance between neighboring rays, pixels; 0 stands for ``sr_factor``.
    stride: int = 0
    #: Rays that are rendered together if ``batch`` is ``"rays"``.
    chunk: int = 2**16
    #: Kind of the input of ``decode``, see ``nelf.export.inputs``; None if it is none of these, or without ``decode``.
    encoded: str | None = None
    #: Channels of the input of ``decode``; 0 without ``decode``.
    encoded_channels: int = 0
    #: How many blocks beyond those with opacity the image may differ from the background (``margin``), and the multiple
    #: of blocks to which the decoded rectangle is rounded up (``multiple``); None to decode the whole image.
    window: Mapping[str, int] | None = None
    #: Offset of the rays to the left of and above the pixel centers, image widths, for weights trained with such rays;
    #: see ``Camera.shifted``. Applied in training, rendering and exported graphs.
    ray_shift: float = 0.0
    #: Number of controls, such as the time, that it takes with each ray.
    controls: int = 0
    #: Whether rendering may run in bfloat16 on hardware that supports it. The class then converts the inputs of layers
    #: whose weights are in bfloat16.
    low_precision = False
    #: Small submodules that stay in float32 and are not compressed, because their outputs are scaled up before use, as
    #: a point is by the highest frequency of an embedding.
    exact_parts: tuple[str, ...] = ()
    #: Further submodules that stay in float32 when the others run in 8 bits, where accuracy matters more than speed.
    exact_in_8_bits: tuple[str, ...] = ()

    _box: tuple[Tensor, int, Tensor] | None = None

    near: Tensor
    far: Tensor
    aabb: Tensor
    prepared: Tensor
    background: Tensor | None
    arguments: dict[str, Any]

    def __new__(cls, *args: Any, **options: Any) -> Self:
        """Record the arguments of the constructor, including defaults."""
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
        # Values of the Blender scenes, until ``prepare`` sets those of a scene.
        self.register_buffer("near", torch.tensor(2.0))
        self.register_buffer("far", torch.tensor(6.0))
        self.register_buffer("aabb", torch.tensor([-1.5, -1.5, -1.5, 1.5, 1.5, 1.5]))
        self.register_buffer("prepared", torch.tensor(False))
        self.register_buffer("background", None)

    # ---------------------------------------------------------------------------------------- the scene

    def prepare(
        self, geometry: Geometry, silhouettes: Silhouettes | None = None, teacher: Density | None = None
    ) -> None:
        """Take depth range and box from a scene. Later calls have no effect: the weights depend on the first scene.

        Args:
            geometry: of the scene to learn.
            silhouettes: of its training views, for a subclass that carves with them.
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
        """The corners (2, 3) of ``aabb``, cached on the CPU to avoid a transfer from the GPU at each step."""
        version = 0 if self.aabb.is_inference() else self.aabb._version
        if self._box is None or self._box[0] is not self.aabb or self._box[1] != version:
            self._box = self.aabb, version, self.aabb.cpu().view(2, 3).clone()
        return self._box[2]

    def box_side(self, parts: int) -> float:
        """The side of ``aabb`` along x, divided into equal parts."""
        low, high = self.box.numpy()
        return float((high[0] - low[0]) / parts)

    def trim(self, cameras: Camera) -> None:
        """Drop parameters that no ray reads, after training; does nothing for most light fields.

        Args:
            cameras: the training cameras.
        """

    def extent(self, camera: Camera) -> tuple[int, int, int, int]:
        """Bound the rectangle of an image outside which there is only background.

        Args:
            camera: a single camera.

        Returns:
            x0, y0, x1, y1 in pixels; x1 and y1 are exclusive.
        """
        return 0, 0, camera.width, camera.height

    # ---------------------------------------------------------------------------------------- the picture

    def forward(self, rays: Rays) -> Tensor:
        """Give the colors of rays, channels last, see the class: ``decode`` of ``encode``."""
        return self.decode(self.encode(rays)).movedim(1, -1)

    def encode(self, rays: Rays) -> Tensor:
        """Make the inputs of ``decode``.

        Args:
            rays: a grid (B, h, w).

        Returns:
            (B, C, h', w'), of kind ``encoded``, see ``nelf.export.inputs``.

        Raises:
            NotImplementedError: the subclass has only ``forward``.
        """
        raise NotImplementedError(f"{type(self).__name__}: has no method `encode`.")

    def decode(self, inputs: Tensor) -> Tensor:
        """Apply the network to encoded inputs: (B, C, h', w') to (B, 3 or 4, H, W).

        Raises:
            NotImplementedError: the subclass has only ``forward``.
        """
        raise NotImplementedError(f"{type(self).__name__}: export from features and narrowing need a method `decode`.")

    def draw(self, rays: Rays) -> Rendering:
        """Render an image from the grid (H', W') of its rays; its depth, if any, is in ``t`` of these rays."""
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
            ``rgb`` (H, W, 3) in [0, 1] on the device of the weights; opacity and depth if the network has them.
        """
        with evaluating(self):
            drawn = self.draw(self.rays(camera.to(self.near.device)))
        return drawn.cropped(camera.height, camera.width).in_scene(camera)

    def rays(self, camera: Camera) -> Rays:
        """The rays for the whole image of a camera, or of a batch of cameras (...).

        Returns:
            A grid (..., h, w), for an image whose sides are rounded up to whole blocks.
        """
        return camera.shifted(self.ray_shift).padded(self.sr_factor).rays(self.stride)

    # ---------------------------------------------------------------------------------------- training, compression

    @property
    def entries(self) -> tuple[str, ...]:
        """Kinds of inputs that an exported graph may have, see ``nelf.export.inputs``; the best for a viewer first."""
        return (*([self.encoded] if self.encoded else []), "rays", "pose")

    def traceable(self) -> nn.Module:
        """A module with the same ``forward`` in operations that every exporter supports."""
        return self

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Group the parameters for a ``torch.optim`` optimizer; one group unless a subclass has more."""
        return [{"params": list(self.parameters()), "lr": lr, "weight_decay": weight_decay}]

    def prunable(self) -> dict[str, dict[str, nn.Parameter]]:
        """The weights that may be pruned, grouped by top-level submodule, with all batch norms in ``norms``.

        Returns:
            By group, weights by their names in the network; no biases.
        """
        found: dict[str, dict[str, nn.Parameter]] = {}
        for path, layer in self.named_modules():
            norm = isinstance(layer, nn.modules.batchnorm._BatchNorm)
            if (norm or isinstance(layer, nn.modules.conv._ConvNd | nn.Linear)) and layer.weight is not None:
                found.setdefault("norms" if norm else path.split(".")[0], {})[f"{path}.weight"] = layer.weight
        return found

    def widths(self) -> dict[str, Any]:
        """The constructor's arguments for the current widths of the layers.

        ``nelf.compression.structured`` rebuilds the network with them after channels have been removed.

        Raises:
            NotImplementedError: the subclass cannot be narrowed.
        """
        raise NotImplementedError(f"{type(self).__name__}: has no method `widths`, so it cannot be narrowed.")
