from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from export.int8 import write_int8
from export.onnx_file import Session, save, write_onnx
from tests.export.parts import Convolutions, Products, TinyPart
from tilesight.errors import ExportError

Inputs = dict[str, NDArray[Any]]
WIDTH = 128


def random(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def feeding(*batches: Inputs) -> Callable[[], Iterator[Inputs]]:
    """A calibration that gives these batches each time it is asked."""
    return lambda: iter(batches)


def quantised(part: TinyPart, folder: Path, float_convolutions: int = 0) -> Path:
    write_onnx(part.source, folder / "float.onnx")
    write_int8(folder / "float.onnx", folder / "int8.onnx", part.calibration, float_convolutions)
    return folder / "int8.onnx"


def all_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from all_nodes(attribute.g)


def weights_of(graph: GraphProto, op: str) -> list[int]:
    """The type in which the file holds the second input of each node of this kind, in order."""
    stored = {tensor.name: tensor.data_type for tensor in graph.initializer}
    behind = {
        node.output[0]: stored.get(node.input[0])
        for node in graph.node
        if node.op_type == "DequantizeLinear"
    }
    return [
        behind[node.input[1]] if node.input[1] in behind else stored[node.input[1]]
        for node in graph.node
        if node.op_type == op
    ]


def activation_scales(graph: GraphProto) -> list[float]:
    """The scales of all QuantizeLinear nodes; each has to be a constant."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    return [
        float(constants[node.input[1]].max())
        for node in graph.node
        if node.op_type == "QuantizeLinear"
    ]


def test_convolutions_and_large_products_have_int8_weights_and_small_ones_have_not(
    tmp_path: Path,
) -> None:
    graph = onnx.load(quantised(TinyPart(Convolutions()), tmp_path)).graph
    assert weights_of(graph, "Conv") == [TensorProto.INT8] * 2
    assert weights_of(graph, "Gemm") == [TensorProto.INT8, TensorProto.FLOAT]


@pytest.mark.parametrize("count", [1, 2, 9])
def test_the_first_convolutions_can_stay_float32(count: int, tmp_path: Path) -> None:
    graph = onnx.load(quantised(TinyPart(Convolutions()), tmp_path, count)).graph
    whole = min(count, 2)
    expected = [TensorProto.FLOAT] * whole + [TensorProto.INT8] * (2 - whole)
    assert weights_of(graph, "Conv") == expected
    assert weights_of(graph, "Gemm")[0] == TensorProto.INT8


def test_a_graph_without_convolutions_is_quantised_too(tmp_path: Path) -> None:
    part = TinyPart(Products())
    path = quantised(part, tmp_path)
    graph = onnx.load(path).graph
    kinds = weights_of(graph, "Gemm") + weights_of(graph, "MatMul")
    assert sorted(kinds) == [TensorProto.FLOAT, TensorProto.INT8, TensorProto.INT8]
    near(path, part)


@pytest.mark.parametrize("network", [Convolutions, Products])
def test_the_ranges_are_those_of_the_calibration_tiles(
    network: type[Convolutions] | type[Products], tmp_path: Path
) -> None:
    part = TinyPart(network())
    write_onnx(part.source, tmp_path / "float.onnx")
    found = {}
    for name, brightness in (("full", 255), ("dim", 140)):
        tiles = (part.tiles["train"] // (255 / brightness)).astype(np.uint8)
        path = tmp_path / f"{name}.onnx"
        write_int8(tmp_path / "float.onnx", path, feeding({"tiles": tiles}), 0)
        found[name] = activation_scales(onnx.load(path).graph)
    assert len(found["full"]) == len(found["dim"]) > 0
    assert found["dim"][0] < found["full"][0]


@pytest.mark.parametrize("network", [Convolutions, Products])
def test_the_answer_about_a_tile_does_not_depend_on_the_tiles_beside_it(
    network: type[Convolutions] | type[Products], tmp_path: Path
) -> None:
    part = TinyPart(network())
    session = Session(quantised(part, tmp_path))
    tiles = part.tiles["test"]
    bright = np.full_like(tiles, 255)
    alone = session.run(tiles=tiles[:1])["scores"]
    beside = session.run(tiles=np.concatenate([tiles[:1], bright]))["scores"][:1]
    np.testing.assert_allclose(alone, beside, atol=1e-6)


def near(path: Path, part: TinyPart) -> None:
    tiles = part.tiles["test"]
    own = part.source.torch.run(tiles=tiles)["scores"]
    gaps = np.abs(Session(path).run(tiles=tiles)["scores"] - own)
    assert 0 < gaps.max() < 0.05


def test_the_answers_stay_near(tmp_path: Path) -> None:
    part = TinyPart(Convolutions())
    near(quantised(part, tmp_path), part)


# Graphs by hand


def written(graph: GraphProto, path: Path) -> Path:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    save(model, path)
    return path


def value(name: str, *shape: int | str, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, list(shape))


def loop_graph(width: int) -> GraphProto:
    """Three times x := tanh(gain * (x W + b)) + x V, where gain is computed outside the loop."""
    body = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "W", "b"], ["product"], transB=1),
            helper.make_node("Mul", ["product", "gain"], ["scaled"]),
            helper.make_node("Tanh", ["scaled"], ["bounded"]),
            helper.make_node("MatMul", ["x", "V"], ["other"]),
            helper.make_node("Add", ["bounded", "other"], ["next"]),
            helper.make_node("Identity", ["more"], ["more_next"]),
        ],
        "step",
        [
            value("index", kind=TensorProto.INT64),
            value("more", kind=TensorProto.BOOL),
            value("x", "n", width),
        ],
        [value("more_next", kind=TensorProto.BOOL), value("next", "n", width)],
    )
    nodes = [
        helper.make_node("ReduceMax", ["start"], ["largest"], keepdims=0),
        helper.make_node("Sigmoid", ["largest"], ["gain"]),
        helper.make_node("Loop", ["three", "yes", "start"], ["end"], body=body),
        helper.make_node("MatMul", ["end", "small"], ["y"]),
    ]
    for index, node in enumerate([*nodes, *body.node]):
        node.name = f"{node.op_type}{index}"
    scale = np.float32(width**-0.5)
    return helper.make_graph(
        nodes,
        "recurrent",
        [value("start", "n", width)],
        [value("y", "n", 2)],
        [
            numpy_helper.from_array(random(width, width, seed=1) * scale, "W"),
            numpy_helper.from_array(random(width, seed=2), "b"),
            numpy_helper.from_array(random(width, width, seed=3) * scale / 4, "V"),
            numpy_helper.from_array(random(width, 2, seed=4), "small"),
            numpy_helper.from_array(np.array(3), "three"),
            numpy_helper.from_array(np.array(True), "yes"),
        ],
    )


def body_types(path: Path) -> dict[str, int]:
    """The types of the constants, of the model and of its loop's body, of two dimensions."""
    graph = onnx.load(path).graph
    (loop,) = (node for node in graph.node if node.op_type == "Loop")
    body = next(attribute.g for attribute in loop.attribute if attribute.name == "body")
    return {
        tensor.name: tensor.data_type
        for tensor in (*graph.initializer, *body.initializer)
        if len(tensor.dims) == 2
    }


def test_products_inside_a_loop_are_quantised(tmp_path: Path) -> None:
    source = written(loop_graph(WIDTH), tmp_path / "float.onnx")
    target = tmp_path / "int8.onnx"
    write_int8(source, target, feeding({"start": random(16, WIDTH, seed=7)}), 0)
    kinds = sorted(body_types(target).values())
    assert kinds == [TensorProto.FLOAT, TensorProto.INT8, TensorProto.INT8]
    start = random(5, WIDTH, seed=8)
    whole, small = Session(source).run(start=start)["y"], Session(target).run(start=start)["y"]
    assert 0 < np.abs(whole - small).max() < 0.1 * np.abs(whole).max()
    # The float weights are gone.
    assert target.stat().st_size < 0.5 * source.stat().st_size
    alone = Session(target).run(start=start[:1])["y"]
    assert alone.shape == (1, 2)


def test_small_products_inside_a_loop_are_left_alone(tmp_path: Path) -> None:
    source = written(loop_graph(WIDTH // 2), tmp_path / "float.onnx")
    target = tmp_path / "int8.onnx"
    write_int8(source, target, feeding({"start": random(16, WIDTH // 2, seed=7)}), 0)
    assert set(body_types(target).values()) == {TensorProto.FLOAT}
    start = random(5, WIDTH // 2, seed=8)
    np.testing.assert_allclose(
        Session(target).run(start=start)["y"], Session(source).run(start=start)["y"], rtol=1e-5
    )


def test_what_a_loop_reads_from_outside_stays_before_it(tmp_path: Path) -> None:
    # ONNX's check, which the writer makes, refuses a file in another order; here it is asked for.
    source = written(loop_graph(WIDTH), tmp_path / "float.onnx")
    target = tmp_path / "int8.onnx"
    write_int8(source, target, feeding({"start": random(16, WIDTH, seed=7)}), 0)
    nodes = list(onnx.load(target).graph.node)
    (loop,) = (index for index, node in enumerate(nodes) if node.op_type == "Loop")
    (gain,) = (index for index, node in enumerate(nodes) if "gain" in node.output)
    assert gain < loop


def shared_graph(reader: NodeProto, *outputs: onnx.ValueInfoProto) -> GraphProto:
    """Two linear layers; somebody else reads the weights W of the first, too."""
    first = helper.make_node("Gemm", ["x", "W", "b"], ["h"], "first", transB=1)
    last = helper.make_node("Gemm", ["h", "V"], ["y"], "last", transB=1)
    return helper.make_graph(
        [first, last, reader],
        "shared",
        [value("x", "n", WIDTH), value("ids", "n", kind=TensorProto.INT64)],
        [value("y", "n", WIDTH), *outputs],
        [
            numpy_helper.from_array(random(WIDTH, WIDTH, seed=1) / 8, "W"),
            numpy_helper.from_array(random(WIDTH, seed=2), "b"),
            numpy_helper.from_array(random(WIDTH, WIDTH, seed=3) / 8, "V"),
        ],
    )


@pytest.mark.parametrize(
    "reader",
    [
        helper.make_node("Gather", ["W", "ids"], ["z"], "reader", axis=0),
        helper.make_node("Gemm", ["x", "W"], ["z"], "reader", transB=1),
    ],
    ids=["gather", "gemm"],
)
def test_weights_that_two_nodes_share_are_not_damaged(reader: NodeProto, tmp_path: Path) -> None:
    graph = shared_graph(reader, value("z", "n", WIDTH))
    source = written(graph, tmp_path / "float.onnx")
    target = tmp_path / "int8.onnx"
    batch = {"x": random(64, WIDTH, seed=7), "ids": np.arange(64)}
    write_int8(source, target, feeding(batch), 0)
    asked = {"x": random(5, WIDTH, seed=8), "ids": np.array([3, 1, 4, 1, 5])}
    whole, small = Session(source).run(**asked), Session(target).run(**asked)
    for name in ("y", "z"):
        assert np.abs(whole[name] - small[name]).max() < 0.05 * np.abs(whole[name]).max(), name


def test_a_product_of_two_computed_values_is_left_alone(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["h"], "by_weights"),
        helper.make_node("Transpose", ["h"], ["t"], "turned", perm=[1, 0]),
        helper.make_node("MatMul", ["h", "t"], ["y"], "by_itself"),
    ]
    graph = helper.make_graph(
        nodes,
        "attention",
        [value("x", "n", WIDTH)],
        [value("y", "n", "n")],
        [numpy_helper.from_array(random(WIDTH, WIDTH) / 8, "W")],
    )
    source = written(graph, tmp_path / "float.onnx")
    write_int8(source, tmp_path / "int8.onnx", feeding({"x": random(16, WIDTH)}), 0)
    written_graph = onnx.load(tmp_path / "int8.onnx").graph
    (by_itself,) = (node for node in written_graph.node if node.name == "by_itself")
    makers = {name: node.op_type for node in written_graph.node for name in node.output}
    assert {makers[name] for name in by_itself.input} == {"MatMul", "Transpose"}


def test_what_cannot_be_quantised_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    source = written(loop_graph(WIDTH), tmp_path / "float.onnx")
    wrong = feeding({"start": random(16, WIDTH + 1)})
    with pytest.raises(ExportError, match=r"float\.onnx as int8: "):
        write_int8(source, tmp_path / "int8.onnx", wrong, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["float.onnx"]


def test_the_file_before_stays_where_a_quantisation_fails(tmp_path: Path) -> None:
    (tmp_path / "float.onnx").write_bytes(b"no graph")
    (tmp_path / "int8.onnx").write_bytes(b"before")
    with pytest.raises(ExportError):
        write_int8(tmp_path / "float.onnx", tmp_path / "int8.onnx", feeding(), 0)
    assert (tmp_path / "int8.onnx").read_bytes() == b"before"
    assert len(list(tmp_path.iterdir())) == 2
