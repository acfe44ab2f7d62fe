import shutil
from pathlib import Path

import pytest

from tests import miniature
from tests.training.fitting import train_on
from tests.training.test_config import tiny_config
from training.config import MODEL_NAMES


@pytest.fixture(scope="session")
def ucm_miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniature.draw(tmp_path_factory.mktemp("ucm"))


@pytest.fixture
def own_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Captions are measured as on a machine without Java, which takes minutes to start so often."""
    monkeypatch.setattr("training.metrics.tokenizer_name", lambda: "words")


@pytest.fixture(scope="session")
def finished(ucm_miniature: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One unbroken run of two epochs for each model; changed by no test."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.metrics.tokenizer_name", lambda: "words")
        for model in MODEL_NAMES:
            train_on(ucm_miniature, tiny_config(model), folder / model)
    return folder


@pytest.fixture
def signa(finished: Path, tmp_path: Path) -> Path:
    """A finished run of SIGNA that a test may damage."""
    return shutil.copytree(finished / "signa", tmp_path / "signa")
