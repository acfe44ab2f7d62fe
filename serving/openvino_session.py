"""OpenVINO as a runtime of the gateway: only in what a version's export found good enough."""

from typing import Any

from serving.repository import Bundle
from tilesight.errors import BundleError
from tilesight.manifest import TensorSpec
from tilesight.openvino_graph import OpenVinoGraph
from tilesight.processor import flags, has_bfloat16
from tilesight.runtimes import Pair, passed_pairs


class OpenVinoSession(OpenVinoGraph):
    """A graph in OpenVINO, what `OrtSession` is in ONNX Runtime."""

    @property
    def provider(self) -> str:
        """What computes."""
        return "CPU"


def usable_pairs(bundle: Bundle[Any], processor: frozenset[str] | None = None) -> list[Pair]:
    """In which precisions OpenVINO may serve the version here; none where nobody measured it.

    Raises:
        ManifestError: the version's list cannot be read.
    """
    bfloat16 = has_bfloat16(flags() if processor is None else processor)
    return [
        pair
        for pair in passed_pairs(bundle.folder, bundle.manifest)
        if pair.runtime == "openvino" and (bfloat16 or not pair.bfloat16)
    ]


def open_session(
    bundle: Bundle[Any], pair: Pair, threads: int = 1, runs: int = 1
) -> OpenVinoSession:
    """The pair's graph of the version, for so many runs at a time, each of so many threads.

    Raises:
        BundleError: the graph cannot be loaded or is not what the manifest says.
        ConfigError: OpenVINO is not installed, or the processor cannot compute it.
    """
    graph = bundle.folder / pair.file
    try:
        session = OpenVinoSession(graph.read_bytes(), threads, bfloat16=pair.bfloat16, runs=runs)
        _check("inputs", session.inputs, bundle.manifest.inputs)
        _check("outputs", session.outputs, bundle.manifest.outputs)
    except (BundleError, OSError) as error:
        raise BundleError(f"{graph}: {error}") from error
    return session


def _check(side: str, found: list[TensorSpec], promised: list[TensorSpec]) -> None:
    """Passes tensors that have the manifest's names, types and fixed sizes."""
    specs = {spec.name: spec for spec in found}
    if set(specs) != {spec.name for spec in promised}:
        raise BundleError(
            f"{side} are {sorted(specs)}, the manifest says {sorted(s.name for s in promised)}"
        )
    for spec in promised:
        got = specs[spec.name]
        # A graph may leave a size open that the manifest fixes.
        same = len(got.shape) == len(spec.shape) and all(
            size in (-1, wanted) for size, wanted in zip(got.shape, spec.shape, strict=True)
        )
        if got.dtype != spec.dtype or not same:
            raise BundleError(
                f"{side}: {spec.name} is {got.dtype} {got.shape}, "
                f"the manifest says {spec.dtype} {spec.shape}"
            )
