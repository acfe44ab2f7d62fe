"""Question heads and the tile encoders that they were made for: they are served in pairs only."""

from collections.abc import Iterator, Mapping, Set
from typing import NamedTuple

from tilesight.errors import BundleError
from tilesight.manifest import MODEL_NAME, AnswerHead, Manifest

# The manifests of a repository by model and version, and the version of each model that is served.
Catalogue = Mapping[str, Mapping[int, Manifest]]
Served = Mapping[str, int]


class Reader(NamedTuple):
    """A version of a question head, and the encoder that it reads."""

    name: str
    version: int
    encoder: str
    encoder_sha256: str | None

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


def graph_sha256(manifest: Manifest | None) -> str | None:
    """The hash of the version's graph; None where there is no such version or it names none."""
    return manifest.files.get(MODEL_NAME) if manifest else None


def with_encoders(catalogue: Catalogue, targets: Served, served: Served) -> dict[str, int]:
    """The targets, and the encoder of each question head among them that comes without one.

    Raises:
        BundleError: no version of the encoder is the one that the head was made for.
    """
    wanted = dict(targets)
    for reader in _readers(catalogue):
        if targets.get(reader.name) == reader.version and reader.encoder not in targets:
            wanted[reader.encoder] = _encoder_of(catalogue, reader, served)
    return wanted


def check_pairs(catalogue: Catalogue, served: Served, names: Set[str]) -> None:
    """Passes a choice of versions in which each question head has its encoder.

    Pairs of which neither model is among `names` are not looked at.

    Raises:
        BundleError: naming the head and the encoder that do not belong together.
    """
    for reader in _readers(catalogue):
        if served[reader.name] != reader.version or names.isdisjoint((reader.name, reader.encoder)):
            continue
        version = served.get(reader.encoder, 0)
        found = graph_sha256(catalogue.get(reader.encoder, {}).get(version))
        if reader.encoder_sha256 != found:
            raise BundleError(
                f"{reader.encoder}@{version}: {reader} was made for another one "
                f"({reader.encoder_sha256}, not {found}); "
                "promote a head that was made for it, it brings the encoder along"
            )


def heads_of(catalogue: Catalogue, encoder: str, served: Served) -> list[str]:
    """The question heads that read the encoder, in the versions that are served."""
    return [
        reader.name
        for reader in _readers(catalogue)
        if reader.encoder == encoder and served[reader.name] == reader.version
    ]


def made_for(catalogue: Catalogue, name: str, version: int) -> list[Reader]:
    """The versions of question heads that only this version of the encoder can serve."""
    versions = catalogue.get(name, {})
    digest = graph_sha256(versions.get(version))
    twins = [one for one, manifest in versions.items() if graph_sha256(manifest) == digest]
    if digest is None or twins != [version]:
        return []
    return [
        reader
        for reader in _readers(catalogue)
        if reader.encoder == name and reader.encoder_sha256 == digest
    ]


def _readers(catalogue: Catalogue) -> Iterator[Reader]:
    for name, versions in catalogue.items():
        for version, manifest in versions.items():
            head = manifest.head
            if isinstance(head, AnswerHead):
                yield Reader(name, version, head.encoder, head.encoder_sha256)


def _encoder_of(catalogue: Catalogue, reader: Reader, served: Served) -> int:
    """The encoder version that the head was made for; the served one where several are."""
    if reader.encoder_sha256 is None:
        raise BundleError(f"{reader}: head: encoder_sha256: missing; export the model again")
    versions = [
        version
        for version, manifest in catalogue.get(reader.encoder, {}).items()
        if graph_sha256(manifest) == reader.encoder_sha256
    ]
    if not versions:
        raise BundleError(
            f"{reader}: head: encoder_sha256: no version of {reader.encoder} "
            f"is {reader.encoder_sha256}"
        )
    return served[reader.encoder] if served[reader.encoder] in versions else max(versions)
