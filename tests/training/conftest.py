from pathlib import Path

import pytest

from tests import miniature


@pytest.fixture(scope="session")
def ucm_miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniature.draw(tmp_path_factory.mktemp("ucm"))
