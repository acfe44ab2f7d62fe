"""Runtimes measured on versions that are there already, against the run that they came from.

The graphs stay as they are: certificate, report, `runtimes.json` and the manifest's hashes of them
are written anew, all of a version at once.
"""

import shutil
from pathlib import Path

from export.bundle import Origin, origin_of, plan_of, staged, write_manifest
from export.certificate import Certificate, Form, FormName, read_certificate
from export.forms import Examiner, Say
from export.onnx_file import Session
from export.openvino_form import examine_on_openvino
from export.part import Part
from export.passed import write_passed
from export.report import write_certificate
from export.software import software
from export.speed import machine
from tilesight.errors import BundleError, ConfigError, ExportError
from tilesight.files import sha256
from tilesight.manifest import CERTIFICATE_NAME, MODEL_NAME, AnswerHead, Manifest
from tilesight.openvino_graph import REMEDY, installed
from tilesight.repository import Repository
from training.run import CHECKPOINT

# torch asked again answers what it answered before; what is left is the order of additions.
_SAME_FIGURE = 1e-3


def certify_run(run: Path, root: Path, data: Path, say: Say = lambda _line: None) -> list[Path]:
    """Measures OpenVINO on the versions that the run became; returns their folders.

    Of several versions of a model, the served one is measured where it is of this run, else the
    highest.

    Raises:
        BundleError: the run became no version here, or one is not what its manifest promises.
        ConfigError: OpenVINO is not installed.
        ExportError: torch does not answer as the certificate says, or encoder and head are not
            of one export.
    """
    if not installed():
        raise ConfigError(f"OpenVINO is not installed: {REMEDY}")
    origin = origin_of(run, data)
    repository = Repository(root)
    say(f"reading {run} and the tiles")
    made: dict[str, Manifest] = {}
    folders: list[Path] = []
    for part in plan_of(origin).parts:
        manifest = _manifest(repository, part.name, run / CHECKPOINT)
        _require_encoder(manifest, made)
        folder = repository.folder(part.name, manifest.version)
        _certify(part, repository, folder, manifest, origin, say)
        part.served_by(Session(folder / MODEL_NAME))
        made[part.name] = manifest
        folders.append(folder)
    return folders


def _manifest(repository: Repository, name: str, checkpoint: Path) -> Manifest:
    """The manifest of the version that the checkpoint became, its files checked."""
    digest = sha256(checkpoint)
    ours = [
        version
        for version in repository.versions(name)
        if repository.manifest(name, version).lineage.checkpoint_sha256 == digest
    ]
    if not ours:
        raise BundleError(f"{repository.model_folder(name)}: no version was made of {checkpoint}")
    served = repository.current(name)
    return repository.verified(name, served if served in ours else max(ours))


def _require_encoder(manifest: Manifest, made: dict[str, Manifest]) -> None:
    """Passes a head whose encoder is the one just measured, which makes the memory it is given."""
    head = manifest.head
    if not isinstance(head, AnswerHead):
        return
    if made[head.encoder].files[MODEL_NAME] != head.encoder_sha256:
        raise ExportError(
            f"{manifest.name}@{manifest.version}: made for another encoder than "
            f"{head.encoder}@{made[head.encoder].version}"
        )


def _certify(
    part: Part,
    repository: Repository,
    folder: Path,
    manifest: Manifest,
    origin: Origin,
    say: Say,
) -> None:
    before = read_certificate(folder / CERTIFICATE_NAME)
    say(f"{part.name}: torch on the test tiles")
    examiner = Examiner(part, origin.run / CHECKPOINT)
    _require_same(examiner.torch, before)
    found = examine_on_openvino(examiner, folder, before.forms, before.gates, say)
    certificate = _joined(before, found, examiner)
    with staged(repository.root) as staging:
        copied = shutil.copytree(folder, staging / folder.name)
        write_passed(copied, manifest, certificate)
        write_certificate(certificate, origin.measured_on, origin.config.image_size, copied)
        write_manifest(manifest, copied)
        _exchange(copied, folder, repository)


def _require_same(torch: Form, before: Certificate) -> None:
    """Passes figures of torch that are the certificate's: tiles and tokens are what they were."""
    metric = before.task_metric
    found, told = torch.metrics[metric], before.forms["torch"].metrics[metric]
    if abs(found - told) > _SAME_FIGURE:
        raise ExportError(
            f"{before.model}@{before.version}: torch reaches {metric} {found:.4f} here, "
            f"the certificate says {told:.4f}"
        )


def _joined(before: Certificate, found: dict[FormName, Form], examiner: Examiner) -> Certificate:
    """The certificate with what was found; what could not run here leaves the figures of before."""
    ran = {
        name: form
        for name, form in found.items()
        if form.verdict != "not run" or name not in before.forms
    }
    here = machine()
    if here != before.machine:
        said = "measured on " + ", ".join(f"{name} {value}" for name, value in here.items())
        ran = {
            name: form.model_copy(update={"reasons": [*form.reasons, said]})
            for name, form in ran.items()
        }
    return before.model_copy(
        update={
            "software": before.software | {"openvino": software()["openvino"]},
            "forms": before.forms | ran,
            "worst": [one for one in before.worst if one.form not in ran] + examiner.worst,
        }
    )


def _exchange(new: Path, old: Path, repository: Repository) -> None:
    """Puts the new folder in the place of the old one, which goes away with the staging."""
    aside = new.with_name("before")
    with repository.locked():
        old.rename(aside)
        try:
            new.rename(old)
        except BaseException:
            aside.rename(old)
            raise
