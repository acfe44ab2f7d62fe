"""int8 from a float32 graph: convolutions and large matrix products, with ranges of real tiles.

Static QDQ: the ranges of the activations are learnt from training tiles, weights have a scale for
each channel. Ranges taken at run time would be those of the whole batch, and the answer about a
tile would depend on the tiles that happen to run beside it. The outputs of products stay float32:
the activations of a transformer have outliers that a range could not hold. Small products gain
nothing and are left alone.
Source: Jacob et al., Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference (CVPR 2018).
"""

import contextlib
import io
import logging
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from export.int8_loop import large_products, quantise_loops
from export.onnx_file import save
from export.operators import nodes
from tilesight.errors import ExportError

# What stands in a convolutional block: Clip and Relu vanish into the range of their output.
_BLOCK = ["Conv", "Clip", "Relu", "Add"]
_PRODUCTS = ["MatMul", "Gemm"]

# Asked for anew for each pass over the tiles.
Calibration = Callable[[], Iterator[dict[str, NDArray[Any]]]]


def write_int8(
    source: Path, target: Path, calibration: Calibration, float_convolutions: int
) -> None:
    """Writes the float32 graph as int8, its first convolutions left as they are.

    The first layers see the largest range of values a channel and cost the most precision.

    Raises:
        ExportError: ONNX Runtime cannot quantise the graph.
        OSError: the disk is full.
    """
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".int8-") as name, _quiet():
        prepared, quantised = (Path(name) / f"{step}.onnx" for step in ("prepared", "quantised"))
        try:
            _prepare(source, prepared, calibration)
            _quantise(prepared, quantised, calibration, float_convolutions)
            model = _sorted(quantised)
        except OSError:
            raise
        # The quantiser raises whatever it meets: KeyError, ValueError, classes of its own.
        except Exception as error:
            raise ExportError(f"{source.name} as int8: {error}") from error
        save(model, target)


class _Reader(CalibrationDataReader):  # type: ignore[misc] # onnxruntime has no types
    """Batches of inputs, one after the other, as the quantiser asks for them."""

    def __init__(self, batches: Iterator[dict[str, NDArray[Any]]]) -> None:
        self._batches = batches

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        return next(self._batches, None)


def _prepare(source: Path, target: Path, calibration: Calibration) -> None:
    """Folds constants, float16 weights among them, and quantises what is inside loops."""
    quant_pre_process(source, target, skip_symbolic_shape=True)
    model = onnx.load(target)
    # Sizes that were inferred clash with those that are found next.
    del model.graph.value_info[:]
    model = quantise_loops(model, calibration())
    onnx.save(model, target)


def _quantise(
    source: Path, target: Path, calibration: Calibration, float_convolutions: int
) -> None:
    quantize_static(
        source,
        target,
        _Reader(calibration()),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=[*_BLOCK, *_PRODUCTS],
        nodes_to_exclude=_kept(onnx.load(source).graph, float_convolutions),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        extra_options={
            # The mean of the batches' ranges: one odd tile does not widen the range of all.
            "CalibMovingAverage": True,
            "MatMulConstBOnly": True,
            "OpTypesToExcludeOutputQuantization": _PRODUCTS,
        },
    )


def _kept(graph: onnx.GraphProto, float_convolutions: int) -> list[str]:
    """The nodes that stay float32: the first convolutions, small products, what is no block."""
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    large = {node.name for node in large_products(graph, weights)}
    convolutions = [node.name for node in graph.node if node.op_type == "Conv"]
    names = [node.name for node in graph.node]
    # Behind the last convolution, additions and rectifiers are a transformer's.
    after = names.index(convolutions[-1]) + 1 if convolutions else 0
    return [
        *convolutions[:float_convolutions],
        *(node.name for node in graph.node[after:] if node.op_type in _BLOCK),
        *(node.name for node in graph.node if node.op_type in _PRODUCTS and node.name not in large),
    ]


def _sorted(path: Path) -> onnx.ModelProto:
    """The file's model, each node after those it reads, without imports that no node needs."""
    model = onnx_ir.load(path)
    model.graph.sort()
    proto = onnx_ir.to_proto(model)
    del proto.graph.value_info[:]
    used = {node.domain for node in nodes(proto)}
    kept = [one for one in proto.opset_import if one.domain in used | {""}]
    del proto.opset_import[:]
    proto.opset_import.extend(kept)
    return proto


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser prints its steps, and warns of a preparation that was done."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        # An attention mask, which stays float32, is as large as floats are: its range is infinite.
        errors = np.errstate(over="ignore", invalid="ignore")
        with contextlib.redirect_stdout(io.StringIO()), errors:
            yield
    finally:
        logging.disable(before)
