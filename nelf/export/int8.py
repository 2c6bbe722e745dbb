"""ONNX files that compute in 8-bit integers.

ONNX Runtime is fast with unsigned activations and signed weights (its kernels for signed activations are slower than
fp32), and if tensors are quantized on both sides of each convolution and sum, so that convolution, ReLU and residual
sum each become one integer kernel. GELU and transposed convolution have no integer kernel and are computed in fp32
between two conversions. Keeping the last convolution in 32 bits would cost more time than it is worth. Linear layers
become Gemm, including bias and ReLU.

Static files give correct results on every processor because their weights are integers from -64 to 64: x86 without VNNI
adds the products of two neighbors with 16-bit saturation, and 2 * 255 * 64 fits. With weights up to 127, saturation
corrupts the image. Unsigned weights could use all 8 bits, but their kernels are slower, and AVX-512 VNNI has none.
Dynamic files have unsigned weights, which their kernel requires; no kernel for these saturates at 16 bits.

``benchmarks/int8.py`` measures all these variants.
"""

from __future__ import annotations

import io
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from nelf.errors import UserError, atomic_path
from nelf.export.linear import in_parts, linear_as_gemm

if TYPE_CHECKING:
    import onnx

__all__ = ["quantize_dynamic", "quantize_static"]

Feed = Mapping[str, np.ndarray]
_LAYERS = ("Conv", "ConvTranspose", "Gemm")


def quantize_dynamic(path: Path | str, out: Path | str, exact: Sequence[str] = ()) -> Path:
    """Write an ONNX file with 8-bit weights and dynamic quantization: activation ranges are computed for each input.

    Args:
        path: the fp32 file.
        out: the file to write.
        exact: parts of the network that stay in 32 bits, see ``LightField.exact_parts`` and ``exact_in_8_bits``.

    Returns:
        ``out``.

    Raises:
        UserError: ``path`` is not an ONNX file, or the directory cannot be written.
    """
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization import quantize_dynamic as quantize

    with _prepared(path) as prepared, atomic_path(out) as partial:
        left = [*_nodes(prepared, "MatMul")]  # products that are not layers, such as with an encoding's frequencies
        kept = _in_parts(_nodes(prepared, *_LAYERS), exact)
        left += [*kept, *(f"{name}_MatMul" for name in kept)]  # ONNX Runtime first converts a Gemm to MatMul
        # The kernel of dynamic convolutions requires unsigned weights.
        quantize(prepared, partial, weight_type=QuantType.QUInt8, nodes_to_exclude=left)
    return Path(out)


