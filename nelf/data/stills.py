"""The built-in static scenes as lists of solids, each with another difficulty for light fields.

Each fits into a ball of radius 1.4 around the origin, the target of the cameras of ``nelf.data.demo``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from nelf.data import miniatures
from nelf.data import shapes as sh
from nelf.data.shapes import circle, matt, moved, ring, rod, scaled, solid
from nelf.data.solids import BOX, CONE, CYLINDER, SPHERE, TORUS, Material, Solid

__all__ = ["SCENES", "Still"]

_FLOOR = -0.62

_BOARD = Material((0.62, 0.44, 0.27), (0.24, 0.13, 0.07), pattern=1, scale=5.0, shine=0.2, gloss=40.0, mirror=0.03)
_STRIPES = Material((0.85, 0.82, 0.78), (0.75, 0.06, 0.08), pattern=2, scale=12.0, shine=0.5)


class Still(NamedTuple):
    """A built-in scene.

    Attributes:
        solids: makes its solids.
        background: name of its background.
        alpha: whether its images have an alpha channel; else they are composited over the background.
    """

    solids: Callable[[], list[Solid]]
    background: str = "white"
    alpha: bool = True


# ------------------------------------------------------------------------------------------------ blocks


def _blocks() -> list[Solid]:
    """Toy blocks on a round checkerboard."""
    board = [solid(CYLINDER, (0, 0, _FLOOR - 0.05), (1.15, 0.05, 0), _BOARD)]
    return board + _gate() + _tower() + _cage((-0.62, -0.42), 0.21) + _loose()


def _gate() -> list[Solid]:
    """Two striped columns, a lintel, a roof and a flag on a thin pole."""
    x, y = 0.12, 0.58
    top = _FLOOR + 0.56
    columns = [solid(CYLINDER, (x + dx, y, _FLOOR + 0.28), (0.095, 0.28, 0), _STRIPES) for dx in (-0.3, 0.3)]
    return [
        *columns,
        solid(BOX, (x, y, top + 0.06), (0.46, 0.13, 0.06), sh.CREAM),
        solid(CONE, (x - 0.3, y, top + 0.27), (0.15, 0.15, 0), sh.BLUE),
        solid(CONE, (x + 0.3, y, top + 0.27), (0.15, 0.15, 0), sh.BLUE),
        solid(CYLINDER, (x, y, top + 0.42), (0.011, 0.3, 0), sh.STEEL),
        solid(BOX, (x + 0.125, y, top + 0.63), (0.115, 0.006, 0.075), sh.RED),
        solid(SPHERE, (x, y, top + 0.735), (0.025, 0, 0), sh.GOLD),
    ]


def _tower() -> list[Solid]:
    """A pile of rotated blocks with a ball on top."""
    solids, height = [], _FLOOR
    for half, turn, material in ((0.22, 12, sh.GREEN), (0.17, 41, sh.YELLOW), (0.125, 75, sh.RED)):
        solids.append(solid(BOX, (-0.60, 0.28, height + half), (half, half, half), material, turn=turn))
        height += 2 * half
    return [*solids, solid(SPHERE, (-0.60, 0.28, height + 0.11), (0.11, 0, 0), sh.PLUM)]


def _cage(place: tuple[float, float], half: float) -> list[Solid]:
    """A cube of twelve thin rods around a ball."""
    turn = 27.0
    center = np.array([*place, _FLOOR + half + 0.012])
    axes = sh.axes(turn)
    solids = [solid(SPHERE, (*place, _FLOOR + 0.13), (0.13, 0, 0), sh.YELLOW)]
    for k in range(3):
        u, v, w = axes[k], axes[(k + 1) % 3], axes[(k + 2) % 3]
        for a in (-half, half):
            for b in (-half, half):
                each = Solid(CYLINDER, center + a * u + b * v, (0.012, half + 0.012, 0), sh.STEEL, np.stack([u, v, w]))
                solids.append(each)
    return solids


def _loose() -> list[Solid]:
    """Single objects: a mirror ball, a leaning ring, a cone, small balls, a block and a disc."""
    leaning = sh.tilt(72.0) @ sh.axes(-35.0)
    return [
        solid(SPHERE, (0.36, -0.30, _FLOOR + 0.25), (0.25, 0, 0), sh.CHROME),
        Solid(TORUS, np.array([0.74, 0.22, _FLOOR + 0.248]), (0.20, 0.055, 0), sh.GOLD, leaning),
        solid(CONE, (-0.10, -0.78, _FLOOR + 0.17), (0.14, 0.17, 0), sh.GREEN),
        solid(SPHERE, (0.80, -0.42, _FLOOR + 0.09), (0.09, 0, 0), sh.RED),
        solid(SPHERE, (0.22, -0.72, _FLOOR + 0.06), (0.06, 0, 0), sh.BLUE),
        solid(BOX, (-0.12, 0.05, _FLOOR + 0.08), (0.17, 0.08, 0.08), sh.BLUE, turn=-24),
        solid(CYLINDER, (0.62, -0.78, _FLOOR + 0.05), (0.11, 0.05, 0), sh.CREAM),
    ]


# ------------------------------------------------------------------------------------------------ rocket


def _rocket() -> list[Solid]:
    """A toy rocket on three fins: small, so that most of an image is background."""
    shell = Material((0.80, 0.80, 0.82), (0.70, 0.06, 0.05), pattern=2, scale=4.0, shine=0.6)
    red = Material((0.70, 0.06, 0.05), shine=0.7, gloss=90.0)
    solids = [
        solid(CYLINDER, (0, 0, -0.02), (0.16, 0.33, 0), shell),
        solid(CONE, (0, 0, 0.48), (0.16, 0.17, 0), red),
        solid(SPHERE, (0, 0, 0.65), (0.022, 0, 0), sh.GOLD),
        ring((0, 0, 0.31), (0, 0, 1), 0.16, 0.016, sh.STEEL),
        ring((0, 0, -0.35), (0, 0, 1), 0.15, 0.022, sh.STEEL),
        solid(CONE, (0, 0, -0.42), (0.13, 0.17, 0), sh.STEEL),
    ]
    for x, y in circle(3, 1.0, 20.0):
        solids += [
            rod((0.14 * x, 0.14 * y, -0.12), (0.30 * x, 0.30 * y, -0.50), 0.03, red),
            solid(SPHERE, (0.30 * x, 0.30 * y, -0.52), (0.055, 0, 0), sh.BLUE),
        ]
    glass = Material((0.05, 0.16, 0.30), shine=1.0, gloss=200.0)
    for x, y in circle(3, 0.155, 80.0):  # portholes, between the legs
        solids += [
            ring((x, y, 0.12), (x, y, 0), 0.062, 0.017, sh.GOLD),
            solid(SPHERE, (0.82 * x, 0.82 * y, 0.12), (0.068, 0, 0), glass),
        ]
    return scaled(solids, 1.3)


# ------------------------------------------------------------------------------------------------ metals

_SILVER = Material((0.90, 0.90, 0.88), shine=1.3, gloss=250.0, mirror=0.75, metal=True)
_COPPER = Material((0.90, 0.42, 0.26), shine=1.2, gloss=160.0, mirror=0.65, metal=True)
_LACQUER = Material((0.55, 0.015, 0.02), shine=1.0, gloss=300.0, mirror=0.10)
_PIANO = Material((0.012, 0.012, 0.014), shine=1.2, gloss=400.0, mirror=0.10)
_TABLE = Material((0.075, 0.030, 0.016), shine=0.6, gloss=150.0, mirror=0.12)


def _metals() -> list[Solid]:
    """Polished metal and lacquer on a polished table: reflections and highlights everywhere."""
    solids = [
        solid(CYLINDER, (0, 0, -0.04), (1.12, 0.04, 0), _TABLE),
        ring((0, 0, -0.04), (0, 0, 1), 1.12, 0.04, sh.GOLD),
        solid(SPHERE, (-0.38, 0.34, 0.34), (0.34, 0, 0), sh.CHROME),
        solid(SPHERE, (0.40, 0.52, 0.22), (0.22, 0, 0), sh.GOLD),
        solid(SPHERE, (0.72, 0.02, 0.15), (0.15, 0, 0), _LACQUER),
        solid(SPHERE, (-0.80, -0.22, 0.14), (0.14, 0, 0), _PIANO),
        solid(SPHERE, (-0.20, -0.84, 0.09), (0.09, 0, 0), sh.CHROME),
        solid(CYLINDER, (0.02, -0.18, 0.13), (0.13, 0.13, 0), _COPPER),
        solid(SPHERE, (0.02, -0.18, 0.34), (0.085, 0, 0), sh.PLUM),
        solid(BOX, (0.44, -0.62, 0.13), (0.13, 0.13, 0.13), _SILVER, turn=31.0),
        rod((0.70, -0.36, 0.0), (0.70, -0.36, 0.34), 0.12, _COPPER, CONE),
        ring((-0.44, -0.56, 0.045), (0, 0, 1), 0.16, 0.045, sh.GOLD),
        ring((-0.02, 0.84, 0.19), (0.5, 1.0, 0.0), 0.15, 0.04, _COPPER),
        *moved(_goblet(), 0.0, (0.26, 0.10, 0.0)),
    ]
    return moved(solids, 0.0, (0.0, 0.0, -0.30))


def _goblet() -> list[Solid]:
    """A silver goblet with a rim of gold."""
    return [
        solid(CYLINDER, (0, 0, 0.012), (0.13, 0.012, 0), _SILVER),
        solid(CONE, (0, 0, 0.06), (0.10, 0.045, 0), _SILVER),
        solid(CYLINDER, (0, 0, 0.16), (0.022, 0.14, 0), _SILVER),
        solid(SPHERE, (0, 0, 0.20), (0.042, 0, 0), sh.GOLD),
        solid(SPHERE, (0, 0, 0.42), (0.13, 0, 0), _SILVER),
        solid(CYLINDER, (0, 0, 0.49), (0.13, 0.07, 0), _SILVER),
        ring((0, 0, 0.56), (0, 0, 1), 0.125, 0.012, sh.GOLD),
        solid(CYLINDER, (0, 0, 0.561), (0.118, 0.001, 0), matt(0.22, 0.01, 0.03, shine=1.0, gloss=300.0, mirror=0.05)),
    ]


# ------------------------------------------------------------------------------------------------ porcelain

_WHITE = Material((0.64, 0.64, 0.63), shine=0.25, gloss=120.0, mirror=0.03)
_LINEN = matt(0.50, 0.50, 0.50, shine=0.0)
_RIM = Material((0.44, 0.52, 0.64), shine=0.3, gloss=120.0, mirror=0.03)
_MILK = Material((0.70, 0.64, 0.55), shine=0.4, gloss=200.0, mirror=0.03)


def _porcelain() -> list[Solid]:
    """A white tea set on a white tray, on a white background."""
    solids = [
        solid(CYLINDER, (0, 0, -0.02), (1.10, 0.02, 0), _LINEN),
        ring((0, 0, 0.0), (0, 0, 1), 1.10, 0.03, _WHITE),
        *moved(_pot(), 25.0, (-0.22, 0.30, 0.0)),
        *moved(_cup(), -40.0, (0.52, 0.34, 0.0)),
        *moved(_cup(), 200.0, (-0.56, -0.46, 0.0)),
        *moved(_cup(), 80.0, (0.34, -0.56, 0.0)),
        *moved(_sugar(), 0.0, (0.80, -0.16, 0.0)),
        *moved(_plates(), 0.0, (-0.05, -0.30, 0.0)),
    ]
    return moved(solids, 0.0, (0.0, 0.0, -0.30))


def _pot() -> list[Solid]:
    """A teapot."""
    return [
        ring((0, 0, 0.03), (0, 0, 1), 0.18, 0.03, _WHITE),
        solid(SPHERE, (0, 0, 0.31), (0.30, 0, 0), _WHITE),
        ring((0, 0, 0.565), (0, 0, 1), 0.15, 0.018, _RIM),
        solid(SPHERE, (0, 0, 0.47), (0.17, 0, 0), _WHITE),
        solid(SPHERE, (0, 0, 0.665), (0.042, 0, 0), _RIM),
        rod((0.22, 0, 0.22), (0.42, 0, 0.42), 0.052, _WHITE),
        rod((0.42, 0, 0.42), (0.49, 0, 0.56), 0.036, _WHITE),
        solid(SPHERE, (0.42, 0, 0.42), (0.052, 0, 0), _WHITE),
        ring((0.49, 0, 0.56), (0.07, 0, 0.14), 0.032, 0.012, _RIM),
        ring((-0.33, 0, 0.34), (0, 1, 0), 0.14, 0.028, _WHITE),
    ]


def _cup() -> list[Solid]:
    """A cup of milky tea on its saucer."""
    return [
        solid(CYLINDER, (0, 0, 0.012), (0.13, 0.012, 0), _WHITE),
        ring((0, 0, 0.032), (0, 0, 1), 0.205, 0.010, _RIM),
        solid(CYLINDER, (0, 0, 0.022), (0.20, 0.010, 0), _WHITE),
        solid(SPHERE, (0, 0, 0.11), (0.115, 0, 0), _WHITE),
        solid(CYLINDER, (0, 0, 0.17), (0.115, 0.06, 0), _WHITE),
        ring((0, 0, 0.23), (0, 0, 1), 0.11, 0.010, _RIM),
        solid(CYLINDER, (0, 0, 0.231), (0.10, 0.001, 0), _MILK),
        ring((0.135, 0, 0.16), (0, 1, 0), 0.048, 0.014, _WHITE),
    ]


def _sugar() -> list[Solid]:
    """A bowl with lumps of sugar."""
    size = (0.032, 0.032, 0.032)
    lumps = [solid(BOX, (x, y, 0.185), size, _LINEN, turn=40.0 * k) for k, (x, y) in enumerate(circle(4, 0.055))]
    return [
        ring((0, 0, 0.015), (0, 0, 1), 0.07, 0.015, _WHITE),
        solid(SPHERE, (0, 0, 0.08), (0.08, 0, 0), _WHITE),
        solid(CYLINDER, (0, 0, 0.13), (0.10, 0.03, 0), _WHITE),
        ring((0, 0, 0.16), (0, 0, 1), 0.10, 0.010, _RIM),
        *lumps,
        solid(BOX, (0, 0, 0.235), size, _LINEN, turn=20.0),
    ]


def _plates() -> list[Solid]:
    """A pile of plates."""
    pile = [solid(CYLINDER, (0, 0, 0.012 + 0.03 * k), (0.17, 0.008, 0), _WHITE) for k in range(4)]
    rims = [ring((0, 0, 0.016 + 0.03 * k), (0, 0, 1), 0.17, 0.009, _RIM if k == 3 else _WHITE) for k in range(4)]
    return [*pile, *rims]


SCENES = {
    "blocks": Still(_blocks),
    "rocket": Still(_rocket),
    "chess": Still(miniatures.chess, background="black"),
    "bicycle": Still(miniatures.bicycle),
    "metals": Still(_metals),
    "porcelain": Still(_porcelain),
    "village": Still(miniatures.village, alpha=False),
}
"""The built-in scenes by name."""
