from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from export.onnx_file import BATCH, OPSET, Session, Source, save, tensor_specs, write_onnx
from tilesight.errors import ExportError
from tilesight.manifest import TensorSpec


class Scaled(nn.Module):
    """What a tiny served graph does."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(4, dtype=torch.float32))

    def forward(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 2, 4) uint8 -> (B, 2, 4), (B, 2) bool."""
        scaled = tiles.float() * self.weight
        return scaled, scaled.sum(dim=2) > 9


class Refused(nn.Module):
    """What no graph can hold: how often it runs depends on what it sees."""

    def forward(self, tiles: Tensor) -> Tensor:
        """Never comes to this."""
        count = 0
        while float(tiles.float().sum()) > count:
            count += 1
        return tiles.float() + count


EXAMPLES = (torch.zeros(2, 2, 4, dtype=torch.uint8),)


def test_a_written_module_keeps_names_types_and_a_free_batch(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    assert write_onnx(Source(Scaled(), EXAMPLES, ("tiles",), ("scaled", "large")), path) == 0
    assert tensor_specs(path) == (
        [TensorSpec(name="tiles", dtype="uint8", shape=[-1, 2, 4])],
        [
            TensorSpec(name="scaled", dtype="float32", shape=[-1, 2, 4]),
            TensorSpec(name="large", dtype="bool", shape=[-1, 2]),
        ],
    )
    model = onnx.load(path)
    assert (model.opset_import[0].version, model.ir_version) == (OPSET, 10)
    tiles = np.random.default_rng(0).integers(0, 256, (5, 2, 4), dtype=np.uint8)
    found = Session(path).run_in_batches(2, tiles=tiles)
    assert np.array_equal(found["scaled"], tiles * np.arange(4, dtype=np.float32))
    assert np.array_equal(found["large"], found["scaled"].sum(axis=2) > 9)


def test_a_module_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="Refused"):
        write_onnx(Source(Refused(), EXAMPLES, ("tiles",), ("out",)), tmp_path / "model.onnx")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("kind", "shape", "said"),
    [
        (TensorProto.DOUBLE, ["n", 3], "no tensor of type DOUBLE"),
        (TensorProto.FLOAT, ["n", "m"], "the first axis alone may be free"),
        (TensorProto.FLOAT, [2, 3], "the first axis alone may be free"),
    ],
)
def test_a_tensor_that_cannot_be_served_is_named(
    kind: int, shape: list[int | str], said: str, tmp_path: Path
) -> None:
    values = [helper.make_tensor_value_info(name, kind, shape) for name in ("x", "y")]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])], "same", values[:1], values[1:]
    )
    onnx.save(helper.make_model(graph), tmp_path / "model.onnx")
    with pytest.raises(ExportError, match=f"x: .*{said}"):
        tensor_specs(tmp_path / "model.onnx")


def same(shape: list[int | str]) -> onnx.ModelProto:
    """A graph that gives back what it is given."""
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape, doc_string="of here")
        for name in ("x", "y")
    ]
    node = helper.make_node("Identity", ["x"], ["y"], doc_string="File here.py")
    node.metadata_props.add(key="stack", value="File here.py")
    graph = helper.make_graph([node], "same", values[:1], values[1:], doc_string="of here")
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])


def test_a_saved_model_has_our_ir_version_and_forgets_where_it_was_made(tmp_path: Path) -> None:
    save(same([BATCH, 3]), tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    assert model.ir_version == 10
    (node,) = model.graph.node
    assert (node.doc_string, model.graph.doc_string) == ("", "")
    assert not node.metadata_props
    assert b"here.py" not in (tmp_path / "model.onnx").read_bytes()


def test_a_model_that_fails_the_check_is_not_written(tmp_path: Path) -> None:
    model = same([BATCH, 3])
    model.graph.node[0].op_type = "Nonsense"
    with pytest.raises(ExportError, match=r"model\.onnx: .*Nonsense"):
        save(model, tmp_path / "model.onnx")
    assert not any(tmp_path.iterdir())


def test_a_session_can_fix_its_batch(tmp_path: Path) -> None:
    save(same([BATCH, 3]), tmp_path / "model.onnx")
    session = Session(tmp_path / "model.onnx", threads=1, fixed_batch=2)
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert np.array_equal(session.run(x=rows)["y"], rows)
    with pytest.raises(Exception, match="Got: 1 Expected: 2"):
        session.run(x=rows[:1])


def test_weights_are_rounded_where_that_is_asked_for(tmp_path: Path) -> None:
    class Linear(nn.Module):
        """A product whose weights are no float16 numbers."""

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.inner = nn.Linear(32, 32, bias=False)

        def forward(self, x: Tensor) -> tuple[Tensor]:
            return (self.inner(x),)

    source = Source(Linear(), (torch.zeros(2, 32),), ("x",), ("y",))
    assert write_onnx(source, tmp_path / "whole.onnx") == 0
    assert write_onnx(source, tmp_path / "half.onnx", half_weights=True) == 1
    x = np.random.default_rng(0).standard_normal((3, 32)).astype(np.float32)
    own = source.torch.run(x=x)["y"]
    gaps = {
        name: np.abs(Session(tmp_path / f"{name}.onnx").run(x=x)["y"] - own).max()
        for name in ("whole", "half")
    }
    assert gaps["whole"] < 1e-6 < gaps["half"] < 1e-2
