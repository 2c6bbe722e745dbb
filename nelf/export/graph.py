"""A light field as an ONNX graph: what was trained, with its embedding inside, checked when it is written."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from copy import deepcopy
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor, nn

from nelf.cameras import Camera
from nelf.compression.fold import fold_batch_norm
from nelf.compression.quantization import restore_network
from nelf.errors import UserError, atomic_path
from nelf.export.inputs import KINDS, Kind, check_kind, feed_of, kinds_of, output_of
from nelf.kernels import reference
from nelf.kernels.lookup import most_points
from nelf.lightfields import LightField
from nelf.lightfields.grid_r2l import MIN_ALPHA_RENDERING, decoder_inputs

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

    from nelf.lightfields import GridR2L

__all__ = ["exact", "graph_module", "half_weights", "largest_difference", "onnx", "quiet", "session"]

OPSET = 20  # GridSample of volumes; GELU as one node


class _FromPose(nn.Module):
    """A light field from the pose on, for cameras of one size and lens."""

    directions: Tensor

    def __init__(self, rays: nn.Module, stride: int, camera: Camera) -> None:
        super().__init__()
        self.rays = rays
        here = replace(camera, c2w=torch.eye(3, 4), time=None)
        self.register_buffer("directions", here.rays(stride).rays_d)

    def forward(self, c2w: Tensor) -> Tensor:
        rays_d = self.directions @ c2w[:, None, :, :3].mT
        return self.rays(c2w[:, None, None, :, 3].expand_as(rays_d), rays_d)


class _FromRays(nn.Module):
    """A light field with a volume from the rays on: the look-up as gathers, its sizes as numbers."""

    index: Tensor

    def __init__(self, network: GridR2L) -> None:
        super().__init__()
        self.network, self.step = network, network.voxel
        self.points = most_points(network.aabb, self.step)
        self.register_buffer("index", network.volume.index.long())

    def forward(self, rays_o: Tensor, rays_d: Tensor) -> Tensor:
        volume, aabb = self.network.volume, self.network.aabb
        flat_o, flat_d = rays_o.reshape(-1, 3), rays_d.reshape(-1, 3)
        along = reference.ray_features(
            volume.density, volume.features, self.index, flat_o, flat_d, aabb, torch.full_like(flat_o[:, 0], 0.5),
            self.step, MIN_ALPHA_RENDERING, self.points,
        )  # fmt: skip
        return self.network.decode(decoder_inputs(rays_d, along, self.network.sr_factor))


class _Decoder(nn.Module):
    """A light field from its points or features on."""

    def __init__(self, network: LightField) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network.decode(inputs)


def onnx(
    network: LightField,
    path: Path | str,
    cameras: Camera,
    kind: Kind | None = None,
    fixed_size: bool = False,
    tolerance: float = 1e-4,
) -> float:
    """Write a light field as an ONNX file, and compare what the file draws with what the network draws.

    Batch norms are folded and fake quantization is left out: the graph computes in 32 bits.

    Args:
        network: a trained light field, in evaluation mode or not.
        path: the file to write, ``.onnx``.
        cameras: a batch of cameras of one size: the size to trace, and the views to compare.
        kind: where the graph begins, see ``nelf.export.inputs``; None for the one that suits a viewer.
        fixed_size: take images of this size only; ``pose`` always does.
        tolerance: the largest difference of a color, or opacity, that is accepted.

    Returns:
        The largest difference of any color in any of the views, in [0, 1].

    Raises:
        UserError: the network has no such kind of input, the file cannot be written, or it draws something else.
    """
    kind = kind or kinds_of(network)[0]
    check_kind(network, kind)
    network = exact(network)
    names = KINDS[kind]
    example = tuple(torch.from_numpy(array) for array in feed_of(network, kind, cameras[0]).values())
    with atomic_path(path) as partial, quiet(), torch.no_grad():
        program = torch.onnx.export(
            graph_module(network, kind, cameras[0]),
            example,
            input_names=list(names),
            output_names=[output_of(network)],
            dynamic_shapes=None if fixed_size or kind == "pose" else _any_size(kind),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        program.save(partial, external_data=False)
        error = largest_difference(session(partial), network, kind, cameras)
        if not error <= tolerance:
            raise UserError(
                f"{path}: draws colors that differ by {error:.2g} from the network's, more than tolerance "
                f"{tolerance:.2g}; it is not written."
            )
    return error


def exact(network: LightField) -> LightField:
    """Copy a light field: in evaluation mode, without fake quantization and norms, all in 32 bits."""
    copy = deepcopy(network)
    restore_network(copy)
    copy.low_precision = False
    return fold_batch_norm(copy.cpu().eval(), inplace=True)


def largest_difference(graph: InferenceSession, network: LightField, kind: Kind, cameras: Camera) -> float:
    """Compare what a graph draws with what a network draws.

    Args:
        graph: the opened file.
        network: of ``exact``.
        kind: where the graph begins.
        cameras: a batch of cameras.

    Returns:
        The largest difference of any color, or opacity, in any view.
    """
    differences = []
    for index in range(len(cameras)):
        drawn = graph.run(None, feed_of(network, kind, cameras[index]))[0]
        rays = cameras[index].rays(network.stride)
        with torch.no_grad():
            expected = network(rays.rays_o[None], rays.rays_d[None]).numpy()
        differences.append(np.abs(drawn - expected).max())
    return float(np.max(differences))


def graph_module(network: LightField, kind: Kind, camera: Camera) -> nn.Module:
    """What to trace, so that the graph begins at ``kind``; where that is the pose, ``camera`` gives size and lens."""
    if kind in ("points", "features"):
        return _Decoder(network)
    rays = _FromRays(cast("GridR2L", network)) if hasattr(network, "volume") else network
    return rays if kind == "rays" else _FromPose(rays, network.stride, camera)


def _any_size(kind: Kind) -> tuple[dict[int, object], ...]:
    """The axes of each input that may have any size."""
    first = 1 if kind == "rays" else 2
    axes: dict[int, object] = {first: torch.export.Dim.DYNAMIC, first + 1: torch.export.Dim.DYNAMIC}
    return tuple(axes for _ in KINDS[kind])


def half_weights(path: Path | str, out: Path | str) -> Path:
    """Store the weights of an ONNX file in 16 bits; it still computes in 32.

    Args:
        path: the fp32 file.
        out: the file to write, of about half the size.

    Returns:
        ``out``.

    Raises:
        UserError: the directory cannot be written.
    """
    import onnx as onnx_format
    from onnx import TensorProto, helper, numpy_helper

    model = onnx_format.load(path)
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < 16:
            continue  # a cast would take more room than it saves
        values = numpy_helper.to_array(tensor).astype(np.float16)
        name, half = tensor.name, f"{tensor.name}_fp16"
        tensor.CopyFrom(numpy_helper.from_array(values, half))
        casts.append(helper.make_node("Cast", [half], [name], to=TensorProto.FLOAT))
        for known in [value for value in model.graph.value_info if value.name == name]:
            model.graph.value_info.remove(known)
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    with atomic_path(out) as partial:
        onnx_format.save(model, partial)
    return Path(out)


def session(path: Path | str, threads: int | None = None) -> InferenceSession:
    """Open an ONNX file in ONNX Runtime, on the processor.

    Args:
        path: the file.
        threads: how many to compute with; None for as many as PyTorch uses.

    Raises:
        UserError: no such file, or it is not a whole ONNX file.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle, it would take others' time
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; stage export writes .onnx files.")
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common base
        raise UserError(f"{path}: ONNX Runtime cannot open it ({str(error).splitlines()[0][:200]}).") from error


@contextmanager
def quiet(loggers: Sequence[str] = ("torch.onnx", "onnxscript", "onnx_ir")) -> Iterator[None]:
    """Keep the exporter's remarks to itself."""
    levels = {name: logging.getLogger(name).level for name in loggers}
    for name in loggers:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
