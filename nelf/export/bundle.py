"""A bundle: a folder with all that is needed to draw a light field without nelf.

``bundle.json`` (version 1) says how to make rays, where a camera may go, and which files hold the network:

- ``image`` {width, height}, ``intrinsics`` {fx, fy, cx, cy} in pixels of that size, ``near``, ``far``, ``aabb`` (6),
  ``sr_factor``, ``background``, ``axes``, ``pixel_center``, ``name``, ``license``, ``network``;
- ``time`` {min, max, value} or null, ``controls`` a list of {name, min, max, value}: inputs beside the rays;
- ``orbit``: ``target``, ``up`` and the limits and first values {min, max, value} of ``radius`` (scene unit),
  ``elevation`` and ``azimuth`` (degrees), from the training cameras;
- ``artefacts``: of each ``name``, ``file``, ``bytes``, ``sha256``, ``precision``, ``input`` (``nelf.export.inputs``),
  ``size`` [width, height] or null for any, ``volume`` or null, and ``max_abs_error``, ``psnr`` (dB) and
  ``latency_ms`` or null.

A ``volume`` {file, resolution [D, H, W], features C, dtype, points, density_scale, min_tau, min_transmittance}
describes a gzip file of little-endian arrays: density (D, H, W) float32 before its softplus, features (D, H, W, C) in
``dtype``, and for each of the (D - 1, H - 1, W - 1) cells its distance to the nearest occupied one in cells, uint8, at
most 12. How it is composited along a ray: ``nelf.kernels.ray_features``.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import nelf
from nelf.data import Scene
from nelf.errors import UserError, atomic_path, lies_in
from nelf.export.files import check_numbers, check_volume, gunzip
from nelf.kernels.ray_features import MIN_TRANSMITTANCE
from nelf.kernels.ray_features_cpu import clearance
from nelf.lightfields import GridR2L, LightField
from nelf.lightfields.grid_r2l import MIN_TAU_RENDERING

__all__ = [
    "VERSION",
    "Volume",
    "artefact",
    "orbit_limits",
    "read_bundle",
    "read_volume",
    "write_bundle",
    "write_volume",
]

VERSION = 1
UNREAD = -30.0  # density of corners that no occupied cell touches: nothing, and it compresses well
_KEYS = (
    *("image", "intrinsics", "near", "far", "aabb", "sr_factor", "background", "time", "controls", "orbit"),
    "artefacts",
)
_GAP = 60.0  # degrees without a training camera, from which on the azimuth has limits


def write_bundle(folder: Path | str, scene: Scene, network: LightField, artefacts: Sequence[dict[str, Any]]) -> Path:
    """Write ``bundle.json``.

    Args:
        folder: where the files of the artefacts lie.
        scene: gives size, lens, licence and the limits of the camera.
        network: gives depth range, box and block size.
        artefacts: of ``artefact``, the one to show first first.

    Returns:
        Its path.

    Raises:
        UserError: the directory cannot be written.
    """
    camera = scene.test.camera
    fx, fy, cx, cy = camera.intrinsics[0].tolist()
    document = {
        "format": "nelf-bundle",
        "version": VERSION,
        "nelf": nelf.__version__,
        "name": scene.name,
        "license": scene.license,
        "network": type(network).__name__,
        "image": {"width": camera.width, "height": camera.height},
        "intrinsics": {"fx": fx, "fy": fy, "cx": cx, "cy": cy},
        "axes": "camera to world, OpenGL: x right, y up, looking along -z",
        "pixel_center": 0.5,
        "near": float(network.near),
        "far": float(network.far),
        "aabb": network.aabb.tolist(),
        "sr_factor": network.sr_factor,
        "background": scene.background,
        "time": None,  # no model takes one yet, whether the scene moves or not
        "controls": [],
        "orbit": orbit_limits(scene),
        "artefacts": list(artefacts),
    }
    path = Path(folder) / "bundle.json"
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return path


def artefact(
    name: str,
    path: Path,
    kind: str,
    precision: str,
    volume: dict[str, Any] | None = None,
    size: tuple[int, int] | None = None,
    **figures: float | None,
) -> dict[str, Any]:
    """Describe a file of a bundle.

    Args:
        name: what to call it.
        path: the file.
        kind: where its graph begins, see ``nelf.export.inputs``.
        precision: in words.
        volume: of ``write_volume``, where the graph begins at features.
        size: width and height, if it takes only those.
        **figures: ``max_abs_error``, ``psnr``, ``latency_ms``.

    Returns:
        Its entry for ``bundle.json``; ``bytes`` counts its volume.
    """
    content = path.read_bytes()
    beside = (path.parent / volume["file"]).stat().st_size if volume else 0
    return {
        "name": name,
        "file": path.name,
        "bytes": len(content) + beside,
        "sha256": hashlib.sha256(content).hexdigest(),
        "precision": precision,
        "input": kind,
        "size": size,
        "volume": volume,
        **{"max_abs_error": None, "psnr": None, "latency_ms": None, **figures},
    }


def read_bundle(folder: Path | str) -> dict[str, Any]:
    """Read a bundle's ``bundle.json``.

    Args:
        folder: the bundle.

    Returns:
        The document, as at the top of this module.

    Raises:
        UserError: it is missing, torn, no bundle, of a newer version, or names files that lie elsewhere.
    """
    path = Path(folder) / "bundle.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; stage export writes it beside the .onnx files.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: is not a whole bundle.json ({error}).") from None
    if not isinstance(document, dict) or document.get("format") != "nelf-bundle":
        raise UserError(f"{path}: is not the description of a bundle (format: nelf-bundle).")
    if not isinstance(document.get("version"), int) or document["version"] > VERSION:
        raise UserError(
            f"{path}: has version {document.get('version')}; this nelf reads versions up to {VERSION}. Update nelf."
        )
    missing = [key for key in _KEYS if key not in document]
    if missing:
        raise UserError(f"{path}: lacks {', '.join(missing)}.")
    check_numbers(path, document)
    _check_artefacts(path, document["artefacts"])
    return document


def _check_artefacts(path: Path, entries: Any) -> None:
    """Refuse entries that lack what a reader needs, and files elsewhere, since a bundle may come from anybody."""
    for entry in entries if isinstance(entries, list) else [None]:
        if not isinstance(entry, dict) or not {"name", "file", "input", "size", "volume"} <= set(entry):
            raise UserError(f"{path}: artefacts must be a list, each with name, file, input, size and volume.")
        if not isinstance(entry["volume"], dict | None):
            raise UserError(f"{path}: {entry['name']} has no volume that can be read; allowed: a description, or null.")
        for file in [entry["file"], *([entry["volume"].get("file")] if isinstance(entry["volume"], dict) else [])]:
            if not lies_in(path.parent, file):
                raise UserError(
                    f"{path}: {entry['name']} lies in {file!r}; allowed: names of files beside bundle.json."
                )


def orbit_limits(scene: Scene) -> dict[str, Any]:
    """Where the training cameras stand around the middle of the scene's box, with a little margin.

    Args:
        scene: any, z up.

    Returns:
        ``target``, ``up``, and {min, max, value} of ``radius``, ``elevation`` and ``azimuth`` (degrees; 0 along x).
    """
    centre = scene.aabb.view(2, 3).mean(0)
    offset = (scene.train.camera.c2w[:, :, 3] - centre).double()
    radius = offset.norm(dim=-1)
    elevation = torch.rad2deg(torch.asin((offset[:, 2] / radius).clamp(-1, 1)))
    azimuth = torch.rad2deg(torch.atan2(offset[:, 1], offset[:, 0]))
    return {
        "target": centre.tolist(),
        "up": [0.0, 0.0, 1.0],
        "radius": _limits(radius, 0.05 * float(radius.mean())),
        "elevation": _limits(elevation, 2.0, -89.0, 89.0),
        "azimuth": _azimuth_limits(azimuth),
    }


def _limits(values: Tensor, margin: float, least: float = 1e-3, most: float = math.inf) -> dict[str, float]:
    low, high = float(values.min()) - margin, float(values.max()) + margin
    return {"min": max(low, least), "max": min(high, most), "value": float(values.median())}


def _azimuth_limits(azimuth: Tensor) -> dict[str, float]:
    """All around, unless the cameras leave a wide gap: then from its end to its beginning."""
    ordered = azimuth.sort().values
    gaps = torch.cat([ordered[1:], ordered[:1] + 360.0]) - ordered
    widest = int(gaps.argmax())
    if float(gaps[widest]) < _GAP:
        return {"min": -180.0, "max": 180.0, "value": float(azimuth[0])}
    first = float(ordered[(widest + 1) % len(ordered)])
    last = float(ordered[widest]) + (0.0 if first <= float(ordered[widest]) else 360.0)
    return {"min": first - 2.0, "max": last + 2.0, "value": (first + last) / 2}


class Volume(NamedTuple):
    """The arrays of a volume file: ``density`` (D, H, W), ``features`` (D, H, W, C) float32, ``occupied`` bool."""

    density: Tensor
    features: Tensor
    occupied: Tensor


@torch.no_grad()
def write_volume(network: GridR2L, path: Path, dtype: str = "float16") -> dict[str, Any]:
    """Write the volume of a GridR2L, what no ray reads left out.

    Args:
        network: trained.
        path: the file, ``.bin.gz``.
        dtype: of the features, ``float16`` or ``float32``.

    Returns:
        Its description, as at the top of this module.

    Raises:
        UserError: the directory cannot be written.
    """
    unread = network.unread()
    density = network.density.masked_fill(unread["density"], UNREAD).cpu().numpy().astype("<f4")
    features = (
        network.features.masked_fill(unread["features"], 0.0).cpu().numpy().astype(np.dtype(dtype).newbyteorder("<"))
    )
    content = density.tobytes() + features.tobytes() + clearance(network.occupied.cpu()).tobytes()
    with atomic_path(path) as partial:
        partial.write_bytes(gzip.compress(content, mtime=0))
    return {
        "file": path.name,
        "resolution": list(density.shape),
        "features": features.shape[-1],
        "dtype": dtype,
        "points": network.points,
        "density_scale": float(network.density_scale),
        "min_tau": MIN_TAU_RENDERING,
        "min_transmittance": MIN_TRANSMITTANCE,
    }


def read_volume(folder: Path, volume: dict[str, Any]) -> Volume:
    """Read the volume that a bundle describes.

    Raises:
        UserError: the file is missing, damaged or of another size.
    """
    path = folder / volume["file"]
    check_volume(path, volume)
    shape = tuple(volume["resolution"])
    cells = tuple(side - 1 for side in shape)
    dtype = np.dtype(volume["dtype"]).newbyteorder("<")
    sizes = [4 * math.prod(shape), math.prod(shape) * volume["features"] * dtype.itemsize, math.prod(cells)]
    content = gunzip(path, sum(sizes))
    density = np.frombuffer(content, "<f4", math.prod(shape)).reshape(shape)
    features = np.frombuffer(content, dtype, sizes[1] // dtype.itemsize, sizes[0]).reshape(*shape, -1)
    occupied = np.frombuffer(content, np.uint8, sizes[2], sizes[0] + sizes[1]).reshape(cells) == 0
    return Volume(*(torch.from_numpy(np.array(each)) for each in (density, features.astype(np.float32), occupied)))
