"""The ways to run a version in this process: a library, a precision, a file."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import onnxruntime as ort

from serving.repository import Bundle
from serving.sessions import CPU, CUDA, OrtSession, Session
from tilesight.errors import BundleError
from tilesight.manifest import BATCH1_NAME, Golden, TensorSpec

_TYPES = {
    "uint8": "tensor(uint8)",
    "bool": "tensor(bool)",
    "int32": "tensor(int32)",
    "int64": "tensor(int64)",
    "float32": "tensor(float)",
}


@dataclass(frozen=True)
class Way:
    """One way; `open` takes threads a run and runs at a time, and gives a session for each run."""

    name: str
    library: str
    version: str
    precision: str
    golden: Golden
    open: Callable[[int, int], list[Session]]


def onnxruntime(bundle: Bundle[Any], cuda: bool) -> Way:
    """The served graph in ONNX Runtime, which every version can be run in.

    Raises:
        BundleError: the installed ONNX Runtime is too old for it.
    """
    manifest = bundle.manifest
    _check_version(bundle)
    # Found faster on a CPU; nobody has measured it on a GPU.
    alone = BATCH1_NAME in manifest.files and not cuda
    providers = [CUDA, CPU] if cuda else [CPU]

    def session(threads: int) -> OrtSession:
        single = (bundle.folder / BATCH1_NAME).read_bytes() if alone else None
        try:
            opened = OrtSession(bundle.graph.read_bytes(), single, threads, providers)
        except BundleError as error:
            raise BundleError(f"{bundle.graph}: {error}") from error
        _check_tensors(bundle, "inputs", opened.free.get_inputs(), manifest.inputs)
        _check_tensors(bundle, "outputs", opened.free.get_outputs(), manifest.outputs)
        return opened

    def sessions(threads: int, runs: int) -> list[Session]:
        # A run of one thread takes place in the thread that asks: one session serves them all.
        if threads == 1:
            return [session(1)] * runs
        return [session(threads) for _ in range(runs)]

    precision = manifest.graph.precision
    return Way(
        f"onnxruntime {precision}",
        "onnxruntime",
        ort.__version__,
        precision,
        manifest.golden,
        sessions,
    )


def openvino(bundle: Bundle[Any]) -> list[Way]:
    """OpenVINO in each precision that passed the version's gates and that this processor has.

    Raises:
        ConfigError: OpenVINO is not installed.
        ManifestError: the version's list of what passed cannot be read.
    """
    # Imported here: without OpenVINO nobody needs it.
    from serving.openvino_session import open_session, usable_pairs
    from tilesight.openvino_graph import version
    from tilesight.runtimes import Pair

    def opener(pair: Pair) -> Callable[[int, int], list[Session]]:
        def sessions(threads: int, runs: int) -> list[Session]:
            opened: Session = open_session(bundle, pair, threads, runs)
            return [opened] * runs

        return sessions

    return [
        Way(
            f"openvino {pair.precision}",
            "openvino",
            version(),
            pair.precision,
            pair.golden,
            opener(pair),
        )
        for pair in usable_pairs(bundle)
    ]


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
