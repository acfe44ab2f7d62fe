"""ONNX Runtime inside the process: the default runtime, which needs nothing else."""

import ctypes
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import onnxruntime as ort
from anyio import CapacityLimiter
from numpy.typing import NDArray

from serving.repository import Bundle
from serving.runtime import Backend, Inference, Tensor
from serving.settings import Settings
from tilesight.cores import usable_cores
from tilesight.errors import BundleError, ConfigError
from tilesight.manifest import BATCH1_NAME, TensorSpec

log = logging.getLogger("tilesight.runtime")

_CPU = "CPUExecutionProvider"
_CUDA = "CUDAExecutionProvider"
_FATAL_ONLY = 4
_TYPES = {
    "uint8": "tensor(uint8)",
    "bool": "tensor(bool)",
    "int32": "tensor(int32)",
    "int64": "tensor(int64)",
    "float32": "tensor(float)",
}


class EmbeddedRuntime:
    """One session a version, run in worker threads, never more at once than `concurrency`."""

    def __init__(self, settings: Settings) -> None:
        """A runtime without models; finds out which device it can use."""
        self._sessions: dict[tuple[str, int], _Sessions] = {}
        self._slots = CapacityLimiter(settings.concurrency)
        self._threads = settings.threads or max(1, usable_cores() // settings.concurrency)
        self._cuda, reason = (
            _cuda_usable() if settings.device != "cpu" else (False, "not asked for")
        )
        if settings.device == "cuda" and not self._cuda:
            raise ConfigError(f"TILESIGHT_DEVICE: cuda: {reason}")
        self._required = settings.device == "cuda"
        if not self._cuda:
            log.info("runs on the CPU", extra={"threads": self._threads, "no_gpu": reason})

    async def load(self, bundle: Bundle[Any]) -> None:
        """Opens the session in a worker thread and holds its tensors against the manifest."""
        if bundle.key not in self._sessions:
            self._sessions[bundle.key] = await anyio.to_thread.run_sync(self._open, bundle)

    async def unload(self, bundle: Bundle[Any]) -> None:
        """Frees the session; a run that still uses it ends first."""
        self._sessions.pop(bundle.key, None)

    async def infer(
        self, bundle: Bundle[Any], inputs: Mapping[str, Tensor], outputs: Sequence[str]
    ) -> Inference:
        """The named outputs for one batch, computed in a worker thread."""
        rows = len(next(iter(inputs.values())))
        run = _Run(self._sessions[bundle.key].of(rows), inputs, outputs)
        asked = time.perf_counter()
        async with anyio.create_task_group() as group:
            group.start_soon(run.stop_when_cancelled)
            await anyio.to_thread.run_sync(run, limiter=self._slots)
            group.cancel_scope.cancel()
        # A run that was stopped has failed, and that is not what the caller is told.
        await anyio.lowlevel.checkpoint_if_cancelled()
        if run.failure:
            raise run.failure
        return Inference(run.outputs, run.started - asked, run.ended - run.started)

    async def holds(self, bundle: Bundle[Any]) -> bool:
        """Whether there is a session; nobody takes it away."""
        return bundle.key in self._sessions

    def describe(self, bundle: Bundle[Any]) -> Backend:
        """The provider that the session really got."""
        provider = self._sessions[bundle.key].free.get_providers()[0]
        device = provider.removesuffix("ExecutionProvider").lower()
        return Backend(
            f"onnxruntime-{device}",
            {
                "runtime": "embedded",
                "onnxruntime": ort.__version__,
                "provider": provider,
                "threads": self._threads,
            },
        )

    async def close(self) -> None:
        """Frees the sessions."""
        self._sessions.clear()

    def _open(self, bundle: Bundle[Any]) -> "_Sessions":
        _check_version(bundle)
        session = self._session(bundle.graph)
        _check_tensors(bundle, "inputs", session.get_inputs(), bundle.manifest.inputs)
        _check_tensors(bundle, "outputs", session.get_outputs(), bundle.manifest.outputs)
        self._check_device(bundle, session)
        # Found faster on a CPU; nobody has measured it on a GPU.
        alone = BATCH1_NAME in bundle.manifest.files and not self._cuda
        return _Sessions(session, self._session(bundle.folder / BATCH1_NAME) if alone else None)

    def _session(self, graph: Path) -> ort.InferenceSession:
        try:
            # From bytes: data beside the file, which no manifest lists, is not read.
            return ort.InferenceSession(
                graph.read_bytes(), self._options(), providers=self._providers()
            )
        # ONNX Runtime raises its own classes, all of them straight from Exception.
        except Exception as error:
            raise BundleError(f"{graph}: ONNX Runtime cannot load it: {error}") from error

    def _options(self) -> ort.SessionOptions:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        # Threads that spin while idle take the cores that decode the next tile.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        # What matters arrives as an exception; the rest is noise about devices it tried.
        options.log_severity_level = _FATAL_ONLY
        return options

    def _providers(self) -> list[str]:
        return [_CUDA, _CPU] if self._cuda else [_CPU]

    def _check_device(self, bundle: Bundle[Any], session: ort.InferenceSession) -> None:
        """Says so where the GPU was asked for and the session runs on the CPU all the same."""
        if self._cuda and session.get_providers()[0] != _CUDA:
            if self._required:
                raise ConfigError(f"TILESIGHT_DEVICE: cuda: {bundle.name} cannot run on the GPU")
            log.warning(
                "runs on the CPU although there is a GPU: the CUDA libraries cannot be loaded",
                extra={"model": bundle.name},
            )


@dataclass(frozen=True)
class _Sessions:
    """A version's session for any batch and, where the export made one, that for one row."""

    free: ort.InferenceSession
    single: ort.InferenceSession | None

    def of(self, rows: int) -> ort.InferenceSession:
        """The session that answers so many rows fastest."""
        return self.single if self.single is not None and rows == 1 else self.free


class _Run:
    """One run of a session, which ends early when nobody waits for it any more."""

    def __init__(
        self, session: ort.InferenceSession, inputs: Mapping[str, Tensor], outputs: Sequence[str]
    ) -> None:
        self.outputs: dict[str, NDArray[Any]] = {}
        self.failure: Exception | None = None
        self.started = self.ended = 0.0
        self._session, self._inputs, self._names = session, dict(inputs), list(outputs)
        self._options = ort.RunOptions()

    def __call__(self) -> None:
        """Runs the model; in a worker thread."""
        self.started = time.perf_counter()
        try:
            values = self._session.run(self._names, self._inputs, self._options)
        # ONNX Runtime raises its own classes, all of them straight from Exception. Kept, because a
        # task group would wrap it.
        except Exception as error:
            self.failure = error
        else:
            self.outputs = dict(zip(self._names, values, strict=True))
        self.ended = time.perf_counter()

    async def stop_when_cancelled(self) -> None:
        """Waits to be cancelled; ONNX Runtime then stops before its next node."""
        try:
            await anyio.sleep_forever()
        finally:
            self._options.terminate = True


def _cuda_usable() -> tuple[bool, str]:
    """Whether to ask for the GPU, and if not, why; asking in vain prints pages of warnings."""
    ort.set_default_logger_severity(_FATAL_ONLY)
    if _CUDA not in ort.get_available_providers():
        return False, "this ONNX Runtime is built without CUDA"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False, "no NVIDIA driver"
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return False, "the NVIDIA driver does not answer"
    if count.value == 0:
        return False, "no NVIDIA device"
    ort.preload_dlls()
    return True, ""


def _check_version(bundle: Bundle[Any]) -> None:
    needed = bundle.manifest.graph.minimum_onnxruntime
    if _numbers(ort.__version__) < _numbers(needed):
        raise BundleError(
            f"{bundle.folder}: needs ONNX Runtime {needed}, {ort.__version__} is installed"
        )


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")[:3] if part.isdigit()]


def _check_tensors(
    bundle: Bundle[Any], side: str, found: Sequence[ort.NodeArg], promised: Sequence[TensorSpec]
) -> None:
    """Refuses a graph whose tensors differ from the manifest's in name, type or fixed size."""
    nodes = {node.name: node for node in found}
    if set(nodes) != {spec.name for spec in promised}:
        raise BundleError(
            f"{bundle.graph}: {side} are {sorted(nodes)}, "
            f"the manifest says {sorted(spec.name for spec in promised)}"
        )
    for spec in promised:
        node = nodes[spec.name]
        shape = [size if isinstance(size, int) else -1 for size in node.shape]
        if node.type != _TYPES[spec.dtype] or not _same_shape(shape, spec.shape):
            raise BundleError(
                f"{bundle.graph}: {side}: {spec.name} is {node.type} {shape}, "
                f"the manifest says {_TYPES[spec.dtype]} {spec.shape}"
            )


def _same_shape(found: Sequence[int], promised: Sequence[int]) -> bool:
    """Whether the sizes agree; a graph may leave a size open that the manifest fixes."""
    return len(found) == len(promised) and all(
        size in (-1, wanted) for size, wanted in zip(found, promised, strict=True)
    )
