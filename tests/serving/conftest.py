import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from tests.serving import api_keys, door
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


@pytest.fixture(scope="session")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All keys of `door`; changed by none."""
    return api_keys.write(tmp_path_factory.mktemp("keys") / "keys.json", *door.KEYS)


@pytest.fixture(scope="session")
def guarded(shared_repository: Path, keys_file: Path) -> Iterator[TestClient]:
    """A gateway that asks for keys, and lets the pages of one origin ask."""
    settings = settings_for(shared_repository, api_keys_file=keys_file, cors_origins=door.PAGE)
    with started(settings) as client:
        yield client
