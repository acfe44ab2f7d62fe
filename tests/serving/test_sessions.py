"""What a graph may bring along into the process."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from serving.sessions import CPU, OrtSession
from tilesight.errors import BundleError

MANY = 4096


def with_data_outside(location: str) -> bytes:
    """A graph that adds numbers of a file to x; so many that they are not looked at beforehand."""
    outside = TensorProto(
        name="w", data_type=TensorProto.FLOAT, dims=[MANY], data_location=TensorProto.EXTERNAL
    )
    for key, value in (("location", location), ("offset", "0"), ("length", str(4 * MANY))):
        outside.external_data.add(key=key, value=value)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [MANY]) for name in "xy")
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    graph = helper.make_graph(nodes, "outside", [x], [y], [outside])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    made.ir_version = 9
    assert onnx.load_from_string(made.SerializeToString()).graph.initializer[0].external_data
    return made.SerializeToString()


@pytest.mark.parametrize("absolute", [False, True])
def test_data_outside_of_the_graph_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, absolute: bool
) -> None:
    data = tmp_path / "data.bin"
    np.arange(MANY, dtype=np.float32).tofile(data)
    monkeypatch.chdir(tmp_path)
    graph = with_data_outside(str(data) if absolute else data.name)
    with pytest.raises(BundleError, match="External data path"):
        OrtSession(graph, None, 1, [CPU])
