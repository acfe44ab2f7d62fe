"""From a torch module to an ONNX file, and what the file says of itself."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from export.halves import store_halves
from export.runner import Outputs, Runner, TorchRunner
from tilesight.errors import ExportError
from tilesight.files import written_whole
from tilesight.manifest import TensorSpec

OPSET = 20
# Opset 20 came with ONNX 1.15, IR version 10 with 1.16: ONNX Runtime reads both since 1.18.
IR_VERSION = 10
MINIMUM_ONNXRUNTIME = "1.18"
# What the free axis is called in the file.
BATCH = "batch"

_DTYPES: dict[int, Literal["uint8", "bool", "int32", "int64", "float32"]] = {
    onnx.TensorProto.UINT8: "uint8",
    onnx.TensorProto.BOOL: "bool",
    onnx.TensorProto.INT32: "int32",
    onnx.TensorProto.INT64: "int64",
    onnx.TensorProto.FLOAT: "float32",
}


@dataclass(frozen=True)
class Source:
    """A module with example inputs (batch first in each) and the names of its tensors."""

    module: nn.Module
    examples: tuple[Tensor, ...]
    inputs: Sequence[str]
    outputs: Sequence[str]
    eager: nn.Module | None = None  # what computes the same without export; the module itself

    @property
    def torch(self) -> TorchRunner:
        """The network in torch, as it was trained."""
        return TorchRunner(self.eager or self.module, self.inputs, self.outputs)


def write_onnx(source: Source, path: Path, half_weights: bool = False) -> float:
    """Writes the module as ONNX with a free batch size; returns the share of float16 weights.

    Weights that are float16 numbers are stored as such; `half_weights` rounds all the others too.

    Raises:
        ExportError: torch cannot express the module, or the file fails ONNX's own check.
    """
    batch = torch.export.Dim(BATCH, min=1, max=1024)
    with warnings.catch_warnings(), torch.no_grad():
        # The exporter warns of its own internals; the comparison decides what is right.
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                source.module.eval(),
                source.examples,
                dynamo=True,
                dynamic_shapes=tuple({0: batch} for _ in source.examples),
                input_names=list(source.inputs),
                output_names=list(source.outputs),
                opset_version=OPSET,
                external_data=False,
                verbose=False,
            )
        except Exception as error:
            raise ExportError(f"{type(source.module).__name__}: {error}") from error
    if program is None:
        raise ExportError(f"{type(source.module).__name__}: the exporter returned nothing")
    model = program.model_proto
    halves = store_halves(model, rounding=half_weights)
    save(model, path)
    return halves


def save(model: onnx.ModelProto, path: Path) -> None:
    """Writes the model in our IR version, checked, without what is known of the build.

    Raises:
        ExportError: the model fails ONNX's own check.
    """
    _forget_the_build(model)
    model.ir_version = IR_VERSION
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{path.name}: {error}") from error
    with written_whole(path) as temporary:
        onnx.save(model, temporary)


def _forget_the_build(model: onnx.ModelProto) -> None:
    """Drops stack traces and documentation: they hold paths of the machine that exported."""
    # Any: functions and graphs share these fields and no type.
    graphs: list[Any] = [model.graph, *model.functions]
    while graphs:
        graph = graphs.pop()
        graph.doc_string = ""
        del graph.metadata_props[:]
        for value in (*getattr(graph, "value_info", ()), *getattr(graph, "initializer", ())):
            del value.metadata_props[:]
            value.doc_string = ""
        for node in graph.node:
            node.doc_string = ""
            del node.metadata_props[:]
            graphs.extend(a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH)


def tensor_specs(
    path: Path,
) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """The inputs and outputs of an ONNX file; -1 stands for the batch."""
    graph = onnx.load(path, load_external_data=False).graph
    return [_spec(value) for value in graph.input], [_spec(value) for value in graph.output]


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    if tensor.elem_type not in _DTYPES:
        kind = onnx.TensorProto.DataType.Name(tensor.elem_type)
        raise ExportError(f"{value.name}: no tensor of type {kind} is served")
    shape = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim]
    if shape[:1] != [-1] or -1 in shape[1:]:
        raise ExportError(f"{value.name}: shape {shape}; the first axis alone may be free")
    return TensorSpec(name=value.name, dtype=_DTYPES[tensor.elem_type], shape=shape)


class Session(Runner):
    """A written ONNX file in ONNX Runtime, on the CPU."""

    def __init__(self, path: Path, threads: int = 0, fixed_batch: int | None = None) -> None:
        """A session with this many threads (0: all cores), its batch left free or fixed."""
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        # As in service; and forms that take turns must not spin on each other's cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if fixed_batch is not None:
            options.add_free_dimension_override_by_name(BATCH, fixed_batch)
        self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(self, **inputs: NDArray[Any]) -> Outputs:
        """The outputs by name for one batch."""
        names = [output.name for output in self._session.get_outputs()]
        values = cast(list[NDArray[Any]], self._session.run(names, inputs))
        return dict(zip(names, values, strict=True))
