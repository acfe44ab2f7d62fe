"""From a run folder to model versions that a gateway can trust.

All files are written beside the repository's models, held against torch, and renamed into place
together; an export that fails leaves the repository as it was.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from export.certificate import Certificate, Form, FormName
from export.forms import Forms, Options, Say, write_forms
from export.onnx_file import IR_VERSION, MINIMUM_ONNXRUNTIME, OPSET, Session, tensor_specs
from export.openvino_form import examine_on_openvino
from export.part import Part, Plan
from export.passed import write_passed
from export.report import write_certificate
from export.software import software
from export.speed import machine
from export.triton_form import examine_on_triton
from tilesight import imaging
from tilesight.errors import ExportError, RunError
from tilesight.files import sha256, write_text
from tilesight.golden import TOLERANCES, golden_inputs, record
from tilesight.manifest import (
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
from tilesight.repository import Repository
from training.config import RunConfig
from training.datasets.folders import set_folder
from training.datasets.multilabel import MultiLabelSet, open_set
from training.datasets.splits import split_sha256
from training.run import CHECKPOINT, CONFIG, METRICS, read_run

# UC Merced's ground sampling distance: one foot.
GSD_M = (0.3, 0.3)
BANDS = ["red", "green", "blue"]


@dataclass(frozen=True)
class Origin:
    """The run that is exported, and the data that proves it."""

    run: Path
    data: Path
    config: RunConfig
    provenance: dict[str, Any]
    measured: dict[str, Any]

    @property
    def measured_on(self) -> MultiLabelSet:
        """The set whose tiles the certificate shows."""
        return open_set(self.config.dataset, self.data)


def export_run(
    run: Path,
    repository: Path,
    data: Path,
    options: Options | None = None,
    promote: bool = False,
    say: Say = lambda _line: None,
) -> list[Path]:
    """Writes the run's graphs as the next versions of their models; returns the version folders.

    A model's first version is served at once; a later one with `promote`, or when it is promoted.

    Raises:
        DataError: the tiles that the comparison needs are not there.
        ExportError: a graph cannot be written, or does not agree with torch.
        RunError: the run folder is incomplete.
    """
    options = options or Options()
    origin = origin_of(run, data)
    say(f"reading {run} and the tiles")
    plan = plan_of(origin)
    try:
        repository.mkdir(parents=True, exist_ok=True)
        with staged(repository) as staging:
            folders = [
                _write(part, _next_folder(staging, repository, part), plan, origin, options, say)
                for part in plan.parts
            ]
            return _publish(folders, repository, promote)
    except OSError as error:
        raise ExportError(f"{error.filename or repository}: {error.strerror or error}") from error


def origin_of(run: Path, data: Path) -> Origin:
    """The run, which has to be finished, and the data.

    Raises:
        DataError: there is no such data folder.
        ExportError: the run was measured on another test list than the committed one.
        RunError: the run folder is incomplete.
    """
    config, provenance = read_run(run)
    data = set_folder(config.dataset, data)
    origin = Origin(run, data, config, provenance, _measured(run))
    _require_committed_split(provenance)
    return origin


def _measured(run: Path) -> dict[str, Any]:
    path = run / METRICS
    if not path.is_file():
        raise RunError(f"{path}: missing; did the training finish?")
    try:
        measured: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path}: not JSON: {error}") from None
    return measured


def _require_committed_split(provenance: dict[str, Any]) -> None:
    split, trained = provenance["split"], provenance["split_sha256"]["test"]
    committed = split_sha256(split, "test")
    if trained != committed:
        raise ExportError(
            f"split {split}: the run was measured on test list {trained[:12]}, "
            f"the committed one is {committed[:12]}"
        )


def plan_of(origin: Origin) -> Plan:
    """The graphs of the run; reads its weights and tiles."""
    match origin.config.model:
        case "signa":
            from export import signa

            return signa.plan(origin.run, origin.config, origin.data)
        case "jtts":
            from export import jtts

            return jtts.plan(origin.run, origin.config, origin.data)
        case "spatialnet-vit":
            from export import spatialnet_vit

            return spatialnet_vit.plan(origin.run, origin.config, origin.data)


@contextmanager
def staged(repository: Path) -> Iterator[Path]:
    """A folder on the repository's own disk, so that renaming from it is one step.

    It is hidden, and a model repository's readers pass over hidden folders.
    """
    folder = Path(tempfile.mkdtemp(prefix=".export-", dir=repository))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _next_folder(staging: Path, repository: Path, part: Part) -> Path:
    """The folder of the part's next version, laid out in staging as in the repository."""
    version = max(Repository(repository).versions(part.name), default=0) + 1
    folder = staging / part.name / str(version)
    folder.mkdir(parents=True)
    return folder


