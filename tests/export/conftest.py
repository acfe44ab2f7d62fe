from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import miniature
from tests.training.test_config import tiny_config
from training.config import MODEL_NAMES, ModelName
from training.fit import train

_THIRD_PARTIES = (
    # Lightning's own call of a torch name that is going away
    "ignore:.isinstance.treespec, LeafSpec:FutureWarning",
    # tiles are in memory, workers would only copy them
    "ignore:.*does not have many workers",
)
# The graphs that each run becomes.
GRAPHS: dict[ModelName, tuple[str, ...]] = {
    "signa": ("signa",),
    "jtts": ("jtts",),
    "spatialnet-vit": ("spatialnet_vit_encoder", "spatialnet_vit_head"),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test of this folder trains, whichever it is."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            for line in _THIRD_PARTIES:
                item.add_marker(pytest.mark.filterwarnings(line))


@pytest.fixture(scope="package", autouse=True)
def own_tokens() -> Iterator[None]:
    """Captions are measured as on a machine without Java, which takes minutes to start so often."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.metrics.tokenizer_name", lambda: "words")
        yield


@pytest.fixture(scope="package")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature data folder."""
    return miniature.draw(tmp_path_factory.mktemp("ucm"))


@pytest.fixture(scope="package")
def runs(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of each model, in a folder of its name."""
    folder = tmp_path_factory.mktemp("runs")
    for model in MODEL_NAMES:
        train(tiny_config(model, epochs=1), tiles, None, folder / model, progress=False)
    return folder


@pytest.fixture(scope="package")
def repository(runs: Path, tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs exported once; changed by no test."""
    from export.bundle import export_run

    folder = tmp_path_factory.mktemp("work") / "model_repository"  # the export makes it
    for model in MODEL_NAMES:
        versions = export_run(runs / model, folder, tiles)
        assert [str(v.relative_to(folder)) for v in versions] == [f"{g}/1" for g in GRAPHS[model]]
    return folder
