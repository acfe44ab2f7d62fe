import os
from pathlib import Path

import pytest

from tests import miniature

_DEFAULT = Path(__file__).parents[2] / "../shared/data"


@pytest.fixture(scope="session")
def ucm_miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniature.draw(tmp_path_factory.mktemp("ucm"))


@pytest.fixture(scope="session")
def ucm_real() -> Path:
    folder = Path(os.environ.get("TILESIGHT_DATA", _DEFAULT)) / "ucm"
    if not (folder / "multilabels.tsv").is_file():
        pytest.skip(f"needs the real UC Merced data in {folder} (set TILESIGHT_DATA)")
    return folder