def _write(
    part: Part, folder: Path, plan: Plan, origin: Origin, options: Options, say: Say
) -> Path:
    """Fills the version folder; the parts after this one read the form that is served."""
    forms = write_forms(part, folder, origin.run / CHECKPOINT, options, say)
    part.served_by(Session(folder / MODEL_NAME))
    manifest = _manifest(part, folder, origin, forms)
    say(f"{part.name}: Triton")
    triton = examine_on_triton(forms, folder, manifest, options)
    examined: dict[FormName, Form] = {**forms.forms, "triton": triton}
    if options.openvino:
        examined |= examine_on_openvino(forms.examiner, folder, examined, options.gates, say)
    certificate = _certificate(part, manifest, plan, origin, forms, examined, options)
    write_passed(folder, manifest, certificate)
    write_certificate(certificate, origin.measured_on, origin.config.image_size, folder)
    write_manifest(manifest, folder)
    return folder


def _manifest(part: Part, folder: Path, origin: Origin, forms: Forms) -> Manifest:
    """What the version promises; its files are listed once all of them are there."""
    inputs, outputs = tensor_specs(folder / MODEL_NAME)
    precision = _precision(forms)
    provenance, measured, run = origin.provenance, origin.measured, origin.run
    manifest = Manifest(
        name=part.name,
        version=int(folder.name),
        title=part.title,
        input=_input_spec(origin.config) if part.reads_tile else None,
        inputs=inputs,
        outputs=outputs,
        head=_paired(part, folder),
        metrics=Metrics(
            dataset=provenance["split"],
            split="test",
            split_sha256=provenance["split_sha256"]["test"],
            tiles=measured["tiles"],
            seed=origin.config.seed,
            # What the served form reached where the export measured it again.
            values=measured["values"] | forms.forms[forms.served].metrics,
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
        files={MODEL_NAME: sha256(folder / MODEL_NAME)},
    )
    answered = Session(folder / MODEL_NAME).run(**golden_inputs(manifest))
    return manifest.model_copy(update={"golden": record(manifest, answered)})


def _precision(forms: Forms) -> Literal["float32", "float16-weights", "int8"]:
    if forms.served == "int8":
        return "int8"
    return "float16-weights" if forms.float16_share > 0.5 else "float32"


def _paired(part: Part, folder: Path) -> Any:  # noqa: ANN401 (one of the four heads)
    """The part's head; a question head with the hash of the encoder that it was proved with."""
    if not isinstance(part.head, AnswerHead):
        return part.head
    # Its encoder was written just before, and is the only version there.
    (encoder,) = (folder.parent.parent / part.head.encoder).glob(f"[0-9]*/{MODEL_NAME}")
    return part.head.model_copy(update={"encoder_sha256": sha256(encoder)})


def _input_spec(config: RunConfig) -> InputSpec:
    size = config.image_size
    return InputSpec(
        height=size,
        width=size,
        bands=BANDS,
        gsd_m=GSD_M,
        golden_sha256=imaging.golden_sha256(size, size),
    )


def _certificate(
    part: Part,
    manifest: Manifest,
    plan: Plan,
    origin: Origin,
    forms: Forms,
    examined: dict[FormName, Form],
    options: Options,
) -> Certificate:
    return Certificate(
        model=part.name,
        version=manifest.version,
        split=f"{origin.provenance['split']} test",
        split_sha256=manifest.metrics.split_sha256,
        tiles=plan.tiles,
        software=software(),
        machine=machine(),
        task_metric=part.task_metric,
        gates=options.gates,
        float16_share=forms.float16_share,
        forms=examined,
        worst=forms.examiner.worst,
    )


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Writes the manifest with the hash of every other file, and reads it back."""
    names = sorted(path.name for path in folder.iterdir() if path.name != MANIFEST_NAME)
    manifest = manifest.model_copy(
        update={"files": {name: sha256(folder / name) for name in names}}
    )
    write_text(folder / MANIFEST_NAME, manifest.model_dump_json(indent=2) + "\n")
    if read(folder) != manifest:
        raise ExportError(f"{manifest.name}: the manifest does not read back as it was written")


def _publish(folders: list[Path], root: Path, promote: bool) -> list[Path]:
    """Renames the finished versions into the repository and says which are served: all, or none."""
    repository = Repository(root)
    targets = {folder.parent.name: int(folder.name) for folder in folders}
    served = {name: repository.current(name) for name in targets if repository.versions(name)}
    moved: list[Path] = []
    try:
        with repository.locked():
            for folder in folders:
                version = root / folder.parent.name / folder.name
                version.parent.mkdir(exist_ok=True)
                moved.append(folder.rename(version))
        # A model's highest version would be served where none was ever promoted.
        repository.promote(targets if promote else {**targets, **served})
    except BaseException:
        _withdraw(moved, repository)
        raise
    return moved


def _withdraw(moved: list[Path], repository: Repository) -> None:
    """Takes the versions out again, and what was written on their account before it failed."""
    for version in moved:
        shutil.rmtree(version)
    for name in {version.parent.name for version in moved}:
        if repository.versions(name):
            repository.write_configs([name])
        else:
            with suppress(OSError):  # what somebody else put there
                repository.config_path(name).unlink(missing_ok=True)
                repository.model_folder(name).rmdir()
