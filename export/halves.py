"""Weights stored as float16: half the file, the same arithmetic; nothing lost unless asked."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# Small tensors are not worth a node.
_SMALLEST = 256


def store_halves(model: onnx.ModelProto, rounding: bool = False) -> float:
    """Rewrites the model in place; returns the share of its weights that are float16 now.

    A float32 weight whose every value is a float16 number is stored as such, and a Cast gives it
    back as float32: the runtime folds the Cast when it loads, and computes what it did before.
    With `rounding`, weights that are no float16 numbers are rounded to the nearest, unless one
    is beyond float16's range.
    """
    graph = model.graph
    stored = total = 0
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        size = int(np.prod(tensor.dims))
        total += size
        if size < _SMALLEST:
            continue
        values = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            halves = values.astype(np.float16)
        exact = np.array_equal(halves.astype(np.float32), values)
        if not exact and not (rounding and np.isfinite(halves).all()):
            continue
        name = tensor.name
        half_name = f"{name}.float16"
        tensor.CopyFrom(numpy_helper.from_array(halves, half_name))
        casts.append(
            helper.make_node("Cast", [half_name], [name], name=f"{name}.cast", to=TensorProto.FLOAT)
        )
        stored += size
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    return stored / total if total else 0.0
