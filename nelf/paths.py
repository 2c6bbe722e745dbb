"""Camera poses: paths to fly along, and the random poses that light fields are distilled from.

Poses are (N, 3, 4) float32 camera-to-world, OpenGL axes, +z up, without roll. Angles are in degrees: azimuth
from +x toward +y, elevation above the horizontal plane, polar angle from +z. Every random set is a prefix
of any longer one of the same seed, so a set can be extended, and shared out among processes, without
changing what is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from nelf.cameras import Camera

__all__ = [
    "BLENDER_RADIUS",
    "hemisphere",
    "look_at",
    "orbit",
    "random_between",
    "random_cameras",
    "random_like",
    "random_mobile_r2l",
    "random_r2l",
    "rolled",
    "spiral",
]

BLENDER_RADIUS = 4.031128857175551
"""Distance of the cameras of the Blender synthetic scenes from the origin, scene unit."""

_Center = Sequence[float] | np.ndarray


def look_at(origin: Tensor, target: Tensor, up: Tensor | None = None) -> Tensor:
    """Poses at ``origin`` whose view axis goes through ``target``.

    Args:
        origin: (..., 3) camera positions.
        target: (3,) or (..., 3) points to look at.
        up: (3,) world direction that appears upwards in the image; None for +z. Where the view axis is
            parallel to it, +y takes its place (+z if ``up`` is +-y).

    Returns:
        (..., 3, 4) camera to world, OpenGL axes, in the dtype of ``origin``.

    Raises:
        ValueError: a camera stands on its target.

    Example:
        From +x toward the origin: right is +y, up is +z, back is +x.

        >>> look_at(torch.tensor([4.0, 0.0, 0.0]), torch.zeros(3)).tolist()
        [[0.0, 0.0, 1.0, 4.0], [1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]
    """
    back = origin - target
    if bool((back.norm(dim=-1) == 0).any()):
        raise ValueError("Expected `origin` to differ from `target`, but got a camera that stands on its target.")
    back = torch.nn.functional.normalize(back, dim=-1)
    up = back.new_tensor([0.0, 0.0, 1.0]) if up is None else up.to(back)
    spare = back.new_tensor([0.0, 1.0, 0.0] if float(up[1].abs()) < 0.9 else [0.0, 0.0, 1.0])
    parallel = torch.linalg.cross(up.expand_as(back), back).norm(dim=-1, keepdim=True) < 1e-6
    right = torch.linalg.cross(torch.where(parallel, spare, up), back)
    right = torch.nn.functional.normalize(right, dim=-1)
    return torch.stack([right, torch.linalg.cross(back, right), back, origin.expand_as(back)], dim=-1)


def orbit(n: int, radius: float, elevation: float = 30.0, center: _Center = (0, 0, 0), turns: float = 1.0) -> Tensor:
    """A circle around the object at one height; the last pose is one step before the first.

    Args:
        n: number of poses.
        radius: distance from ``center``, scene unit.
        elevation: degrees above the horizontal plane.
        center: point to look at.
        turns: full circles; negative ones run clockwise.

    Returns:
        (n, 3, 4) poses.
    """
    azimuth = 360.0 * turns * np.arange(n) / n
    return _spherical(azimuth, np.full(n, float(elevation)), np.full(n, float(radius)), center)


def spiral(
    n: int,
    radius: float,
    elevations: tuple[float, float] = (10.0, 80.0),
    turns: float = 2.0,
    center: _Center = (0, 0, 0),
) -> Tensor:
    """A spiral on a sphere from one elevation to another.

    Args:
        n: number of poses.
        radius: distance from ``center``, scene unit.
        elevations: degrees of the first and of the last pose.
        turns: full circles on the way.
        center: point to look at.

    Returns:
        (n, 3, 4) poses.
    """
    way = np.linspace(0.0, 1.0, n)
    elevation = elevations[0] + (elevations[1] - elevations[0]) * way
    return _spherical(360.0 * turns * way, elevation, np.full(n, float(radius)), center)


def hemisphere(
    n: int, radius: float, elevations: tuple[float, float] = (0.0, 90.0), center: _Center = (0, 0, 0)
) -> Tensor:
    """Poses spread evenly over a band of a sphere (a golden-angle lattice: equal areas, no clusters).

    Args:
        n: number of poses.
        radius: distance from ``center``, scene unit.
        elevations: lower and upper edge of the band, degrees.
        center: point to look at.

    Returns:
        (n, 3, 4) poses, from the lower edge to the upper.
    """
    low, high = np.sin(np.deg2rad(elevations))
    height = low + (high - low) * (np.arange(n) + 0.5) / n
    azimuth = np.arange(n) * 180.0 * (3.0 - 5.0**0.5)
    return _spherical(azimuth, np.rad2deg(np.arcsin(height)), np.full(n, float(radius)), center)


def random_mobile_r2l(
    n: int, radius: float = BLENDER_RADIUS, polar: tuple[float, float] = (1.0, 90.0), seed: int = 0
) -> Tensor:
    """The random poses of MobileR2L's pseudo data.

    The polar angle is normal around the middle of its range with half the range as standard deviation, and
    drawn anew uniformly where it falls outside; the azimuth is uniform in -178 to 178 degrees (the
    original's gap).

    Args:
        n: number of poses.
        radius: distance from the origin.
        polar: range of the polar angle, degrees.
        seed: which set.

    Returns:
        (n, 3, 4) poses that look at the origin.

    Source:
        MobileR2L, ``rand_360_poses`` (Cao et al. 2023, arXiv 2212.08057).
    """
    low, high = polar
    theta = _stream(seed, 0).normal(0.5 * (low + high), 0.5 * (high - low), n)
    again = _stream(seed, 1).uniform(low, high, n)
    theta = np.where((theta < low) | (theta > high), again, theta)
    azimuth = _stream(seed, 2).uniform(-178.0, 178.0, n)
    return _spherical(azimuth, 90.0 - theta, np.full(n, float(radius)))


def random_r2l(n: int, radius: float = 4.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The random poses and focal zoom of R2L's pseudo data.

    Azimuth and elevation (0 to 90 degrees) are uniform in angle, so poses crowd toward the pole.

    Args:
        n: number of poses.
        radius: distance from the origin.
        seed: which set.

    Returns:
        (n, 3, 4) poses that look at the origin, and (n,) factors for the focal length, uniform in 1 to 2.

    Source:
        R2L, ``create_data rand`` (Wang et al. 2022, arXiv 2203.17261).
    """
    azimuth = _stream(seed, 0).uniform(-180.0, 180.0, n)
    elevation = _stream(seed, 1).uniform(0.0, 90.0, n)
    zoom = _stream(seed, 2).uniform(1.0, 2.0, n)
    c2w = _spherical(azimuth, elevation, np.full(n, float(radius)))
    return c2w, torch.from_numpy(zoom.astype(np.float32))


def random_like(camera: Camera, n: int, seed: int = 0) -> Camera:
    """Random cameras where the given ones stand: what a student should see of a scene.

    They look at the point that the given cameras look at together, from the given ranges of distance,
    elevation and azimuth, evenly by area (an additive recurrence with a random start, which leaves fewer
    gaps than independent draws). Azimuths go all around unless the cameras leave out more than a third of
    the circle. Intrinsics and size are those of the first camera; controls, where there are any, fill the range of
    theirs.

    Args:
        camera: a batch of cameras, such as ``scene.train.camera``.
        n: number of new ones.
        seed: which set.

    Returns:
        A batch of n pinholes.

    Source:
        The recurrence is the R_d sequence of M. Roberts, "The unreasonable effectiveness of quasirandom
        sequences".
    """
    c2w = camera.c2w.cpu().double().numpy()
    center = _focus(c2w)
    offset = c2w[:, :, 3] - center
    distance = np.linalg.norm(offset, axis=1)
    height = offset[:, 2] / distance
    start, width = _covered_arc(np.rad2deg(np.arctan2(offset[:, 1], offset[:, 0])))

    controls = camera.controls
    unit = _recurrence(n, 4 if controls is None else 3 + controls.shape[-1], seed)
    azimuth = start + width * unit[:, 0]
    elevation = np.rad2deg(np.arcsin(height.min() + np.ptp(height) * unit[:, 1]))
    radius = distance.min() + np.ptp(distance) * unit[:, 2]
    if controls is not None:
        first, last = controls.amin(0), controls.amax(0)
        controls = first + (last - first) * torch.from_numpy(unit[:, 3:]).to(first)
    device = camera.c2w.device
    intrinsics = camera.intrinsics[:1].expand(n, 4)
    return replace(
        camera.pinhole(),
        c2w=_spherical(azimuth, elevation, radius, center).to(device),
        intrinsics=intrinsics,
        controls=controls,
        view=None,
    )


def random_between(camera: Camera, n: int, seed: int = 0) -> Camera:
    """Random cameras between the given ones: what a student should see of a scene that was filmed by hand.

    Of two different cameras, positions are interpolated linearly and orientations along the great arc, at the same
    uniform share of the way; intrinsics are those of the first. Controls, where there are any, are uniform in the range
    of the given ones, independent of the pose.

    Args:
        camera: a batch of cameras, such as ``scene.train.camera``.
        n: number of new ones.
        seed: which set.

    Returns:
        A batch of n pinholes.

    Source:
        DyLiN, ``gen_pseudo_data_hypernerf`` (Yu et al. 2023, arXiv 2303.14243), but for its times, which leave the
        range of those that were filmed.
    """
    count = len(camera)
    first = np.floor(_stream(seed, 0).random(n) * count).astype(int)
    other = 1 + np.floor(_stream(seed, 1).random(n) * (count - 1)).astype(int)
    second, share = (first + other) % count, _stream(seed, 2).random(n)[:, None]

    c2w = camera.c2w.cpu().double().numpy()
    turns = _quaternions(c2w[:, :, :3])
    rotation = _rotations(_great_arc(turns[first], turns[second], share))
    position = (1 - share) * c2w[first, :, 3] + share * c2w[second, :, 3]
    controls = camera.controls
    if controls is not None:
        low, high = controls.amin(0), controls.amax(0)
        drawn = [_stream(seed, 3 + index).random(n) for index in range(controls.shape[-1])]
        controls = low + (high - low) * torch.from_numpy(np.stack(drawn, axis=-1)).to(low)
    return replace(
        camera.pinhole(),
        c2w=torch.from_numpy(np.concatenate([rotation, position[..., None]], axis=-1)).to(camera.c2w),
        intrinsics=camera.intrinsics[torch.from_numpy(first)],
        controls=controls,
        view=None,
    )


def random_cameras(
    camera: Camera,
    n: int,
    poses: Literal["hemisphere", "interpolate", "mobile_r2l", "r2l"] = "hemisphere",
    seed: int = 0,
) -> Camera:
    """Random cameras to distill from, of the size and the intrinsics of the given ones, without their lens.

    Args:
        camera: a batch of cameras that is followed, such as ``scene.train.camera``.
        n: how many.
        poses: ``hemisphere`` in the region of the given cameras, which stand around something; ``interpolate`` between
            two of them; or the distribution of the original named (``r2l`` zooms by 1 to 2, too) at the mean distance
            of the given cameras from the origin.
        seed: which set; the first m of n cameras do not depend on n.

    Returns:
        A batch of n pinholes.
    """
    if poses == "hemisphere":
        return random_like(camera, n, seed)
    if poses == "interpolate":
        return random_between(camera, n, seed)
    radius = float(camera.c2w[:, :, 3].norm(dim=-1).mean())
    intrinsics = camera.intrinsics[:1].repeat(n, 1)
    if poses == "mobile_r2l":
        c2w = random_mobile_r2l(n, radius, seed=seed)
    else:
        c2w, zoom = random_r2l(n, radius, seed)
        intrinsics[:, :2] *= zoom[:, None]
    return replace(camera.pinhole(), c2w=c2w, intrinsics=intrinsics, controls=None, view=None)


def rolled(camera: Camera) -> float:
    """How far cameras are turned about their view axes, on average, from standing upright (+z), degrees.

    ``random_like`` is for cameras that stand upright.

    Args:
        camera: a batch of cameras.
    """
    position, back = camera.c2w[:, :, 3], camera.c2w[:, :, 2]
    upright = look_at(position, position - back)
    cosine = (upright[:, :, 0] * camera.c2w[:, :, 0]).sum(-1).clamp(-1.0, 1.0)
    return float(torch.rad2deg(torch.acos(cosine)).mean())


def _spherical(azimuth: np.ndarray, elevation: np.ndarray, radius: np.ndarray, center: _Center = (0, 0, 0)) -> Tensor:
    """(N, 3, 4) float32 poses at spherical positions (degrees) around ``center``, looking at it."""
    azimuth, elevation = np.deg2rad(azimuth), np.deg2rad(elevation)
    level = np.cos(elevation)
    direction = np.stack([level * np.cos(azimuth), level * np.sin(azimuth), np.sin(elevation)], axis=-1)
    target = torch.tensor(np.asarray(center, dtype=np.float64))
    return look_at(target + torch.from_numpy(radius[:, None] * direction), target).float()


def _stream(seed: int, quantity: int) -> np.random.Generator:
    """A generator of its own for each quantity: the first n draws do not depend on how many follow."""
    return np.random.default_rng((seed, quantity))


def _recurrence(n: int, dimensions: int, seed: int) -> np.ndarray:
    """(n, dimensions) points in [0, 1) of the R_d sequence, shifted at random."""
    ratio = 2.0
    for _ in range(64):
        ratio = (1.0 + ratio) ** (1.0 / (dimensions + 1))
    steps = ratio ** -np.arange(1.0, dimensions + 1)
    return (_stream(seed, 0).random(dimensions) + np.arange(n)[:, None] * steps) % 1.0


def _focus(c2w: np.ndarray) -> np.ndarray:
    """(3,) point nearest to all view axes in the least-squares sense."""
    axis = c2w[:, :, 2]
    across = np.eye(3) - axis[:, :, None] * axis[:, None, :]
    return np.linalg.lstsq(across.sum(0), (across @ c2w[:, :, 3:]).sum(0)[:, 0], rcond=1e-6)[0]


def _covered_arc(azimuth: np.ndarray) -> tuple[float, float]:
    """Start and width, degrees, of the arc that cameras stand on: all around unless a third is left out."""
    ordered = np.sort(azimuth)
    gaps = np.diff(np.append(ordered, ordered[0] + 360.0))
    widest = int(gaps.argmax())
    if gaps[widest] <= 120.0:
        return 0.0, 360.0
    return float(ordered[(widest + 1) % len(ordered)]), float(360.0 - gaps[widest])


def _quaternions(rotation: np.ndarray) -> np.ndarray:
    """(N, 4) unit quaternions w x y z of rotations (N, 3, 3)."""
    (a, b, c), (d, e, f), (g, h, i) = np.moveaxis(rotation, 0, -1)
    # Four times the outer product of each quaternion with itself; any row is a multiple of it, the longest the best.
    outer = np.stack(
        [
            np.stack([1 + a + e + i, h - f, c - g, d - b], axis=-1),
            np.stack([h - f, 1 + a - e - i, b + d, c + g], axis=-1),
            np.stack([c - g, b + d, 1 - a + e - i, f + h], axis=-1),
            np.stack([d - b, c + g, f + h, 1 - a - e + i], axis=-1),
        ],
        axis=-2,
    )
    lengths = np.linalg.norm(outer, axis=-1)
    best = lengths.argmax(axis=-1)
    which = np.arange(len(best))
    return outer[which, best] / lengths[which, best, None]


def _rotations(quaternion: np.ndarray) -> np.ndarray:
    """(N, 3, 3) rotations of unit quaternions (N, 4)."""
    w, x, y, z = quaternion.T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), -1, 0)


def _great_arc(first: np.ndarray, second: np.ndarray, share: np.ndarray) -> np.ndarray:
    """(N, 4) unit quaternions between two (N, 4) each, the short way round, at shares (N, 1) of the way."""
    cosine = (first * second).sum(-1, keepdims=True)
    second, angle = np.where(cosine < 0, -second, second), np.arccos(np.minimum(np.abs(cosine), 1.0))
    # Of nearly equal ones the sine of the angle is none; the straight line is as good.
    one, other = np.where(angle < 1e-4, [1 - share, share], np.sin([(1 - share) * angle, share * angle]))
    between = one * first + other * second
    return between / np.linalg.norm(between, axis=-1, keepdims=True)
