"""Untrusted files of a bundle: declared sizes and values are checked before memory is allocated."""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nelf.errors import UserError
from nelf.export.inputs import KINDS
from nelf.files import LARGEST, is_file, quoted, reason_of, short
from nelf.lightfields.frames import MOST_WINDOWS
from nelf.lightfields.volume import MOST_CORNERS

__all__ = [
    "check_digest",
    "check_entry",
    "check_graph",
    "check_motion",
    "check_numbers",
    "check_packed",
    "check_volume",
    "gunzip",
]

_MOST_PIXELS, _MOST_BLOCK, _MOST_SIDE = 2**14, 64, 2**12
_MOST_POINTS = 2**13  # samples on a ray
_MOST_NODES = 2**22  # of a motion grid
_RATIO, _LEAST = 256, 2**24  # maximum compression ratio of a file, and bytes of content that are always allowed


def check_numbers(path: Path, document: Mapping[str, Any]) -> None:
    """Refuse a description whose numbers cannot be rendered with.

    Args:
        path: the ``bundle.json``.
        document: its content, with all keys.

    Raises:
        UserError: a number is out of range; the message names the key and what is allowed.
    """
    image, lens, box = document["image"], document["intrinsics"], document["aabb"]
    sides = [image.get("width"), image.get("height")] if isinstance(image, dict) else [None]
    lenses: list[Any] = [lens.get(key) for key in ("fx", "fy", "cx", "cy")] if isinstance(lens, dict) else [None]
    ndc = document.get("ndc")
    shift = document["ray_shift"]
    sizes: list[Any] = (
        [ndc.get(key) for key in ("near", "half_width", "half_height")] if isinstance(ndc, dict) else [None]
    )
    finite = all(map(_is_number, [document["near"], document["far"], *(box if isinstance(box, list) else [None])]))
    good = {
        f"image: allowed: width and height from 1 to {_MOST_PIXELS}": all(_is_size(n, _MOST_PIXELS) for n in sides),
        "intrinsics: allowed: numbers fx, fy, cx and cy, the first two above 0": all(map(_is_number, lenses))
        and min(lenses[:2]) > 0,
        f"sr_factor: allowed: 1 to {_MOST_BLOCK}": _is_size(document["sr_factor"], _MOST_BLOCK),
        "stride: allowed: 1 or sr_factor": document["stride"] in (1, document["sr_factor"]),
        "ray_shift: allowed: a number from -1 to 1": _is_number(shift) and abs(shift) <= 1,
        "background_color: allowed: three numbers": _are_numbers(document["background_color"], 3),
        "ndc: allowed: null, or near, half_width and half_height above 0": ndc is None
        or all(_is_number(size) and size > 0 for size in sizes),
        "near, far, aabb: allowed: numbers, six of them for aabb": finite and len(box) == 6,
        "time: allowed: null, or numbers min, max and value": document["time"] is None or _is_range(document["time"]),
        "controls: allowed: a list, each with name, min, max and value": isinstance(document["controls"], list)
        and all(_is_range(each) and isinstance(each.get("name"), str) for each in document["controls"]),
        "orbit: allowed: target, up, and min, max and value of radius, elevation and azimuth": _is_orbit(
            document["orbit"]
        ),
    }
    for words, fine in good.items():
        if not fine:
            raise UserError(f"{path}: {words}.")


