"""The versions of the models: their folders, and manifests that say what is in them."""

import re
from dataclasses import dataclass
from pathlib import Path

from tilesight import manifest as manifests
from tilesight.errors import BundleError, ManifestError
from tilesight.imaging import golden_sha256
from tilesight.manifest import MANIFEST_NAME, Manifest
from tilesight.pairs import graph_sha256

# The bands that the pixel pipeline yields.
_BANDS = ["red", "green", "blue"]
_NAME = re.compile(r"[a-z][a-z0-9_]*", re.ASCII)
_VERSION = re.compile(r"[1-9][0-9]*", re.ASCII)


@dataclass(frozen=True)
class Versions:
    """A folder of models, each with a folder for every version.

    What has another name is no model: hidden folders hold what is being written or deleted.
    """

    root: Path

    def models(self) -> list[str]:
        """The models that have a version, by name.

        Raises:
            BundleError: there is no such folder.
        """
        self.require_root()
        names = [path.name for path in self.root.iterdir() if _NAME.fullmatch(path.name)]
        return sorted(name for name in names if self.versions(name))

    def require_root(self) -> None:
        """Passes a folder that is there.

        Raises:
            BundleError: there is no such folder.
        """
        if not self.root.is_dir():
            raise BundleError(f"{self.root}: no such model repository")

    def versions(self, name: str) -> list[int]:
        """The model's versions, lowest first; none where the model is missing."""
        model = self.model_folder(name)
        if not model.is_dir():
            return []
        return sorted(
            int(path.name)
            for path in model.iterdir()
            if _VERSION.fullmatch(path.name) and path.is_dir()
        )

    def folder(self, name: str, version: int) -> Path:
        """Where the files of the version are, or would be."""
        return self.model_folder(name) / str(version)

    def model_folder(self, name: str) -> Path:
        """Where the model's versions are, or would be.

        Raises:
            BundleError: no model can have this name.
        """
        if not _NAME.fullmatch(name):
            raise BundleError(f"{name!r} is no name of a model: lower case letters, digits and _")
        return self.root / name

    def manifest(self, name: str, version: int) -> Manifest:
        """The manifest of the version as it stands; its files are not checked.

        Raises:
            BundleError: the version or its manifest is missing.
            ManifestError: the manifest cannot be read.
        """
        self.require_version(name, version)
        return manifests.read_unchecked(self.folder(name, version))

    def require_version(self, name: str, version: int) -> None:
        """Passes a version that is there.

        Raises:
            BundleError: it is not; the message names those that are.
        """
        versions = self.versions(name)
        if version not in versions:
            raise BundleError(
                f"{self.folder(name, version)}: no such version; "
                f"{name} has {', '.join(map(str, versions)) or 'none'}"
            )

    def verified(self, name: str, version: int) -> Manifest:
        """The manifest of a version that may be served: hashes, name, number and pixels checked.

        Raises:
            BundleError: a file, the name or the pixel pipeline is not what the manifest says.
            ManifestError: the manifest cannot be read.
        """
        self.require_version(name, version)
        folder = self.folder(name, version)
        manifest = manifests.read(folder)
        path = folder / MANIFEST_NAME
        if manifest.name != name:
            raise BundleError(f"{path}: name: {manifest.name!r}, the folder says {name!r}")
        if manifest.version != version:
            raise BundleError(f"{path}: version: {manifest.version}, the folder says {version}")
        _check_pixels(manifest, path)
        return manifest

    def digests(self, name: str) -> dict[int, str]:
        """The hash of each version's graph, as its manifest has it."""
        found = {v: graph_sha256(manifest) for v, manifest in self.readable(name).items()}
        return {version: digest for version, digest in found.items() if digest is not None}

    def readable(self, name: str) -> dict[int, Manifest]:
        """The manifests of the versions that have one.

        A version without one can never be promoted, and must not stop another from being it.
        """
        found = {}
        for version in self.versions(name):
            try:
                found[version] = self.manifest(name, version)
            except (BundleError, ManifestError):
                continue
        return found

    def catalogue(self) -> dict[str, dict[int, Manifest]]:
        """The readable manifests of all models, by model and version."""
        return {name: self.readable(name) for name in self.models()}


def _check_pixels(manifest: Manifest, path: Path) -> None:
    """Refuses a model trained on other pixels than the ones that this installation makes."""
    tile = manifest.input
    if tile is None:
        return
    if tile.bands != _BANDS:
        raise BundleError(f"{path}: input: bands: {tile.bands}, the pixel pipeline yields {_BANDS}")
    found = golden_sha256(tile.height, tile.width)
    if found != tile.golden_sha256:
        raise BundleError(
            f"{path}: input: golden_sha256: the pixel pipeline of this installation makes {found} "
            f"of the golden image, the model was made with {tile.golden_sha256}"
        )
