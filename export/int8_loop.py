"""The matrix products inside a graph's loop as int8, which ONNX Runtime's quantiser cannot reach.

A tensor of a loop's body is seen by making it a scan output: the loop then stacks what it was in
each iteration, and the ranges of all iterations are known after a run.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

# Weights of fewer values are not worth two more operators.
SMALLEST_PRODUCT = 1 << 14
# Of a range or a weight: a tensor of zeros still needs a scale.
_SMALLEST = 1e-8

Weights = dict[str, NDArray[Any]]


class Steps(NamedTuple):
    """How a tensor is put on 256 steps from the smallest to the largest of its values."""

    scale: np.float32
    zero: NDArray[np.uint8]

    @classmethod
    def of(cls, low: float, top: float) -> "Steps":
        """The steps of a range; zero is always one of them."""
        low, top = min(low, 0.0), max(top, 0.0)
        scale = max(top - low, _SMALLEST) / 255
        return cls(np.float32(scale), np.array(round(-low / scale), dtype=np.uint8))


def quantise_loops(model: ModelProto, calibration: Iterator[dict[str, NDArray[Any]]]) -> ModelProto:
    """The model with the large products of its loops' bodies in whole numbers."""
    loops = [node for node in model.graph.node if node.op_type == "Loop"]
    if loops:
        weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        steps = _steps(model, weights, calibration)
        for loop in loops:
            _quantise(body_of(loop), weights, steps)
        _drop_unread(model)
    return model


def body_of(loop: NodeProto) -> GraphProto:
    """The graph that the loop repeats."""
    return next(attribute.g for attribute in loop.attribute if attribute.name == "body")


def large_products(graph: GraphProto, weights: Weights) -> list[NodeProto]:
    """The products of the graph with a constant second factor that is worth quantising."""
    return [
        node
        for node in graph.node
        if node.op_type in ("MatMul", "Gemm")
        and node.input[1] in weights
        and weights[node.input[1]].ndim == 2
        and weights[node.input[1]].size >= SMALLEST_PRODUCT
    ]


def _steps(
    model: ModelProto, weights: Weights, calibration: Iterator[dict[str, NDArray[Any]]]
) -> dict[str, Steps]:
    """The steps of each product's input, from the mean of the batches' ranges."""
    seen = ModelProto()
    seen.CopyFrom(model)
    names = [
        name
        for loop in seen.graph.node
        if loop.op_type == "Loop"
        for name in _expose(loop, seen.graph, weights)
    ]
    if not names:
        return {}  # a session that is asked for no output gives all of them
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(
        seen.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for inputs in calibration:
        values = session.run([_seen(name) for name in names], inputs)
        for name, value in zip(names, values, strict=True):
            found[name].append((float(value.min()), float(value.max())))
    return {name: Steps.of(*np.mean(spans, axis=0).tolist()) for name, spans in found.items()}


def _expose(loop: NodeProto, graph: GraphProto, weights: Weights) -> list[str]:
    """Makes the inputs of the body's products outputs of the model; returns their names."""
    body = body_of(loop)
    names = list(dict.fromkeys(node.input[0] for node in large_products(body, weights)))
    for name in names:
        once, seen = f"{_seen(name)}.once", _seen(name)
        body.node.append(helper.make_node("Identity", [name], [once]))
        body.output.append(helper.make_tensor_value_info(once, TensorProto.FLOAT, None))
        loop.output.append(seen)
        graph.output.append(helper.make_tensor_value_info(seen, TensorProto.FLOAT, None))
    return names


def _seen(name: str) -> str:
    return f"{name}.seen"


def _quantise(body: GraphProto, weights: Weights, steps: dict[str, Steps]) -> None:
    """Rewrites the body; scales and int8 weights become its own constants.

    A runtime packs what it knows to be constant, and may not look for that outside the body.
    """
    products = {node.output[0] for node in large_products(body, weights)}
    nodes: list[NodeProto] = []
    quantised: set[str] = set()
    for node in body.node:
        if node.output[0] not in products:
            nodes.append(node)
            continue
        name = node.input[0]
        if name not in quantised:
            nodes.append(_activation(name, steps[name], body))
            quantised.add(name)
        nodes += _product(node, weights[node.input[1]], steps[name], body)
    del body.node[:]
    body.node.extend(nodes)


def _activation(name: str, steps: Steps, body: GraphProto) -> NodeProto:
    """The node that puts the tensor on its steps."""
    scale, zero = _constants(body, name, scale=np.array(steps.scale), zero=steps.zero)
    return helper.make_node("QuantizeLinear", [name, scale, zero], [f"{name}.int8"])


def _product(
    node: NodeProto, weight: NDArray[Any], steps: Steps, body: GraphProto
) -> list[NodeProto]:
    """The product in whole numbers, scaled back to float32; a Gemm's bias after it.

    Not as QDQ: ONNX Runtime would join product and bias to a Gemm and run that in float32. Only
    the Gemm of a linear layer is met here: alpha and beta are 1.
    """
    if any(attribute.name == "transB" and attribute.i for attribute in node.attribute):
        weight = weight.T
    scale = np.maximum(np.abs(weight).max(axis=0), _SMALLEST).astype(np.float32) / 127
    read, output = node.input[0], node.output[0]
    values, zeros, back = _constants(
        body,
        f"{output}.weight",
        values=np.clip(np.round(weight / scale), -127, 127).astype(np.int8),
        zeros=np.zeros(len(scale), np.int8),
        scale=scale * steps.scale,
    )
    whole, real, product = f"{output}.whole", f"{output}.real", f"{output}.product"
    bias = list(node.input[2:])
    nodes = [
        helper.make_node("MatMulInteger", [f"{read}.int8", values, f"{read}.zero", zeros], [whole]),
        helper.make_node("Cast", [whole], [real], to=TensorProto.FLOAT),
        helper.make_node("Mul", [real, back], [product if bias else output]),
    ]
    if bias:
        nodes.append(helper.make_node("Add", [product, *bias], [output]))
    return nodes


def _constants(graph: GraphProto, name: str, **values: NDArray[Any]) -> list[str]:
    """Adds constants to the graph; returns their names."""
    names = [f"{name}.{suffix}" for suffix in values]
    for full, value in zip(names, values.values(), strict=True):
        graph.initializer.append(numpy_helper.from_array(value, full))
    return names


def _drop_unread(model: ModelProto) -> None:
    """Removes weights that no node reads any more."""
    read = set(_read(model.graph))
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def _read(graph: GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _read(attribute.g)
    yield from (output.name for output in graph.output)
