"""The repository that a comparison serves: as committed, or with the other graph in its place."""

import shutil
from pathlib import Path
from typing import Literal

from loadtest.two_versions import two_versions
from tilesight.repository import Repository

Precision = Literal["float32", "int8"]


def served_as(repository: Path, model: str, precision: Precision, into: Path) -> Path:
    """The repository if it serves the model so already, else a copy under `into` that does.

    Raises:
        ValueError: the model has no second graph.
    """
    served = Repository(repository).manifest(model, promoted(repository, model))
    if (served.graph.precision == "int8") == (precision == "int8"):
        return repository
    copy = into / "model_repository"
    if copy.is_dir():
        shutil.rmtree(copy)
    made = two_versions(repository, copy, model)
    made.promote({model: max(made.versions(model))})
    return copy


def promoted(repository: Path, model: str) -> int:
    """The version of the model that the repository serves."""
    return Repository(repository).state().promoted[model].version


def version_folder(repository: Path, model: str) -> Path:
    """The folder of the version that the repository serves."""
    return Repository(repository).folder(model, promoted(repository, model))
