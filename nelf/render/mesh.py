"""A radiance field's surface as a mesh with vertex colors."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from nelf.data.images import track
from nelf.errors import UserError, atomic_path

__all__ = ["Mesh", "extract_mesh", "write_ply"]

_CHUNK = 2**17


class Density(Protocol):
    """The interface that mesh extraction needs, which every radiance field of nelf has."""

    def sigma(self, positions: Tensor, controls: Tensor | None = None) -> Tensor:
        """Density (N,) per scene unit."""

    def rgb(self, positions: Tensor, viewdirs: Tensor, controls: Tensor | None = None) -> Tensor:
        """Color (N, 3) in [0, 1]."""


class Mesh(NamedTuple):
    """A triangle mesh.

    Attributes:
        vertices: (V, 3) float32, in the scene.
        faces: (F, 3) int32, counterclockwise as seen from outside.
        colors: (V, 3) uint8.
    """

    vertices: np.ndarray
    faces: np.ndarray
    colors: np.ndarray


def extract_mesh(
    field: Density,
    aabb: Tensor,
    resolution: int = 256,
    threshold: float | None = None,
    controls: Tensor | None = None,
) -> Mesh:
    """Extract the surface of a field by marching cubes, with the field's colors as seen from outside.

    Args:
        field: a teacher, or anything else with ``sigma`` and ``rgb``.
        aabb: (6,) the box to search, smallest xyz, largest xyz.
        resolution: samples along the longest side of the box; the whole grid is in memory, four bytes per sample.
        threshold: density of the surface, per scene unit; None for the density that absorbs half of the light over
            the spacing of samples.
        controls: (K,) in [0, 1], or None.

    Returns:
        The mesh.

    Raises:
        UserError: the density does not cross the threshold, so there is no surface; or scikit-image is not installed.

    Source:
        Lorensen and Cline, "Marching Cubes", 1987 (scikit-image's ``marching_cubes``).
    """
    try:
        from skimage.measure import marching_cubes
    except ImportError as error:
        raise UserError("mesh: scikit-image is not installed: pip install 'nelf[mesh]'.") from error
    low, high = aabb.view(2, 3).cpu()
    spacing = float((high - low).max()) / (resolution - 1)
    counts = ((high - low) / spacing).round().long() + 1
    axes = [low[axis] + spacing * torch.arange(int(counts[axis])) for axis in range(3)]
    level = math.log(2.0) / spacing if threshold is None else threshold
    device = next(iter([*field.parameters(), *field.buffers()])).device if isinstance(field, torch.nn.Module) else "cpu"
    sigma = np.empty(tuple(len(axis) for axis in axes), dtype=np.float32)
    for index in track(len(axes[0]), "sampling the density"):
        plane = torch.cartesian_prod(axes[0][index : index + 1], axes[1], axes[2]).to(device)
        values = [field.sigma(part, _each(controls, part)) for part in plane.split(_CHUNK)]
        sigma[index] = torch.cat(values).float().cpu().view(len(axes[1]), len(axes[2])).numpy()
    if not sigma.min() < level < sigma.max():
        raise UserError(
            f"mesh: the density is between {sigma.min():.3g} and {sigma.max():.3g}, and the surface was looked for at "
            f"{level:.3g}; allowed: a threshold between the two."
        )
    # An empty border closes surfaces at the sides of the box.
    padded = np.pad(sigma, 1)
    vertices, faces, normals, _ = marching_cubes(padded, level, spacing=(spacing,) * 3, gradient_direction="ascent")
    vertices = (vertices - spacing + low.numpy()).astype(np.float32)
    inward = torch.from_numpy(np.ascontiguousarray(-_unit(normals), dtype=np.float32))
    parts = zip(torch.from_numpy(vertices).split(_CHUNK), inward.split(_CHUNK), strict=True)
    colors = [field.rgb(at.to(device), along.to(device), _each(controls, at.to(device))) for at, along in parts]
    rgb = (torch.cat(colors).float().clamp(0, 1) * 255).round().byte().cpu().numpy()
    return Mesh(vertices, faces.astype(np.int32), rgb)


def write_ply(path: Path, mesh: Mesh) -> Path:
    """Write a mesh as a binary PLY file, atomically.

    Args:
        path: the file.
        mesh: what to write.

    Returns:
        The path.

    Raises:
        UserError: the directory cannot be written.

    Source:
        Greg Turk, "The PLY Polygon File Format", 1994.
    """
    vertex = np.dtype([("position", "<f4", 3), ("color", "u1", 3)])
    face = np.dtype([("count", "u1"), ("vertices", "<i4", 3)])
    vertices, faces = np.empty(len(mesh.vertices), vertex), np.empty(len(mesh.faces), face)
    vertices["position"], vertices["color"] = mesh.vertices, mesh.colors
    faces["count"], faces["vertices"] = 3, mesh.faces
    header = [
        *("ply", "format binary_little_endian 1.0", f"element vertex {len(vertices)}"),
        *(f"property float {axis}" for axis in "xyz"),
        *(f"property uchar {color}" for color in ("red", "green", "blue")),
        *(f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header"),
    ]
    with atomic_path(path) as partial, partial.open("wb") as file:
        file.write(("\n".join(header) + "\n").encode("ascii"))
        file.write(vertices.tobytes())
        file.write(faces.tobytes())
    return path


def _each(controls: Tensor | None, positions: Tensor) -> Tensor | None:
    """The same controls (N, K) for N positions."""
    return None if controls is None else controls.to(positions).expand(len(positions), -1)


def _unit(normals: np.ndarray) -> np.ndarray:
    return normals / np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-12)
