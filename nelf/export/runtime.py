"""Render with an exported file, through ONNX Runtime or ExecuTorch, with the usual ``render(camera)``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from nelf.cameras import Camera
from nelf.compression.pruning import compressed_bytes
from nelf.errors import UserError
from nelf.export.bundle import files_beside, ndc_of, read_bundle
from nelf.export.cost import graph_cost
from nelf.export.executorch import Program
from nelf.export.files import check_digest, check_graph
from nelf.export.graph import session
from nelf.export.inputs import Window, cut, feed, window_in, with_controls
from nelf.export.motion import MovingVolume, read_motion
from nelf.export.volume import Volume, read_volume
from nelf.files import exists, is_dir, is_file, quoted, reason_of, short
from nelf.kernels.lookup import RayFeatures, ray_features
from nelf.lightfields.decoder import decoder_inputs
from nelf.lightfields.mobile_r2l import ray_points
from nelf.rays import Rays
from nelf.rendering import Rendering

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

    from nelf.lightfields.frames import Frame

__all__ = ["ExportedLightField", "load"]

_MOST_POINTS = 2**13  # of a ray


class ExportedLightField:
    """A light field of a bundle, which renders like a network.

    Args:
        path: the ONNX file or ExecuTorch program.
        graph: the same, opened.
        bundle: the document from ``read_bundle``.
        entry: the artifact's entry in it.
        volume: the volume, if the graph begins at features.
        moving: the moving volume, if it moves.
    """

    def __init__(
        self,
        path: Path,
        graph: InferenceSession | Program,
        bundle: dict[str, Any],
        entry: dict[str, Any],
        volume: Volume | None = None,
        moving: MovingVolume | None = None,
    ) -> None:
        self.path, self.bundle, self.entry = path, bundle, entry
        self.sr_factor: int = bundle["sr_factor"]
        self._graph, self._volume, self._moving = graph, volume, moving
        self._aabb = torch.tensor(bundle["aabb"], dtype=torch.float32)
        self._background = torch.tensor(bundle["background_color"], dtype=torch.float32)
        self._controls, self._ndc = _controls(bundle), ndc_of(bundle)

    def render(self, camera: Camera) -> Rendering:
        """Render one camera.

        Args:
            camera: a single camera with the controls of the graph. A graph that begins at the pose, or was exported for
                one size, renders only cameras of that size (and, from the pose, of that lens).

        Returns:
            ``rgb`` (H, W, 3) in [0, 1], over the bundle's background; opacity if the graph has it; no depth.

        Raises:
            UserError: the graph does not support the camera's size, or fails.
        """
        arrays, window = self._feed(camera)
        if window is None:
            full = camera.padded(self.sr_factor)
            drawn = self._fitting(self.run(arrays), (full.height, full.width))
        else:
            top, bottom, left, right = (side * self.sr_factor for side in window)
            full = camera.padded(self.sr_factor)
            drawn = torch.zeros(4, full.height, full.width)
            if top < bottom:  # the camera sees something
                drawn[:, top:bottom, left:right] = self._fitting(self.run(arrays), (bottom - top, right - left))
        return Rendering.over(drawn.movedim(0, -1), self._background).cropped(camera.height, camera.width)

    def inputs(self, camera: Camera) -> dict[str, np.ndarray]:
        """Make the inputs of the graph for one camera, see ``render``: arrays by name.

        If the graph has to run on a part of the image only, these are the inputs of that part.

        Raises:
            UserError: the graph does not support the camera's size.
        """
        return self._feed(camera)[0]

    def _feed(self, camera: Camera) -> tuple[dict[str, np.ndarray], Window | None]:
        """The inputs of the graph, and the rectangle of blocks that they belong to; None for the whole image."""
        self._check(camera)
        kind = self.entry["input"]
        camera = replace(with_controls(camera.to("cpu"), self._controls), ndc=self._ndc)
        arrays = feed(kind, camera, self._rays, self._encode)
        about = self.entry["window"]
        if about is None or self.entry["size"] is not None or kind != "features":
            return arrays, None
        window = window_in(arrays["features"], self.sr_factor, about)
        if window[0] < window[1]:
            arrays["features"] = cut(arrays["features"], window)
        return arrays, window

    def _rays(self, camera: Camera) -> Rays:
        """The rays (h, w) of an image, see ``LightField.rays``."""
        return camera.shifted(self.bundle["ray_shift"]).padded(self.sr_factor).rays(self.bundle["stride"])

    def _encode(self, rays: Rays) -> Tensor:
        """The points or features of rays (1, h, w)."""
        if self.entry["input"] == "points":
            near, far = (torch.tensor(float(self.bundle[key])) for key in ("near", "far"))
            return ray_points(rays, near, far, self._points(), jitter=False)
        return decoder_inputs(rays, self._composite(rays), self.sr_factor // self.bundle["stride"])

    def _points(self) -> int:
        """The number of points per ray that the graph takes."""
        shape = self._graph.get_inputs()[0].shape
        if len(shape) != 4 or not isinstance(shape[1], int) or not 0 < shape[1] <= 3 * _MOST_POINTS or shape[1] % 3:
            raise UserError(f"{self.path}: takes inputs {quoted(shape)}; allowed: (1, 3 P, h, w) for P points.")
        return int(shape[1] // 3)

    def run(self, inputs: dict[str, np.ndarray]) -> Tensor:
        """Run the graph alone, from ``inputs`` to rgb (3, h, w), or to rgb on black and opacity (4, h, w)."""
        try:
            drawn = torch.from_numpy(self._graph.run([self.entry["output"]], inputs)[0])
        except Exception as error:  # ONNX Runtime's errors have no common base
            raise UserError(f"{self.path}: cannot be run ({reason_of(error)}).") from error
        if drawn.dim() != 4 or len(drawn) != 1 or drawn.dtype is not torch.float32:
            raise UserError(
                f"{self.path}: draws {tuple(drawn.shape)} of {drawn.dtype}; allowed: (1, 3|4, H, W) floats."
            )
        if not bool(drawn.isfinite().all()):
            raise UserError(f"{self.path}: draws numbers that are not finite; its weights are damaged.")
        return drawn[0]

    def _fitting(self, drawn: Tensor, size: tuple[int, int]) -> Tensor:
        """Check the size of the graph's output, and return it."""
        expected = (len(self.entry["output"]), *size)
        if drawn.shape != expected:
            raise UserError(f"{self.path}: draws {tuple(drawn.shape)}; allowed here: {expected}.")
        return drawn

    def cost(self, camera: Camera) -> dict[str, int]:
        """Count the cost of one image: ``parameters``, ``nonzero``, ``macs`` and ``compressed_bytes``.

        Parameters include the volume and its motion. For an ExecuTorch program, only the bytes are known. See
        ``nelf.export.cost``.
        """
        files = [self.path, *(self.path.parent / file for file in files_beside(self.entry["volume"]))]
        cost = {"compressed_bytes": sum(map(compressed_bytes, files))}
        if self.path.suffix == ".pte":
            return cost
        counted = graph_cost(self.path, self.inputs(camera))
        if self._volume is not None:
            motion = [] if self._moving is None else [self._moving.values]
            for rows in (self._volume.density, self._volume.features, *motion):
                counted["parameters"] += rows.numel()
                counted["nonzero"] += int(rows.count_nonzero())
        return cost | counted

    def _check(self, camera: Camera) -> None:
        """Refuse a camera of a size that the graph does not support."""
        file, size = self.entry["file"], self.entry["size"]
        if size is not None and tuple(size) != (camera.width, camera.height):
            asked = f"the camera has {camera.width}x{camera.height}"
            raise UserError(f"{file}: draws {size[0]}x{size[1]} pixels only, but {asked}.")

    def _composite(self, rays: Rays) -> RayFeatures:
        """Composite the bundle's volume along rays."""
        assert self._volume is not None
        about = self.entry["volume"]
        rays_o, rays_d = (values.reshape(-1, 3).contiguous() for values in (rays.origins, rays.directions))
        volume: Volume | Frame = self._volume
        if self._moving is not None:
            assert rays.controls is not None
            volume = self._moving.at(rays.controls[0, 0, 0])
        return ray_features(
            volume.density,
            volume.features,
            volume.index,
            rays_o,
            rays_d,
            self._aabb,
            jitter=torch.full_like(rays_o[:, 0], 0.5),
            step=about["step"],
            min_alpha=about["min_alpha"],
        )