def quantize_static(
    path: Path | str,
    out: Path | str,
    feeds: Iterable[Feed],
    ranges: Mapping[str, Sequence[float]] | None = None,
    *,
    method: Literal["minmax", "percentile", "entropy"] = "percentile",
    percentile: float = 99.99,
    keep: Sequence[Literal["first", "last"]] = (),
    exact: Sequence[str] = (),
) -> Path:
    """Write an ONNX file with int8 weights from -64 to 64 (per channel) and activations (per tensor), format QDQ.

    Args:
        path: the fp32 file; batch norms folded.
        out: the file to write.
        feeds: inputs by name, float32, for calibration; one is enough if ``ranges`` is given.
        ranges: activation ranges by "LAYER.input" and "LAYER.output", from ``nelf.compression.quantization``; other
            layers stay in 32 bits. None calibrates here.
        method: ONNX Runtime's calibration method.
        percentile: for the method ``percentile``.
        keep: layers that stay in 32 bits: the first, the last.
        exact: parts of the network that stay in 32 bits, see ``LightField.exact_parts`` and ``exact_in_8_bits``.

    Returns:
        ``out``.

    Raises:
        UserError: ``path`` is not an ONNX file, there are no feeds, or ``ranges`` names a layer that does not exist.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as quantize

    reader = _Reader(feeds if ranges is None else list(feeds)[:1])
    methods = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}
    with _prepared(path) as prepared, atomic_path(out) as partial:
        nodes = _nodes(prepared, *_LAYERS)
        chosen = set(nodes)
        options: dict[str, Any] = {"CalibPercentile": percentile}
        if ranges is not None:
            chosen, options["TensorQuantOverrides"] = _overrides(path, nodes, ranges)
            methods[method] = "MinMax"
        left = {list(nodes)[{"first": 0, "last": -1}[end]] for end in keep} if nodes else set()
        left.update(_in_parts(nodes, exact))
        quantize(
            prepared,
            partial,
            reader,
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=[*_LAYERS, "Relu"],
            per_channel=True,
            reduce_range=True,  # weights within LARGEST_MULTIPLIED of nelf.compression.quantization
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[name for name in nodes if name not in chosen or name in left],
            calibrate_method=CalibrationMethod[methods[method]],
            extra_options=options,
        )
        _keep_inputs(partial)
    return Path(out)


def _keep_inputs(path: Path) -> None:
    """Pass the inputs of a graph unrounded to all nodes except its layers.

    The network only corrects the composited colors and opacities among its inputs; rounded to 8 bits in one range for
    all channels, these would be coarser than the corrections.
    """
    import onnx

    model = onnx.load(path)
    inputs = {value.name for value in model.graph.input}
    made = {node.output[0]: node for node in model.graph.node}
    for node in model.graph.node:
        for place, name in enumerate(node.input if node.op_type not in _LAYERS else ()):
            rounding = (
                made.get(made[name].input[0]) if name in made and made[name].op_type == "DequantizeLinear" else None
            )
            if rounding is not None and rounding.input[0] in inputs:
                node.input[place] = rounding.input[0]
    onnx.save(model, path)


class _Reader:
    """Calibration inputs with the interface that ONNX Runtime expects."""

    def __init__(self, feeds: Iterable[Feed]) -> None:
        self._feeds = [dict(feed) for feed in feeds]
        if not self._feeds:
            raise UserError("int8: calibration has no views; at least one is needed.")
        self._next = iter(self._feeds)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._next, None)


def _nodes(path: Path, *kinds: str) -> dict[str, onnx.NodeProto]:
    """The nodes of some kinds in a file, by name and in order."""
    import onnx

    return {node.name: node for node in onnx.load(path).graph.node if node.op_type in kinds}


def _in_parts(nodes: Mapping[str, onnx.NodeProto], parts: Sequence[str]) -> list[str]:
    """The layers among some nodes that belong to parts of a network."""
    return [name for name, node in nodes.items() if in_parts(node.input[1], parts)]


def _overrides(
    path: Path | str, nodes: Mapping[str, onnx.NodeProto], ranges: Mapping[str, Sequence[float]]
) -> tuple[set[str], dict[str, list[dict[str, Any]]]]:
    """The nodes named in ``ranges``, and the ranges by tensor name."""
    chosen, overrides = set(), {}
    for key, (low, high) in ranges.items():
        layer, _, side = key.rpartition(".")
        # The exporter may prefix the layer's name with that of a wrapping module.
        found = [name for name, node in nodes.items() if f".{node.input[1]}".endswith(f".{layer}.weight")]
        if len(found) != 1 or side not in ("input", "output"):
            raise UserError(
                f"{path}: has no layer {layer!r} with a weight of that name, for which there is a range; "
                "export the network that was calibrated, its batch norms folded."
            )
        chosen.add(found[0])
        node = nodes[found[0]]
        tensor = node.input[0] if side == "input" else node.output[0]
        overrides[tensor] = [{"rmin": np.float32(low), "rmax": np.float32(high)}]
    return chosen, overrides


@contextmanager
def _prepared(path: Path | str) -> Iterator[Path]:
    """A copy of a file with linear layers as Gemm and folded constants; silences ONNX Runtime meanwhile."""
    import onnx
    import onnxruntime
    from google.protobuf.message import DecodeError
    from onnxruntime.quantization.shape_inference import quant_pre_process

    try:
        model = onnx.load(path)
    except (OSError, DecodeError) as error:
        raise UserError(f"{path}: is not an ONNX file ({error}).") from None
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    onnxruntime.set_default_logger_severity(3)
    try:
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
            prepared = Path(folder) / "prepared.onnx"
            linear_as_gemm(model)
            onnx.save(model, prepared)
            quant_pre_process(prepared, prepared, skip_symbolic_shape=True)
            yield prepared
    finally:
        logging.disable(level)
        onnxruntime.set_default_logger_severity(2)
