"""More versions of the tiny models: the same graphs with another note, so with another hash."""

import shutil
from pathlib import Path

import onnx

from tests.serving.bundles import edit_manifest
from tilesight.files import sha256
from tilesight.repository import Repository

ENCODER, HEAD = "spatialnet_vit_encoder", "spatialnet_vit_head"


def add_version(root: Path, name: str, version: int, note: str | None = None) -> Path:
    """The folder of a new version of the model; versions with one note have one hash."""
    newest = max(Repository(root).versions(name))
    folder = shutil.copytree(root / name / str(newest), root / name / str(version))
    graph = onnx.load(folder / "model.onnx")
    graph.doc_string = note or f"version {version}"
    onnx.save(graph, folder / "model.onnx")
    edit_manifest(folder, "version", value=version)
    edit_manifest(folder, "files", "model.onnx", value=sha256(folder / "model.onnx"))
    return folder


def add_pair(root: Path, version: int) -> None:
    """A new version of the encoder, and of the question head that is made for it."""
    encoder = add_version(root, ENCODER, version)
    head = add_version(root, HEAD, version)
    edit_manifest(head, "head", "encoder_sha256", value=sha256(encoder / "model.onnx"))


def served(repository: Repository) -> dict[str, int]:
    """The version of every model."""
    state = repository.state()
    return {name: repository.current(name, state) for name in repository.models()}


def contents(root: Path) -> dict[str, bytes]:
    """Every file of the repository but the lock."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.name != ".repository.lock"
    }
