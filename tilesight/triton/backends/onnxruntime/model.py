"""Triton's `onnxruntime` backend where the official image cannot run: ONNX Runtime in Python.

The Python backend's stub process loads this file, in the environment that `tilesight triton
--install` makes; nothing of Tilesight is there. The repository stays as the official backend reads
it: `backend: "onnxruntime"`, `<version>/model.onnx`, the same parameters for threads. One thing
comes on top: a parameter `sha256.<version>` has to be the hash of that version's file.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found] # in the stub
from numpy.typing import NDArray

_MODEL_NAME = "model.onnx"
_FATAL_ONLY = 4
_TYPES = {
    "TYPE_UINT8": "tensor(uint8)",
    "TYPE_BOOL": "tensor(bool)",
    "TYPE_INT32": "tensor(int32)",
    "TYPE_INT64": "tensor(int64)",
    "TYPE_FP32": "tensor(float)",
}


class _Asked(NamedTuple):
    """One request: its place among those of the call, its tensors, the outputs it wants."""

    place: int
    inputs: Mapping[str, NDArray[Any]]
    outputs: Sequence[str]

    @property
    def rows(self) -> int:
        return len(next(iter(self.inputs.values())))

    @property
    def kind(self) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
        """What has to be equal for two requests to share a run: names, types, inner sizes."""
        return tuple(
            (name, value.dtype.str, value.shape[1:]) for name, value in sorted(self.inputs.items())
        )


class TritonPythonModel:
    """One instance of one version; Triton finds the class by this name."""

    @staticmethod
    def auto_complete_config(config: Any) -> Any:  # noqa: ANN401
        """The configuration as it was written: it is generated, and nothing here knows better."""
        return config

    def initialize(self, args: Mapping[str, str]) -> None:
        """Opens the version's graph after holding it against the configuration."""
        config = json.loads(args["model_config"])
        version = args["model_version"]
        name = config.get("default_model_filename") or _MODEL_NAME
        path = Path(args["model_repository"]) / version / name
        graph = path.read_bytes()
        _check_digest(path, graph, _parameter(config, f"sha256.{version}"))
        # From the bytes that were hashed: what stands beside the file (external data) is not read.
        self._session = ort.InferenceSession(
            graph, _session_options(config), providers=["CPUExecutionProvider"]
        )
        batched = config["max_batch_size"] > 0
        _check_tensors(path, "input", config["input"], self._session.get_inputs(), batched)
        _check_tensors(path, "output", config["output"], self._session.get_outputs(), batched)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response a request, in their order; requests of one kind share a run."""
        responses: dict[int, Any] = {}
        kinds: dict[Any, list[_Asked]] = {}
        for place, request in enumerate(requests):
            if request.is_cancelled():
                responses[place] = _failed("cancelled", pb_utils.TritonError.CANCELLED)
                continue
            asked = _read(place, request)
            kinds.setdefault(asked.kind, []).append(asked)
        for together in kinds.values():
            responses.update(self._answer(together))
        return [responses[place] for place in range(len(requests))]

    def finalize(self) -> None:
        """Frees the graph before the interpreter ends."""
        del self._session

    def _answer(self, together: Sequence[_Asked]) -> Iterator[tuple[int, Any]]:
        """Responses by place; where the shared run fails, each request runs and fails alone."""
        try:
            responses = self._run(together)
        # ONNX Runtime raises its own classes, all of them straight from Exception.
        except Exception as error:
            if len(together) == 1:
                yield together[0].place, _failed(f"ONNX Runtime: {error}")
                return
            for asked in together:
                yield from self._answer([asked])
            return
        yield from zip((asked.place for asked in together), responses, strict=True)

    def _run(self, together: Sequence[_Asked]) -> list[Any]:
        inputs = {
            name: _joined([asked.inputs[name] for asked in together]) for name in together[0].inputs
        }
        wanted = sorted({name for asked in together for name in asked.outputs})
        values = dict(zip(wanted, self._session.run(wanted, inputs), strict=True))
        rows = sum(asked.rows for asked in together)
        for name, value in values.items():
            if len(together) > 1 and value.shape[:1] != (rows,):
                raise ValueError(f"{name}: {value.shape} for a batch of {rows}")
        return list(_split(together, values))


def _read(place: int, request: Any) -> _Asked:  # noqa: ANN401
    inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
    return _Asked(place, inputs, list(request.requested_output_names()))


def _joined(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _split(together: Sequence[_Asked], values: Mapping[str, NDArray[Any]]) -> Iterator[Any]:
    start = 0
    for asked in together:
        alone = len(together) == 1
        own = {n: values[n] if alone else values[n][start : start + asked.rows] for n in values}
        start += asked.rows
        yield pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, own[name]) for name in asked.outputs]
        )


def _failed(message: str, code: Any = None) -> Any:  # noqa: ANN401
    error = pb_utils.TritonError(message, code or pb_utils.TritonError.INTERNAL)
    return pb_utils.InferenceResponse(output_tensors=[], error=error)


def _parameter(config: Mapping[str, Any], name: str) -> str | None:
    value = config["parameters"].get(name)
    return None if value is None else str(value["string_value"])


def _session_options(config: Mapping[str, Any]) -> ort.SessionOptions:
    options = ort.SessionOptions()
    # 0 is ONNX Runtime's own choice, which is also what the official backend falls back to.
    options.intra_op_num_threads = int(_parameter(config, "intra_op_thread_count") or 0)
    options.inter_op_num_threads = int(_parameter(config, "inter_op_thread_count") or 0)
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    # What matters arrives as an exception.
    options.log_severity_level = _FATAL_ONLY
    return options


def _check_digest(path: Path, graph: bytes, promised: str | None) -> None:
    """Refuses a file that is not the one which the configuration was generated for."""
    found = hashlib.sha256(graph).hexdigest()
    if promised is not None and found != promised:
        raise pb_utils.TritonModelException(
            f"{path}: sha256 is {found}, config.pbtxt says {promised}"
        )


def _check_tensors(
    path: Path,
    side: str,
    configured: Sequence[Mapping[str, Any]],
    found: Sequence[ort.NodeArg],
    batched: bool,
) -> None:
    """Refuses a configuration whose tensors differ from the graph's in name, type or size."""
    nodes = {node.name: node for node in found}
    names = {tensor["name"] for tensor in configured}
    # Outputs may stay unused; an input has to come from somewhere.
    if not names <= set(nodes) or (side == "input" and names != set(nodes)):
        raise pb_utils.TritonModelException(
            f"{path}: {side}s are {sorted(nodes)}, config.pbtxt says {sorted(names)}"
        )
    for tensor in configured:
        node = nodes[tensor["name"]]
        dims = [-1] * batched + [int(size) for size in tensor["dims"]]
        shape = [size if isinstance(size, int) else -1 for size in node.shape]
        if node.type != _TYPES.get(tensor["data_type"]) or not _same_shape(shape, dims):
            raise pb_utils.TritonModelException(
                f"{path}: {side} {node.name} is {node.type} {shape}, "
                f"config.pbtxt says {tensor['data_type']} {dims}"
            )


def _same_shape(found: Sequence[int], configured: Sequence[int]) -> bool:
    """Whether the sizes agree; what either side leaves open agrees with everything."""
    return len(found) == len(configured) and all(
        -1 in (size, wanted) or size == wanted
        for size, wanted in zip(found, configured, strict=True)
    )
