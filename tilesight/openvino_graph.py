"""A graph in OpenVINO, which computes it in bfloat16 where the processor can.

The one place that imports `openvino`. Its Python package reports each import to its vendor, through
a package of its own and a conversion tool that nothing here uses: both are kept from being loaded.
"""

import importlib.util
import queue
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from threading import Lock
from types import ModuleType
from typing import Any, Literal, Protocol, cast

from numpy.typing import NDArray

from tilesight.errors import BundleError, ConfigError
from tilesight.manifest import TensorSpec
from tilesight.processor import flags, has_bfloat16

REMEDY = "pip install 'tilesight[openvino]'"
_TELEMETRY = ("openvino_telemetry", "openvino.tools.ovc")
_DTYPES: dict[str, Literal["uint8", "bool", "int32", "int64", "float32"]] = {
    "u8": "uint8",
    "boolean": "bool",
    "i32": "int32",
    "i64": "int64",
    "f32": "float32",
}


class Stopping(Protocol):
    """What ends a run from another thread."""

    @property
    def asked(self) -> bool:
        """Whether the run was to end early."""

    def arm(self, halt: Callable[[], None]) -> None:
        """From now on `halt` is how the run is ended."""


class StoppedError(RuntimeError):
    """The run was ended before it had an answer."""


def installed() -> bool:
    """Whether the package is here; it is not imported."""
    if "openvino" in sys.modules:
        return sys.modules["openvino"] is not None
    return importlib.util.find_spec("openvino") is not None


def version() -> str:
    """The version of OpenVINO, without its build."""
    return str(_openvino().__version__).partition("-")[0]


class OpenVinoGraph:
    """A compiled graph, for a number of runs at the same time.

    A run of one thread takes place in the thread that asks for it, at that thread's priority; one
    of several in threads that OpenVINO shares among all its graphs. Each of several runs has a
    compiled graph of its own, as one runs once at a time; of the weights they share a part.
    """

    def __init__(
        self,
        graph: bytes,
        threads: int = 1,
        *,
        bfloat16: bool = False,
        runs: int = 1,
        processor: frozenset[str] | None = None,
    ) -> None:
        """Compiles the graph from its bytes.

        Args:
            graph: the ONNX file's content.
            threads: threads of one run.
            bfloat16: whether what the file has in floats is computed in bfloat16. What it has
                in int8 stays int8.
            runs: how many runs can take place at the same time; a further one waits.
            processor: the features of the processor; this machine's where absent.

        Raises:
            BundleError: OpenVINO cannot load it.
            ConfigError: OpenVINO is not installed, or the processor has no bfloat16.
        """
        if bfloat16 and not has_bfloat16(flags() if processor is None else processor):
            raise ConfigError(
                "bfloat16: this processor has neither avx512_bf16 nor amx_bf16; "
                "float32 and int8 run on it"
            )
        compiled = [*_compiled(graph, threads, bfloat16, runs)]
        self.inputs = [_spec(port) for port in compiled[0].inputs]
        self.outputs = [_spec(port) for port in compiled[0].outputs]
        self._ports = {spec.name: index for index, spec in enumerate(self.outputs)}
        # The last one used is the next: its memory is still in the processor's cache.
        self._idle: queue.LifoQueue[Any] = queue.LifoQueue()
        for one in compiled:
            self._idle.put(one.create_infer_request())

    def run(
        self,
        names: Sequence[str],
        inputs: Mapping[str, NDArray[Any]],
        stop: Stopping | None = None,
    ) -> list[NDArray[Any]]:
        """The named outputs of one batch, as arrays of the caller's own.

        Releases the interpreter. `stop` ends the run before its next node; a loop is one node.

        Raises:
            StoppedError: `stop` was asked for.
            ValueError: an input is missing, unknown, or not of the graph's type and shape.
        """
        tensors = self._tensors(inputs)
        with self._request(stop) as request:
            for index, tensor in enumerate(tensors):
                request.set_input_tensor(index, tensor)
            request.infer({}, share_outputs=True)
            return [request.get_output_tensor(self._ports[name]).data.copy() for name in names]

    def _tensors(self, inputs: Mapping[str, NDArray[Any]]) -> list[Any]:
        """The inputs in the graph's order, not copied where they lie in memory as it needs them."""
        if inputs.keys() != {spec.name for spec in self.inputs}:
            wanted = sorted(spec.name for spec in self.inputs)
            raise ValueError(f"inputs are {sorted(inputs)}, the graph has {wanted}")
        return [_tensor(spec, inputs[spec.name]) for spec in self.inputs]

    @contextmanager
    def _request(self, stop: Stopping | None) -> Iterator[Any]:
        """A request that nobody else uses in the block, and that `stop` can end."""
        request = self._idle.get()
        run = _Run(request)
        try:
            if stop is not None:
                stop.arm(run.halt)
            # A request that has not begun cannot be cancelled.
            if _asked(stop):
                raise StoppedError("stopped before it began")
            yield request
        except RuntimeError as error:
            if _asked(stop) and not isinstance(error, StoppedError):
                raise StoppedError("stopped") from error
            raise
        finally:
            run.over()
            self._idle.put(request)


