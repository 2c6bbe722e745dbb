"""Camera models of COLMAP and ``transforms.json``, converted to the intrinsics and lens of ``Camera``.

All are special cases of OpenCV's model with six radial and two tangential coefficients. The center of the upper left
pixel is at (0.5, 0.5), and ``y`` points down in the equations, see ``nelf.cameras``. Fisheye and panoramic models are
not special cases of it and are refused. Source: COLMAP, ``src/colmap/sensor/models.h``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from nelf.cameras import Camera
from nelf.errors import UserError, did_you_mean
from nelf.files import LARGEST, quoted, short

__all__ = [
    "COEFFICIENTS",
    "PARAMETERS",
    "Lens",
    "check_cameras",
    "check_rays",
    "coefficients",
    "from_parameters",
    "stack",
]

_OBLIQUE = 1e4  # maximum tangent of the angle between a ray and the optical axis: 89.99 degrees
_ALONG, _EXACT = 9, 0.1  # pixels along a side whose rays are checked, and tolerance of their projection in pixels

PARAMETERS: dict[str, tuple[str, ...]] = {
    "SIMPLE_PINHOLE": ("f", "cx", "cy"),
    "PINHOLE": ("fx", "fy", "cx", "cy"),
    "SIMPLE_RADIAL": ("f", "cx", "cy", "k1"),
    "RADIAL": ("f", "cx", "cy", "k1", "k2"),
    "OPENCV": ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2"),
    "FULL_OPENCV": ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6"),
}
"""The parameters of each model in COLMAP's order."""

COEFFICIENTS = ("k1", "k2", "k3", "p1", "p2", "skew", "k4", "k5", "k6")
"""The order of ``Camera.lens``."""


class Lens(NamedTuple):
    """A camera without its pose and size.

    Attributes:
        intrinsics: ``fx, fy, cx, cy`` in pixels.
        coefficients: nine numbers in the order of ``COEFFICIENTS``.
    """

    intrinsics: tuple[float, float, float, float]
    coefficients: tuple[float, ...]


def from_parameters(model: str, parameters: Sequence[float], where: str) -> Lens:
    """A camera from COLMAP's model name and parameters.

    Args:
        model: the model's name.
        parameters: those of the model in the order of ``PARAMETERS``; the first three or four are in pixels.
        where: the place to name in messages, such as a file and a camera id.

    Raises:
        UserError: the model is not one of ``PARAMETERS``, or the parameters do not fit it.

    Example:
        >>> from_parameters("SIMPLE_RADIAL", [100.0, 64.0, 48.0, -0.1], "camera 1").intrinsics
        (100.0, 100.0, 64.0, 48.0)
    """
    names = _parameters(model, where)
    if len(parameters) != len(names):
        raise UserError(
            f"{where}: camera model {model} with {len(parameters)} parameters; "
            f"allowed: {len(names)} ({', '.join(names)})."
        )
    values = dict(zip(names, map(float, parameters), strict=True))
    if not all(abs(value) <= LARGEST for value in values.values()):
        raise UserError(f"{where}: parameters {quoted(list(parameters))}; allowed: finite numbers.")
    fx = values.get("fx", values.get("f", 0.0))
    fy = values.get("fy", fx)
    if min(fx, fy) <= 0:
        raise UserError(f"{where}: focal lengths {fx:g} and {fy:g}; allowed: above 0.")
    return Lens((fx, fy, values["cx"], values["cy"]), coefficients(model, values, where))


def coefficients(model: str, stated: Mapping[str, float], where: str) -> tuple[float, ...]:
    """The distortion coefficients of a camera that states them by name, as in ``transforms.json``.

    Args:
        model: the model's name.
        stated: values by name; names other than ``COEFFICIENTS`` are ignored, missing ones are zero.
        where: as in ``from_parameters``.

    Returns:
        Nine numbers in the order of ``COEFFICIENTS``.

    Raises:
        UserError: the model is not one of ``PARAMETERS``, or it has no such coefficient.
    """
    allowed = {name for name in _parameters(model, where) if name in COEFFICIENTS}
    if model == "OPENCV":
        allowed.add("k3")  # not in COLMAP's model, but in OpenCV's five coefficients and nerfstudio
    for name in COEFFICIENTS:
        if stated.get(name) and name not in allowed:
            fitting = [each for each, names in PARAMETERS.items() if name in names]
            raise UserError(
                f"{where}: camera model {model} has no {name}, which is {stated[name]:g}; "
                f"allowed: {', '.join(sorted(allowed)) or 'no distortion'}, or model {' or '.join(fitting) or 'none'}."
            )
    return tuple(float(stated.get(name, 0.0)) for name in COEFFICIENTS)


