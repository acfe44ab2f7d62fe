"""From a run folder to model versions that a gateway can trust.

All files are written beside the repository's models, compared with torch, and renamed into place
together; an export that fails leaves the repository as it was.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import onnxruntime
import torch

from export.certificate import Certificate
from export.onnx_file import (
    IR_VERSION,
    MINIMUM_ONNXRUNTIME,
    OPSET,
    Session,
    tensor_specs,
    write_onnx,
)
from export.part import Part, Plan, Proof
from export.triton_config import config_text
from tilesight.errors import DataError, ExportError, RunError
from tilesight.files import sha256, write_text
from tilesight.golden import TOLERANCES, golden_inputs, record
from tilesight.imaging import golden_sha256
from tilesight.manifest import (
    CERTIFICATE_NAME,
    MANIFEST_NAME,
    MODEL_NAME,
    AnswerHead,
    Golden,
    Graph,
    InputSpec,
    Lineage,
    Manifest,
    Metrics,
    read,
)
from training.config import RunConfig
from training.datasets.splits import split_sha256
from training.run import CHECKPOINT, CONFIG, METRICS, read_run

CONFIG_PBTXT = "config.pbtxt"
# UC Merced's ground sampling distance: one foot.
GSD_M = (0.3, 0.3)
BANDS = ["red", "green", "blue"]


def export_run(
    run: Path, repository: Path, data: Path, say: Callable[[str], None] = lambda _line: None
) -> list[Path]:
    """Writes the run's graphs as the next versions of their models; returns the version folders.

    Raises:
        DataError: the tiles that the comparison needs are not there.
        ExportError: a graph cannot be written, or does not agree with torch.
        RunError: the run folder is incomplete.
    """
    if not data.is_dir():
        raise DataError(f"--data {data}: no such folder")
    config, provenance = read_run(run)
    measured = _measured(run)
    _require_committed_split(provenance)
    say(f"reading {run} and the test tiles")
    plan = _plan(run, config, data)
    repository.mkdir(parents=True, exist_ok=True)
    with _staging(repository) as staging:
        halves = {}
        for part in plan.parts:
            say(f"writing {part.name}")
            folder = staging / part.name
            folder.mkdir()
            halves[part.name] = write_onnx(part.source, folder / MODEL_NAME)
        say(f"comparing with torch on {plan.tiles} test tiles")
        files = {part.name: staging / part.name / MODEL_NAME for part in plan.parts}
        proofs = plan.prove(files)
        for part in plan.parts:
            certificate = _certificate(
                files[part.name], proofs[part.name], plan, provenance, halves[part.name]
            )
            certificate.require_agreement(part.name)
            version = _next_version(repository / part.name)
            part = _paired(part, files)
            _describe(
                staging / part.name, part, version, certificate, config, provenance, measured, run
            )
        return _move_all(staging, plan.parts, repository)


def _measured(run: Path) -> dict[str, Any]:
    path = run / METRICS
    if not path.is_file():
        raise RunError(f"{path}: missing; did the training finish?")
    measured: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return measured


def _require_committed_split(provenance: dict[str, Any]) -> None:
    split, trained = provenance["split"], provenance["split_sha256"]["test"]
    committed = split_sha256(split, "test")
    if trained != committed:
        raise ExportError(
            f"split {split}: the run was measured on test list {trained[:12]}, "
            f"the committed one is {committed[:12]}"
        )


def _plan(run: Path, config: RunConfig, data: Path) -> Plan:
    match config.model:
        case "signa":
            from export import signa

            return signa.plan(run, config, data)
        case "jtts":
            from export import jtts

            return jtts.plan(run, config, data)
        case "spatialnet-vit":
            from export import spatialnet_vit

            return spatialnet_vit.plan(run, config, data)


@contextmanager
def _staging(repository: Path) -> Iterator[Path]:
    """A folder on the repository's own disk, so that renaming from it is one step.

    It is hidden, and a model repository's readers pass over hidden folders.
    """
    folder = Path(tempfile.mkdtemp(prefix=".export-", dir=repository))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _paired(part: Part, files: dict[str, Path]) -> Part:
    """The part; a question head with the hash of the encoder that it was proved with."""
    if not isinstance(part.head, AnswerHead):
        return part
    encoder = sha256(files[part.head.encoder])
    return replace(part, head=part.head.model_copy(update={"encoder_sha256": encoder}))


def _next_version(model: Path) -> int:
    versions = [int(child.name) for child in model.glob("[0-9]*") if child.name.isdecimal()]
    return max(versions, default=0) + 1


def _certificate(
    file: Path, proof: Proof, plan: Plan, provenance: dict[str, Any], halves: float
) -> Certificate:
    return Certificate(
        split=f"{provenance['split']} test",
        split_sha256=provenance["split_sha256"]["test"],
        tiles=plan.tiles,
        torch=str(torch.__version__),
        onnxruntime=onnxruntime.__version__,
        float16_share=halves,
        bytes=file.stat().st_size,
        differences=proof.differences,
        decisions=proof.decisions,
        metrics={"torch": proof.torch_metrics, "onnx": proof.onnx_metrics},
    )


def _describe(
    folder: Path,
    part: Part,
    version: int,
    certificate: Certificate,
    config: RunConfig,
    provenance: dict[str, Any],
    measured: dict[str, Any],
    run: Path,
) -> None:
    """Writes certificate, manifest and config.pbtxt beside the graph, and reads them back."""
    inputs, outputs = tensor_specs(folder / MODEL_NAME)
    write_text(folder / CERTIFICATE_NAME, certificate.model_dump_json(indent=2) + "\n")
    precision: Literal["float32", "float16-weights"] = (
        "float16-weights" if certificate.float16_share > 0.5 else "float32"
    )
    manifest = Manifest(
        name=part.name,
        version=version,
        title=part.title,
        input=_input_spec(config) if part.reads_tile else None,
        inputs=inputs,
        outputs=outputs,
        head=part.head,
        metrics=Metrics(
            dataset=provenance["split"],
            split="test",
            split_sha256=certificate.split_sha256,
            tiles=measured["tiles"],
            seed=config.seed,
            values=measured["values"],
            floors=measured["floors"],
        ),
        lineage=Lineage(
            commit=provenance["commit"],
            config_sha256=sha256(run / CONFIG),
            checkpoint_sha256=sha256(run / CHECKPOINT),
            data_sha256=provenance["data_sha256"],
            base_weights_sha256=provenance["weights_sha256"],
        ),
        graph=Graph(
            precision=precision,
            opset=OPSET,
            ir_version=IR_VERSION,
            minimum_onnxruntime=MINIMUM_ONNXRUNTIME,
        ),
        golden=Golden(outputs={}, tolerance=TOLERANCES[precision]),
        files={name: sha256(folder / name) for name in (MODEL_NAME, CERTIFICATE_NAME)},
    )
    answered = Session(folder / MODEL_NAME).run(**golden_inputs(manifest))
    manifest = manifest.model_copy(update={"golden": record(manifest, answered)})
    write_text(folder / MANIFEST_NAME, manifest.model_dump_json(indent=2) + "\n")
    if read(folder) != manifest:
        raise ExportError(f"{part.name}: the manifest does not read back as it was written")
    write_text(folder / CONFIG_PBTXT, config_text(part.name, inputs, outputs))


def _input_spec(config: RunConfig) -> InputSpec:
    size = config.image_size
    return InputSpec(
        height=size,
        width=size,
        bands=BANDS,
        gsd_m=GSD_M,
        golden_sha256=golden_sha256(size, size),
    )


def _move_all(staging: Path, parts: list[Part], repository: Path) -> list[Path]:
    """Renames the finished versions into their models' folders: all of them, or none."""
    moved: list[Path] = []
    try:
        for part in parts:
            moved.append(_move(staging / part.name, repository / part.name))
    except OSError as error:
        for version in moved:
            shutil.rmtree(version)
        raise ExportError(f"{repository}: {error}") from error
    return moved


def _move(folder: Path, model: Path) -> Path:
    """Renames a finished version into the model's folder."""
    manifest = read(folder)
    model.mkdir(exist_ok=True)
    version = model / str(manifest.version)
    # The same text for every version of a model, unless its tensors changed.
    (folder / CONFIG_PBTXT).replace(model / CONFIG_PBTXT)
    folder.rename(version)
    return version
