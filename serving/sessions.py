"""A graph that can be run in this process: what the crews need of ONNX Runtime and its kind."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import onnxruntime as ort
from numpy.typing import NDArray

from tilesight.errors import BundleError

FATAL_ONLY = 4
CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"


class Stop:
    """A way to end a run from another thread, when nobody waits for it any more."""

    __slots__ = ("_asked", "_halt")

    def __init__(self) -> None:
        """Nobody has asked for the end."""
        self._asked = False
        self._halt: Callable[[], None] | None = None

    @property
    def asked(self) -> bool:
        """Whether the run was to end early."""
        return self._asked

    def arm(self, halt: Callable[[], None]) -> None:
        """From now on `halt` is how the run is ended."""
        self._halt = halt
        if self._asked:
            halt()

    def __call__(self) -> None:
        """Ends the run, or the one that is about to begin."""
        self._asked = True
        if self._halt:
            self._halt()


class Session(Protocol):
    """A loaded graph; may be run by several threads at once."""

    @property
    def provider(self) -> str:
        """What computes, as the library calls it."""

    def run(
        self, names: Sequence[str], inputs: Mapping[str, NDArray[Any]], stop: Stop
    ) -> list[NDArray[Any]]:
        """The named outputs of one batch, in this thread, without holding the interpreter."""


class OrtSession:
    """A graph in ONNX Runtime, with a second one for single rows where the export made it."""

    def __init__(
        self, graph: bytes, single: bytes | None, threads: int, providers: Sequence[str]
    ) -> None:
        """Loads the graphs from their bytes; data outside of them, in no hash, is not read.

        Raises:
            BundleError: ONNX Runtime cannot load one.
        """
        self.free = _open(graph, threads, providers)
        self.single = _open(single, threads, providers) if single else None

    @property
    def provider(self) -> str:
        """The execution provider that the session really got."""
        return str(self.free.get_providers()[0])

    def run(
        self, names: Sequence[str], inputs: Mapping[str, NDArray[Any]], stop: Stop
    ) -> list[NDArray[Any]]:
        """The named outputs; ONNX Runtime stops before its next node when it is told to."""
        options = ort.RunOptions()
        stop.arm(lambda: setattr(options, "terminate", True))
        rows = len(next(iter(inputs.values())))
        session = self.single if self.single is not None and rows == 1 else self.free
        found: list[NDArray[Any]] = session.run(names, inputs, options)
        return found


def _open(graph: bytes, threads: int, providers: Sequence[str]) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    # Threads that spin while idle take the cores that decode the next tile.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    # A graph from bytes would have its data looked for in the working directory.
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", os.devnull
    )
    # What matters arrives as an exception; the rest is noise about devices it tried.
    options.log_severity_level = FATAL_ONLY
    try:
        return ort.InferenceSession(graph, options, providers=list(providers))
    # ONNX Runtime raises its own classes, all of them straight from Exception.
    except Exception as error:
        raise BundleError(f"ONNX Runtime cannot load it: {error}") from error