def check_entry(path: Path, entry: Mapping[str, Any]) -> None:
    """Refuse an artifact with an invalid input, output, size or window.

    Raises:
        UserError: names the artifact and what is allowed.
    """
    window, size = entry["window"], entry["size"]
    for key in ("name", "file", "input", "output"):
        if not isinstance(entry[key], str):
            raise UserError(f"{path}: an artifact's {key} is {quoted(entry[key])}; allowed: a text.")
    if entry["input"] not in KINDS:
        raise UserError(
            f"{path}: {short(entry['name'])} begins at {quoted(entry['input'])}; allowed: {', '.join(KINDS)}."
        )
    if size is not None and not (
        isinstance(size, list) and len(size) == 2 and all(_is_size(side, _MOST_PIXELS) for side in size)
    ):
        raise UserError(f"{path}: {short(entry['name'])} has size {quoted(size)}; allowed: width and height, or null.")
    if entry["output"] not in ("rgb", "rgba"):
        raise UserError(f"{path}: {short(entry['name'])} draws {quoted(entry['output'])}; allowed: rgb, rgba.")
    if window is not None and not (
        _is_size(window.get("margin"), _MOST_SIDE, 0) and _is_size(window.get("multiple"), _MOST_SIDE)
    ):
        raise UserError(
            f"{path}: {short(entry['name'])} has window {quoted(window)}; allowed: whole numbers margin and multiple."
        )
    if (entry["input"] == "features") != (entry["volume"] is not None):
        raise UserError(
            f"{path}: {short(entry['name'])} begins at {quoted(entry['input'])}; only features have a volume."
        )


def check_volume(path: Path, volume: Mapping[str, Any], aabb: Sequence[float]) -> None:
    """Refuse an invalid description of a volume, or one that would take too long to render.

    Args:
        path: the volume's file.
        volume: its description.
        aabb: the box of the volume.

    Raises:
        UserError: says what is allowed.
    """
    values: list[Any] = [volume.get(key) for key in ("resolution", "rows", "features")]
    shape, rows, channels = values
    _check_resolution(path, shape)
    if math.prod(shape) > MOST_CORNERS:
        raise UserError(f"{path}: has {math.prod(shape)} corners; allowed: up to {MOST_CORNERS}.")
    if not _is_size(rows, math.prod(shape)):
        raise UserError(f"{path}: has {quoted(rows)} rows; allowed: 1 to {math.prod(shape)}, one for each corner.")
    if not _is_size(channels, _MOST_SIDE) or volume.get("dtype") not in ("uint8", "float16"):
        raise UserError(f"{path}: allowed: features from 1 to {_MOST_SIDE}, and dtype uint8 or float16.")
    scale = volume.get("scale")
    ends = [scale.get("low"), scale.get("step")] if isinstance(scale, dict) else [scale, scale]
    eight = volume["dtype"] == "uint8"
    if any(not _are_numbers(each, 1 + channels) if eight else each is not None for each in ends):
        words = f"low and step, {1 + channels} numbers each" if eight else "null"
        raise UserError(f"{path}: has no scale that can be read; allowed for {volume['dtype']}: {words}.")
    for key in ("step", "min_alpha", "min_transmittance"):
        if not _is_number(volume.get(key)) or not 0 < volume[key] < (math.inf if key == "step" else 0.5):
            raise UserError(
                f"{path}: has {key} {quoted(volume.get(key))}; allowed: a number above 0, limits below 0.5."
            )
    points = math.dist(aabb[:3], aabb[3:]) / volume["step"]
    if not points <= _MOST_POINTS:
        raise UserError(f"{path}: has up to {points:.0f} points on a ray; allowed: {_MOST_POINTS}.")


def check_motion(path: Path, motion: Mapping[str, Any], controls: int) -> None:
    """Refuse an invalid description of a motion, or one that is too large.

    Args:
        path: the motion's file.
        motion: its description.
        controls: number of the bundle's controls.

    Raises:
        UserError: says what is allowed.
    """
    values: list[Any] = [motion.get(key) for key in ("resolution", "windows", "grid")]
    shape, windows, grid = values
    _check_resolution(path, shape)
    if not _is_size(windows, MOST_WINDOWS) or windows * math.prod(shape) > MOST_CORNERS:
        words = f"1 to {MOST_WINDOWS}, of {MOST_CORNERS} corners together"
        raise UserError(f"{path}: has {quoted(windows)} windows of {math.prod(shape)} corners; allowed: {words}.")
    good = isinstance(grid, list) and len(grid) == 5 and all(_is_size(n, _MOST_SIDE, 2) for n in grid[1:])
    if not good or grid[0] != controls or math.prod(grid) > _MOST_NODES:
        words = f"[{controls}, T, Z, Y, X], each 2 or more, of {_MOST_NODES} nodes together"
        raise UserError(f"{path}: has the grid {quoted(grid)}; allowed: {words}.")
    for key in ("aabb", "canonical_aabb"):
        box: Any = motion.get(key)
        if not _are_numbers(box, 6) or not all(low < high for low, high in zip(box[:3], box[3:], strict=True)):
            raise UserError(f"{path}: has {key} {quoted(box)}; allowed: six numbers, smallest and largest xyz.")
    if not _is_number(motion.get("empty")) or not motion["empty"] < 0:
        raise UserError(f"{path}: has empty {quoted(motion.get('empty'))}; allowed: a number below 0.")


