"""A written graph in OpenVINO, computed as the gateway computes it."""

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from export.runner import Outputs, Runner
from tilesight.openvino_graph import OpenVinoGraph


class OpenVinoRunner(Runner):
    """An ONNX file in OpenVINO, on the CPU."""

    def __init__(self, path: Path, threads: int, bfloat16: bool) -> None:
        """A compiled graph of this many threads.

        Raises:
            BundleError: OpenVINO cannot load it.
            ConfigError: OpenVINO is not installed, or the processor has no bfloat16.
        """
        self._graph = OpenVinoGraph(path.read_bytes(), threads, bfloat16=bfloat16)
        self._names = [spec.name for spec in self._graph.outputs]

    def run(self, **inputs: NDArray[Any]) -> Outputs:
        """The outputs by name for one batch."""
        return dict(zip(self._names, self._graph.run(self._names, inputs), strict=True))
