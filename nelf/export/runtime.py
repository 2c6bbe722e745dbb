"""Draw with an exported file: the same ``render(camera)`` as everything else, through ONNX Runtime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from nelf.cameras import Camera
from nelf.compression.pruning import compressed_bytes
from nelf.errors import UserError
from nelf.export.bundle import read_bundle
from nelf.export.cost import graph_cost
from nelf.export.executorch import Program
from nelf.export.files import check_graph
from nelf.export.graph import session
from nelf.export.inputs import Window, cut, feed, window_in
from nelf.export.volume import Volume, read_volume
from nelf.kernels.lookup import RayFeatures, ray_features
from nelf.rendering import Rendering

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

__all__ = ["ExportedLightField", "load"]


class ExportedLightField:
    """A light field of a bundle. Has ``render(camera)``, and takes the place of a network where one is looked at.

    Args:
        path: the ONNX file or ExecuTorch program.
        graph: the same, opened.
        bundle: of ``read_bundle``.
        entry: the artifact's entry in it.
        volume: the arrays that its graph's features come from, if it begins there.
    """

    def __init__(
        self,
        path: Path,
        graph: InferenceSession | Program,
        bundle: dict[str, Any],
        entry: dict[str, Any],
        volume: Volume | None = None,
    ) -> None:
        self.path, self.bundle, self.entry = path, bundle, entry
        self.sr_factor: int = bundle["sr_factor"]
        self._graph, self._volume = graph, volume
        self._aabb = torch.tensor(bundle["aabb"])
        self._background = torch.tensor(bundle["background_color"])

    def render(self, camera: Camera, time: float | None = None) -> Rendering:
        """Render one camera.

        Args:
            camera: a single camera; both sides multiples of ``sr_factor``. A graph that begins at the pose, or was
                exported for one size, takes only cameras of that size (and, from the pose on, of that lens).
            time: moment in [0, 1], for graphs that have the input ``time``.

        Returns:
            ``rgb`` (H, W, 3) in [0, 1], over the bundle's background; opacity where the graph has it, no depth.

        Raises:
            UserError: a camera of another size than the graph takes.
        """
        arrays, window = self._feed(camera, time)
        if window is None:
            return Rendering.over(self.run(arrays), self._background)
        top, bottom, left, right = (side * self.sr_factor for side in window)
        if top == bottom:  # the camera sees nothing
            return Rendering.over(torch.zeros(4, camera.height, camera.width), self._background)
        around = (left, camera.width - right, top, camera.height - bottom)
        return Rendering.over(pad(self.run(arrays), around), self._background)

    def inputs(self, camera: Camera, time: float | None = None) -> dict[str, np.ndarray]:
        """Make what the graph is given for one camera, see ``render``; arrays by name.

        Where the graph draws a part of the picture only, these are that part's inputs.

        Raises:
            UserError: a camera of another size than the graph takes.
        """
        return self._feed(camera, time)[0]

    def _feed(self, camera: Camera, time: float | None) -> tuple[dict[str, np.ndarray], Window | None]:
        """The inputs of the graph, and the rectangle of blocks that they are for; None for all of them."""
        self._check(camera)
        kind = self.entry["input"]
        declared = self._graph.get_inputs()
        points = declared[0].shape[1] // 3 if kind == "points" else 0
        camera = replace(camera.to("cpu"), time=None)
        near, far, stride = (self.bundle[key] for key in ("near", "far", "stride"))
        arrays = feed(kind, camera, self.sr_factor, points, near, far, self._composite, stride)
        if any(each.name == "time" for each in declared):
            arrays["time"] = np.array([0.0 if time is None else time], np.float32)
        about = self.entry["window"]
        if about is None or self.entry["size"] is not None or kind != "features":
            return arrays, None
        window = window_in(arrays["features"], self.sr_factor, about["margin"])
        if window[0] < window[1]:
            arrays["features"] = cut(arrays["features"], window)
        return arrays, window

    def run(self, inputs: dict[str, np.ndarray]) -> Tensor:
        """Run the graph alone, from ``inputs`` to rgb (3, h, w), or to rgb on black and opacity (4, h, w)."""
        return torch.from_numpy(self._graph.run([self.entry["output"]], inputs)[0])[0]

    def cost(self, camera: Camera) -> dict[str, int]:
        """Count what drawing one camera takes: ``parameters``, ``nonzero``, ``macs`` and ``compressed_bytes``.

        The rows of a volume beside the graph count with it. Of an ExecuTorch program only the bytes can be told. See
        ``nelf.export.cost``.
        """
        beside = [self.path.parent / self.entry["volume"]["file"]] if self.entry["volume"] else []
        files = [self.path, *beside]
        cost = {"compressed_bytes": sum(map(compressed_bytes, files))}
        if self.path.suffix == ".pte":
            return cost
        counted = graph_cost(self.path, self.inputs(camera))
        if self._volume is not None:
            for rows in (self._volume.density, self._volume.features):
                counted["parameters"] += rows.numel()
                counted["nonzero"] += int(rows.count_nonzero())
        return cost | counted

    def _check(self, camera: Camera) -> None:
        """Refuse a camera that the graph cannot draw."""
        file, size, factor = self.entry["file"], self.entry["size"], self.sr_factor
        asked = f"the camera has {camera.width}x{camera.height}"
        if size is not None and tuple(size) != (camera.width, camera.height):
            raise UserError(f"{file}: draws {size[0]}x{size[1]} pixels only, but {asked}.")
        if camera.width % factor or camera.height % factor:
            raise UserError(
                f"{file}: draws blocks of {factor}x{factor} pixels, but {asked}; use multiples of {factor}."
            )

    def _composite(self, rays_o: Tensor, rays_d: Tensor) -> RayFeatures:
        """Composite the bundle's volume along rays."""
        assert self._volume is not None
        about = self.entry["volume"]
        rays_o, rays_d = rays_o.reshape(-1, 3).contiguous(), rays_d.reshape(-1, 3).contiguous()
        return ray_features(
            *self._volume,
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
        threads: how many to compute with; None for as many as PyTorch uses.

    Returns:
        Something with ``render(camera)``.

    Raises:
        UserError: a file is missing, damaged, or of a newer version of nelf; or bundle.json does not name ``path``.

    Example:
        >>> load("no/such/bundle")
        Traceback (most recent call last):
        nelf.errors.UserError: no/such/bundle: no such file or folder.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder.")
    folder = path if path.is_dir() else path.parent
    bundle = read_bundle(folder)
    entries = {entry["file"]: entry for entry in bundle["artifacts"]}
    entry = next(iter(entries.values()), None) if path.is_dir() else entries.get(path.name)
    if entry is None:
        raise UserError(f"{path}: bundle.json does not name it; it names {', '.join(entries) or 'nothing'}.")
    volume = read_volume(folder, entry["volume"], bundle["aabb"]) if entry["volume"] else None
    file = folder / entry["file"]
    if file.suffix == ".onnx" and file.is_file():
        check_graph(file)
    graph = Program(file, entry["input"]) if file.suffix == ".pte" else session(file, threads)
    return ExportedLightField(file, graph, bundle, entry, volume)
