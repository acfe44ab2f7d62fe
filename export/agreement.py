"""Whether a `config.pbtxt` says what the graph is that it stands for."""

from collections.abc import Iterable, Sequence

import numpy as np
from onnx import GraphProto, ValueInfoProto, helper
from tritonclient.grpc import model_config_pb2 as triton
from tritonclient.utils import triton_to_np_dtype

from tilesight.triton_config import BACKEND

_TYPE_PREFIX = "TYPE_"


def config_problems(config: triton.ModelConfig, graph: GraphProto, gpu: bool) -> list[str]:
    """Each disagreement as a sentence that names the field of the configuration."""
    problems = []
    if config.backend != BACKEND:
        problems.append(f"backend is {config.backend!r}, a graph in ONNX needs {BACKEND!r}")
    if not gpu and any(g.kind == triton.ModelInstanceGroup.KIND_GPU for g in config.instance_group):
        problems.append("instance_group asks for a GPU (KIND_GPU), and there is none")
    weights = {tensor.name for tensor in graph.initializer}
    given = [value for value in graph.input if value.name not in weights]
    batched = config.max_batch_size > 0
    problems += _tensor_problems("input", config.input, given, batched)
    problems += _tensor_problems("output", config.output, graph.output, batched)
    return problems


def _tensor_problems(
    field: str,
    promised: Iterable[triton.ModelInput | triton.ModelOutput],
    found: Iterable[ValueInfoProto],
    batched: bool,
) -> list[str]:
    tensors = {value.name: value for value in found}
    names = [entry.name for entry in promised]
    if set(names) != set(tensors):
        return [f"{field} names {sorted(names)}, the graph has {sorted(tensors)}"]
    problems = []
    for entry in promised:
        value = tensors[entry.name]
        problems += _type_problem(f"{field} {entry.name}", entry.data_type, value)
        problems += _shape_problem(f"{field} {entry.name}", entry.dims, value, batched)
    return problems


def _type_problem(field: str, data_type: int, value: ValueInfoProto) -> list[str]:
    name = triton.DataType.Name(data_type)
    promised = triton_to_np_dtype(name.removeprefix(_TYPE_PREFIX))
    elem_type = value.type.tensor_type.elem_type
    if elem_type not in helper.get_all_tensor_dtypes():
        return [f"{field} is {name}, the graph has no type for it"]
    found = helper.tensor_dtype_to_np_dtype(elem_type)
    if promised is not None and np.dtype(promised) == found:
        return []
    return [f"{field} is {name}, the graph has {found}"]


def _shape_problem(
    field: str, dims: Sequence[int], value: ValueInfoProto, batched: bool
) -> list[str]:
    """Whether the sizes agree; -1 stands for a size that a graph leaves open."""
    shape = [
        d.dim_value if d.HasField("dim_value") else -1 for d in value.type.tensor_type.shape.dim
    ]
    if batched and shape[:1] != [-1]:
        return [f"{field} is batched, the graph fixes its batch: {shape}"]
    sizes = shape[1:] if batched else shape
    if list(dims) == sizes:
        return []
    return [f"{field} has dims {list(dims)}, the graph has {sizes}"]
