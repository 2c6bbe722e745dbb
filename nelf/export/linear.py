"""Linear layers of an ONNX graph as Gemm, whose integer kernel includes the bias and the ReLU."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

__all__ = ["in_parts", "linear_as_gemm"]

# The end of a node's namespace: the module, its class, and the operation.
_LINEAR = re.compile(r"([^/:]*): [^/]*/[^/]*: aten\.linear\.default$")


def in_parts(name: str, parts: Sequence[str]) -> bool:
    """Whether a tensor of that name in a graph belongs to some parts of a network, see ``LightField.exact_parts``."""
    return any(f".{part}." in f".{name}" for part in parts)  # names may be prefixed with wrapping modules


def linear_as_gemm(model: onnx.ModelProto) -> None:
    """Rewrite each linear layer of a graph as one Gemm over rows, in place.

    PyTorch's exporter writes Gemm if a layer's inputs are (N, C). If they are (..., C) it writes MatMul and Add, and
    ONNX Runtime's integer kernel for MatMul has no bias: its result would be rounded before the bias, or converted to
    32 bits and back, which takes longer than the product. So the leading dimensions are flattened before such a layer
    and restored after it, or after its ReLU.

    Args:
        model: a model from PyTorch's exporter; weights are renamed to the names of their layers, as for Gemm.
    """
    graph = _Graph(model.graph)
    for node in model.graph.node:
        if node.output[0] in graph.merged:
            continue
        layer = _layer(node) if node.op_type == "MatMul" and node.input[1] in graph.constants else None
        if layer is None:
            graph.nodes.append(node)
        else:
            graph.add_layer(layer, node)
    del model.graph.node[:]
    model.graph.node.extend(graph.nodes)
    used = {name for node in graph.nodes for name in node.input}
    for name in graph.replaced - used:
        model.graph.initializer.remove(graph.constants[name])


class _Graph:
    """A graph under construction.

    Attributes:
        nodes: the nodes so far.
        constants: constants of the old and the new graph, by name.
        merged: outputs of old nodes that are already part of a layer.
        replaced: old weights that have been replaced by transposed ones.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.merged: set[str] = set()
        self.replaced: set[str] = set()
        self._initializers = graph.initializer
        self._rows: dict[str, str] = {}  # by tensor (..., C): its flattened version (N, C)
        self._readers: dict[str, list[onnx.NodeProto | None]] = defaultdict(list)
        for node in graph.node:
            for name in node.input:
                self._readers[name].append(node)
        for value in graph.output:
            self._readers[value.name].append(None)

    def add_layer(self, layer: str, product: onnx.NodeProto) -> None:
        """Add the layer that begins with a MatMul, including its bias and the ReLU after it."""
        from onnx import numpy_helper

        (x, weight), output = product.input, product.output[0]
        values = np.ascontiguousarray(numpy_helper.to_array(self.constants[weight]).T)
        width_out, width_in = values.shape
        self.replaced.add(weight)
        inputs = [self._constant(f"{layer}.weight", values)]
        bias = self._only_reader(output, "Add")
        if bias is not None and _layer(bias) == layer:
            inputs += [name for name in bias.input if name != output]
            output = bias.output[0]
            self.merged.add(output)
        if x not in self._rows:
            shape = self._constant(f"rows_of_{width_in}", np.array([-1, width_in]))
            self._rows[x] = self._add("Reshape", [x, shape], f"{x}_rows")
        rows = self._add("Gemm", [self._rows[x], *inputs], f"{output}_rows", transB=1)
        relu = self._only_reader(output, "Relu")
        if relu is not None:
            output = relu.output[0]
            self.merged.add(output)
            rows = self._add("Relu", [rows], f"{output}_rows")
        self._rows[output] = rows
        leading = self._add("Shape", [x], f"{output}_leading", end=-1)
        width = self._constant(f"width_{width_out}", np.array([width_out]))
        self._add("Reshape", [rows, self._add("Concat", [leading, width], f"{output}_shape", axis=0)], output)

    def _only_reader(self, name: str, kind: str) -> onnx.NodeProto | None:
        """The only node that reads a tensor, if there is only one and it is of that kind."""
        found = self._readers[name]
        return found[0] if len(found) == 1 and found[0] is not None and found[0].op_type == kind else None

    def _constant(self, name: str, values: np.ndarray) -> str:
        from onnx import numpy_helper

        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(values, name)
            self._initializers.append(self.constants[name])
        return name

    def _add(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, [output], f"node_{output}", **attributes))
        return output


def _layer(node: onnx.NodeProto) -> str | None:
    """The name of the linear layer that a node belongs to, according to PyTorch's exporter, or None."""
    notes = {note.key: note.value for note in node.metadata_props}
    found = _LINEAR.search(notes.get("namespace", ""))
    return found[1] if found else None
