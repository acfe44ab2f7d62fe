from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving.bundles import write_repository
from tests.triton.triton_server import quick, triton_home
from tilesight.repository import Repository
from tilesight.triton import Installation, TritonServer

__all__ = ["triton_home"]


@pytest.fixture(scope="session")
def tiny_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four tiny models with the configurations that Repository generates."""
    root = write_repository(tmp_path_factory.mktemp("triton") / "model_repository")
    Repository(root).write_configs()
    return root


@pytest.fixture(scope="session")
def tiny_triton(triton_home: Installation, tiny_repository: Path) -> Iterator[TritonServer]:
    """A Triton with the tiny models, which no test loads, unloads or stops."""
    with quick(tiny_repository) as server:
        yield server
