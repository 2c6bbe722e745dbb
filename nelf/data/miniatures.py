"""Built-in scenes of many small parts: a chess board, a bicycle, a village; see ``nelf.data.stills``."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from nelf.data import shapes as sh
from nelf.data.shapes import Point, circle, matt, moved, ring, rod, scaled, solid
from nelf.data.solids import BOX, CONE, CYLINDER, SPHERE, Material, Solid

__all__ = ["bicycle", "chess", "village"]

# ------------------------------------------------------------------------------------------------ chess

_EBONY = Material((0.012, 0.011, 0.013), shine=0.35, gloss=120.0, mirror=0.02)
_IVORY = Material((0.78, 0.70, 0.54), shine=0.4, gloss=80.0, mirror=0.04)
_SQUARE = 0.28


def chess() -> list[Solid]:
    """An endgame on a board of six by six squares: black and white pieces, on a black background."""
    squares = Material((0.014, 0.010, 0.009), (0.62, 0.52, 0.36), pattern=1, scale=1 / _SQUARE, shine=0.2, mirror=0.015)
    rim = Material((0.10, 0.030, 0.016), shine=0.4, mirror=0.04)
    half = 3 * _SQUARE
    solids = [
        solid(BOX, (0, 0, -0.05), (half, half, 0.05), squares),
        solid(BOX, (0, 0, -0.07), (half + 0.07, half + 0.07, 0.05), rim),
    ]
    pieces = (
        (_king, _EBONY, (4, 5)),
        (_rook, _EBONY, (5, 4)),
        (_bishop, _EBONY, (2, 4)),
        (_pawn, _EBONY, (3, 4)),
        (_pawn, _EBONY, (4, 3)),
        (_pawn, _EBONY, (1, 3)),
        (_king, _IVORY, (1, 0)),
        (_queen, _IVORY, (3, 2)),
        (_rook, _IVORY, (0, 2)),
        (_pawn, _IVORY, (0, 1)),
        (_pawn, _IVORY, (2, 1)),
        (_pawn, _IVORY, (4, 1)),
    )
    for make, material, (column, row) in pieces:
        solids += moved(make(material), 0.0, ((column - 2.5) * _SQUARE, (row - 2.5) * _SQUARE, 0.0))
    return moved(solids, 0.0, (0.0, 0.0, -0.25))


def _stand(material: Material, height: float, radius: float = 0.1) -> list[Solid]:
    """Foot, waist and collar of a piece, with the collar at a height."""
    return [
        solid(CYLINDER, (0, 0, 0.02), (radius, 0.02, 0), material),
        ring((0, 0, 0.045), (0, 0, 1), 0.72 * radius, 0.028, material),
        solid(CONE, (0, 0, 0.04 + 0.7 * height), (0.8 * radius, 0.7 * height, 0), material),
        solid(CYLINDER, (0, 0, height / 2), (0.36 * radius, height / 2, 0), material),
        ring((0, 0, height), (0, 0, 1), 0.36 * radius, 0.020, material),
    ]


def _pawn(material: Material) -> list[Solid]:
    return [*_stand(material, 0.17, 0.085), solid(SPHERE, (0, 0, 0.225), (0.06, 0, 0), material)]


def _rook(material: Material) -> list[Solid]:
    tower = [
        solid(CYLINDER, (0, 0, 0.02), (0.105, 0.02, 0), material),
        ring((0, 0, 0.045), (0, 0, 1), 0.075, 0.028, material),
        solid(CYLINDER, (0, 0, 0.14), (0.066, 0.12, 0), material),
        solid(CYLINDER, (0, 0, 0.275), (0.088, 0.025, 0), material),
    ]
    return tower + [solid(BOX, (x, y, 0.32), (0.024, 0.024, 0.022), material) for x, y in circle(4, 0.062, 45.0)]


def _bishop(material: Material) -> list[Solid]:
    return [
        *_stand(material, 0.26),
        solid(SPHERE, (0, 0, 0.32), (0.062, 0, 0), material),
        solid(CONE, (0, 0, 0.385), (0.045, 0.045, 0), material),
        solid(SPHERE, (0, 0, 0.43), (0.02, 0, 0), material),
    ]


def _queen(material: Material) -> list[Solid]:
    crown = [solid(SPHERE, (x, y, 0.46), (0.022, 0, 0), material) for x, y in circle(8, 0.068)]
    return [
        *_stand(material, 0.34, 0.11),
        rod((0, 0, 0.50), (0, 0, 0.22), 0.088, material, CONE),
        solid(SPHERE, (0, 0, 0.46), (0.05, 0, 0), material),
        solid(SPHERE, (0, 0, 0.525), (0.026, 0, 0), material),
        *crown,
    ]


def _king(material: Material) -> list[Solid]:
    return [
        *_stand(material, 0.36, 0.11),
        rod((0, 0, 0.48), (0, 0, 0.24), 0.082, material, CONE),
        solid(SPHERE, (0, 0, 0.47), (0.05, 0, 0), material),
        solid(BOX, (0, 0, 0.56), (0.014, 0.014, 0.06), material),
        solid(BOX, (0, 0, 0.57), (0.044, 0.014, 0.014), material),
    ]


# ------------------------------------------------------------------------------------------------ bicycle

_WHEEL = 0.37


def bicycle() -> list[Solid]:
    """A bicycle: spokes, tubes and wires, of which most are thinner than a pixel at 200 pixels."""
    paint = Material((0.02, 0.24, 0.26), shine=0.9, gloss=120.0, mirror=0.05)
    leather = matt(0.24, 0.10, 0.04, shine=0.25)
    rear, front, crank = (-0.56, 0.0, -0.25), (0.58, 0.0, -0.25), (-0.12, 0.0, -0.25)
    seat, head, stem = (-0.27, 0.0, 0.22), (0.40, 0.0, 0.24), (0.375, 0.0, 0.31)
    solids = [
        *_wheel(rear),
        *_wheel(front),
        rod(crank, seat, 0.020, paint),
        rod(seat, head, 0.020, paint),
        rod(crank, (0.42, 0.0, 0.17), 0.022, paint),
        rod((0.44, 0.0, 0.12), stem, 0.024, paint),
        rod(seat, (-0.29, 0.0, 0.30), 0.013, sh.CHROME),
        solid(BOX, (-0.27, 0.0, 0.315), (0.075, 0.035, 0.016), leather),
        solid(SPHERE, (-0.35, 0.0, 0.315), (0.052, 0, 0), leather),
        rod((-0.22, 0.0, 0.315), (-0.12, 0.0, 0.31), 0.020, leather),
    ]
    for side in (-1.0, 1.0):
        y = 0.035 * side
        solids += [
            rod((rear[0], y, rear[2]), (crank[0], y, crank[2]), 0.010, paint),
            rod((rear[0], y, rear[2]), (seat[0], 0.5 * y, seat[2]), 0.009, paint),
            rod((front[0], y, front[2]), (0.44, y, 0.12), 0.012, sh.CHROME),
        ]
    return [*solids, *_drive(crank, rear), *_handlebar(stem), *_basket((0.60, 0.0, 0.33))]


def _wheel(center: Point) -> list[Solid]:
    """Tire, rim, hub, and crossing spokes from both ends of the hub."""
    x, _, z = center
    rubber = matt(0.035, 0.035, 0.04)
    solids = [
        ring(center, (0, 1, 0), _WHEEL, 0.021, rubber),
        ring(center, (0, 1, 0), _WHEEL - 0.026, 0.009, sh.STEEL),
        rod((x, -0.045, z), (x, 0.045, z), 0.022, sh.CHROME),
    ]
    for index, (u, v) in enumerate(circle(20, _WHEEL - 0.026, 9.0)):
        turn = np.deg2rad(70.0 if index % 4 < 2 else -70.0)
        flange = 0.05 * np.array([u * np.cos(turn) - v * np.sin(turn), u * np.sin(turn) + v * np.cos(turn)])
        side = 0.035 if index % 2 else -0.035
        solids.append(rod((x + float(flange[0]), side, z + float(flange[1])), (x + u, 0.0, z + v), 0.0045, sh.STEEL))
    return solids


def _drive(crank: Point, rear: Point) -> list[Solid]:
    """Chain wheel, chain, cranks and pedals."""
    x, _, z = crank
    y, radius, small = -0.06, 0.085, 0.035
    black = matt(0.05, 0.05, 0.055, shine=0.4)
    solids = [
        ring((x, y, z), (0, 1, 0), radius, 0.008, sh.CHROME),
        ring((rear[0], y, rear[2]), (0, 1, 0), small, 0.010, sh.STEEL),
        rod((x, -0.075, z), (x, 0.075, z), 0.020, sh.CHROME),
        rod((x, y, z + radius), (rear[0], y, rear[2] + small), 0.006, black),
        rod((x, y, z - radius), (rear[0], y, rear[2] - small), 0.006, black),
    ]
    solids += [rod((x, y, z), (x + u, y, z + v), 0.006, sh.CHROME) for u, v in circle(5, radius, 30.0)]
    for side, (u, v) in zip((-1.0, 1.0), circle(2, 0.17, -35.0), strict=True):
        solids += [
            rod((x, 0.075 * side, z), (x + u, 0.085 * side, z + v), 0.010, sh.CHROME),
            solid(BOX, (x + u, 0.14 * side, z + v), (0.045, 0.045, 0.012), black),
        ]
    return solids


def _handlebar(stem: Point) -> list[Solid]:
    """A bar across, swept back, with grips, and a bell."""
    x, _, z = stem
    grip = matt(0.24, 0.10, 0.04, shine=0.25)
    solids = [
        rod((x, 0, z - 0.03), (x + 0.05, 0, z + 0.05), 0.013, sh.CHROME),
        solid(SPHERE, (x + 0.02, 0.09, z + 0.085), (0.028, 0, 0), sh.GOLD),
    ]
    for side in (-1.0, 1.0):
        knee = (x + 0.03, 0.20 * side, z + 0.08)
        solids += [
            rod((x + 0.05, 0.0, z + 0.05), knee, 0.011, sh.CHROME),
            rod(knee, (x - 0.09, 0.25 * side, z + 0.07), 0.011, sh.CHROME),
            rod((x - 0.05, 0.238 * side, z + 0.072), (x - 0.15, 0.266 * side, z + 0.066), 0.019, grip),
        ]
    return solids


def _basket(center: Point) -> list[Solid]:
    """A basket of wires with an orange in it."""
    x, _, z = center
    wire, floor, top = 0.0055, z - 0.10, z + 0.10
    solids = [
        ring((x, 0, level), (0, 0, 1), radius, wire, sh.STEEL)
        for level, radius in ((floor, 0.10), (floor + 0.07, 0.116), (floor + 0.14, 0.132), (top, 0.146))
    ]
    for (u, v), (p, q) in zip(circle(16, 0.10), circle(16, 0.146), strict=True):
        solids.append(rod((x + u, v, floor), (x + p, q, top), 0.004, sh.STEEL))
    solids += [rod((x + u, v, floor), (x - u, -v, floor), 0.004, sh.STEEL) for u, v in circle(16, 0.10)[:8]]
    return [*solids, solid(SPHERE, (x + 0.01, 0.01, floor + 0.068), (0.062, 0, 0), matt(0.85, 0.30, 0.02))]


# ------------------------------------------------------------------------------------------------ village


def village() -> list[Solid]:
    """Houses, a church, trees and a fence on grass."""
    grass = Material((0.16, 0.34, 0.06), (0.13, 0.30, 0.05), pattern=1, scale=8.0, shine=0.0, mirror=0.0)
    earth, sand = matt(0.20, 0.11, 0.06), matt(0.66, 0.52, 0.33)
    water = Material((0.04, 0.13, 0.20), shine=1.0, gloss=300.0, mirror=0.25)
    solids = [
        solid(CYLINDER, (0, 0, -0.03), (1.16, 0.03, 0), grass),
        solid(CYLINDER, (0, 0, -0.11), (1.12, 0.05, 0), earth),
        solid(CYLINDER, (0.06, -0.02, 0.002), (0.24, 0.003, 0), sand),
        rod((0.06, -0.02, -0.045), (0.36, -1.05, -0.045), 0.07, sand),
        *moved(_church(), 18.0, (-0.28, 0.52, 0.0)),
        *moved(_house(matt(0.80, 0.66, 0.42), matt(0.48, 0.10, 0.05)), -28.0, (0.56, 0.42, 0.0)),
        *moved(_house(matt(0.72, 0.70, 0.66), matt(0.10, 0.12, 0.18)), 62.0, (-0.66, -0.14, 0.0)),
        *moved(_house(matt(0.62, 0.22, 0.14), matt(0.22, 0.11, 0.06)), 8.0, (-0.26, -0.64, 0.0)),
        *moved(_well(), 10.0, (0.06, -0.02, 0.0)),
        solid(CYLINDER, (0.66, -0.36, 0.002), (0.22, 0.004, 0), water),
    ]
    for x, y, size in (
        (0.92, 0.10, 1.0),
        (0.16, 0.86, 1.15),
        (-0.86, 0.34, 1.1),
        (-0.72, 0.58, 0.8),
        (0.84, 0.62, 0.7),
    ):
        solids += moved(scaled(_fir(), size), 0.0, (x, y, 0.0))
    for x, y, size in ((-0.62, -0.74, 1.0), (0.12, -0.84, 0.8), (0.30, 0.16, 0.7)):
        solids += moved(scaled(_tree(), size), 0.0, (x, y, 0.0))
    return moved(solids + _fence(), 0.0, (0.0, 0.0, -0.35))


def _house(wall: Material, roof: Material) -> list[Solid]:
    """Walls, a gable roof, a door, windows and a chimney."""
    dark, frame = matt(0.10, 0.05, 0.03), Material((0.10, 0.16, 0.22), shine=1.0, gloss=200.0, mirror=0.08)
    slope = 40.0
    solids = [
        solid(BOX, (0, 0, 0.11), (0.20, 0.15, 0.11), wall),
        solid(BOX, (-0.07, -0.151, 0.07), (0.035, 0.004, 0.07), dark),
        solid(BOX, (0.08, -0.151, 0.12), (0.045, 0.004, 0.04), frame),
        solid(BOX, (0.201, 0.0, 0.12), (0.004, 0.045, 0.04), frame),
        solid(BOX, (-0.201, 0.0, 0.12), (0.004, 0.045, 0.04), frame),
        solid(BOX, (0.08, 0.151, 0.12), (0.045, 0.004, 0.04), frame),
        solid(BOX, (0.12, 0.05, 0.35), (0.026, 0.026, 0.07), matt(0.40, 0.14, 0.09)),
    ]
    # Three thinner blocks fill the gable below the roof's two boards.
    for k in range(3):
        half = 0.15 - 0.045 * (k + 0.7)
        solids.append(solid(BOX, (0, 0, 0.22 + 0.038 * (k + 0.5)), (0.195, half, 0.02), wall))
    cosine, sine = np.cos(np.deg2rad(slope)), np.sin(np.deg2rad(slope))
    for side in (-1.0, 1.0):
        center = np.array([0.0, side * 0.5 * 0.235 * cosine, 0.375 - 0.5 * 0.235 * sine])
        solids.append(Solid(BOX, center, (0.235, 0.1175, 0.012), roof, sh.tilt(-side * slope)))
    return solids


def _church() -> list[Solid]:
    """A nave, a tower with a spire, a golden ball."""
    wall, slate = matt(0.78, 0.75, 0.68), matt(0.12, 0.15, 0.19, shine=0.3)
    nave = moved(_house(wall, slate), 0.0, (0.12, 0, 0))
    return [
        *nave,
        solid(BOX, (-0.17, 0, 0.26), (0.11, 0.11, 0.26), wall),
        solid(BOX, (-0.17, -0.111, 0.40), (0.03, 0.004, 0.05), matt(0.05, 0.04, 0.04)),
        solid(BOX, (-0.281, 0, 0.40), (0.004, 0.03, 0.05), matt(0.05, 0.04, 0.04)),
        solid(CONE, (-0.17, 0, 0.68), (0.155, 0.17, 0), slate),
        solid(CYLINDER, (-0.17, 0, 0.88), (0.006, 0.06, 0), sh.GOLD),
        solid(SPHERE, (-0.17, 0, 0.87), (0.024, 0, 0), sh.GOLD),
    ]


def _well() -> list[Solid]:
    """A round well under a little roof."""
    stone, wood = matt(0.42, 0.40, 0.37), matt(0.22, 0.11, 0.05)
    return [
        solid(CYLINDER, (0, 0, 0.04), (0.085, 0.04, 0), stone),
        solid(CYLINDER, (0, 0, 0.082), (0.062, 0.001, 0), matt(0.02, 0.03, 0.05)),
        *(rod((x, 0, 0.0), (x, 0, 0.20), 0.010, wood) for x in (-0.075, 0.075)),
        rod((-0.075, 0, 0.15), (0.075, 0, 0.15), 0.007, wood),
        solid(CONE, (0, 0, 0.235), (0.12, 0.05, 0), matt(0.48, 0.10, 0.05)),
    ]


def _fir() -> list[Solid]:
    """A fir of three cones."""
    solids = [solid(CYLINDER, (0, 0, 0.04), (0.018, 0.04, 0), matt(0.16, 0.08, 0.04))]
    for low, radius, height in ((0.06, 0.12, 0.18), (0.15, 0.095, 0.16), (0.24, 0.07, 0.15)):
        green = matt(0.03 + 0.1 * low, 0.16 + 0.2 * low, 0.06)
        solids.append(solid(CONE, (0, 0, low + height / 2), (radius, height / 2, 0), green))
    return solids


def _tree() -> list[Solid]:
    """A round tree."""
    crown = ((0, 0, 0.26, 0.11), (0.07, 0.03, 0.22, 0.08), (-0.06, 0.05, 0.21, 0.08), (0.0, -0.07, 0.22, 0.075))
    solids = [rod((0, 0, 0), (0, 0, 0.20), 0.02, matt(0.18, 0.09, 0.05))]
    for k, (x, y, z, radius) in enumerate(crown):
        leaves = matt(0.20 + 0.03 * k, 0.34 - 0.03 * k, 0.05)
        solids.append(solid(SPHERE, (x, y, z), (radius, 0, 0), leaves))
    return solids


def _fence() -> list[Solid]:
    """Posts and rails around a part of the green."""
    white = matt(0.80, 0.78, 0.74)
    posts = circle(32, 1.09, 20.0)[:20]
    solids = [solid(CYLINDER, (x, y, 0.05), (0.011, 0.05, 0), white) for x, y in posts]
    for (x, y), (u, v) in pairwise(posts):
        solids += [rod((x, y, z), (u, v, z), 0.006, white) for z in (0.045, 0.085)]
    return solids
