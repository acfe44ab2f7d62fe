"""Which runtimes and precisions of a version passed: from its certificate to `runtimes.json`."""

from collections.abc import Iterator
from pathlib import Path

from export.certificate import Certificate, FormName
from export.onnx_file import Session
from export.openvino_form import CANDIDATES
from export.openvino_runner import OpenVinoRunner
from export.runner import Outputs, Runner
from tilesight.errors import BundleError, ConfigError
from tilesight.files import write_text
from tilesight.golden import disagreement, golden_inputs, record
from tilesight.manifest import Manifest
from tilesight.runtimes import (
    RUNTIMES_NAME,
    Pair,
    Precision,
    RuntimeName,
    passed_pairs,
    runtimes_text,
)


def write_passed(folder: Path, manifest: Manifest, certificate: Certificate) -> None:
    """Writes the pairs that passed and whose graph is kept, each with its golden answer.

    A form that was too slow where it was measured has passed: another processor may be faster.
    """
    pairs = []
    for name, (runtime, precision) in _ways(certificate).items():
        form = certificate.forms.get(name)
        if form is None or form.file is None or form.verdict not in ("served", "kept"):
            continue
        answered = _ask(manifest, folder / form.file, runtime, precision)
        golden = record(manifest, answered, precision)
        pairs.append(Pair(runtime=runtime, precision=precision, file=form.file, golden=golden))
    write_text(folder / RUNTIMES_NAME, runtimes_text(pairs))


def check_passed(manifest: Manifest, folder: Path) -> Iterator[str]:
    """Whether each pair answers the golden tile as it did, line by line.

    Raises:
        BundleError: one does not.
        ManifestError: the list cannot be read.
    """
    for pair in passed_pairs(folder, manifest):
        try:
            answered = _ask(manifest, folder / pair.file, pair.runtime, pair.precision)
        except ConfigError as error:
            yield f"{pair}: passed, and cannot be asked here: {error}"
            continue
        if problem := disagreement(pair.golden, answered):
            raise BundleError(f"{folder / RUNTIMES_NAME}: {pair}: {problem}")
        yield f"{pair}: answers the golden tile as it did when it passed"


def _ways(certificate: Certificate) -> dict[FormName, tuple[RuntimeName, Precision]]:
    halves = certificate.float16_share > 0.5
    return {
        "onnx": ("onnxruntime", "float16-weights" if halves else "float32"),
        "int8": ("onnxruntime", "int8"),
        **{name: ("openvino", one.precision) for name, one in CANDIDATES.items()},
    }


def _ask(manifest: Manifest, path: Path, runtime: RuntimeName, precision: Precision) -> Outputs:
    """What the pair answers to the golden tile."""
    runner: Runner = (
        OpenVinoRunner(path, 1, precision.endswith("bfloat16"))
        if runtime == "openvino"
        else Session(path, 1)
    )
    return runner.run(**golden_inputs(manifest))
