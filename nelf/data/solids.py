"""Solids of the built-in scenes: kinds, materials, and the table that the ray tracer reads."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = ["BOX", "CONE", "CYLINDER", "SPHERE", "TORUS", "Material", "Solid", "pack"]

SPHERE, BOX, CYLINDER, CONE, TORUS = range(5)
"""Kinds of solids. Their ``size``: radius; half sides; radius and half height; the same; major and minor radius."""

KIND, BOUND, CENTER, SIZE, AXES = 0, 1, 2, 5, 8  # columns of the table of solids
COLOR, SECOND, PATTERN, SCALE, SHINE, GLOSS, MIRROR, METAL, SKIP = 17, 20, 23, 24, 25, 26, 27, 28, 29
GROUP = -1  # kind of a row that bounds a group of rows after it
_FEW = 2  # up to so many solids get no common bound


class Material(NamedTuple):
    """The material of a surface.

    Attributes:
        color: linear rgb in [0, 1].
        second: linear rgb of the pattern's other color.
        pattern: 0 none, 1 checkerboard in local x and y, 2 rings along the local z axis.
        scale: pattern's cells per scene unit.
        shine: strength of the sun's specular highlight.
        gloss: its exponent.
        mirror: reflectance at normal incidence; if above 0, it rises to 1 at grazing angles.
        metal: whether reflections are tinted by the surface's color.
    """

    color: tuple[float, float, float]
    second: tuple[float, float, float] = (0.0, 0.0, 0.0)
    pattern: int = 0
    scale: float = 1.0
    shine: float = 0.4
    gloss: float = 60.0
    mirror: float = 0.04
    metal: bool = False


class Solid(NamedTuple):
    """One solid.

    Attributes:
        kind: ``SPHERE``, ``BOX``, ``CYLINDER``, ``CONE`` or ``TORUS``.
        center: in scene units.
        size: see the kinds.
        material: its material.
        axes: (3, 3) the local axes as rows in world space.
    """

    kind: int
    center: np.ndarray
    size: tuple[float, float, float]
    material: Material
    axes: np.ndarray


def pack(solids: list[Solid]) -> np.ndarray:
    """Arrange solids as a table for ``trace``.

    Args:
        solids: N solids.

    Returns:
        (M, 30) float64: kind, bounding radius, center, size, axes, material, and the row to continue with if a ray
        misses the bounding sphere. A row that bounds a group precedes its rows, so that most rays skip most rows (a
        bounding volume hierarchy). It is a single array, because each array that is passed to a compiled function costs
        more than the test of a sphere.
    """
    rows: list[list[float]] = []
    _append(rows, [_row(solid) for solid in solids])
    return np.array(rows, dtype=np.float64).reshape(-1, SKIP + 1)


def _row(solid: Solid) -> np.ndarray:
    """All columns of a solid except the last."""
    a, b, _ = solid.size
    bound = {SPHERE: a, TORUS: a + b, BOX: float(np.linalg.norm(solid.size))}.get(solid.kind, float(np.hypot(a, b)))
    m = solid.material
    look = (*m.color, *m.second, m.pattern, m.scale, m.shine, m.gloss, m.mirror, m.metal)
    return np.array([solid.kind, bound, *solid.center, *solid.size, *solid.axes.ravel(), *look], dtype=np.float64)


def _append(rows: list[list[float]], group: list[np.ndarray]) -> None:
    """Append rows as a hierarchy: split recursively along the longest side, each part preceded by its bound."""
    if len(group) <= _FEW:
        for row in group:
            rows.append([*row, len(rows) + 1])
        return
    centers = np.array([row[CENTER:SIZE] for row in group])
    bounds = np.array([row[BOUND] for row in group])
    low, high = (centers - bounds[:, None]).min(axis=0), (centers + bounds[:, None]).max(axis=0)
    middle = (low + high) / 2
    place = len(rows)
    rows.append([GROUP, float((np.linalg.norm(centers - middle, axis=1) + bounds).max()), *middle])
    order = np.argsort(centers[:, int(np.argmax(np.ptp(centers, axis=0)))], kind="stable")
    for half in np.array_split(order, 2):
        _append(rows, [group[index] for index in half])
    rows[place] += [0.0] * (SKIP - len(rows[place])) + [len(rows)]
