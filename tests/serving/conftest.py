import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from tests.serving.bundles import write_repository
from tests.serving.gateway import settings_for, started


@pytest.fixture
def anyio_backend() -> str:
    """What the gateway runs on."""
    return "asyncio"


@pytest.fixture(scope="session")
def shared_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read by many tests; changed by none."""
    return write_repository(tmp_path_factory.mktemp("repository"))


@pytest.fixture
def repository(shared_repository: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(shared_repository, tmp_path / "model_repository")


@pytest.fixture(scope="session")
def client(shared_repository: Path) -> Iterator[TestClient]:
    """A ready gateway over the tiny models, with small limits."""
    with started(settings_for(shared_repository)) as ready:
        yield ready