def check_packed(path: Path, size: int) -> None:
    """Refuse an implausible compression ratio, which trained weights do not reach.

    Args:
        path: the compressed file.
        size: bytes of its content.

    Raises:
        UserError: it is missing, or too small for its content.
    """
    if not is_file(path):
        raise UserError(f"{path}: no such file; bundle.json names it.")
    packed = path.stat().st_size
    if size > _LEAST + _RATIO * packed:
        raise UserError(f"{path}: has {packed} bytes, which cannot be the {size} that bundle.json describes.")


def check_digest(path: Path, about: Mapping[str, Any]) -> None:
    """Refuse a file whose hash differs from its description.

    Args:
        path: the file.
        about: its description; without ``sha256``, any file is accepted.

    Raises:
        UserError: the hash differs.
    """
    if about.get("sha256") is None or not is_file(path):
        return
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != about["sha256"]:
        raise UserError(f"{path}: is another file than bundle.json describes (its SHA-256 is {found[:16]}...).")


def gunzip(path: Path, size: int) -> bytes:
    """Decompress a gzip file of known size, with memory for no more than that size.

    Args:
        path: the file.
        size: bytes of its content.

    Returns:
        The content.

    Raises:
        UserError: it is missing, damaged, or of another size.
    """
    check_packed(path, size)
    try:
        packed = path.read_bytes()
        stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        content = stream.decompress(packed, size + 1)
    except (OSError, zlib.error) as error:
        raise UserError(f"{path}: is not a whole gzip file ({reason_of(error)}).") from None
    if not stream.eof and len(content) <= size:
        raise UserError(f"{path}: is not a whole gzip file (its end is missing).")
    if len(content) != size:
        held = f"{len(content)} bytes" if stream.eof else f"more than {size} bytes"
        raise UserError(f"{path}: holds {held}, but bundle.json describes {size}.")
    return content


def check_graph(path: Path) -> None:
    """Refuse an ONNX file with external data, which could be any file.

    Raises:
        UserError: it has external data, or is not an ONNX file.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not a whole ONNX file ({reason_of(error)}).") from None
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in _tensors(model)):
        raise UserError(f"{path}: takes weights from another file; allowed: what lies in it.")


def _tensors(message: Any) -> Iterator[Any]:
    """All tensors in a message: of its graphs, of the functions and graphs that these call, and sparse ones."""
    if message.DESCRIPTOR.name == "TensorProto":
        yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in [value] if hasattr(value, "ListFields") else value:  # one message, or a list of them
                yield from _tensors(inner)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def _is_range(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_number(value.get(key)) for key in ("min", "max", "value"))


def _is_orbit(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and all(_are_numbers(value.get(key), 3) for key in ("target", "up"))
        and all(_is_range(value.get(key)) for key in ("radius", "elevation", "azimuth"))
    )


def _are_numbers(values: Any, count: int) -> bool:
    return isinstance(values, list) and len(values) == count and all(map(_is_number, values))


def _check_resolution(path: Path, shape: Any) -> None:
    """Refuse an invalid resolution of a grid, which counts corners along z, y, x."""
    if not isinstance(shape, list) or len(shape) != 3 or not all(_is_size(n, _MOST_SIDE, 2) for n in shape):
        raise UserError(f"{path}: has resolution {quoted(shape)}; allowed: three whole numbers from 2 to {_MOST_SIDE}.")


def _is_size(value: Any, most: int, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
