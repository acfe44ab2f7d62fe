import shutil
from pathlib import Path

import pytest

from tests.repository.versions import add_pair, add_version
from tests.serving.bundles import write_repository
from tilesight.repository import Repository


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions of every model; copied by each test, changed by none."""
    root = write_repository(tmp_path_factory.mktemp("repository"))
    for name in ("signa", "jtts"):
        add_version(root, name, 2)
    add_pair(root, 2)
    return root


@pytest.fixture
def repository(drawn: Path, tmp_path: Path) -> Repository:
    """A repository of two versions of every model, none of them promoted yet."""
    return Repository(shutil.copytree(drawn, tmp_path / "models"))
