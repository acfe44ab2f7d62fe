"""`tilesight verify`: whether a version in the repository still is what its manifest promises."""

from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from export.agreement import config_problems
from export.certificate import read_certificate
from export.measure import Encoder, measure
from export.onnx_file import Session, tensor_specs
from export.operators import external_tensors, opsets
from export.passed import check_passed
from export.runner import Runner
from export.torchscript import TORCHSCRIPT_NAME, TorchScriptModel
from tilesight.errors import BundleError
from tilesight.golden import disagreement, golden_inputs
from tilesight.manifest import BATCH1_NAME, CERTIFICATE_NAME, MODEL_NAME, AnswerHead, Manifest
from tilesight.repository import Repository
from tilesight.triton_config import parse_config
from training.datasets.folders import set_folder

# Figures are measured again with the same file: what is left is the order of additions.
_SAME_FIGURE = 1e-3
# The served graph, also with its batch fixed.
_SERVED = (MODEL_NAME, BATCH1_NAME)


def verify(root: Path, target: str, data: Path | None = None) -> Iterator[str]:
    """What was checked, line by line; `target` is MODEL or MODEL@VERSION.

    Raises:
        BundleError: the first thing that is not as promised.
        ManifestError: the manifest cannot be read.
    """
    repository = Repository(root)
    name, version = _target(repository, target)
    manifest = repository.verified(name, version)
    folder = repository.folder(name, version)
    yield f"{name}@{version}: {len(manifest.files)} files have the manifest's hashes"
    yield "the pixel pipeline makes the manifest's golden tensor"
    _check_graph(manifest, folder / MODEL_NAME)
    yield f"graph: tensors, opset {manifest.graph.opset}, IR version {manifest.graph.ir_version}"
    for form in _forms(manifest):
        _check_golden(manifest, folder / form)
        said = " as the manifest says" if form in _SERVED else ""
        yield f"{form}: answers the golden tile{said}"
    yield from check_passed(manifest, folder)
    _check_config(repository, manifest, folder)
    yield "config.pbtxt is the generated one and agrees with the graph"
    _check_certificate(manifest, folder)
    yield f"{CERTIFICATE_NAME}: of this version, its forms passed their gates"
    if isinstance(manifest.head, AnswerHead):
        yield f"made for {_encoder_target(repository, manifest.head)}, which is here"
    if data is not None:
        yield from _check_metrics(repository, manifest, folder, data)


def _target(repository: Repository, target: str) -> tuple[str, int]:
    name, at, version = target.partition("@")
    if not at:
        return name, repository.current(name)
    if not version.isdecimal():
        raise BundleError(f"{target}: the version after @ is a number")
    return name, int(version)


def _load(path: Path) -> onnx.ModelProto:
    """The ONNX file, which holds all of its values itself."""
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise BundleError(f"{path}: no ONNX file: {error}") from error
    if outside := external_tensors(model):
        raise BundleError(f"{path}: {outside[0]}")
    return model


def _check_graph(manifest: Manifest, path: Path) -> None:
    model = _load(path)
    found = (opsets(model).get(""), model.ir_version)
    promised = (manifest.graph.opset, manifest.graph.ir_version)
    if found != promised:
        raise BundleError(f"{path}: opset and IR version are {found}, the manifest says {promised}")
    if tensor_specs(path) != (manifest.inputs, manifest.outputs):
        raise BundleError(f"{path}: its inputs and outputs are not the manifest's")


def _forms(manifest: Manifest) -> list[str]:
    """The files of the version that can be asked."""
    return [
        file
        for file in sorted(manifest.files)
        if file.endswith(".onnx") or file == TORCHSCRIPT_NAME
    ]


def _runner(manifest: Manifest, path: Path) -> Runner:
    if path.name == TORCHSCRIPT_NAME:
        return TorchScriptModel(path, [spec.name for spec in manifest.outputs])
    _load(path)
    return Session(path)


def _check_golden(manifest: Manifest, path: Path) -> None:
    try:
        answered = _runner(manifest, path).run(**golden_inputs(manifest))
    except BundleError:
        raise
    # ONNX Runtime and torch raise what has no common base.
    except Exception as error:
        raise BundleError(f"{path}: does not answer the golden tile: {error}") from error
    # The recorded answer is the served graph's; a form of another precision only has to answer.
    if path.name in _SERVED and (problem := disagreement(manifest.golden, answered)):
        raise BundleError(f"{path}: {problem}")


def _check_config(repository: Repository, manifest: Manifest, folder: Path) -> None:
    stale = repository.stale_configs([manifest.name])
    if stale:
        raise BundleError(
            f"{stale[manifest.name]}; it is never edited by hand: "
            "`tilesight models configure` writes it anew"
        )
    # One configuration stands for all versions, and was made from the one that is served.
    if manifest.version != repository.current(manifest.name):
        return
    path = repository.config_path(manifest.name)
    graph = onnx.load(folder / MODEL_NAME, load_external_data=False).graph
    problems = config_problems(parse_config(path.read_text("utf-8"), str(path)), graph, gpu=True)
    if problems:
        raise BundleError(f"{path}: {problems[0]}")


def _check_certificate(manifest: Manifest, folder: Path) -> None:
    path = folder / CERTIFICATE_NAME
    if CERTIFICATE_NAME not in manifest.files:
        raise BundleError(f"{path}: missing, nothing shows that this version was compared")
    certificate = read_certificate(path)
    if (certificate.model, certificate.version) != (manifest.name, manifest.version):
        raise BundleError(f"{path}: is of {certificate.model}@{certificate.version}")
    served = [form for form in certificate.forms.values() if form.verdict == "served"]
    if [form.file for form in served] != [MODEL_NAME]:
        raise BundleError(f"{path}: forms: none is served as {MODEL_NAME}")
    found = (folder / MODEL_NAME).stat().st_size
    if served[0].bytes != found:
        raise BundleError(
            f"{path}: the served graph has {served[0].bytes} bytes, the file has {found}"
        )


def _check_metrics(
    repository: Repository, manifest: Manifest, folder: Path, data: Path
) -> Iterator[str]:
    encoder = _encoder(repository, manifest.head) if isinstance(manifest.head, AnswerHead) else None
    found = measure(
        manifest,
        Session(folder / MODEL_NAME),
        set_folder(manifest.metrics.dataset, data),
        encoder,
    )
    for name, value in found.items():
        promised = manifest.metrics.values.get(name)
        if promised is None:
            continue
        if abs(value - promised) > _SAME_FIGURE:
            raise BundleError(
                f"{manifest.name}@{manifest.version}: {name} is {value:.4f} on "
                f"{manifest.metrics.dataset} {manifest.metrics.split}, the manifest says "
                f"{promised:.4f}"
            )
        yield f"{name} {value:.4f} on {manifest.metrics.dataset} {manifest.metrics.split}"


def _encoder(repository: Repository, head: AnswerHead) -> Encoder:
    name, version = _target(repository, _encoder_target(repository, head))
    folder = repository.folder(name, version)
    return Encoder(repository.verified(name, version), Session(folder / MODEL_NAME))


def _encoder_target(repository: Repository, head: AnswerHead) -> str:
    """The version of the encoder that the head was made for."""
    for version, digest in repository.digests(head.encoder).items():
        if digest == head.encoder_sha256:
            return f"{head.encoder}@{version}"
    raise BundleError(
        f"{head.encoder}: no version has the graph {head.encoder_sha256} that the head was made for"
    )
