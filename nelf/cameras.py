"""Cameras: intrinsics, pose and controls, and the rays through their pixels.

Conventions, the same everywhere in nelf (readers of other formats convert to them):

- Axes: OpenGL. In camera space x points right, y up, and the camera looks along -z. ``c2w`` (3, 4) takes
  camera space to world space; its last column is the camera's position in the unit of the scene.
- Pixels: ``x`` runs right and ``y`` down; the center of pixel ``(0, 0)`` lies at ``(0.5, 0.5)``, the image's
  outer corners at ``(0, 0)`` and ``(width, height)``. ``fx fy cx cy`` are in these pixels.
- Rays: ``directions`` are not normalized, their camera-space z is -1. A point is ``origins + t * directions``,
  so ``t`` is z-depth: points of equal ``t`` lie on a plane parallel to the image.
- Lens: OpenCV's model. A pinhole projects a point to ``x, y`` on the plane at unit distance from the camera (``y``
  down); with ``r = x^2 + y^2`` and ``d = (1 + k1 r + k2 r^2 + k3 r^3) / (1 + k4 r + k5 r^2 + k6 r^3)`` the lens maps
  it to ``x' = x d + 2 p1 x y + p2 (r + 2 x^2)``, ``y' = y d + 2 p2 x y + p1 (r + 2 y^2)``; in pixels, that is
  ``u = fx x' + skew y' + cx``, ``v = fy y' + cy``.
- World: Blender scenes have +z up.
- NDC: if ``ndc`` is set, the camera's rays, and the points that ``project`` takes, are in normalized device
  coordinates, see ``nelf.rays.NDC``; pose and z-depth are still those of the scene.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from nelf.rays import NDC, Rays, moved

__all__ = ["Camera", "pixel_size"]

_TENSORS = ("c2w", "intrinsics", "controls", "view", "lens")  # the parts of a camera that are batched
_NEWTON_STEPS, _SINGULAR = 10, 1e-9


@dataclass(frozen=True, eq=False)
class Camera:
    """One camera, or a batch of cameras that share the image size; a pinhole unless it has a lens.

    Attributes:
        c2w: (..., 3, 4) camera to world, OpenGL axes, float32.
        intrinsics: (..., 4) ``fx, fy, cx, cy`` in pixels, float32.
        width: image width in pixels.
        height: image height in pixels.
        controls: (..., K) in [0, 1], the first of which is the time; or None for a static scene.
        view: (...,) int64, the index of the training view, for parameters that are learned per image; or None.
        lens: (..., 6) ``k1, k2, k3, p1, p2`` and ``skew`` (pixels), float32; or (..., 9) with ``k4, k5, k6`` after
            them; None for a pinhole.
        ndc: the space of the rays, the same for the batch; None for the scene's own.

    Raises:
        ValueError: the shapes do not fit together.

    Example:
        >>> camera = Camera.from_fov(torch.eye(3, 4), fov_x=math.pi / 2, width=4, height=2)
        >>> camera.rays().directions[0, 0]
        tensor([-0.7500,  0.2500, -1.0000])
    """

    c2w: Tensor
    intrinsics: Tensor
    width: int
    height: int
    controls: Tensor | None = None
    view: Tensor | None = None
    lens: Tensor | None = None
    ndc: NDC | None = None

    def __post_init__(self) -> None:
        """Check the shapes once, so that no later broadcast goes wrong silently."""
        batch = self.c2w.shape[:-2]
        if self.c2w.shape[-2:] != (3, 4):
            raise ValueError(f"Expected `c2w` to have shape (..., 3, 4), but got {tuple(self.c2w.shape)}.")
        if self.intrinsics.shape != (*batch, 4):
            raise ValueError(
                f"Expected `intrinsics` to have shape {(*batch, 4)}, but got {tuple(self.intrinsics.shape)}."
            )
        if self.controls is not None and self.controls.shape[:-1] != batch:
            raise ValueError(
                f"Expected `controls` to have shape {(*batch, 'K')}, but got {tuple(self.controls.shape)}."
            )
        if self.view is not None and self.view.shape != batch:
            raise ValueError(f"Expected `view` to have shape {tuple(batch)}, but got {tuple(self.view.shape)}.")
        if self.lens is not None and self.lens.shape not in ((*batch, 6), (*batch, 9)):
            raise ValueError(
                f"Expected `lens` to have shape {(*batch, 6)} or {(*batch, 9)}, but got {tuple(self.lens.shape)}."
            )

    @staticmethod
    def from_fov(c2w: Tensor, fov_x: float, width: int, height: int, time: Tensor | None = None) -> Camera:
        """Make cameras with square pixels and a centered principal point.

        Args:
            c2w: (..., 3, 4) camera to world.
            fov_x: full horizontal angle of view, radians (Blender's ``camera_angle_x``).
            width: image width in pixels.
            height: image height in pixels.
            time: (...,) in [0, 1], the only control; or None.

        Returns:
            Cameras of batch shape (...,).
        """
        focal = 0.5 * width / math.tan(0.5 * fov_x)
        intrinsics = torch.tensor([focal, focal, 0.5 * width, 0.5 * height], dtype=c2w.dtype, device=c2w.device)
        controls = None if time is None else time[..., None]
        return Camera(c2w, intrinsics.expand(*c2w.shape[:-2], 4), width, height, controls)

    @staticmethod
    def stack(cameras: Sequence[Camera]) -> Camera:
        """Stack N cameras of one batch shape (...,) to batch shape (N, ...); some may be pinholes.

        Raises:
            ValueError: there is no camera, or they differ in image size or in their controls.
        """
        return _merge(cameras, torch.stack)

    @staticmethod
    def cat(cameras: Sequence[Camera]) -> Camera:
        """Concatenate batches of cameras along their first dimension; some may be pinholes.

        Raises:
            ValueError: there is no camera, or they differ in image size or in their controls.
        """
        return _merge(cameras, torch.cat)

    def __len__(self) -> int:
        """Number of cameras along the first batch dimension.

        Raises:
            TypeError: this is a single camera.
        """
        if self.c2w.ndim == 2:
            raise TypeError("A single Camera has no length.")
        return self.c2w.shape[0]

    def __getitem__(self, index: int | slice | Tensor) -> Camera:
        """Index cameras along the first batch dimension."""
        if isinstance(index, int) and not -len(self) <= index < len(self):
            raise IndexError(f"Expected a camera index below {len(self)}, but got {index}.")
        return self._map(lambda values: values[index])

    def to(self, device: torch.device | str) -> Camera:
        """Move the tensors to a device."""
        return self._map(lambda values: moved(values, device))

    def _map(self, change: Callable[[Tensor], Tensor]) -> Camera:
        parts = {name: getattr(self, name) for name in _TENSORS}
        changed: dict[str, Any] = {name: change(part) for name, part in parts.items() if part is not None}
        return replace(self, **changed)

    @property
    def time(self) -> Tensor | None:
        """(...,) in [0, 1]: the first control."""
        return None if self.controls is None else self.controls[..., 0]

    def at(self, *controls: float) -> Camera:
        """The same camera with other controls in [0, 1], the first of which is the time; without any if none given."""
        if not controls:
            return replace(self, controls=None)
        values = self.c2w.new_tensor(controls)
        return replace(self, controls=values.expand(*self.c2w.shape[:-2], len(controls)))

    def pinhole(self) -> Camera:
        """The camera of the same pose, focal lengths and principal point without lens distortion."""
        return self if self.lens is None else replace(self, lens=None)

    def resized(self, width: int) -> Camera:
        """The same view at another image width; the height keeps the aspect, rounded to a whole pixel."""
        height = max(1, round(self.height * width / self.width))
        scale_x, scale_y = width / self.width, height / self.height
        intrinsics = self.intrinsics * self.intrinsics.new_tensor([scale_x, scale_y, scale_x, scale_y])
        lens = self.lens
        if lens is not None:  # skew is in pixels
            lens = torch.cat([lens[..., :5], lens[..., 5:6] * scale_x, lens[..., 6:]], dim=-1)
        return replace(self, intrinsics=intrinsics, width=width, height=height, lens=lens)

    def window(self, corner: Tensor, width: int, height: int) -> Camera:
        """The part of the image with its upper left corner at pixel ``corner`` (..., 2), x then y, and this size."""
        shift = torch.cat([torch.zeros_like(corner), corner], dim=-1).to(self.intrinsics)
        return replace(self, intrinsics=self.intrinsics - shift, width=width, height=height)

    def shifted(self, widths: float) -> Camera:
        """The same image with its rays offset by ``widths`` image widths to the left and above."""
        corner = self.intrinsics.new_full((2,), -widths * self.width)
        return self.window(corner, self.width, self.height) if widths else self

    def padded(self, block: int) -> Camera:
        """The same view, padded below and to the right to whole blocks of pixels."""
        width, height = (-(-side // block) * block for side in (self.width, self.height))
        return replace(self, width=width, height=height)

    def rays(self, stride: int = 1) -> Rays:
        """Rays of the whole image, or of the low-resolution grid of a super-resolution student.

        Ray ``(row, column)`` goes through ``((column + 0.5) * stride, (row + 0.5) * stride)`` in full-resolution
        pixels: the center of its ``stride`` x ``stride`` block.

        Args:
            stride: side of the block of pixels that one ray stands for.

        Returns:
            Rays of shape (..., height // stride, width // stride).

        Raises:
            ValueError: ``stride`` does not divide the width and the height.
        """
        if stride < 1 or self.width % stride or self.height % stride:
            raise ValueError(
                f"Expected `stride` to divide the image size {self.width}x{self.height}, but got {stride}."
            )
        dtype, device = self.c2w.dtype, self.c2w.device
        x = (torch.arange(self.width // stride, dtype=dtype, device=device) + 0.5) * stride
        y = (torch.arange(self.height // stride, dtype=dtype, device=device)[:, None] + 0.5) * stride
        return self._cast(x, y, spread=2)

    def pixel_rays(self, x: Tensor, y: Tensor) -> Rays:
        """Rays through the centers of single pixels.

        Args:
            x: (P,) integer pixel columns.
            y: (P,) integer pixel rows.

        Returns:
            Rays of shape (P,): ray p is pixel p of camera p for a batch of P cameras, or pixel p of this
            camera.
        """
        return self._cast(x + 0.5, y + 0.5, spread=0)

    def project(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Find where a single camera sees points: the inverse of ``rays``.

        Args:
            points: (N, 3) in the space of the rays: scene unit, or NDC.

        Returns:
            ``x``, ``y`` (N,) in pixels and ``t`` (N,) along the ray, which is z-depth unless in NDC. A point with
            ``t <= 0`` is behind the camera, and its ``x`` and ``y`` are meaningless. A point so far outside the image
            that the lens model folds it back has infinite ``x`` and ``y``.
        """
        if self.ndc is not None:
            x, y, depth = replace(self, ndc=None).project(self.ndc.positions(points))
            return x, y, torch.where(depth > 0, 0.5 + 0.5 * points[:, 2], depth)
        local = (points - self.c2w[:, 3]) @ self.c2w[:, :3]
        t = -local[:, 2]
        fx, fy, cx, cy = self.intrinsics.unbind()
        if self.lens is None:
            return cx + fx * local[:, 0] / t, cy - fy * local[:, 1] / t, t
        x, y, (a, b, c) = _distort(local[:, 0] / t, -local[:, 1] / t, self.lens)
        folded = ~((a > 0) & (a * c - b * b > 0))  # the Jacobian is no longer positive definite
        x, y = cx + fx * x + self.lens[5] * y, cy + fy * y
        return x.masked_fill(folded, math.inf), y.masked_fill(folded, math.inf), t

    def unproject(self, depth: Tensor) -> Tensor:
        """The points (H, W, 3), in the space of the rays, that a single camera's pixels see at z-depths (H, W)."""
        rays = replace(self, ndc=None).rays()
        points = rays.origins + depth[..., None] * rays.directions
        return points if self.ndc is None else self.ndc.points(points)

    def z_depth(self, t: Tensor) -> Tensor:
        """The z-depth (H, W), scene unit, of points at ``t`` (H, W) along the rays of a single camera's pixels."""
        if self.ndc is None:
            return t
        rays = self.rays()
        points = self.ndc.positions(rays.origins + t[..., None] * rays.directions)
        return ((self.c2w[:, 3] - points) * self.c2w[:, 2]).sum(-1)

    def _cast(self, x: Tensor, y: Tensor, spread: int) -> Rays:
        """Rays through image positions; the batch shape is followed by ``spread`` dimensions of size 1."""
        batch, ones = self.c2w.shape[:-2], (1,) * spread
        c2w = self.c2w.reshape(*batch, *ones, 3, 4)
        fx, fy, cx, cy = self.intrinsics.reshape(*batch, *ones, 4).unbind(-1)
        if self.lens is None:
            across, up = (x - cx) / fx, (cy - y) / fy
        else:
            lens, down = self.lens.reshape(*batch, *ones, -1), (y - cy) / fy
            across, down = _undistort((x - cx - lens[..., 5] * down) / fx, down, lens)
            up = -down
        rays_d = c2w[..., 0] * across[..., None] + c2w[..., 1] * up[..., None] - c2w[..., 2]
        shape = rays_d.shape[:-1]
        controls, view = self.controls, self.view
        if controls is not None:
            controls = controls.reshape(*batch, *ones, -1).expand(*shape, -1)
        if view is not None:
            view = view.reshape((*batch, *ones)).expand(shape)
        rays = Rays(c2w[..., 3].expand_as(rays_d), rays_d, controls, view)
        return rays if self.ndc is None else self.ndc.rays(rays)


def _distort(x: Tensor, y: Tensor, lens: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Apply lens distortion to ``x, y`` of a pinhole (unit focal length, ``y`` down).

    Args:
        x: (...) coordinates.
        y: (...) coordinates.
        lens: (..., 6) or (..., 9), see ``Camera``; its skew is ignored.

    Returns:
        The distorted coordinates (...), and the symmetric Jacobian: dx'/dx, dx'/dy and dy'/dy (...).
    """
    k1, k2, k3, p1, p2, _ = lens[..., :6].unbind(-1)
    r = x * x + y * y
    d, d_r = 1 + r * (k1 + r * (k2 + r * k3)), k1 + r * (2 * k2 + 3 * r * k3)
    if lens.shape[-1] == 9:
        k4, k5, k6 = lens[..., 6:].unbind(-1)
        below, below_r = 1 + r * (k4 + r * (k5 + r * k6)), k4 + r * (2 * k5 + 3 * r * k6)
        d = d / below
        d_r = (d_r - d * below_r) / below
    drawn_x = x * d + 2 * p1 * x * y + p2 * (r + 2 * x * x)
    drawn_y = y * d + 2 * p2 * x * y + p1 * (r + 2 * y * y)
    jacobian = (
        d + 2 * x * x * d_r + 2 * p1 * y + 6 * p2 * x,
        2 * x * y * d_r + 2 * p1 * x + 2 * p2 * y,
        d + 2 * y * y * d_r + 2 * p2 * x + 6 * p1 * y,
    )
    return drawn_x, drawn_y, jacobian


def pixel_size(cameras: Camera, aabb: Tensor) -> float:
    """The mean side of a pixel of cameras (N,), projected to the center of a box (6,), in the space of their rays."""
    if cameras.ndc is not None:  # in which an image is two units wide, at any distance
        return 2.0 / cameras.width
    distance = (cameras.c2w[:, :, 3].cpu() - aabb.cpu().view(2, 3).mean(0)).norm(dim=-1).mean()
    return float(distance / cameras.intrinsics[:, 0].mean().cpu())


def _undistort(x: Tensor, y: Tensor, lens: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of ``_distort`` by ten steps of Newton's method from ``x, y``, as in HyperNeRF's cameras."""
    at_x, at_y = x, y
    for _ in range(_NEWTON_STEPS):
        drawn_x, drawn_y, (a, b, c) = _distort(at_x, at_y, lens)
        off_x, off_y, determinant = drawn_x - x, drawn_y - y, a * c - b * b
        inverse = torch.where(determinant.abs() > _SINGULAR, 1 / determinant, 0.0)
        at_x, at_y = at_x - inverse * (c * off_x - b * off_y), at_y - inverse * (a * off_y - b * off_x)
    return at_x, at_y


def _widened(camera: Camera, count: int) -> Tensor:
    """The lens of cameras, padded with zeros to ``count`` coefficients."""
    lens = camera.c2w.new_zeros((*camera.c2w.shape[:-2], count))
    if camera.lens is not None:
        lens[..., : camera.lens.shape[-1]] = camera.lens
    return lens


def _merge(cameras: Sequence[Camera], join: Callable[[list[Tensor]], Tensor]) -> Camera:
    """Join cameras with ``torch.stack`` or ``torch.cat`` after checking that they belong together."""
    if not cameras:
        raise ValueError("Expected at least one camera, but got none.")
    shared = {(c.width, c.height, 0 if c.controls is None else c.controls.shape[-1], c.view is None) for c in cameras}
    if len(shared) > 1:
        raise ValueError(f"Expected cameras of one size and with the same controls, but got {sorted(shared)}.")
    if len({camera.ndc for camera in cameras}) > 1:
        raise ValueError("Expected cameras whose rays run in one space, but got different NDC.")
    if any(camera.lens is not None for camera in cameras):  # a pinhole is a lens of zeros
        count = max(camera.lens.shape[-1] for camera in cameras if camera.lens is not None)
        cameras = [replace(camera, lens=_widened(camera, count)) for camera in cameras]

    def merged(name: str) -> Any:
        parts = [getattr(camera, name) for camera in cameras]
        return None if parts[0] is None else join(parts)

    return replace(cameras[0], **{name: merged(name) for name in _TENSORS})
