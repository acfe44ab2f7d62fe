import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest
import torch

from export.certificate import Gates
from export.forms import Options
from export.onnx_file import Source
from export.part import Part
from tests import miniature
from tests.training.test_config import tiny_config
from tests.triton.triton_server import triton_home
from tilesight.errors import ExportError
from training.config import MODEL_NAMES, ModelName
from training.fit import train

__all__ = ["triton_home"]

# Speed decides nothing here: int8 is kept and never served, the graph for one tile is written.
GATES = Gates(max_metric_loss=1e6, min_speedup=1e6, min_batch1_speedup=0)
# What most exports of the tests leave out: other runtimes, and the speed of large batches.
UNTOLD = Options(gates=GATES, triton=False, openvino=False)
BATCHES = (1, 2)

Damage = Callable[[onnx.ModelProto], None]
Writing = Callable[..., None]

_THIRD_PARTIES = (
    # Lightning's own call of a torch name that is going away
    "ignore:.isinstance.treespec, LeafSpec:FutureWarning",
    # tiles are in memory, workers would only copy them
    "ignore:.*does not have many workers",
    # a few steps have to do
    "ignore:The number of training batches",
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
        config = tiny_config(model, epochs=1, batch_size=6)
        train(config, tiles, None, folder / model, progress=False)
    return folder


@pytest.fixture(scope="package")
def few_batches() -> Iterator[None]:
    """Speed is measured at two batch sizes, and TorchScript does not compile itself for each."""
    strategy = _fuse([])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("export.speed.BATCHES", BATCHES)
        patch.setattr("export.speed._REPEATS", 3)
        yield
    _fuse(strategy)


def _fuse(strategy: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Says how often TorchScript compiles a graph for new shapes; returns what was said before."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # as all of TorchScript
        before: list[tuple[str, int]] = torch.jit.set_fusion_strategy(strategy)
    return before


@pytest.fixture(scope="package")
def repository(
    runs: Path, tiles: Path, few_batches: None, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """All runs exported once; changed by no test."""
    from export.bundle import export_run

    folder = tmp_path_factory.mktemp("work") / "model_repository"  # the export makes it
    for model in MODEL_NAMES:
        versions = export_run(runs / model, folder, tiles, UNTOLD)
        assert [str(v.relative_to(folder)) for v in versions] == [f"{g}/1" for g in GRAPHS[model]]
    return folder


@pytest.fixture
def copied(repository: Path, tmp_path: Path) -> Path:
    """A repository that a test may change."""
    return shutil.copytree(repository, tmp_path / "model_repository")


@pytest.fixture
def writing(repository: Path, few_batches: None, monkeypatch: pytest.MonkeyPatch) -> Writing:
    """Makes exports take the forms that were exported before, ONNX damaged; saves half a minute."""

    def begin(damage: Damage | None = None) -> None:
        def write_onnx(_source: Source, path: Path, _half_weights: bool) -> float:
            model = onnx.load(_written(path) / "model.onnx")
            if damage is not None:
                damage(model)
            onnx.save(model, path)
            return 0.0

        def write_torchscript(_source: Source, path: Path) -> None:
            shutil.copy(_written(path) / "model.pt", path)

        def fit_int8(_part: Part, _source: Path, target: Path, _gates: Gates) -> str:
            before = _written(target) / "model.int8.onnx"
            if not before.is_file():
                raise ExportError("no int8 was kept")
            shutil.copy(before, target)
            return "the recipe of before"

        monkeypatch.setattr("export.forms.write_onnx", write_onnx)
        monkeypatch.setattr("export.forms.write_torchscript", write_torchscript)
        monkeypatch.setattr("export.forms.fit_int8", fit_int8)

    def _written(path: Path) -> Path:
        """The exported version of the model whose next version the path lies in."""
        return repository / path.parents[1].name / "1"

    return begin
