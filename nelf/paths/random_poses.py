"""The random poses that light fields are distilled from. Poses and angles as in ``nelf.paths``."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from nelf.cameras import Camera
from nelf.paths.flights import BLENDER_RADIUS, DNERF_RADIUS, spherical
from nelf.paths.forward import random_forward
from nelf.paths.rotations import great_arc, quaternions, rotations
from nelf.paths.trajectories import AROUND, Trajectory, covered_arc, viewpoints

Poses = Literal["hemisphere", "interpolate", "forward", "mobile_r2l", "r2l", "dnerf"]
"""Distributions of random cameras, see ``random_cameras``."""

POSES: tuple[Poses, ...] = get_args(Poses)

FOLLOWING: dict[Trajectory, Poses] = {"orbit": "hemisphere", "forward": "forward", "between": "interpolate"}
"""For each trajectory, the distribution that stays in the region of the given cameras."""

_LIKE = np.cos(np.deg2rad(45.0) / 2)  # smallest cosine of half the angle between orientations, see ``random_between``
_EQUAL = 1e-12  # tolerance, so that the nearest camera always qualifies


def random_mobile_r2l(
    n: int, radius: float = BLENDER_RADIUS, polar: tuple[float, float] = (1.0, 90.0), seed: int = 0
) -> Tensor:
    """The random poses of MobileR2L's pseudo data.

    The polar angle is normal around the middle of its range with half the range as standard deviation, and drawn
    again, uniformly, if it falls outside; the azimuth is uniform in -178 to 178 degrees (the original's gap).

    Args:
        n: number of poses.
        radius: distance from the origin, scene unit.
        polar: range of the polar angle, degrees.
        seed: of the random draws.

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
    return spherical(azimuth, 90.0 - theta, np.full(n, float(radius)))


def random_r2l(n: int, radius: float = 4.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The random poses and focal zoom of R2L's pseudo data.

    Azimuth and elevation (0 to 90 degrees) are uniform in angle, so poses are denser toward the pole.

    Args:
        n: number of poses.
        radius: distance from the origin, scene unit.
        seed: of the random draws.

    Returns:
        (n, 3, 4) poses that look at the origin, and (n,) factors for the focal length, uniform in 1 to 2.

    Source:
        R2L, ``create_data rand`` (Wang et al. 2022, arXiv 2203.17261).
    """
    azimuth = _stream(seed, 0).uniform(-180.0, 180.0, n)
    elevation = _stream(seed, 1).uniform(0.0, 90.0, n)
    zoom = _stream(seed, 2).uniform(1.0, 2.0, n)
    c2w = spherical(azimuth, elevation, np.full(n, float(radius)))
    return c2w, torch.from_numpy(zoom.astype(np.float32))


def random_like(camera: Camera, n: int, seed: int = 0) -> Camera:
    """Random cameras in the region of the given ones, around their common target.

    They look at the point nearest to the given cameras' view axes, with the same up axis (``up_axis``), from the given
    ranges of distance, elevation and azimuth, uniform by area (an additive recurrence with a random start, which leaves
    fewer gaps than independent draws). Azimuths cover the whole circle unless the cameras leave out a third of it or
    more. Intrinsics and size are those of the first camera; controls, if there are any, cover the range of the given
    ones.

    Args:
        camera: a batch of cameras, such as ``scene.train.camera``.
        n: number of new cameras.
        seed: of the random draws.

    Returns:
        A batch of n pinholes.

    Source:
        The recurrence is the R_d sequence of M. Roberts, "The unreasonable effectiveness of quasirandom
        sequences".
    """
    stand = viewpoints(camera)
    start, width = covered_arc(stand.azimuth, AROUND)
    low, high = np.sin(np.deg2rad([stand.elevation.min(), stand.elevation.max()]))

    controls = camera.controls
    unit = _recurrence(n, 4 if controls is None else 3 + controls.shape[-1], seed)
    azimuth = start + width * unit[:, 0]
    elevation = np.rad2deg(np.arcsin(low + (high - low) * unit[:, 1]))
    radius = stand.radius.min() + np.ptp(stand.radius) * unit[:, 2]
    if controls is not None:
        first, last = controls.amin(0), controls.amax(0)
        controls = first + (last - first) * torch.from_numpy(unit[:, 3:]).to(first)
    device = camera.c2w.device
    intrinsics = camera.intrinsics[:1].expand(n, 4)
    return replace(
        camera.pinhole(),
        c2w=stand.poses(azimuth, elevation, radius).to(device),
        intrinsics=intrinsics,
        controls=controls,
        view=None,
    )


def random_between(camera: Camera, n: int, seed: int = 0) -> Camera:
    """Random cameras between pairs of the given ones, for scenes that were filmed by hand.

    Positions are interpolated linearly between two different cameras, orientations spherically (slerp), by the same
    uniform fraction; intrinsics are those of the first. The second is a random one whose orientation differs by less
    than 45 degrees, or the nearest if there is none: the straight line between cameras on opposite sides of an object
    passes through it. Controls, if there are any, are uniform in the range of the given ones, independent of the pose.

    Args:
        camera: a batch of cameras, such as ``scene.train.camera``.
        n: number of new cameras.
        seed: of the random draws.

    Returns:
        A batch of n pinholes.

    Source:
        DyLiN, ``gen_pseudo_data_hypernerf`` (Yu et al. 2023, arXiv 2303.14243), except that its times exceed the range
        of those that were filmed, and that its pairs are any two cameras.
    """
    count = len(camera)
    first = np.floor(_stream(seed, 0).random(n) * count).astype(int)
    share = _stream(seed, 2).random(n)[:, None]
    c2w = camera.c2w.cpu().double().numpy()
    turns = quaternions(c2w[:, :, :3])
    second = _partners(turns, first, _stream(seed, 1).random(n))
    rotation = rotations(great_arc(turns[first], turns[second], share))
    position = (1 - share) * c2w[first, :, 3] + share * c2w[second, :, 3]
    return replace(
        camera.pinhole(),
        c2w=torch.from_numpy(np.concatenate([rotation, position[..., None]], axis=-1)).to(camera.c2w),
        intrinsics=camera.intrinsics[torch.from_numpy(first)],
        controls=_random_controls(camera, n, seed),
        view=None,
    )


def random_cameras(
    camera: Camera,
    n: int,
    poses: Poses = "hemisphere",
    seed: int = 0,
) -> Camera:
    """Random cameras to distill from, with the size and the intrinsics of the given ones, without their lens.

    If the given cameras have controls, each new one gets its own: uniform in [0, 1) for ``dnerf``, else in the range of
    the given ones.

    Args:
        camera: a batch of cameras to follow, such as ``scene.train.camera``.
        n: number of new cameras.
        poses: ``hemisphere``, in the region of the given cameras around an object; ``interpolate``, between two of
            them; ``forward``, in the box of the given ones, which face forward side by side; or the distribution of the
            named original: ``mobile_r2l`` and ``r2l``, at the mean distance of the given cameras from the origin, where
            ``r2l`` also zooms by 1 to 2; ``dnerf``, which is ``r2l`` at distance 4.
        seed: of the random draws; the first m of n cameras do not depend on n.

    Returns:
        A batch of n pinholes.

    Source:
        ``dnerf``: DyLiN, ``tools/gen_pseudo_data_dnerf.py`` (arXiv 2303.14243).
    """
    if poses == "hemisphere":
        return random_like(camera, n, seed)
    if poses == "interpolate":
        return random_between(camera, n, seed)
    if poses == "forward":
        controls = _random_controls(camera, n, seed, first=6)
        return replace(random_forward(camera.at(), n, seed), controls=controls)
    radius = DNERF_RADIUS if poses == "dnerf" else float(camera.c2w[:, :, 3].norm(dim=-1).mean())
    intrinsics = camera.intrinsics[:1].repeat(n, 1)
    if poses == "mobile_r2l":
        c2w = random_mobile_r2l(n, radius, seed=seed)
    else:
        c2w, zoom = random_r2l(n, radius, seed)
        intrinsics[:, :2] *= zoom[:, None]
    controls = _random_controls(camera, n, seed, within=poses != "dnerf")
    return replace(camera.pinhole(), c2w=c2w, intrinsics=intrinsics, controls=controls, view=None)


def _partners(turns: np.ndarray, first: np.ndarray, draw: np.ndarray) -> np.ndarray:
    """Choose a second camera (n,) of similar orientation for each first one.

    Args:
        turns: (N, 4) unit quaternions of all cameras.
        first: (n,) indices of the first cameras.
        draw: (n,) random numbers in [0, 1), which choose among the candidates.
    """
    second = first.copy()
    for index in np.unique(first) if len(turns) > 1 else []:
        likeness = np.abs(turns @ turns[index])  # the cosine of half the angle
        likeness[index] = -1.0
        near = np.flatnonzero(likeness > min(_LIKE, likeness.max() - _EQUAL))
        here = first == index
        second[here] = near[np.floor(draw[here] * len(near)).astype(int)]
    return second


def _random_controls(camera: Camera, n: int, seed: int, within: bool = True, first: int = 3) -> Tensor | None:
    """(n, K) uniform controls, ``within`` the given cameras' range or in [0, 1); ``first`` is the first stream."""
    if camera.controls is None:
        return None
    low, high = camera.controls.aminmax(dim=0)
    unit = np.stack([_stream(seed, first + index).random(n) for index in range(len(low))], -1)
    drawn = torch.from_numpy(unit).to(low)
    return low + (high - low) * drawn if within else drawn


def _stream(seed: int, quantity: int) -> np.random.Generator:
    """A separate generator for each quantity, so that the first n draws do not depend on how many follow."""
    return np.random.default_rng((seed, quantity))


def _recurrence(n: int, dimensions: int, seed: int) -> np.ndarray:
    """(n, dimensions) points in [0, 1) of the R_d sequence, shifted at random."""
    ratio = 2.0
    for _ in range(64):
        ratio = (1.0 + ratio) ** (1.0 / (dimensions + 1))
    steps = ratio ** -np.arange(1.0, dimensions + 1)
    return (_stream(seed, 0).random(dimensions) + np.arange(n)[:, None] * steps) % 1.0