def stack(rows: Sequence[tuple[float, ...]]) -> Tensor | None:
    """``Camera.lens`` of N cameras.

    Args:
        rows: N times nine numbers in the order of ``COEFFICIENTS``.

    Returns:
        (N, 9) float32; (N, 6) if ``k4`` to ``k6`` are all zero; None if all coefficients are zero.
    """
    lens = torch.tensor(rows, dtype=torch.float64).float()
    if not lens.any():
        return None
    return lens if lens[:, 6:].any() else lens[:, :6]


def check_cameras(camera: Camera, names: Sequence[str], path: Path) -> None:
    """Refuse cameras with numbers that are not finite in float32, or with rays nearly perpendicular to their axis.

    Args:
        camera: a batch of N cameras.
        names: names of the N views.
        path: the file that states the cameras, for messages.

    Raises:
        UserError: there is such a camera; the message names its view.
    """
    fx, fy, cx, cy = camera.intrinsics.unbind(-1)
    sides = [(cx, fx), (camera.width - cx, fx), (cy, fy), (camera.height - cy, fy)]
    oblique = torch.stack([(reach / focal).abs() for reach, focal in sides], -1).amax(-1)
    good = (fx > 0) & (fx < LARGEST) & (fy > 0) & (fy < LARGEST) & (oblique < _OBLIQUE)
    if not good.all():
        index = int((~good).int().argmax())
        words = ", ".join(f"{value:g}" for value in camera.intrinsics[index].tolist())
        size = f"{camera.width}x{camera.height} pixels"
        raise UserError(
            f"{path}: {short(names[index])}: fx, fy, cx, cy are {words} for {size}; allowed: a lens for it."
        )
    placed = (camera.c2w.abs() <= LARGEST).flatten(1).all(1)
    if not placed.all():
        index = int((~placed).int().argmax())
        raise UserError(f"{path}: {short(names[index])}: its position is beyond {LARGEST:g}; allowed: numbers below.")
    if camera.lens is not None and not (camera.lens.abs() <= LARGEST).all():
        raise UserError(f"{path}: its lenses have coefficients beyond {LARGEST:g}; allowed: numbers below.")


def check_rays(camera: Camera, names: Sequence[str], path: Path) -> None:
    """Refuse lenses whose distortion is not invertible within the image, so that some pixels have no ray.

    Args:
        camera: a batch of N cameras.
        names: names of the N views.
        path: the file that states the cameras, for messages.

    Raises:
        UserError: there is such a camera; the message names its view.
    """
    if camera.lens is None:
        return
    sides = [torch.linspace(0, side - 1, _ALONG).round() for side in (camera.width, camera.height)]
    x, y = torch.cartesian_prod(*sides).unbind(-1)
    kinds = torch.cat([camera.intrinsics, camera.lens], dim=-1).unique(dim=0, return_inverse=True)[1].tolist()
    for index in {kind: place for place, kind in enumerate(kinds)}.values():
        here = replace(camera[index], c2w=torch.eye(3, 4))  # the identity pose adds no rounding
        at_x, at_y, _ = here.project(here.pixel_rays(x, y).directions)
        if not ((at_x - x - 0.5).abs() + (at_y - y - 0.5).abs() < _EXACT).all():
            stated = dict(zip(COEFFICIENTS, camera.lens[index].tolist(), strict=False))
            words = ", ".join(f"{name} {value:.4g}" for name, value in stated.items() if value)
            raise UserError(
                f"{path}: {short(names[index])}: its lens ({words}) folds back within the picture, so that no ray "
                "leads to its margin; allowed: a lens that fits the picture, or undistorted images with a pinhole."
            )


def _parameters(model: str, where: str) -> tuple[str, ...]:
    if not isinstance(model, str) or model not in PARAMETERS:
        hint = did_you_mean(model, PARAMETERS) if isinstance(model, str) else ""
        raise UserError(f"{where}: camera model {quoted(model)}; allowed: {', '.join(PARAMETERS)}.{hint}")
    return PARAMETERS[model]