def _asked(stop: Stopping | None) -> bool:
    return stop is not None and stop.asked


class _Run:
    """One use of a request: a halt that comes late must not end the next use."""

    def __init__(self, request: Any) -> None:  # noqa: ANN401 (the package is untyped here)
        self._request = request
        self._lock = Lock()

    def halt(self) -> None:
        with self._lock:
            if self._request is not None:
                self._request.cancel()

    def over(self) -> None:
        with self._lock:
            self._request = None


@cache
def _openvino() -> Any:  # noqa: ANN401 (a module without types)
    """The package, imported without what reports to its vendor."""
    modules = cast(dict[str, ModuleType | None], sys.modules)
    for name in _TELEMETRY:
        modules.setdefault(name, None)
    try:
        import openvino
    except ModuleNotFoundError as error:
        raise ConfigError(f"OpenVINO is not installed: {REMEDY}") from error
    return openvino


@cache
def _core() -> Any:  # noqa: ANN401
    return _openvino().Core()


def _compiled(graph: bytes, threads: int, bfloat16: bool, runs: int) -> Iterator[Any]:
    hint = "bf16" if bfloat16 else "f32"
    settings = {
        # Without it, OpenVINO takes bfloat16 wherever the processor has it.
        "INFERENCE_PRECISION_HINT": hint,
        "INFERENCE_NUM_THREADS": threads,
        # No stream: in the thread that asks. One stream of one thread is there too, and ignores
        # that it is cancelled; several run in threads that OpenVINO starts, or takes over from
        # graphs that are gone, together with their priority.
        "NUM_STREAMS": 0 if threads == 1 else 1,
        # It would bind the threads that ask to a core each.
        "ENABLE_CPU_PINNING": False,
        "CACHE_DIR": "",
    }
    core = _core()
    try:
        model = core.read_model(model=graph, weights=b"")
        for _ in range(runs):
            yield core.compile_model(model, "CPU", settings)
    except RuntimeError as error:
        raise BundleError(f"OpenVINO cannot load it: {_told(error)}") from error


def _told(error: RuntimeError) -> str:
    """What is left of OpenVINO's message without the places in its source."""
    lines = [line.strip() for line in str(error).splitlines()]
    return "; ".join(line for line in lines if line and not line.startswith("Exception from src/"))


def _spec(port: Any) -> TensorSpec:  # noqa: ANN401
    kind = port.element_type.get_type_name()
    if kind not in _DTYPES:
        raise BundleError(f"{port.any_name}: no tensor of type {kind} is served")
    shape = [-1 if size.is_dynamic else size.get_length() for size in port.partial_shape]
    return TensorSpec(name=port.any_name, dtype=_DTYPES[kind], shape=shape)


def _tensor(spec: TensorSpec, values: NDArray[Any]) -> Any:  # noqa: ANN401
    """The values as OpenVINO takes them. It would convert another type without a word."""
    fits = values.ndim == len(spec.shape) and all(
        size > 0 if wanted == -1 else size == wanted
        for size, wanted in zip(values.shape, spec.shape, strict=True)
    )
    if not fits or values.dtype != spec.dtype:
        raise ValueError(
            f"{spec.name} is {values.dtype} {list(values.shape)}, "
            f"the graph wants {spec.dtype} {spec.shape}"
        )
    if not (values.flags.c_contiguous and values.flags.writeable):
        values = values.copy(order="C")
    return _openvino().Tensor(values, shared_memory=True)
