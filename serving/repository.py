"""The four models that are served: the promoted versions, and whether they fit one another."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from serving.settings import Settings
from tilesight.errors import BundleError
from tilesight.manifest import (
    MANIFEST_NAME,
    MODEL_NAME,
    AnswerHead,
    CaptionHead,
    EncodingHead,
    InputSpec,
    LabelsHead,
    Manifest,
)
from tilesight.repository import Repository

HeadT = TypeVar("HeadT", bound=BaseModel)


@dataclass(frozen=True)
class Bundle(Generic[HeadT]):
    """One version of one model, its files checked against its manifest."""

    folder: Path
    manifest: Manifest
    head: HeadT

    @property
    def name(self) -> str:
        """The model's name."""
        return self.manifest.name

    @property
    def version(self) -> int:
        """The number of the version."""
        return self.manifest.version

    @property
    def key(self) -> tuple[str, int]:
        """Name and version: what tells the loaded models apart."""
        return self.name, self.version

    @property
    def graph(self) -> Path:
        """The file of the graph."""
        return self.folder / MODEL_NAME

    @property
    def tile(self) -> InputSpec:
        """What the model expects of a tile; only models that read tiles have it."""
        if self.manifest.input is None:
            raise BundleError(
                f"{self.folder / MANIFEST_NAME}: input: missing, {self.name} reads tiles"
            )
        return self.manifest.input


@dataclass(frozen=True)
class Served:
    """The four models behind the three questions that one can ask of a tile."""

    labels: Bundle[LabelsHead]
    caption: Bundle[CaptionHead]
    encoder: Bundle[EncodingHead]
    vqa: Bundle[AnswerHead]

    def all(self) -> list[Bundle[Any]]:
        """Every model, in the order in which they are loaded."""
        return [self.labels, self.caption, self.encoder, self.vqa]


def open_served(settings: Settings, known: Served | None = None) -> Served:
    """The models that the settings name, each in its promoted version, all files verified.

    A version of `known` is taken as it is: the files of a version never change.

    Raises:
        BundleError: a model is missing, or a file or tensor is not what its manifest promises.
        ManifestError: a manifest or `repository.json` cannot be read.
    """
    root = settings.model_repository
    if not root.is_dir():
        raise BundleError(f"{root}: no such model repository (TILESIGHT_MODEL_REPOSITORY)")
    shelf = _Shelf(Repository(root), known)
    labels = shelf.bundle(settings.labels_model, LabelsHead)
    _check_tiles(labels)
    _check_outputs(labels, {"scores": len(labels.head.labels), "evidence": None})
    caption = shelf.bundle(settings.caption_model, CaptionHead)
    _check_tiles(caption)
    attributes = len(caption.head.attributes)
    _check_outputs(
        caption,
        {"tokens": None, "log_probs": None, "attributes": attributes, "sampled": attributes},
    )
    vqa = shelf.bundle(settings.vqa_model, AnswerHead)
    _check_outputs(vqa, {"answers": len(vqa.head.answers)})
    encoder = shelf.bundle(vqa.head.encoder, EncodingHead)
    _check_tiles(encoder)
    _check_outputs(encoder, {"memory": None})
    _check_memory(encoder, vqa)
    return Served(labels, caption, encoder, vqa)


class _Shelf:
    """The repository at one moment: its state is read once for all models."""

    def __init__(self, repository: Repository, known: Served | None) -> None:
        self._repository = repository
        self._state = repository.state()
        self._known: Mapping[Path, Bundle[Any]] = (
            {bundle.folder: bundle for bundle in known.all()} if known else {}
        )

    def bundle(self, name: str, head: type[HeadT]) -> Bundle[HeadT]:
        """The promoted version of the model, its files checked, its head of the asked kind.

        A damaged version is an error, not a reason to serve another one unasked.
        """
        version = self._repository.current(name, self._state)
        folder = self._repository.folder(name, version)
        if folder in self._known:
            return self._known[folder]
        manifest = self._repository.verified(name, version)
        if not isinstance(manifest.head, head):
            wanted = head.model_fields["task"].default
            raise BundleError(
                f"{folder / MANIFEST_NAME}: head: task is {manifest.head.task!r}, "
                f"{wanted!r} is needed here"
            )
        return Bundle(folder, manifest, manifest.head)


def _check_tiles(bundle: Bundle[Any]) -> None:
    """Refuses a model whose graph does not read the tile that its manifest describes."""
    name = bundle.tile.name
    if name not in {spec.name for spec in bundle.manifest.inputs}:
        raise BundleError(f"{bundle.folder / MANIFEST_NAME}: inputs: {name} is missing")


def _check_outputs(bundle: Bundle[Any], wanted: dict[str, int | None]) -> None:
    """Refuses a manifest without the tensors of its task, or with another number of columns."""
    path = bundle.folder / MANIFEST_NAME
    shapes = {output.name: output.shape for output in bundle.manifest.outputs}
    for name, columns in wanted.items():
        if name not in shapes:
            raise BundleError(f"{path}: outputs: {name} is missing")
        if columns is not None and shapes[name][1:] != [columns]:
            raise BundleError(
                f"{path}: outputs: {name}: shape is {shapes[name]}, the head has {columns} entries"
            )


def _check_memory(encoder: Bundle[EncodingHead], vqa: Bundle[AnswerHead]) -> None:
    """Refuses a question head that was made for another encoder."""
    made = next(spec.shape for spec in encoder.manifest.outputs if spec.name == "memory")
    read = next((spec.shape for spec in vqa.manifest.inputs if spec.name == "memory"), None)
    if made[1:] != (read or [])[1:]:
        raise BundleError(
            f"{vqa.folder / MANIFEST_NAME}: inputs: memory: shape is {read}, "
            f"{encoder.name} makes {made}"
        )
    # Two trainings' memories have one shape and different meanings.
    found = encoder.manifest.files[MODEL_NAME]
    if vqa.head.encoder_sha256 != found:
        raise BundleError(
            f"{vqa.folder / MANIFEST_NAME}: head: encoder_sha256: made for "
            f"{vqa.head.encoder_sha256}, {encoder.graph} is {found}"
        )
