"""Moving toys: solids as functions of a time and of other controls, each in [0, 1].

All loop: time 1 equals time 0. Lengths in scene units, angles in degrees, +z up; they face -y.
"""

from __future__ import annotations

import numpy as np

from nelf.data import shapes as sh
from nelf.data.shapes import matt, placed, ring, rod, solid
from nelf.data.solids import BOX, CONE, CYLINDER, SPHERE, Material, Solid

__all__ = ["mill", "robot"]

Vector = np.ndarray

# ------------------------------------------------------------------------------------------------ robot

_FLOOR = -0.84
_BONE = 0.33  # length of a thigh, and of a shin
_UPPER, _FORE = 0.30, 0.27  # lengths of an arm's parts
_HIP = np.array([0.12, 0.0, 0.0])  # at x > 0, relative to the pelvis
_SHOULDER = np.array([0.27, 0.0, 0.40])

_SHELL = Material((0.80, 0.76, 0.66), (0.10, 0.36, 0.42), pattern=2, scale=7.0, shine=0.5)
_TEAL = Material((0.05, 0.30, 0.36), shine=0.6)
_RUBBER = matt(0.05, 0.05, 0.06, shine=0.3)
_GLASS = Material((0.04, 0.10, 0.14), shine=1.0, gloss=200.0)
_STAGE = Material((0.66, 0.50, 0.32), (0.34, 0.20, 0.11), pattern=1, scale=4.0, shine=0.2)


def robot(time: float) -> list[Solid]:
    """A toy robot dancing on a round stage: it steps from foot to foot and swings its arms."""
    swing, beat = np.sin(2 * np.pi * time), np.cos(2 * np.pi * time)
    pelvis = np.array([0.05 * swing, 0.0, _FLOOR + 0.66 - 0.05 * beat**2])
    lean = _about_y(7.0 * swing)
    solids = [
        solid(CYLINDER, (0, 0, _FLOOR - 0.05), (0.72, 0.05, 0), _STAGE),
        ring((0, 0, _FLOOR - 0.03), (0, 0, 1), 0.72, 0.035, sh.RED),
    ]
    for side in (-1.0, 1.0):
        rise = max(0.0, side * swing)  # height of the foot on this side
        foot = np.array([side * 0.17, -0.16 * rise, _FLOOR + 0.06 + 0.24 * rise])
        solids += _leg(pelvis + side * _HIP, foot)
    body = _torso() + _head(12.0 * beat)
    for side in (-1.0, 1.0):
        body += _arm(side, lift=85.0 - 65.0 * side * beat, bend=35.0 + 25.0 * side * swing)
    return solids + placed(body, lean, pelvis)


def _torso() -> list[Solid]:
    """Chest, belt and buttons, relative to the pelvis."""
    solids = [
        solid(BOX, (0, 0, 0.03), (0.17, 0.11, 0.06), _TEAL),
        solid(CYLINDER, (0, 0, 0.26), (0.19, 0.20, 0), _SHELL),
        solid(CYLINDER, (0, 0, 0.49), (0.07, 0.04, 0), sh.STEEL),
        solid(BOX, (0, -0.18, 0.33), (0.10, 0.02, 0.07), _GLASS),
    ]
    lamps = zip((-0.06, 0.0, 0.06), (sh.RED, sh.YELLOW, sh.GREEN), strict=True)
    return solids + [solid(SPHERE, (x, -0.195, 0.34), (0.022, 0, 0), lamp) for x, lamp in lamps]


def _head(tilt: float) -> list[Solid]:
    """A head with eyes, a mouth, ears and an antenna, tilted to the side."""
    solids = [
        solid(BOX, (0, 0, 0.16), (0.20, 0.16, 0.15), sh.YELLOW),
        solid(BOX, (0, -0.161, 0.07), (0.11, 0.006, 0.02), _RUBBER),
        rod((0, 0, 0.31), (0, 0, 0.47), 0.012, sh.STEEL),
        solid(SPHERE, (0, 0, 0.50), (0.045, 0, 0), sh.RED),
    ]
    for side in (-1.0, 1.0):
        solids += [
            solid(SPHERE, (side * 0.085, -0.15, 0.20), (0.055, 0, 0), sh.CREAM),
            solid(SPHERE, (side * 0.085, -0.195, 0.20), (0.025, 0, 0), _RUBBER),
            rod((side * 0.20, 0, 0.17), (side * 0.25, 0, 0.17), 0.06, sh.BLUE),
        ]
    return placed(solids, _about_y(tilt), (0.0, 0.0, 0.51))


