"""Camera poses: paths for videos, and the random poses that light fields are distilled from.

Poses are (N, 3, 4) float32 camera-to-world, OpenGL axes, without roll. Up is +z, or the up axis of given cameras.
Angles are in degrees: azimuth from +x toward +y, elevation above the horizontal plane, polar angle from +z. Every
random set is a prefix of any longer one of the same seed, so a set can be extended, or split among processes, without
changing the poses that it has.
"""

from nelf.paths.films import around, winding
from nelf.paths.flights import BLENDER_RADIUS, MOTIONS, Motion, dnerf, hemisphere, in_motion, look_at, orbit, spiral
from nelf.paths.forward import average_pose, llff_spiral, random_forward
from nelf.paths.random_poses import (
    FOLLOWING,
    POSES,
    Poses,
    random_between,
    random_cameras,
    random_like,
    random_mobile_r2l,
    random_r2l,
)
from nelf.paths.trajectories import Trajectory, Viewpoints, focus, rolled, trajectory, viewpoints

__all__ = [
    "BLENDER_RADIUS",
    "FOLLOWING",
    "MOTIONS",
    "POSES",
    "Motion",
    "Poses",
    "Trajectory",
    "Viewpoints",
    "around",
    "average_pose",
    "dnerf",
    "focus",
    "hemisphere",
    "in_motion",
    "llff_spiral",
    "look_at",
    "orbit",
    "random_between",
    "random_cameras",
    "random_forward",
    "random_like",
    "random_mobile_r2l",
    "random_r2l",
    "rolled",
    "spiral",
    "trajectory",
    "viewpoints",
    "winding",
]
