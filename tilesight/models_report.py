"""What the versions of a repository are worth: an entry for each, and the comparison of two."""

from collections.abc import Mapping
from typing import Literal, TypeVar

from pydantic import BaseModel, computed_field

from tilesight.errors import BundleError, ManifestError
from tilesight.manifest import MODEL_NAME, Manifest, Metrics
from tilesight.repository import Repository, State

T = TypeVar("T")
Status = Literal["promoted", "highest", "before", ""]

# The figures by which a model of a task is chosen; the others are in the manifest.
_MAIN = {
    "labels": ("f1_samples", "map"),
    "caption": ("cider", "bleu_4"),
    "encoding": ("land_use",),
    "vqa": ("presence", "theme"),
}
_FORMS = {
    "model.fp32.onnx": "onnx",
    "model.int8.onnx": "int8",
    "model.batch1.onnx": "batch1",
    "model.pt": "torchscript",
}


class Entry(BaseModel):
    """One version of a model; what its manifest says is absent where that cannot be read."""

    name: str
    version: int
    status: Status
    problem: str | None = None
    precision: str | None = None
    bytes: int | None = None
    forms: list[str] = []
    commit: str | None = None
    main: list[str] = []
    metrics: Metrics | None = None


class Comparison(BaseModel):
    """Two versions side by side; None stands for what one of them has not."""

    versions: tuple[str, str]
    measurements: tuple[Metrics, Metrics]
    figures: dict[str, tuple[float | None, float | None]]
    lineage: dict[str, tuple[str | None, str | None]]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def comparable(self) -> bool:
        """Whether both were measured on the same tiles."""
        first, second = self.measurements
        return (first.split_sha256, first.tiles) == (second.split_sha256, second.tiles)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def differences(self) -> dict[str, float]:
        """The second figure less the first, of those that both have."""
        return {
            name: second - first
            for name, (first, second) in self.figures.items()
            if first is not None and second is not None
        }


def entries(repository: Repository) -> list[Entry]:
    """Every version of every model, and promoted ones that are missing.

    Raises:
        BundleError: there is no such folder.
        ManifestError: `repository.json` cannot be read.
    """
    state = repository.state()
    return [
        _entry(repository, name, version, _status(repository, state, name, version))
        for name in sorted({*repository.models(), *state.promoted})
        for version in _known(repository, state, name)
    ]


def _known(repository: Repository, state: State, name: str) -> list[int]:
    promoted = [state.promoted[name].version] if name in state.promoted else []
    return sorted({*repository.versions(name), *promoted})


def _status(repository: Repository, state: State, name: str, version: int) -> Status:
    if name not in state.promoted:
        return "highest" if version == max(repository.versions(name)) else ""
    if version == state.promoted[name].version:
        return "promoted"
    return "before" if state.previous(name)[:1] == [version] else ""


def _entry(repository: Repository, name: str, version: int, status: Status) -> Entry:
    try:
        manifest = repository.manifest(name, version)
        size = _size(repository, name, version)
    except (BundleError, ManifestError) as error:
        return Entry(name=name, version=version, status=status, problem=str(error))
    values = manifest.metrics.values
    main = [figure for figure in _MAIN[manifest.head.task] if figure in values]
    return Entry(
        name=name,
        version=version,
        status=status,
        precision=manifest.graph.precision,
        bytes=size,
        forms=_forms(manifest),
        commit=manifest.lineage.commit,
        main=main or list(values)[:2],
        metrics=manifest.metrics,
    )


def _size(repository: Repository, name: str, version: int) -> int:
    graph = repository.folder(name, version) / MODEL_NAME
    if not graph.is_file():
        raise BundleError(f"{graph}: missing")
    return graph.stat().st_size


def _forms(manifest: Manifest) -> list[str]:
    """The forms of the model that the version holds, the served one first."""
    served = "int8" if manifest.graph.precision == "int8" else "onnx"
    return [served, *(form for file, form in _FORMS.items() if file in manifest.files)]


def compare(repository: Repository, first: tuple[str, int], second: tuple[str, int]) -> Comparison:
    """The figures and the lineage of two versions.

    Raises:
        BundleError: a version is missing, or the two do not answer the same kind of question.
        ManifestError: a manifest cannot be read.
    """
    one, other = repository.manifest(*first), repository.manifest(*second)
    names = (f"{first[0]}@{first[1]}", f"{second[0]}@{second[1]}")
    if one.head.task != other.head.task:
        raise BundleError(
            f"{names[0]} is a model of the task {one.head.task!r}, "
            f"{names[1]} of {other.head.task!r}: their figures mean different things"
        )
    sizes = _size(repository, *first), _size(repository, *second)
    return Comparison(
        versions=names,
        measurements=(one.metrics, other.metrics),
        figures=_beside(one.metrics.values, other.metrics.values),
        lineage=_beside(_lineage(one, sizes[0]), _lineage(other, sizes[1])),
    )


def _lineage(manifest: Manifest, size: int) -> dict[str, str | None]:
    """What the version was made of, and what came out."""
    lineage, metrics, graph = manifest.lineage, manifest.metrics, manifest.graph
    data = {f"data {name}": digest for name, digest in lineage.data_sha256.items()}
    return {
        "commit": lineage.commit,
        "config": lineage.config_sha256,
        "checkpoint": lineage.checkpoint_sha256,
        "base weights": lineage.base_weights_sha256,
        **data,
        "measured on": f"{metrics.dataset} {metrics.split}, {metrics.tiles} tiles",
        "split": metrics.split_sha256,
        "seed": str(metrics.seed),
        "graph": manifest.files.get(MODEL_NAME),
        "precision": graph.precision,
        "bytes": f"{size:,}",
        "forms": ", ".join(_forms(manifest)),
        "opset": str(graph.opset),
        "ONNX Runtime": f"{graph.minimum_onnxruntime} or later",
    }


def _beside(
    first: Mapping[str, T], second: Mapping[str, T]
) -> dict[str, tuple[T | None, T | None]]:
    names = dict.fromkeys([*first, *second])
    return {name: (first.get(name), second.get(name)) for name in names}