def _arm(side: float, lift: float, bend: float) -> list[Solid]:
    """An arm, raised by ``lift`` degrees and bent at the elbow by ``bend`` degrees, relative to the pelvis."""
    shoulder = _SHOULDER * [side, 1.0, 1.0]
    elbow = shoulder + _UPPER * _outward(side, lift)
    hand = elbow + _FORE * _outward(side, lift + bend)
    return [*_bone(shoulder, elbow, 0.055, sh.BLUE), *_bone(elbow, hand, 0.045, sh.CREAM), _ball(hand, 0.075, sh.RED)]


def _outward(side: float, lift: float) -> Vector:
    """(3,) unit vector: down for a lift of 0, out to the side for 90, up for 180."""
    angle = np.deg2rad(lift)
    return np.array([side * np.sin(angle), 0.0, -np.cos(angle)])


def _leg(hip: Vector, foot: Vector) -> list[Solid]:
    """A leg from hip to foot, with the knee bent forward."""
    way = foot - hip
    length = float(np.linalg.norm(way))
    along = way / length
    forward = np.array([0.0, -1.0, 0.0])
    forward -= (forward @ along) * along
    forward /= np.linalg.norm(forward)
    knee = hip + 0.5 * way + np.sqrt(_BONE**2 - 0.25 * length**2) * forward
    shoe = solid(BOX, (foot[0], foot[1] - 0.05, foot[2] - 0.02), (0.075, 0.13, 0.04), sh.RED)
    return [*_bone(hip, knee, 0.06, sh.BLUE), *_bone(knee, foot, 0.05, sh.CREAM), shoe]


def _bone(start: Vector, end: Vector, radius: float, material: Material) -> list[Solid]:
    """A part of a limb, with the joint at its beginning."""
    between = rod(tuple(start), tuple(end), radius, material)
    return [_ball(start, radius + 0.02, sh.STEEL), between]


def _ball(center: Vector, radius: float, material: Material) -> Solid:
    return solid(SPHERE, (center[0], center[1], center[2]), (radius, 0, 0), material)


def _about_y(angle: float) -> np.ndarray:
    """(3, 3) axes, as rows, rotated about y by degrees; up leans toward +x."""
    c, s = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    return np.array([[c, 0.0, -s], [0.0, 1.0, 0.0], [s, 0.0, c]])


# ------------------------------------------------------------------------------------------------ mill

_GRASS = Material((0.20, 0.40, 0.09), (0.15, 0.33, 0.07), pattern=1, scale=6.0, shine=0.0, mirror=0.0)
_STONE = Material((0.72, 0.68, 0.60), (0.55, 0.50, 0.43), pattern=2, scale=9.0, shine=0.1)
_BRICK = Material((0.50, 0.16, 0.09), (0.42, 0.12, 0.07), pattern=2, scale=14.0, shine=0.1)
_WOOD, _SAIL, _FIR = matt(0.25, 0.13, 0.06), matt(0.86, 0.80, 0.68), matt(0.05, 0.22, 0.07)
_WATER = Material((0.04, 0.20, 0.34), shine=1.0, gloss=150.0, mirror=0.10)
_ROOF = Material((0.11, 0.16, 0.24), shine=0.4)

_GROUND = -0.62
_AXLE = np.array([-0.35, -0.34, 0.38])
_HINGE = np.array([0.50, -0.10, _GROUND + 0.03])


