"""A bundle: a folder with everything that is needed to render a light field without nelf.

``bundle.json`` (version 4) defines how rays are made, the range of cameras, and the files of the network:

- ``image`` {width, height}, ``intrinsics`` {fx, fy, cx, cy} in pixels of that size, ``near``, ``far``, ``aabb`` (6),
  ``sr_factor`` and ``stride`` (side of a block and distance between rays, in pixels), ``ray_shift`` (offset of rays to
  the left of and above ``pixel_center``, in image widths; 0 by default), ``background`` and ``background_color`` (3),
  ``axes``, ``pixel_center``, ``name``, ``license``, ``network``;
- ``ndc`` {near, half_width, half_height}, see ``nelf.rays.NDC``, if points and volumes are in normalized device
  coordinates; null or absent if they are in scene coordinates. Poses, and rays as inputs of a graph, always are in
  scene coordinates;
- ``time`` {min, max, value} or null, ``controls`` a list of {name, min, max, value}: inputs in addition to rays;
- ``orbit``: ``target`` (3), ``up`` (3) and limits and initial values {min, max, value} of ``radius`` (scene units),
  ``elevation`` above the plane perpendicular to ``up`` and ``azimuth`` around ``up`` (degrees), from the training
  cameras; azimuth 0 is +x projected onto that plane, or +y if the x component of ``up`` is beyond +-0.9;
- ``artifacts``: for each ``name``, ``file`` (``.onnx`` or ``.pte``), ``bytes``, ``sha256``, ``precision``, ``input``
  (``nelf.export.inputs``), ``output`` (``rgb``, or ``rgba``: rgb on black and opacity), ``size`` [width, height] or
  null for any size, ``volume`` and ``window`` or null, and ``max_abs_error``, ``psnr`` (dB) and ``latency_ms`` or null.

A ``window`` {margin, multiple}, in blocks, means that the graph only has to run on a rectangle: that of the blocks with
nonzero opacity, extended by ``margin`` on each side and to multiples of ``multiple`` (at most the whole image).

A ``volume`` {file (``.bin.gz``), sha256, resolution [D, H, W], rows K, features C, dtype "uint8" or "float16", scale,
step, min_alpha, min_transmittance, motion} describes a file of ``nelf.export.volume``; ``scale`` {low, step} has 1 + C
numbers each for 8 bits, that of the density first, and is null for 16 bits. The index of rows and the distance of each
cell from the nearest one with all corners are computed from the mask in the file. Samples along a ray are one ``step``
(scene units) apart, the first half a step behind the entry; for compositing see ``nelf.kernels.lookup``.

A ``motion`` {file, sha256, resolution [D, H, W], windows N, grid [K, T, Z, Y, X], aabb (6), canonical_aabb (6), empty}
of a volume, null for a static one, describes a file of ``nelf.export.motion``. The volume then is the canonical one,
over ``canonical_aabb``. Rays are composited through the frame of their controls, over the bundle's ``aabb``: its
corners are those of window ``floor(N * time)`` (the last window at time 1), and ``nelf.lightfields.frames`` computes
their values from the canonical volume and the motion grid over ``aabb``. Canonical corners that do not exist have the
density ``empty`` and features 0. The graph begins at the features, so time is not one of its inputs.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import nelf
from nelf.errors import UserError, atomic_path, lies_in
from nelf.export.files import check_entry, check_numbers
from nelf.files import quoted, read_object, short
from nelf.lightfields import LightField
from nelf.paths.trajectories import covered_arc
from nelf.rays import NDC
from nelf.scene import Scene

__all__ = ["VERSION", "artifact", "files_beside", "ndc_of", "orbit_limits", "read_bundle", "write_bundle"]

VERSION = 4
_KEYS = (
    *("image", "intrinsics", "near", "far", "aabb", "sr_factor", "stride", "background", "background_color"),
    *("time", "controls", "orbit", "artifacts"),
)
_ENTRY = {"name", "file", "input", "output", "size", "volume", "window"}
GRAPHS, PACKED = (".onnx", ".pte"), (".bin.gz",)  # suffixes of an artifact's files
_GAP = 60.0  # degrees: a gap of this width between training cameras limits the azimuth


def write_bundle(folder: Path | str, scene: Scene, network: LightField, artifacts: Sequence[dict[str, Any]]) -> Path:
    """Write ``bundle.json``.

    Args:
        folder: the folder of the artifacts' files.
        scene: gives size, intrinsics, license and the limits of the camera.
        network: gives depth range, box and block size.
        artifacts: entries from ``artifact``, the default one first.

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
        "ndc": None if camera.ndc is None else asdict(camera.ndc),
        "axes": "camera to world, OpenGL: x right, y up, looking along -z",
        "pixel_center": 0.5,
        "near": float(network.near),
        "far": float(network.far),
        "aabb": network.aabb.tolist(),
        "sr_factor": network.sr_factor,
        "stride": network.stride,
        "ray_shift": network.ray_shift,
        "background": scene.background,
        "background_color": (scene.background_color if network.background is None else network.background).tolist(),
        "time": _control(scene, 0) if network.controls else None,
        "controls": [{"name": scene.controls[index], **_control(scene, index)} for index in range(1, network.controls)],
        "orbit": orbit_limits(scene),
        "artifacts": list(artifacts),
    }
    path = Path(folder) / "bundle.json"
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return path


