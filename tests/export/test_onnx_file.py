from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from export.onnx_file import OPSET, Session, Source, tensor_specs, write_onnx
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