def load(path: Path | str, threads: int | None = None) -> ExportedLightField:
    """Open an exported light field.

    Args:
        path: a bundle, for its first artifact, or one of the ``.onnx`` and ``.pte`` files in it.
        threads: number of threads; None for PyTorch's.

    Returns:
        The light field, with ``render(camera)``.

    Raises:
        UserError: a file is missing, damaged, or of another version of nelf; or bundle.json does not name ``path``.

    Example:
        >>> load("no/such/bundle")
        Traceback (most recent call last):
        nelf.errors.UserError: no/such/bundle: no such file or folder.
    """
    path = Path(path)
    if not exists(path):
        raise UserError(f"{path}: no such file or folder.")
    folder = path if is_dir(path) else path.parent
    bundle = read_bundle(folder)
    entries = {entry["file"]: entry for entry in bundle["artifacts"]}
    entry = next(iter(entries.values()), None) if is_dir(path) else entries.get(path.name)
    if entry is None:
        raise UserError(f"{path}: bundle.json does not name it; it names {short(', '.join(entries)) or 'nothing'}.")
    volume = read_volume(folder, entry["volume"], bundle["aabb"]) if entry["volume"] else None
    about, moving = (entry["volume"] or {}).get("motion"), None
    if volume is not None and about is not None:
        moving = read_motion(folder, about, volume, bundle["aabb"], _controls(bundle))
    elif volume is not None and _controls(bundle):
        raise UserError(
            f"{folder / 'bundle.json'}: has a time, but {short(entry['name'])} has a volume without motion."
        )
    file = folder / entry["file"]
    if file.suffix == ".onnx" and is_file(file):
        check_graph(file)
    check_digest(file, entry)
    graph = Program(file, entry["input"]) if file.suffix == ".pte" else session(file, threads)
    return ExportedLightField(file, graph, bundle, entry, volume, moving)


def _controls(bundle: dict[str, Any]) -> int:
    """The number of a bundle's controls."""
    return 0 if bundle["time"] is None else 1 + len(bundle["controls"])