def artifact(
    name: str,
    path: Path,
    kind: str,
    precision: str,
    volume: dict[str, Any] | None = None,
    size: tuple[int, int] | None = None,
    *,
    output: str = "rgb",
    window: Mapping[str, int] | None = None,
    **figures: float | None,
) -> dict[str, Any]:
    """Describe a file of a bundle.

    Args:
        name: its name.
        path: the file.
        kind: kind of the graph's inputs, see ``nelf.export.inputs``.
        precision: in words.
        volume: the result of ``write_volume``, if the graph begins at features.
        size: width and height, if it is for this size only.
        output: ``rgb`` or ``rgba``, see ``nelf.export.inputs``.
        window: the light field's ``window``, if it need not run on the whole image.
        **figures: ``max_abs_error``, ``psnr``, ``latency_ms``.

    Returns:
        Its entry in ``bundle.json``; ``bytes`` includes volume and motion.
    """
    content = path.read_bytes()
    beside = sum((path.parent / file).stat().st_size for file in files_beside(volume))
    return {
        "name": name,
        "file": path.name,
        "bytes": len(content) + beside,
        "sha256": hashlib.sha256(content).hexdigest(),
        "precision": precision,
        "input": kind,
        "output": output,
        "size": size,
        "volume": volume,
        "window": None if window is None else dict(window),
        **{"max_abs_error": None, "psnr": None, "latency_ms": None, **figures},
    }


def files_beside(volume: Mapping[str, Any] | None) -> list[Any]:
    """The names of the files of a volume and of its motion."""
    parts = [volume, (volume or {}).get("motion")]
    return [part.get("file") for part in parts if isinstance(part, dict)]


def read_bundle(folder: Path | str) -> dict[str, Any]:
    """Read a bundle's ``bundle.json``.

    Args:
        folder: the bundle.

    Returns:
        The document, see the top of this module.

    Raises:
        UserError: it is missing, damaged, not a bundle, of another version, or names files outside the folder.
    """
    path = Path(folder) / "bundle.json"
    document = read_object(path, "a whole bundle.json, which stage export writes beside the .onnx files")
    if document.get("format") != "nelf-bundle":
        raise UserError(f"{path}: is not the description of a bundle (format: nelf-bundle).")
    version = document.get("version")
    if version != VERSION:
        older = isinstance(version, int) and version < VERSION
        todo = "Export it again: stages=[export]." if older else "Update nelf."
        raise UserError(f"{path}: has version {quoted(version)}; this nelf reads version {VERSION}. {todo}")
    missing = [key for key in _KEYS if key not in document]
    if missing:
        raise UserError(f"{path}: lacks {', '.join(missing)}.")
    document.setdefault("ray_shift", 0.0)
    check_numbers(path, document)
    _check_artifacts(path, document["artifacts"])
    return document


def ndc_of(document: Mapping[str, Any]) -> NDC | None:
    """The NDC of the rays of a bundle's cameras, from ``read_bundle``'s document; None for scene coordinates."""
    about = document.get("ndc")
    return None if about is None else NDC(about["near"], about["half_width"], about["half_height"])


def _check_artifacts(path: Path, entries: Any) -> None:
    """Refuse incomplete entries, and files outside the folder, since a bundle may be untrusted."""
    for entry in entries if isinstance(entries, list) else [None]:
        if not isinstance(entry, dict) or not set(entry) >= _ENTRY:
            raise UserError(f"{path}: artifacts must be a list, each with {', '.join(sorted(_ENTRY))}.")
        name = short(entry["name"]) if isinstance(entry["name"], str) else "an artifact"
        for key in ("volume", "window"):
            if not isinstance(entry[key], dict | None):
                raise UserError(f"{path}: {name} has no {key} that can be read; allowed: what it is, or null.")
        if not isinstance((entry["volume"] or {}).get("motion"), dict | None):
            raise UserError(f"{path}: {name} has no motion that can be read; allowed: what it is, or null.")
        beside = files_beside(entry["volume"])
        for file, endings in ((entry["file"], GRAPHS), *((each, PACKED) for each in beside)):
            if not lies_in(path.parent, file):
                raise UserError(f"{path}: {name} lies in {quoted(file)}; allowed: names of files beside bundle.json.")
            if not file.endswith(endings):
                raise UserError(f"{path}: {name} lies in {quoted(file)}; allowed: names in {' or '.join(endings)}.")
        check_entry(path, entry)


def orbit_limits(scene: Scene) -> dict[str, Any]:
    """The range of the training cameras' positions around the point that they look at, with a small margin.

    Args:
        scene: the scene.

    Returns:
        ``target``, ``up``, and {min, max, value} of ``radius``, ``elevation`` and ``azimuth`` (degrees).
    """
    stand = scene.viewpoints
    return {
        "target": stand.target.tolist(),
        "up": stand.up.tolist(),
        "radius": _limits(stand.radius, 0.05 * float(stand.radius.mean())),
        "elevation": _limits(stand.elevation, 2.0, -89.0, 89.0),
        "azimuth": _azimuth_limits(stand.azimuth),
    }


def _control(scene: Scene, index: int) -> dict[str, float]:
    """The range of a control of the training cameras, and an initial value."""
    controls = scene.train.camera.controls
    if controls is None or index >= controls.shape[-1]:
        return {"min": 0.0, "max": 1.0, "value": 0.0}
    values = controls[:, index]
    return {"min": float(values.min()), "max": float(values.max()), "value": float(values[0])}


def _limits(values: np.ndarray, margin: float, least: float = 1e-3, most: float = math.inf) -> dict[str, float]:
    low, high = float(values.min()) - margin, float(values.max()) + margin
    return {"min": max(low, least), "max": min(high, most), "value": float(np.median(values))}


def _azimuth_limits(azimuth: np.ndarray) -> dict[str, float]:
    """The full circle, unless the cameras leave a wide gap: then the arc that they cover."""
    first, width = covered_arc(azimuth, _GAP)
    if width == 360.0:
        return {"min": -180.0, "max": 180.0, "value": float(azimuth[0])}
    return {"min": first - 2.0, "max": first + width + 2.0, "value": first + width / 2}