def mill(time: float, bridge: float) -> list[Solid]:
    """A windmill whose sails turn with the time, and a drawbridge that the second control raises."""
    return [
        solid(CYLINDER, (0, 0, _GROUND - 0.06), (1.12, 0.06, 0), _GRASS),
        solid(CYLINDER, (-0.35, 0.10, -0.14), (0.30, 0.48, 0), _STONE),
        ring((-0.35, 0.10, 0.34), (0, 0, 1), 0.30, 0.03, _WOOD),
        solid(CONE, (-0.35, 0.10, 0.58), (0.36, 0.24, 0), _ROOF),
        solid(BOX, (-0.35, -0.196, -0.46), (0.09, 0.02, 0.16), _WOOD),
        *(solid(BOX, (x, -0.17, z), (0.05, 0.03, 0.06), _GLASS) for x, z in ((-0.44, -0.08), (-0.26, 0.06))),
        *_sails(90.0 * time),  # four equal sails, so a quarter turn is a loop
        *_gate(),
        *_fir(0.10, 0.62),
        *_fir(0.52, 0.58),
        *_fir(0.80, 0.32),
        *_drawbridge(75.0 * bridge),
    ]


def _sails(angle: float) -> list[Solid]:
    """Four sails on an axle, each with a frame, laths and cloth."""
    solids = [rod((0, 0.20, 0), (0, -0.06, 0), 0.035, _WOOD), solid(SPHERE, (0, -0.06, 0), (0.06, 0, 0), sh.RED)]
    for turn in range(4):
        sail = [
            rod((0, 0, 0), (0, 0, 0.62), 0.018, _WOOD),
            solid(BOX, (0.075, 0.0, 0.38), (0.06, 0.008, 0.22), _SAIL),
            *(rod((0, 0, z), (0.15, 0, z), 0.010, _WOOD) for z in (0.16, 0.27, 0.38, 0.49, 0.60)),
        ]
        solids += placed(sail, _about_y(90.0 * turn + angle), (0.0, 0.0, 0.0))
    return placed(solids, np.eye(3), _AXLE)


def _gate() -> list[Solid]:
    """Two brick towers with pointed roofs, joined by a beam, in front of a strip of water."""
    x, y, _ = _HINGE
    solids = [
        solid(BOX, (x + 0.02, y - 0.38, _GROUND + 0.004), (0.34, 0.16, 0.006), _WATER),
        solid(BOX, (x, y + 0.06, _GROUND + 0.56), (0.30, 0.05, 0.05), _WOOD),
    ]
    for side in (-1.0, 1.0):
        solids += [
            solid(CYLINDER, (x + 0.26 * side, y + 0.08, _GROUND + 0.32), (0.10, 0.32, 0), _BRICK),
            solid(CONE, (x + 0.26 * side, y + 0.08, _GROUND + 0.76), (0.13, 0.12, 0), _ROOF),
            solid(SPHERE, (x + 0.26 * side, y + 0.08, _GROUND + 0.89), (0.025, 0, 0), sh.GOLD),
        ]
    return solids


def _fir(x: float, y: float) -> list[Solid]:
    """A fir on the grass."""
    return [
        solid(CYLINDER, (x, y, _GROUND + 0.06), (0.02, 0.06, 0), _WOOD),
        solid(CONE, (x, y, _GROUND + 0.30), (0.13, 0.20, 0), _FIR),
    ]


def _drawbridge(angle: float) -> list[Solid]:
    """Planks between two beams, raised by ``angle`` degrees, and the chains that hold them."""
    length, planks = 0.56, 7
    step = length / planks
    board = [solid(BOX, (0, -step * (k + 0.5), 0), (0.15, 0.45 * step, 0.016), _WOOD) for k in range(planks)]
    board += [rod((x, 0, 0.02), (x, -length, 0.02), 0.014, sh.STEEL) for x in (-0.13, 0.13)]
    tilt = sh.tilt(-angle)
    raised = placed(board, tilt, _HINGE)
    for x in (-0.14, 0.14):
        end = np.array([x, -0.92 * length, 0.02]) @ tilt + _HINGE
        raised.append(rod(tuple(end), (_HINGE[0] + x, _HINGE[1] + 0.02, _GROUND + 0.56), 0.008, sh.GOLD))
    return raised
