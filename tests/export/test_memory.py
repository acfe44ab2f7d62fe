"""Estimates of graphs that are small enough to be added up by hand."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from export.memory import estimate

FLOAT = TensorProto.FLOAT
# One row of ten floats.
ROW = 40
CAST = helper.make_node("Cast", ["n"], ["y"], to=FLOAT)


def model(
    nodes: list[NodeProto],
    weights: Mapping[str, Any] | None = None,
    width: int | None = 10,
    values: list[onnx.ValueInfoProto] | None = None,
) -> ModelProto:
    """A graph from `x`, (batch, 10), to `y`, whose shape is left to the estimate."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", FLOAT, ["batch", width])],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
        value_info=values,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def test_what_nobody_reads_any_more_is_free() -> None:
    chain = [helper.make_node("Relu", [a], [b]) for a, b in ("xa", "ab", "bc", "cy")]
    found = estimate(model(chain), 8)
    assert (found.weights, found.activations, found.unsized) == (0, 2 * 8 * ROW, ())


def test_what_is_read_later_stays() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Add", ["b", "x"], ["y"]),
    ]
    assert estimate(model(nodes), 8).activations == 3 * 8 * ROW


def test_a_view_takes_no_memory_of_its_own() -> None:
    flat = {"flat": np.array([-1], dtype=np.int64)}
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Reshape", ["a", "flat"], ["b"]),
        helper.make_node("Relu", ["b"], ["y"]),
    ]
    assert estimate(model(nodes, flat), 8).activations == 2 * 8 * ROW


def test_memory_grows_with_the_batch_and_weights_do_not() -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    weights = {"w": np.zeros((10, 10), dtype=np.float32)}
    one, many = (estimate(model(nodes, weights), batch) for batch in (1, 32))
    assert one.weights == many.weights == 400
    assert (one.activations, many.activations) == (2 * ROW, 32 * 2 * ROW)
    assert one.total < many.total


def test_float16_weights_count_as_the_float32_that_they_become() -> None:
    nodes = [
        helper.make_node("Cast", ["half"], ["w"], to=FLOAT),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    found = estimate(model(nodes, {"half": np.zeros((10, 10), dtype=np.float16)}), 1)
    assert (found.weights, found.activations) == (400, 2 * ROW)


def test_quantised_weights_stay_small() -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["w8", "scale"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    weights = {"w8": np.zeros((10, 10), dtype=np.int8), "scale": np.ones((), dtype=np.float32)}
    assert estimate(model(nodes, weights), 1).weights == 100 + 4


def loop(body: GraphProto) -> list[NodeProto]:
    return [helper.make_node("Loop", ["count", "", "x"], ["y"], body=body)]


def carried(shape: list[int | str] | None) -> GraphProto:
    """A body whose state is summed with a weight of the graph around it, by way of two tensors."""
    return helper.make_graph(
        [
            helper.make_node("Add", ["state", "w"], ["a"]),
            helper.make_node("Relu", ["a"], ["next"]),
            helper.make_node("Identity", ["go"], ["again"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", FLOAT, shape),
        ],
        [
            helper.make_tensor_value_info("again", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", FLOAT, ["batch", 10]),
        ],
        value_info=[helper.make_tensor_value_info("a", FLOAT, ["batch", 10])],
    )


def test_a_loop_counts_with_its_body() -> None:
    weights = {"count": np.array(3, dtype=np.int64), "w": np.zeros(10, dtype=np.float32)}
    found = estimate(model(loop(carried(["s81", 10])), weights), 8)
    # x and y around it; in it the state, then the sum beside the state or the next one
    assert found.activations == 4 * 8 * ROW + 8 + 1
    assert found.weights == 8 + 40
    assert found.unsized == ()


def test_products_of_the_batch_are_worked_out() -> None:
    # the number of rows is known to the file alone: it comes from what is in x
    nodes = [helper.make_node("NonZero", ["x"], ["n"]), CAST]
    values = [helper.make_tensor_value_info("n", TensorProto.INT64, [2, "5*batch"])]
    told = estimate(model(nodes, values=values), 8)
    assert told.activations == 8 * ROW + 2 * 40 * 8
    assert told.unsized == ()


def test_what_cannot_be_told_is_named() -> None:
    nodes = [helper.make_node("NonZero", ["x"], ["n"]), CAST]
    values = [helper.make_tensor_value_info("n", TensorProto.INT64, [2, "batch + 1"])]
    assert estimate(model(nodes, values=values), 8).unsized == ("n", "y")


def test_the_graph_is_left_as_it_was() -> None:
    asked = model([helper.make_node("Relu", ["x"], ["y"])])
    before = asked.SerializeToString()
    estimate(asked, 8)
    assert asked.SerializeToString() == before
