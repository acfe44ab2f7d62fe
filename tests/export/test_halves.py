from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.halves import store_halves


def chain(weights: Sequence[NDArray[np.float32]]) -> onnx.ModelProto:
    """A graph that multiplies its input by each of the weights."""
    names = ["x", *(f"h{index}" for index in range(len(weights)))]
    nodes = [
        helper.make_node("MatMul", [before, f"w{index}"], [after])
        for index, (before, after) in enumerate(pairwise(names))
    ]
    tensors = [numpy_helper.from_array(w, f"w{index}") for index, w in enumerate(weights)]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "chain",
        [value("x", TensorProto.FLOAT, ["n", weights[0].shape[0]])],
        [value(names[-1], TensorProto.FLOAT, ["n", weights[-1].shape[1]])],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(model: onnx.ModelProto, x: NDArray[np.float32]) -> NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {"x": x})
    return np.asarray(found)


def types(model: onnx.ModelProto) -> dict[str, int]:
    return {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def random(*shape: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def exact(*shape: int, seed: int) -> NDArray[np.float32]:
    return random(*shape, seed=seed).astype(np.float16).astype(np.float32)


def test_only_weights_that_lose_nothing_become_halves() -> None:
    almost = exact(16, 16, seed=2)
    almost[7, 7] += np.float32(2**-20)
    too_large = np.full((16, 16), 70000, dtype=np.float32)
    small = exact(16, 2, seed=3)  # not worth a node
    model = chain([exact(16, 16, seed=0), random(16, 16, seed=1), almost, too_large, small])
    assert store_halves(model) == 256 / (4 * 256 + 32)
    onnx.checker.check_model(model, full_check=True)
    assert types(model) == {
        "w0.float16": TensorProto.FLOAT16,
        "w1": TensorProto.FLOAT,
        "w2": TensorProto.FLOAT,
        "w3": TensorProto.FLOAT,
        "w4": TensorProto.FLOAT,
    }


def test_the_outputs_stay_the_same_to_the_last_bit_and_the_file_shrinks(tmp_path: Path) -> None:
    weights = [exact(64, 64, seed=0), exact(64, 32, seed=1)]
    whole, halved = chain(weights), chain(weights)
    assert store_halves(halved) == 1
    x = random(5, 64, seed=9)
    assert np.array_equal(run(halved, x), run(whole, x))
    assert halved.ByteSize() < 0.6 * whole.ByteSize()


def test_whole_numbers_are_left_alone() -> None:
    model = chain([random(16, 16, seed=0)])
    numbers = np.arange(1000, dtype=np.int64)
    model.graph.initializer.append(numpy_helper.from_array(numbers, "numbers"))
    assert store_halves(model) == 0
    assert types(model)["numbers"] == TensorProto.INT64


def test_all_weights_are_rounded_where_that_is_asked_for() -> None:
    too_large = np.full((16, 16), 70000, dtype=np.float32)
    small = random(16, 2, seed=3)
    whole = [exact(16, 16, seed=0), random(16, 16, seed=1), too_large, small]
    model = chain(whole)
    assert store_halves(model, rounding=True) == 512 / (3 * 256 + 32)
    assert types(model) == {
        "w0.float16": TensorProto.FLOAT16,
        "w1.float16": TensorProto.FLOAT16,
        "w2": TensorProto.FLOAT,
        "w3": TensorProto.FLOAT,
    }
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert np.array_equal(stored["w1.float16"], whole[1].astype(np.float16))


def test_rounded_weights_answer_nearly_the_same() -> None:
    weights = [random(64, 64, seed=0) / 8, random(64, 32, seed=1) / 8]
    rounded = chain(weights)
    assert store_halves(rounded, rounding=True) == 1
    x = random(5, 64, seed=9)
    gaps = np.abs(run(rounded, x) - run(chain(weights), x))
    assert 0 < gaps.max() < 5e-3
