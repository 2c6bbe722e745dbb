"""The cost of an ONNX graph: its weights, and the multiply-accumulates per image."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

__all__ = ["graph_cost"]

_PRODUCTS = ("Conv", "ConvTranspose", "ConvInteger", "Gemm", "MatMul", "MatMulInteger")
_LOOKUPS = ("Gather", "GatherElements", "GatherND", "GridSample")
_ON_THE_WAY = ("Cast", "DequantizeLinear", "Reshape", "Transpose", "Unsqueeze")
# Input positions of the quantized value and of its zero point.
_WHOLE = {"DequantizeLinear": (0, 2), "ConvInteger": (1, 3), "MatMulInteger": (1, 3)}


def graph_cost(path: Path | str, feeds: dict[str, np.ndarray]) -> dict[str, int]:
    """Count the weights of an ONNX file, and its multiply-accumulates for one image.

    Args:
        path: the file.
        feeds: the inputs of one image by name, from ``ExportedLightField.inputs``.

    Returns:
        ``parameters``; ``nonzero``, the parameters that are not zero as stored; ``macs`` of convolutions and matrix
        products, not of lookups and encodings.
    """
    import onnx

    model = onnx.load(path)
    weights = _weights(model)
    return {
        "parameters": sum(values.size for values in weights.values()),
        "nonzero": sum(int(np.count_nonzero(values)) for values in weights.values()),
        "macs": _macs(model, feeds),
    }


def _weights(model: ModelProto) -> dict[str, np.ndarray]:
    """The trained weights by name; those in 8 bits minus their zero point, so that a zero weight is zero."""
    from onnx import numpy_helper

    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    maker = {name: node.op_type for node in model.graph.node for name in node.output}
    weights = {}
    for node in model.graph.node:
        for name in [name for place, name in enumerate(node.input) if name in stored and _learned(node, place, maker)]:
            weights[name] = stored[name]
        value, zero_point = _WHOLE.get(node.op_type, (0, len(node.input)))
        if zero_point < len(node.input) and node.input[value] in stored:
            axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
            whole, zeros = stored[node.input[value]], stored[node.input[zero_point]]
            weights[node.input[value]] = _centered(whole, zeros, axis if zeros.size > 1 else 0)
    return {name: values for name, values in weights.items() if values.dtype.kind == "f" or values.dtype == np.int32}


def _learned(node: NodeProto, place: int, maker: Mapping[str, str]) -> bool:
    """Whether a stored input holds weights, not quantization parameters, frequencies of an embedding, or shapes."""
    if node.op_type == "Add":  # the bias of a product
        return any(maker.get(name) == "MatMul" for name in node.input)
    return place in (1, 2) if node.op_type in _PRODUCTS else place == 0 and node.op_type in (*_LOOKUPS, *_ON_THE_WAY)


def _centered(values: np.ndarray, zero_point: np.ndarray, axis: int) -> np.ndarray:
    """Integers minus their zero point, one for all or one per index along an axis."""
    shape = [-1 if place == axis else 1 for place in range(values.ndim)]
    return values.astype(np.int32) - zero_point.astype(np.int32).reshape(shape)


def _macs(model: ModelProto, feeds: dict[str, np.ndarray]) -> int:
    """Run the graph once, with the operands of all products as outputs, to get their shapes."""
    import onnxruntime
    from onnx import helper

    products = [node for node in model.graph.node if node.op_type in _PRODUCTS]
    given = {value.name for value in [*model.graph.input, *model.graph.initializer, *model.graph.output]}
    wanted = {name for node in products for name in (*node.input[:2], *node.output)}
    asked = sorted(wanted - given)
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in asked)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    graph = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    shapes |= {name: values.shape for name, values in feeds.items()}
    names = [value.name for value in model.graph.output]
    shapes |= {name: values.shape for name, values in zip(names, graph.run(names, feeds), strict=True)}

    total = 0
    for node in products:
        left, right, out = (shapes[name] for name in (*node.input[:2], node.output[0]))
        if node.op_type == "ConvTranspose":  # each input value meets each weight of its channel
            total += int(np.prod(left)) * int(np.prod(right[1:]))
        elif node.op_type.startswith("Conv"):  # each output value is a sum over one filter
            total += int(np.prod(out)) * int(np.prod(right[1:]))
        else:
            total += int(np.prod(out)) * left[-1]
    return total
