"""Where a data set is looked for."""

from pathlib import Path

import pytest

from tests.training.fitting import train_on
from tests.training.test_config import tiny_config
from tilesight.errors import DataError
from training.datasets.folders import set_folder
from training.evaluate import evaluate

pytestmark = [
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]


def test_a_set_lies_in_the_folder_or_under_its_name(tmp_path: Path) -> None:
    assert set_folder("ucm", tmp_path) == tmp_path
    (tmp_path / "ucm").mkdir()
    (tmp_path / "aid").mkdir()
    assert set_folder("ucm", tmp_path) == tmp_path / "ucm"
    assert set_folder("ucm_captions", tmp_path) == tmp_path / "ucm"
    assert set_folder("ucm_aitlas", tmp_path) == tmp_path / "ucm"
    assert set_folder("aid", tmp_path) == tmp_path / "aid"
    assert set_folder("ucm", tmp_path / "ucm") == tmp_path / "ucm"
    assert set_folder("ucm+aid", tmp_path) == tmp_path
    with pytest.raises(DataError, match=r"--data .*absent: no such folder"):
        set_folder("ucm", tmp_path / "absent")


def test_a_run_finds_its_set_among_others(ucm_miniature: Path, tmp_path: Path) -> None:
    (tmp_path / "ucm").symlink_to(ucm_miniature)
    config = tiny_config("signa", epochs=1)
    measured = train_on(tmp_path, config, tmp_path / "run")
    assert evaluate(tmp_path / "run", ucm_miniature, "test").values == measured.values
