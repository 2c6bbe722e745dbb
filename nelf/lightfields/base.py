"""What every light field shares: the scene it was fitted to, and how it renders an image."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nelf.errors import UserError
from nelf.rendering import Rendering

if TYPE_CHECKING:
    from typing_extensions import Self

    from nelf.cameras import Camera
    from nelf.lightfields.warm_start import Density
    from nelf.scene import Scene

__all__ = ["LightField"]


class LightField(nn.Module):
    """A network that is evaluated once for each block of pixels.

    A subclass implements ``forward(rays_o, rays_d)``: (B, h, w, 3) each to the picture (B, 3, H, W), or (B, 4, H, W)
    with opacity and the color on black. Rays are those of ``Camera.rays(stride)``: with a ``stride`` of ``sr_factor``,
    the default, one through the center of each block; with 1, one for each pixel. To be exported, or pruned by
    channels, it implements ``decode`` too.

    The depth range, the box and whether they were set are buffers, so they travel with the weights. The arguments of
    the constructor, which describe the architecture completely, are in ``arguments``.

    Args:
        sr_factor: pixels along one side of a ray's block.
        near: smallest ``t`` at which something may be, or None to take the scene's.
        far: largest ``t``, or None to take the scene's.

    Raises:
        ValueError: ``sr_factor`` is below one, or ``near`` is not before ``far``.
    """

    #: Pixels from one ray to the next; 0 stands for ``sr_factor``.
    stride: int = 0
    #: Whether rendering may compute in bfloat16 where the processor multiplies it.
    low_precision = True

    near: Tensor
    far: Tensor
    aabb: Tensor
    fitted: Tensor
    arguments: dict[str, Any]

    def __new__(cls, *args: Any, **options: Any) -> Self:
        """Note the arguments of the constructor, those left out with their defaults."""
        network = super().__new__(cls)
        bound = inspect.signature(cls.__init__).bind_partial(network, *args, **options)
        bound.apply_defaults()
        network.arguments = dict(list(bound.arguments.items())[1:])  # without self
        return network

    def __init__(self, sr_factor: int, near: float | None = None, far: float | None = None) -> None:
        super().__init__()
        if sr_factor < 1:
            raise ValueError(f"Expected argument `sr_factor` to be a positive integer, but got {sr_factor}.")
        if near is not None and far is not None and near >= far:
            raise ValueError(f"Expected argument `near` to be smaller than `far`, but got {near} and {far}.")
        self.sr_factor = sr_factor
        self.stride = self.stride or sr_factor
        self._range = (near, far)
        # Until a scene is fitted: the values of the Blender scenes.
        self.register_buffer("near", torch.tensor(2.0 if near is None else near))
        self.register_buffer("far", torch.tensor(6.0 if far is None else far))
        self.register_buffer("aabb", torch.tensor([-1.5, -1.5, -1.5, 1.5, 1.5, 1.5]))
        self.register_buffer("fitted", torch.tensor(False))

    def fit_scene(self, scene: Scene, teacher: Density | None = None) -> None:
        """Take depth range and box from ``scene``, where the constructor did not set them.

        Only the first scene counts: weights that learned inside one box mean nothing in another.

        Args:
            scene: what is to be learned.
            teacher: a field whose density a subclass may start from.

        Raises:
            UserError: the images cannot be cut into blocks of ``sr_factor`` pixels.
        """
        camera = scene.train.camera
        for side, pixels in (("width", camera.width), ("height", camera.height)):
            if pixels % self.sr_factor:
                allowed = [s for s in range(1, 17) if camera.width % s == 0 and camera.height % s == 0]
                raise UserError(
                    f"model.sr_factor: {self.sr_factor} does not divide the image {side} {pixels} of {scene.name}; "
                    f"allowed here: {', '.join(map(str, allowed))}."
                )
        if self.fitted:
            return
        near, far = self._range
        self.near.fill_(scene.near if near is None else near)
        self.far.fill_(scene.far if far is None else far)
        self.aabb.copy_(scene.aabb)
        self.fitted.fill_(True)

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

    def decode(self, inputs: Tensor) -> Tensor:
        """The network from the points or features of each ray on, (B, C, h, w), to rgb; see the subclass.

        Raises:
            NotImplementedError: the subclass has only ``forward``.
        """
        raise NotImplementedError(f"{type(self).__name__}: export and pruning by channels need its method `decode`.")

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Group the parameters for a ``torch.optim`` optimizer; one group unless a subclass wants more."""
        return [{"params": list(self.parameters()), "lr": lr, "weight_decay": weight_decay}]

    @torch.no_grad()
    def render(self, camera: Camera, time: float | None = None) -> Rendering:
        """Render one camera.

        Args:
            camera: a single camera whose width and height ``sr_factor`` divides.
            time: ignored, these light fields are static; there so that all models are called alike.

        Returns:
            ``rgb`` (H, W, 3) in [0, 1] on the device of the weights; opacity where the network has it, no depth.

        Raises:
            ValueError: ``sr_factor`` does not divide the width or the height.
        """
        rays = camera.to(self.near.device).rays(self.stride)
        training = self.training
        self.eval()
        try:
            drawn = self(rays.rays_o[None], rays.rays_d[None])[0]
        finally:
            self.train(training)
        return Rendering.over(drawn, getattr(self, "background", None))
