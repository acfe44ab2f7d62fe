"""The report of a real run: `tilesight evaluate RUN --report FOLDER`."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tests.training.test_config import tiny_config
from tests.training.test_multilabel import draw_aid
from tilesight.cli import build
from tilesight.errors import ConfigError, DataError
from training import augment, run
from training.attention_use import attention_use
from training.config import SignaRun
from training.datasets.multilabel import open_set
from training.datasets.splits import split_sha256
from training.evaluate import evaluate, reported
from training.fit import train
from training.models.label_graph import label_graph
from training.models.signa import Signa, SignaConfig
from training.tasks import signa, signa_report

pytestmark = [
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]


@pytest.fixture(scope="module")
def finished(ucm_miniature: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "signa"
    augmentation = {"coarsened": 0.5, "brightness": 0.4}
    config = tiny_config("signa", epochs=1, augmentation=augmentation)
    train(config, ucm_miniature, None, folder, progress=False)
    return folder


def test_a_report_of_a_run_has_the_figures_that_evaluate_prints(
    finished: Path, ucm_miniature: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report"
    words = ["evaluate", str(finished), "--data", str(ucm_miniature), "--report", str(out)]
    told = CliRunner().invoke(build(), words)
    assert told.exit_code == 0, told.output
    document = json.loads((out / "report.json").read_text(encoding="utf-8"))
    expected = evaluate(finished, ucm_miniature, "test").values
    found = {name: document["values"]["half"][name] for name in expected}
    assert found == pytest.approx(expected)
    assert document["floors"].keys() == {"constant_set", "oracle_scene"}
    assert document["attention"]["figures"]["as trained"]["map"] == pytest.approx(expected["map"])
    assert "## The attention" in (out / "report.md").read_text(encoding="utf-8")
    for name in ("heat-maps.png", "features.png", "class-f1.png"):
        assert (out / name).stat().st_size > 5000
        assert f"]({name})" in (out / "report.md").read_text(encoding="utf-8")


def test_a_report_tells_what_is_lost_without_the_attention(
    finished: Path, ucm_miniature: Path
) -> None:
    config, _ = run.read_run(finished)
    assert isinstance(config, SignaRun)
    _, network = signa.load(finished, config)
    part = signa.read_part(ucm_miniature, "test", config.image_size)
    plain = signa.predict(network, part.tiles)
    use = attention_use(network, part.tiles, part.tiles, part.truth)
    assert use is not None
    figures = signa.figures(part, plain)
    assert use.figures["as trained"] == {name: figures[name] for name in use.figures["none"]}
    # The weights are of the network again, and by hand they are what the gate gives.
    assert np.array_equal(signa.predict(network, part.tiles), plain)
    weights: list[torch.Tensor] = []
    handle = network.attention.gate.register_forward_hook(lambda *given: weights.append(given[2]))
    signa.predict(network, part.tiles)
    handle.remove()
    known = torch.cat(weights)
    assert use.strength == pytest.approx(float(known.square().mean()) ** 0.5, rel=1e-4)
    assert use.between_tiles == pytest.approx(float(known.var(dim=0).mean()) ** 0.5, rel=1e-4)

    # Where the weights are large, without them the tiles are labelled otherwise.
    with torch.no_grad():
        network.attention.merge.bias.fill_(5.0)
    strong = attention_use(network, part.tiles, part.tiles, part.truth)
    assert strong is not None
    assert strong.figures["none"] != strong.figures["as trained"]
    assert strong.figures["the same for all tiles"] != strong.figures["none"]
    assert strong.strength > 4


def test_a_rival_has_no_attention_to_tell_of() -> None:
    graph = label_graph(torch.eye(3), 0.4)
    rival = Signa(3, graph, SignaConfig(method="se"))
    tiles = np.zeros((1, 32, 32, 3), np.uint8)
    assert attention_use(rival, tiles, tiles, np.ones((1, 3), np.float32)) is None


def test_heat_maps_are_of_tiles_that_may_be_passed_on(tmp_path: Path) -> None:
    tiles, truth = np.zeros((3, 8, 8, 3), np.uint8), np.eye(3, dtype=np.float32)
    part = signa.SignaPart(["aid/port_1", "harbor05", "aid/port_2"], tiles, truth)
    shown = signa_report.passed_on(open_set("ucm+aid", tmp_path), part)
    assert shown.stems == ["harbor05"]
    assert shown.truth.tolist() == [[0, 1, 0]]
    assert shown.tiles.shape == (1, 8, 8, 3)
    alone = signa.SignaPart(["port_1"], tiles[:1], truth[:1])
    assert signa_report.passed_on(open_set("aid", tmp_path), alone) is alone


def test_a_report_is_of_the_test_part_alone(
    finished: Path, ucm_miniature: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="--report: of the test part, not of val"):
        reported(finished, ucm_miniature, "val", tmp_path)


def test_a_coarser_tile_keeps_its_size_and_mean_and_loses_detail() -> None:
    rng = np.random.default_rng(0)
    tile = rng.integers(0, 256, (64, 48, 3), dtype=np.uint8)
    coarse = augment.coarsened(tile, np.random.default_rng(1), 1.0, 0.25)
    assert coarse.shape == tile.shape
    assert coarse.dtype == np.uint8
    assert float(coarse.mean()) == pytest.approx(float(tile.mean()), abs=3)
    assert coarse.std() < 0.8 * tile.std()
    assert augment.coarsened(tile, rng, 0.0, 0.25) is tile


# Another data set


def test_a_run_is_measured_on_another_set_with_the_same_labels(
    finished: Path, tmp_path: Path
) -> None:
    aid = draw_aid(tmp_path / "aid")
    words = ["evaluate", str(finished), "--data", str(aid), "--dataset", "aid"]
    told = CliRunner().invoke(build(), words)
    assert told.exit_code == 0, told.output
    assert f"test part of aid ({split_sha256('aid', 'test')[:12]})" in " ".join(told.output.split())
    found = evaluate(finished, aid, "test", dataset="aid")
    truth = open_set("aid", aid)
    assert found.tiles == len(truth.present(truth.part_stems("test")))
    assert found.floors["constant_set"]["f1_samples"] > 0


@pytest.mark.parametrize(
    ("dataset", "kind", "told"),
    [
        ("ucm_aitlas", DataError, r"\d+ of the 420 tiles of its test part are training or valid"),
        ("dfc15", ConfigError, "its labels are not those of the run"),
        ("eurosat", DataError, "no multi-label data set 'eurosat'"),
    ],
)
def test_what_the_run_cannot_be_measured_on_is_refused(
    dataset: str, kind: type[Exception], told: str, finished: Path, ucm_miniature: Path
) -> None:
    with pytest.raises(kind, match=told):
        evaluate(finished, ucm_miniature, "test", dataset=dataset)


def test_a_report_is_of_the_runs_own_set(finished: Path, tmp_path: Path) -> None:
    words = ["evaluate", str(finished), "--data", str(tmp_path), "--dataset", "aid"]
    told = CliRunner().invoke(build(), [*words, "--report", str(tmp_path / "report")])
    assert told.exit_code == 2
    assert "leave --dataset out" in " ".join(told.output.split())
