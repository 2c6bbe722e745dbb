"""The files of a COLMAP model, in text or binary: cameras, images with their poses, and points.

They are read here, not by COLMAP's own library, which aborts the process on a damaged file. Colors, errors, tracks and
rigs are ignored: the pose of an image is that of its camera in the world.

Source: COLMAP, ``doc/format.rst`` and ``src/colmap/scene/reconstruction_io*.cc``.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nelf.data.lenses import PARAMETERS
from nelf.errors import UserError
from nelf.files import LARGEST, is_file, quoted, short

__all__ = ["PARTS", "Image", "Lens", "Model", "read_model"]

PARTS = ("cameras", "images", "points3D")
"""The names of the files of a model."""

_MOST_BYTES = 2**31  # of a file
#: Camera models by their number in binary files: those of ``PARAMETERS``, and others that are refused by name.
_MODELS = (
    *("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "OPENCV_FISHEYE", "FULL_OPENCV", "FOV"),
    *("SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE", "THIN_PRISM_FISHEYE", "RAD_TAN_THIN_PRISM_FISHEYE"),
)
_SPOT = np.dtype([("x", "<f8"), ("y", "<f8"), ("point", "<i8")])  # a 2D observation; point is -1 for none


class Lens(NamedTuple):
    """A camera: COLMAP's name of its model, its size in pixels, and the parameters in COLMAP's order."""

    model: str
    width: int
    height: int
    parameters: list[float]


class Image(NamedTuple):
    """An image.

    Attributes:
        name: its path in the folder of images.
        camera: id of its camera.
        world_to_camera: (3, 4) float64, OpenCV's axes.
        points: (K,) ids of the points that it observes.
    """

    name: str
    camera: int
    world_to_camera: np.ndarray
    points: np.ndarray


class Model(NamedTuple):
    """A reconstruction.

    Attributes:
        cameras: by id.
        images: in the order of the file.
        keys: (P,) int64, ids of the points, ascending.
        points: (P, 3) float64.
    """

    cameras: dict[int, Lens]
    images: list[Image]
    keys: np.ndarray
    points: np.ndarray


class _DamageError(Exception):
    """What is wrong with a file, in words."""


def read_model(folder: Path) -> Model:
    """Read a model; of each part the binary file if it exists, else the text file.

    Args:
        folder: with ``cameras``, ``images`` and ``points3D``, ``.bin`` or ``.txt`` each.

    Raises:
        UserError: a file is missing or damaged, refers to a camera or point that does not exist, or a number is not
            finite.
    """
    cameras: dict[int, Lens] = {}
    images: list[Image] = []
    rows: list[tuple[int, float, float, float]] = []
    for part in PARTS:
        path = folder / f"{part}.bin"
        path = path if is_file(path) else folder / f"{part}.txt"
        try:
            if path.stat().st_size > _MOST_BYTES:
                raise _DamageError(f"has more than {_MOST_BYTES} bytes")
            if part == "cameras":
                cameras = dict(_lenses(path))
            elif part == "images":
                images = list(_images(path))
            else:
                rows = list(_points(path))
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); allowed: a file of COLMAP's.") from None
        except _DamageError as error:
            raise UserError(f"{path}: {error}; allowed: a whole file of COLMAP's.") from None
        except (ValueError, IndexError, struct.error, OverflowError):
            raise UserError(f"{path}: is not whole, or no file of COLMAP's; allowed: a whole one.") from None
    points = {row[0]: row[1:] for row in rows}
    keys = np.array(sorted(points), np.int64)
    model = Model(cameras, images, keys, np.array([points[key] for key in keys.tolist()]).reshape(-1, 3))
    _check(folder, model)
    return model


def _check(folder: Path, model: Model) -> None:
    """Refuse parts that do not fit together, and numbers that are not finite."""
    if not model.images or not len(model.keys):
        raise UserError(f"{folder}: holds {len(model.images)} images and {len(model.keys)} points; allowed: some.")
    if not (np.abs(model.points) <= LARGEST).all():
        raise UserError(f"{folder}: a point has NaN, infinity or numbers beyond {LARGEST:g}; allowed: finite numbers.")
    for image in model.images:
        name = quoted(image.name)
        if image.camera not in model.cameras:
            raise UserError(f"{folder}: image {name} has camera {image.camera}; allowed: those in cameras.")
        if not (np.abs(image.world_to_camera) <= LARGEST).all():
            raise UserError(f"{folder}: image {name} has no pose; allowed: a rotation and a finite translation.")
        if not np.isin(image.points, model.keys).all():
            raise UserError(f"{folder}: image {name} shows a point that is not there; allowed: those in points3D.")
    if len({image.name for image in model.images}) < len(model.images):
        raise UserError(f"{folder}: has two images of one name; allowed: each once.")


def _pose(turn: tuple[float, ...], shift: tuple[float, ...]) -> np.ndarray:
    """(3, 4) pose from a quaternion w x y z of any length, and a translation; NaN if the quaternion is invalid."""
    length = np.linalg.norm(turn) if max(map(abs, turn)) <= LARGEST else 0.0
    if length < 1e-6 or not np.isfinite(length):
        return np.full((3, 4), np.nan)
    w, x, y, z = np.array(turn) / length
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y), shift[0]],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x), shift[1]],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y), shift[2]],
        ]
    )


# ------------------------------------------------------------------------------------------------ text or binary


def _lenses(path: Path) -> Iterator[tuple[int, Lens]]:
    if path.suffix == ".txt":
        for words in _rows(path):
            yield int(words[0]), _lens(words[1], int(words[2]), int(words[3]), [float(word) for word in words[4:]])
        return
    file = _Binary(path)
    for _ in range(file.count(24)):
        key, number, width, height = file.take("<IiQQ")
        if not 0 <= number < len(_MODELS):
            raise _DamageError(f"has a camera of model {number}, which COLMAP does not know")
        model = _MODELS[number]
        yield key, _lens(model, width, height, list(file.take(f"<{len(PARAMETERS.get(model, ()))}d")))
        if model not in PARAMETERS:
            return  # the length of its parameters is unknown; the model is refused by name


def _lens(model: str, width: int, height: int, parameters: list[float]) -> Lens:
    if model not in (*_MODELS, *PARAMETERS):
        raise _DamageError(f"names camera model {quoted(model)}, which COLMAP does not know")
    if not (0 < width < 2**31 and 0 < height < 2**31):
        raise _DamageError(f"has a camera of {width}x{height} pixels")
    return Lens(model, width, height, parameters)


def _images(path: Path) -> Iterator[Image]:
    if path.suffix == ".txt":
        rows = _lines(path)
        for line in rows:
            if line.strip() and not line.startswith("#"):
                words = line.strip().split(maxsplit=9)
                numbers = [float(word) for word in words[1:8]]
                shown = np.array(next(rows, "").split(), np.float64).reshape(-1, 3)[:, 2]
                yield _image(words[9], int(words[8]), numbers, shown)
        return
    file = _Binary(path)
    for _ in range(file.count(73)):
        _, *numbers, camera = file.take("<I7dI")
        name = file.name()
        yield _image(name, camera, numbers, file.table(_SPOT)["point"])


def _image(name: str, camera: int, numbers: list[float], shown: np.ndarray) -> Image:
    if not (np.abs(shown.astype(np.float64)) < 2**53).all():
        raise _DamageError(f"image {short(name)} shows points with invalid ids")
    points = shown.astype(np.int64)
    return Image(name, camera, _pose(tuple(numbers[:4]), tuple(numbers[4:])), points[points >= 0])


def _points(path: Path) -> Iterator[tuple[int, float, float, float]]:
    if path.suffix == ".txt":
        for words in _rows(path):
            yield _key(int(words[0])), float(words[1]), float(words[2]), float(words[3])
        return
    file = _Binary(path)
    for _ in range(file.count(51)):
        key, x, y, z = file.take("<Q3d3xd")[:4]
        file.table(np.dtype("<u8"))  # skip the track
        yield _key(key), x, y, z


def _key(key: int) -> int:
    if not 0 <= key < 2**53:
        raise _DamageError(f"has a point of key {quoted(key)}")
    return key


# ------------------------------------------------------------------------------------------------ text and bytes


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8", errors="surrogateescape") as file:
        yield from file


def _rows(path: Path) -> Iterator[list[str]]:
    """The words of each line that is neither empty nor a comment."""
    for line in _lines(path):
        if line.strip() and not line.startswith("#"):
            yield line.split()


class _Binary:
    """A little-endian binary file, read sequentially; sizes are checked before memory is allocated."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._at = 0

    def take(self, layout: str) -> tuple[Any, ...]:
        """The next numbers, in a layout of ``struct``."""
        values = struct.unpack_from(layout, self._content, self._at)
        self._at += struct.calcsize(layout)
        return values

    def count(self, least: int) -> int:
        """The next number, a count of entries with at least ``least`` bytes each."""
        (count,) = self.take("<Q")
        if count * least > len(self._content) - self._at:
            raise _DamageError(f"is cut off: {count} entries take more than its {len(self._content)} bytes")
        return count

    def table(self, row: np.dtype) -> np.ndarray:
        """An array (N,) that is preceded by its length."""
        count = self.count(row.itemsize)
        values = np.frombuffer(self._content, row, count, self._at)
        self._at += count * row.itemsize
        return values

    def name(self) -> str:
        """A zero-terminated string."""
        end = self._content.find(b"\0", self._at)
        if end < 0:
            raise _DamageError("is cut off in a name")
        text = self._content[self._at : end].decode("utf-8", "surrogateescape")
        self._at = end + 1
        return text
