"""The model repository: which version of which model is served, and whether it can be trusted."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from serving.settings import Settings
from tilesight import manifest as manifests
from tilesight.errors import BundleError
from tilesight.imaging import golden_sha256
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

HeadT = TypeVar("HeadT", bound=BaseModel)

# The bands that the pixel pipeline yields.
_BANDS = ["red", "green", "blue"]


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


def open_served(settings: Settings) -> Served:
    """The models that the settings name, each in its highest version, all files verified.

    Raises:
        BundleError: a model is missing, or a file or tensor is not what its manifest promises.
        ManifestError: a manifest cannot be read.
    """
    root = settings.model_repository
    if not root.is_dir():
        raise BundleError(f"{root}: no such model repository (TILESIGHT_MODEL_REPOSITORY)")
    labels = open_bundle(root, settings.labels_model, LabelsHead)
    _check_tiles(labels)
    _check_outputs(labels, {"scores": len(labels.head.labels), "evidence": None})
    caption = open_bundle(root, settings.caption_model, CaptionHead)
    _check_tiles(caption)
    attributes = len(caption.head.attributes)
    _check_outputs(
        caption,
        {"tokens": None, "log_probs": None, "attributes": attributes, "sampled": attributes},
    )
    vqa = open_bundle(root, settings.vqa_model, AnswerHead)
    _check_outputs(vqa, {"answers": len(vqa.head.answers)})
    encoder = open_bundle(root, vqa.head.encoder, EncodingHead)
    _check_tiles(encoder)
    _check_outputs(encoder, {"memory": None})
    _check_memory(encoder, vqa)
    return Served(labels, caption, encoder, vqa)


def open_bundle(root: Path, name: str, head: type[HeadT]) -> Bundle[HeadT]:
    """The highest version of the model, its files checked, its head of the asked kind.

    A damaged highest version is an error, not a reason to serve an older one unasked.
    """
    versions = [int(path.name) for path in (root / name).glob("*") if _is_version(path)]
    if not versions:
        raise BundleError(f"{root / name}: no version of this model (folders named 1, 2, ...)")
    folder = root / name / str(max(versions))
    manifest = manifests.read(folder)
    path = folder / MANIFEST_NAME
    if manifest.name != name:
        raise BundleError(f"{path}: name: {manifest.name!r}, the folder says {name!r}")
    if manifest.version != max(versions):
        raise BundleError(f"{path}: version: {manifest.version}, the folder says {max(versions)}")
    if not isinstance(manifest.head, head):
        wanted = head.model_fields["task"].default
        raise BundleError(
            f"{path}: head: task is {manifest.head.task!r}, {wanted!r} is needed here"
        )
    return Bundle(folder, manifest, manifest.head)


def _is_version(path: Path) -> bool:
    return path.is_dir() and path.name.isascii() and path.name.isdigit() and path.name[0] != "0"


def _check_tiles(bundle: Bundle[Any]) -> None:
    """Refuses a model trained on other pixels than the ones that this installation makes."""
    tile, path = bundle.tile, bundle.folder / MANIFEST_NAME
    if tile.bands != _BANDS:
        raise BundleError(f"{path}: input: bands: {tile.bands}, the pixel pipeline yields {_BANDS}")
    found = golden_sha256(tile.height, tile.width)
    if found != tile.golden_sha256:
        raise BundleError(
            f"{path}: input: golden_sha256: the pixel pipeline of this installation makes {found} "
            f"of the golden image, the model was made with {tile.golden_sha256}"
        )


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
