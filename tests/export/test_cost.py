"""Weights and multiplications of exported graphs are those of the networks that they came from."""

from __future__ import annotations

import onnx as onnx_format
import pytest
import torch
from onnx import helper, numpy_helper
from torch.utils.flop_counter import FlopCounterMode

from nelf.export import load
from nelf.export.cost import graph_cost
from nelf.export.graph import exact, half_weights
from nelf.export.inputs import feed_of
from nelf.export.int8 import quantize_dynamic, quantize_static


@pytest.mark.parametrize("name", ["features", "rays", "points", "pose"])
def test_a_graph_costs_what_its_network_costs(bundles, scene, name: str) -> None:
    network, path, _, _ = bundles[name]
    camera = scene.test.camera[0]
    network = exact(network)
    with FlopCounterMode(display=False) as counter:
        network.render(camera)
    cost = load(path.parent).cost(camera)
    # From the pose on, a product of three by three turns the rays, too.
    turning = 9 * (16 // network.sr_factor) ** 2 if name == "pose" else 0
    assert cost["macs"] == counter.get_total_flops() // 2 + turning
    assert cost["parameters"] == sum(parameter.numel() for parameter in network.parameters())
    # In 8 bits a few of a volume's numbers are rounded to zero.
    assert cost["nonzero"] == sum(int(parameter.count_nonzero()) for parameter in network.parameters())


@pytest.mark.parametrize("precision", ["fp16", "int8 dynamic", "int8 static"])
def test_other_precisions_have_the_same_weights(bundles, scene, tmp_path, precision: str) -> None:
    network, path, kind, _ = bundles["points"]
    feeds = feed_of(exact(network), kind, scene.test.camera[0])
    model = onnx_format.load(path)
    pruned = 0
    for tensor in model.graph.initializer:  # one filter of each kernel is nothing but zeros
        if len(tensor.dims) == 4:
            weight = numpy_helper.to_array(tensor).copy()
            weight[0] = 0
            pruned += weight[0].size
            tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    onnx_format.save(model, tmp_path / "pruned.onnx")
    makers = {
        "fp16": half_weights,
        "int8 dynamic": quantize_dynamic,
        "int8 static": lambda source, out: quantize_static(source, out, [feeds]),
    }
    other = makers[precision](tmp_path / "pruned.onnx", tmp_path / "other.onnx")
    before, after = graph_cost(tmp_path / "pruned.onnx", feeds), graph_cost(other, feeds)
    assert before["nonzero"] == before["parameters"] - pruned
    assert {**after, "nonzero": 0} == {**before, "nonzero": 0}
    # Zeros stay zeros; 8 bits round a few more to it.
    assert 0.9 * before["nonzero"] < after["nonzero"] <= before["nonzero"]


def test_matrix_products_count_their_biases(tmp_path) -> None:
    weight, bias, scale = torch.ones(5, 3), torch.ones(3), torch.ones(3)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "weight"], ["product"]),
            helper.make_node("Add", ["product", "bias"], ["sum"]),
            helper.make_node("Add", ["sum", "scale"], ["y"]),
        ],
        "linear",
        [helper.make_tensor_value_info("x", 1, [None, 5])],
        [helper.make_tensor_value_info("y", 1, [None, 3])],
        [
            numpy_helper.from_array(values.numpy(), name)
            for name, values in (("weight", weight), ("bias", bias), ("scale", scale))
        ],
    )
    path = tmp_path / "linear.onnx"
    onnx_format.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    assert graph_cost(path, {"x": torch.ones(7, 5).numpy()}) == {"parameters": 18, "nonzero": 18, "macs": 105}
