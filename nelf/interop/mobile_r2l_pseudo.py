"""Convert pseudo data of MobileR2L, images as ``.npy`` and camera centers, to the Blender format.

Its cameras look at the origin with +z up, pixel centers lie at +0.5, and camera centers are in units of its teacher,
whose first camera is 1.5 from the origin. Colors are composited over white.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nelf.cameras import Camera
from nelf.data import SceneWriter
from nelf.errors import UserError
from nelf.files import LARGEST, SMALLEST, finite, is_file, number, open_array, quoted, read_object
from nelf.paths import look_at

__all__ = ["convert", "recognizes"]

_INFO = Path("hwf", "dataset_info.json")
_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})_rgb")


def recognizes(root: Path) -> bool:
    """Whether a folder is such a set."""
    return is_file(root / _INFO)


def convert(root: Path | str, out: Path | str, radius: float | None = None) -> Path:
    """Write a set in the Blender format, one image at a time; complete images are not written again.

    Args:
        root: the set.
        out: the folder to write.
        radius: distance of the scene's cameras from its origin, scene units; None for the scale stated in the set.

    Returns:
        ``out``.

    Raises:
        UserError: the set is of another kind of scene, files are missing or do not fit their description, or the
            directory cannot be written.

    Source:
        github.com/snap-research/MobileR2L, ``data/pseudo.py`` and ``model/teacher/ngp_pl/train.py``.
    """
    root = Path(root)
    info = read_object(root / _INFO, "an object with downscaled_height and so on")
    if info.get("dataset_type") != "nerf" or info.get("ff"):
        raise UserError(
            f"{root / _INFO}: is of a {quoted(info.get('dataset_type'))} scene, whose recentering the set does not "
            "tell; only Blender scenes ('nerf') can be read."
        )
    folders = [(path, match) for path in sorted(root.glob("*_rgb")) if (match := _SIZE.fullmatch(path.name))]
    if len(folders) != 1:
        raise UserError(f"{root}: has {len(folders)} folders of pictures; expected one such as 800x800_rgb.")
    folder, size = folders[0]
    height, width = int(size[1]), int(size[2])
    factor = height / _number(root, info, "downscaled_height")
    focal = _number(root, info, "downscaled_focal") * factor
    unit = _number(root, info, "scale") if radius is None else radius / 1.5
    count = len(list(folder.glob("*.npy")))
    names = [f"{index:05d}" for index in range(count)]
    if not count:
        raise UserError(f"{folder}: holds no pictures; expected rendered_rgb_00000.npy and so on.")
    centers = np.stack([_load(root / "poses" / f"c2w_{name}.npy", (3,)) for name in names])
    positions = torch.from_numpy(centers) * unit
    for name, distance in zip(names, positions.norm(dim=-1).tolist(), strict=True):
        if not SMALLEST < distance < LARGEST:
            what = f"its camera is {distance:g} from the point that all look at"
            raise UserError(f"{root / 'poses' / f'c2w_{name}.npy'}: {what}; allowed: above 0, below {LARGEST:g}.")
    c2w = look_at(positions, torch.zeros(3))
    fov = 2 * math.atan(0.5 * width / focal)
    writer = SceneWriter(out, Camera.from_fov(c2w, fov, width, height), background="white")
    for index in writer.missing():
        pixels = _load(folder / f"rendered_rgb_{names[index]}.npy", (height * width, 3))
        writer.write(index, pixels.reshape(height, width, 3))
    writer.finish()
    return Path(out)


def _number(root: Path, info: dict[str, Any], key: str) -> float:
    return number(root / _INFO, key, info.get(key), SMALLEST, LARGEST)


def _load(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    return finite(path, open_array(path, shape))
