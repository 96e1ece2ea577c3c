"""Every number that an ONNX file holds is counted, wherever it is kept."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from orchestrator.compress.graph import read_graph


def tensor(count: int, kind: type[np.generic], name: str = "") -> onnx.TensorProto:
    return numpy_helper.from_array(np.ones(count, kind), name)


def model(nodes: list[onnx.NodeProto], *initializers: onnx.TensorProto) -> bytes:
    places = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1000]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "graph", places[:1], places[1:], list(initializers))
    content: bytes = helper.make_model(graph).SerializeToString()
    return content


def constant(name: str, count: int) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=tensor(count, np.float32))


def test_numbers_of_a_constant_that_no_operator_reads_are_dead_weights() -> None:
    read = helper.make_node("Add", ["x", "small"], ["y"])
    facts = read_graph(model([constant("dead", 1000), read], tensor(1000, np.int8, "small")))
    assert facts.dead == ["dead"]
    assert facts.coverage == 0.5
    assert facts.by_bits == {32: 1000, 8: 1000}


@pytest.mark.parametrize("value", [{"value": tensor(1000, np.float32)}, {"value_floats": [1.0] * 1000}])
def test_numbers_of_a_constant_count_as_those_of_an_initializer(value: dict[str, object]) -> None:
    nodes = [helper.make_node("Constant", [], ["c"], **value), helper.make_node("Add", ["x", "c"], ["y"])]
    facts = read_graph(model(nodes))
    assert (facts.float_values, facts.dead) == (1000, [])


def test_numbers_in_a_graph_within_a_node_count_too() -> None:
    out = helper.make_tensor_value_info("inner", TensorProto.FLOAT, [1000])
    ways = {
        name: helper.make_graph(nodes, name, [], [out], weights)
        for name, nodes, weights in (
            ("then_branch", [helper.make_node("Identity", ["w"], ["inner"])], [tensor(1000, np.float32, "w")]),
            ("else_branch", [constant("inner", 1000), constant("idle", 100)], []),
        )
    }
    facts = read_graph(model([helper.make_node("If", ["x"], ["y"], **ways)]))
    assert (facts.float_values, facts.dead) == (2100, ["idle"])
