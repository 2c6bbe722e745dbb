"""Export a light field as an ONNX graph, and compare the graph with the network."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from copy import deepcopy
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from nelf.cameras import Camera
from nelf.compression.fold import fold_batch_norm
from nelf.compression.quantization import restore_network
from nelf.errors import UserError, atomic_path
from nelf.export.inputs import KINDS, check_kind, feed_of, names_of, output_of, with_controls
from nelf.export.linear import in_parts, linear_as_gemm
from nelf.lightfields import LightField
from nelf.rays import NDC, Rays

if TYPE_CHECKING:
    from onnx_ir import Model
    from onnxruntime import InferenceSession

__all__ = ["exact", "graph_module", "half_weights", "largest_difference", "onnx", "quiet", "session"]

OPSET = 20  # GridSample of volumes; GELU as one node


class _FromPose(nn.Module):
    """A light field as a function of the pose, for cameras of one size and lens."""

    directions: Tensor

    def __init__(self, rays: _FromRays, network: LightField, camera: Camera) -> None:
        super().__init__()
        self.rays = rays
        here = replace(camera, c2w=torch.eye(3, 4), controls=None, ndc=None)
        self.register_buffer("directions", network.rays(here).directions)

    def forward(self, c2w: Tensor, time: Tensor | None = None, controls: Tensor | None = None) -> Tensor:
        rays_d = self.directions @ c2w[:, None, :, :3].mT
        return self.rays(c2w[:, None, None, :, 3].expand_as(rays_d), rays_d, time, controls)


class _FromRays(nn.Module):
    """A light field as a function of rays in scene coordinates."""

    def __init__(self, network: LightField, ndc: NDC | None) -> None:
        super().__init__()
        self.network, self.ndc = network.traceable(), ndc

    def forward(
        self, rays_o: Tensor, rays_d: Tensor, time: Tensor | None = None, controls: Tensor | None = None
    ) -> Tensor:
        along = None
        if time is not None:
            values = time[None] if controls is None else torch.cat([time[None], controls], 1)
            along = values[:, None, None].expand(*rays_o.shape[:3], -1)
        rays = Rays(rays_o, rays_d, along)
        return self.network(rays if self.ndc is None else self.ndc.rays(rays)).movedim(-1, 1)


class _Decoder(nn.Module):
    """A light field as a function of its points or features."""

    def __init__(self, network: LightField) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network.decode(inputs)


def onnx(
    network: LightField,
    path: Path | str,
    cameras: Camera,
    kind: str | None = None,
    fixed_size: bool = False,
    tolerance: float = 1e-4,
) -> float:
    """Write a light field as an ONNX file, and compare its output with the network's.

    Batch norms are folded and fake quantization is removed; the graph computes in 32 bits.

    Args:
        network: a trained light field, in evaluation mode or not.
        path: the file to write, ``.onnx``.
        cameras: a batch of cameras of one size, which is traced; all views are compared.
        kind: kind of the graph's inputs, see ``nelf.export.inputs``; None for the one that suits a viewer.
        fixed_size: export for images of this size only, as ``pose`` always is.
        tolerance: the largest allowed difference of a color or opacity.

    Returns:
        The largest difference of a color or opacity in any of the views.

    Raises:
        UserError: the network has no such kind of input, the file cannot be written, or the difference is too large.
    """
    kind = kind or network.entries[0]
    check_kind(network, kind)
    network = exact(network)
    example = tuple(torch.from_numpy(array) for array in feed_of(network, kind, cameras[0]).values())
    with atomic_path(path) as partial, quiet(), torch.no_grad():
        program = torch.onnx.export(
            graph_module(network, kind, cameras[0]),
            example,
            input_names=list(names_of(network, kind)),
            output_names=[output_of(network)],
            dynamic_shapes=None if fixed_size or kind == "pose" else _any_size(network, kind),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        _forget_sources(program.model)
        program.save(partial, external_data=False)
        error = largest_difference(session(partial), network, kind, cameras)
        if not error <= tolerance:
            raise UserError(
                f"{path}: draws colors that differ by {error:.2g} from the network's, more than tolerance "
                f"{tolerance:.2g}; it is not written."
            )
    return error


def _forget_sources(model: Model) -> None:
    """Remove the exporter's stack traces, which contain paths of this machine."""
    from onnx_ir.traversal import RecursiveGraphIterator

    for node in RecursiveGraphIterator(model.graph):
        node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)


def exact(network: LightField) -> LightField:
    """Copy a light field in evaluation mode, without fake quantization, with folded batch norms, in 32 bits."""
    copy = deepcopy(network)
    restore_network(copy)
    copy.low_precision = False
    return fold_batch_norm(copy.cpu().eval(), inplace=True)


def largest_difference(graph: InferenceSession, network: LightField, kind: str, cameras: Camera) -> float:
    """Compare the output of a graph with that of a network.

    Args:
        graph: the opened file.
        network: from ``exact``.
        kind: kind of the graph's inputs.
        cameras: a batch of cameras.

    Returns:
        The largest difference of a color or opacity in any view.
    """
    differences = []
    for index in range(len(cameras)):
        camera = with_controls(cameras[index], network.controls)
        feeds = feed_of(network, kind, camera)
        with torch.no_grad():
            expected = network(network.rays(camera)[None]).movedim(-1, 1).numpy()
        differences.append(np.abs(graph.run(None, feeds)[0] - expected).max())
    return float(np.max(differences))


def graph_module(network: LightField, kind: str, camera: Camera) -> nn.Module:
    """The module to trace for inputs of a kind; ``camera`` gives NDC and, for ``pose``, size and lens."""
    if kind == network.encoded:
        return _Decoder(network)
    rays = _FromRays(network, camera.ndc)
    return rays if kind == "rays" else _FromPose(rays, network, camera)


def _any_size(network: LightField, kind: str) -> tuple[dict[int, object] | None, ...]:
    """The dynamic axes of each input."""
    first = 1 if kind == "rays" else 2
    axes: dict[int, object] = {first: torch.export.Dim.DYNAMIC, first + 1: torch.export.Dim.DYNAMIC}
    return tuple(axes if name in KINDS[kind] else None for name in names_of(network, kind))


def half_weights(path: Path | str, out: Path | str, exact: Sequence[str] = ()) -> Path:
    """Store the weights of an ONNX file in 16 bits; the graph still computes in 32 bits.

    Constants other than weights, such as the depths of samples on a ray, stay in 32 bits.

    Args:
        path: the fp32 file.
        out: the file to write, about half as large.
        exact: parts of the network whose weights stay in 32 bits, see ``LightField.exact_parts``.

    Returns:
        ``out``.

    Raises:
        UserError: the directory cannot be written.
    """
    import onnx as onnx_format
    from onnx import TensorProto, helper, numpy_helper

    model = onnx_format.load(path)
    linear_as_gemm(model)  # gives weights the names of their layers
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < 16:
            continue  # a Cast node would take more bytes than it saves
        if "." not in tensor.name or in_parts(tensor.name, exact):
            continue  # names of the network's weights contain a module; those of folded constants do not
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
        threads: number of threads; None for PyTorch's.

    Raises:
        UserError: the file is missing, or is not a valid ONNX file.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads must not spin
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; stage export writes .onnx files.")
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common base
        raise UserError(f"{path}: ONNX Runtime cannot open it ({str(error).splitlines()[0][:200]}).") from error


@contextmanager
def quiet(loggers: Sequence[str] = ("torch.onnx", "onnxscript", "onnx_ir")) -> Iterator[None]:
    """Suppress the exporter's warnings and log messages."""
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
