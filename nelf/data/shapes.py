"""Building blocks of the built-in scenes: materials, and functions that make, rotate and group solids.

Lengths in scene units, angles in degrees, +z up.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nelf.data.solids import BOX, CONE, CYLINDER, SPHERE, TORUS, Material, Solid

__all__ = ["along", "axes", "bounds", "circle", "matt", "moved", "placed", "ring", "rod", "scaled", "solid", "tilt"]

Point = tuple[float, float, float]

RED = Material((0.72, 0.07, 0.05), shine=0.5)
YELLOW = Material((0.90, 0.58, 0.06), shine=0.5)
GREEN = Material((0.10, 0.42, 0.16), shine=0.5)
BLUE = Material((0.06, 0.20, 0.62), shine=0.5)
CREAM = Material((0.82, 0.74, 0.60), shine=0.15, gloss=20.0, mirror=0.0)
CHROME = Material((0.92, 0.93, 0.95), shine=1.5, gloss=400.0, mirror=0.88, metal=True)
GOLD = Material((0.95, 0.62, 0.22), shine=1.2, gloss=120.0, mirror=0.6, metal=True)
STEEL = Material((0.55, 0.57, 0.60), shine=0.8, gloss=90.0, mirror=0.25, metal=True)
PLUM = Material((0.30, 0.05, 0.28), shine=0.9, gloss=200.0, mirror=0.06)


def matt(red: float, green: float, blue: float, **more: Any) -> Material:
    """A matte surface, linear rgb."""
    return Material((red, green, blue), **{"shine": 0.1, "gloss": 20.0, "mirror": 0.0, **more})


def solid(kind: int, center: Point, size: Point, material: Material, turn: float = 0.0) -> Solid:
    """An upright solid.

    Args:
        kind: one of the kinds in ``nelf.data.solids``.
        center: in scene units.
        size: see the kinds.
        material: its material.
        turn: rotation about z, degrees.

    Returns:
        The solid.
    """
    return Solid(kind, np.array(center), size, material, axes(turn))


def axes(turn: float) -> np.ndarray:
    """(3, 3) axes, as rows, rotated about +z by degrees."""
    c, s = np.cos(np.deg2rad(turn)), np.sin(np.deg2rad(turn))
    return np.array([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]])


def tilt(angle: float) -> np.ndarray:
    """(3, 3) axes, as rows, rotated about x by degrees."""
    c, s = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    return np.array([[1.0, 0.0, 0.0], [0.0, c, s], [0.0, -s, c]])


def rod(start: Point, end: Point, radius: float, material: Material, kind: int = CYLINDER) -> Solid:
    """A solid between two points.

    Args:
        start: the center of one end, the base of a cone.
        end: the center of the other end, the tip of a cone.
        radius: in scene units.
        material: its material.
        kind: ``CYLINDER`` or ``CONE``.

    Returns:
        The solid.
    """
    low, high = np.array(start), np.array(end)
    half = 0.5 * float(np.linalg.norm(high - low))
    return Solid(kind, (low + high) / 2, (radius, half, 0), material, along((high - low) / (2 * half)))


def ring(center: Point, normal: Point, radius: float, tube: float, material: Material) -> Solid:
    """A torus around an axis.

    Args:
        center: in scene units.
        normal: direction of the axis, of any length.
        radius: from the center to the middle of the tube.
        tube: radius of the tube.
        material: its material.

    Returns:
        The solid.
    """
    unit = np.array(normal) / np.linalg.norm(normal)
    return Solid(TORUS, np.array(center), (radius, tube, 0), material, along(unit))


def along(axis: np.ndarray) -> np.ndarray:
    """(3, 3) axes, as rows, of which the third is a given unit vector."""
    other = np.array([1.0, 0.0, 0.0]) if abs(axis[0]) < 0.9 else np.array([0.0, 1.0, 0.0])
    across = np.cross(other, axis)
    across /= np.linalg.norm(across)
    return np.stack([across, np.cross(axis, across), axis])


def circle(count: int, radius: float, start: float = 0.0) -> list[tuple[float, float]]:
    """Evenly spaced points on a circle around the origin, the first at an angle in degrees."""
    angles = np.deg2rad(start) + 2 * np.pi * np.arange(count) / count
    return [(radius * float(np.cos(angle)), radius * float(np.sin(angle))) for angle in angles]


def moved(solids: list[Solid], turn: float, offset: Point) -> list[Solid]:
    """A group of solids, rotated about z by degrees and then translated."""
    return placed(solids, axes(turn), offset)


def placed(solids: list[Solid], rotation: np.ndarray, offset: Point | np.ndarray) -> list[Solid]:
    """A group of solids, rotated and then translated; the rows of ``rotation`` (3, 3) are the rotated axes."""
    # So a point p becomes p @ rotation + offset.
    return [each._replace(center=each.center @ rotation + offset, axes=each.axes @ rotation) for each in solids]


def scaled(solids: list[Solid], factor: float) -> list[Solid]:
    """A group of solids, scaled about the origin."""
    return [
        Solid(
            each.kind,
            each.center * factor,
            (each.size[0] * factor, each.size[1] * factor, each.size[2] * factor),
            each.material._replace(scale=each.material.scale / factor),
            each.axes,
        )
        for each in solids
    ]


def bounds(one: Solid) -> np.ndarray:
    """(2, 3) the bounding box of a solid: smallest xyz, largest xyz."""
    a, b, _ = one.size
    third = one.axes[2]
    rim = a * np.sqrt(np.maximum(0.0, 1.0 - third**2))  # half extent of a circle around the third axis
    reach = {
        SPHERE: np.full(3, a),
        BOX: np.abs(one.axes).T @ np.array(one.size),
        TORUS: rim + b,
        CYLINDER: rim + b * np.abs(third),
    }
    if one.kind == CONE:  # the circle of its base, and its tip
        base, tip = -b * third, b * third
        return one.center + np.stack([np.minimum(base - rim, tip), np.maximum(base + rim, tip)])
    return one.center + np.stack([-reach[one.kind], reach[one.kind]])
