from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from export.batch1 import batch1_speedup, write_batch1
from export.onnx_file import BATCH, Session
from tests.export.conftest import GRAPHS
from tilesight.golden import golden_inputs
from tilesight.manifest import read

ALL_GRAPHS = [graph for graphs in GRAPHS.values() for graph in graphs]


@pytest.fixture(params=ALL_GRAPHS)
def graph(request: pytest.FixtureRequest, repository: Path) -> Path:
    """The version folder of each graph."""
    return repository / request.param / "1"


def of_rows(inputs: dict[str, NDArray[Any]], rows: int) -> dict[str, NDArray[Any]]:
    return {name: np.repeat(value, rows, axis=0) for name, value in inputs.items()}


def test_the_fixed_graph_answers_one_tile_as_the_free_one_and_no_other_number(
    graph: Path, tmp_path: Path
) -> None:
    write_batch1(graph / "model.onnx", tmp_path / "one.onnx")
    inputs = golden_inputs(read(graph))
    free, fixed = Session(graph / "model.onnx"), Session(tmp_path / "one.onnx")
    expected, found = free.run(**inputs), fixed.run(**inputs)
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_allclose(
            found[name].astype(np.float64), value.astype(np.float64), atol=1e-5, err_msg=name
        )
    with pytest.raises(Exception, match=r"Got: 2 Expected: 1"):
        fixed.run(**of_rows(inputs, 2))


def test_the_file_says_that_the_batch_is_one_and_nothing_else_differs(
    graph: Path, tmp_path: Path
) -> None:
    write_batch1(graph / "model.onnx", tmp_path / "one.onnx")
    free, fixed = (onnx.load(path).graph for path in (graph / "model.onnx", tmp_path / "one.onnx"))
    for before, after in zip(
        (*free.input, *free.output), (*fixed.input, *fixed.output), strict=True
    ):
        shapes = [value.type.tensor_type.shape.dim for value in (before, after)]
        assert (shapes[0][0].dim_param, shapes[1][0].dim_value) == (BATCH, 1)
        assert list(shapes[0])[1:] == list(shapes[1])[1:]
    assert [node.op_type for node in fixed.node] == [node.op_type for node in free.node]
    assert len(fixed.initializer) == len(free.initializer)


def test_the_gain_is_a_factor(repository: Path) -> None:
    folder = repository / "spatialnet_vit_head" / "1"
    gain = batch1_speedup(folder / "model.onnx", golden_inputs(read(folder)))
    assert 0.1 < gain < 10
