"""The graph for one tile alone: its batch fixed, so that a runtime can lay out its memory once."""

from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from export.onnx_file import BATCH, Session, save
from export.speed import speedup
from tilesight.cores import usable_cores


def batch1_speedup(path: Path, inputs: dict[str, NDArray[Any]]) -> float:
    """How many times faster the graph answers one tile with its batch fixed to one."""
    free, fixed = (Session(path, usable_cores(), fixed_batch=batch) for batch in (None, 1))
    return speedup(free, fixed, inputs)


def write_batch1(source: Path, target: Path) -> None:
    """Writes the graph with a batch of one."""
    model = onnx.load(source)
    for value in (*model.graph.input, *model.graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param == BATCH:
                dimension.dim_value = 1
    # Sizes inferred for a free batch.
    del model.graph.value_info[:]
    save(model, target)
