import shutil
from pathlib import Path

import numpy as np
import pytest

from export.measure import Encoder, measure
from export.onnx_file import Session
from export.runner import Outputs, Runner
from export.signa import SignaPart
from tests.training.test_config import tiny_config
from tilesight.errors import BundleError, DataError
from tilesight.manifest import LabelsHead, Manifest, read
from training import thresholds
from training.run import read_card
from training.tasks.signa import SignaCard, read_part
from training.thresholds import Rule

ENCODER, HEAD = "spatialnet_vit_encoder", "spatialnet_vit_head"
FIGURES = {
    "signa": {"f1_samples", "map"},
    "jtts": {"cider", "bleu_4"},
    ENCODER: {"land_use"},
    HEAD: {"presence", "theme"},
}


class Answering(Runner):
    """The graph, one of its outputs replaced."""

    def __init__(self, graph: Path, output: str, value: float) -> None:
        self._session, self._output, self._value = Session(graph), output, value

    def run(self, **inputs: np.ndarray) -> Outputs:
        """What the graph answers, but for the output."""
        found = self._session.run(**inputs)
        return found | {self._output: np.full_like(found[self._output], self._value)}


def encoder_of(repository: Path, name: str) -> Encoder | None:
    if name != HEAD:
        return None
    folder = repository / ENCODER / "1"
    return Encoder(read(folder), Session(folder / "model.onnx"))


@pytest.mark.parametrize("name", FIGURES)
def test_a_graph_reaches_the_figures_of_its_manifest(
    name: str, repository: Path, tiles: Path
) -> None:
    folder = repository / name / "1"
    manifest = read(folder)
    session = Session(folder / "model.onnx")
    found = measure(manifest, session, tiles, encoder_of(repository, name))
    assert found.keys() >= FIGURES[name]
    told = {figure: manifest.metrics.values[figure] for figure in found}
    assert found == pytest.approx(told, abs=1e-3)


def test_other_answers_give_other_figures(repository: Path, tiles: Path) -> None:
    folder = repository / "signa" / "1"
    manifest: Manifest = read(folder)
    everything = measure(manifest, Answering(folder / "model.onnx", "scores", 1.0), tiles)
    nothing = measure(manifest, Answering(folder / "model.onnx", "scores", 0.0), tiles)
    assert everything["recall_samples"] == 1
    assert nothing["recall_samples"] == 0


def test_the_thresholds_of_the_manifest_decide(repository: Path, tiles: Path) -> None:
    folder = repository / "signa" / "1"
    manifest = read(folder)
    low = manifest.head.model_copy(update={"thresholds": [0.0] * len(manifest.head.labels)})
    lax = manifest.model_copy(update={"head": low})
    assert measure(lax, Session(folder / "model.onnx"), tiles)["recall_samples"] == 1


@pytest.mark.parametrize("rule", ["half", "tuned"])
def test_the_thresholds_that_the_run_chose_are_exported(
    rule: Rule, runs: Path, tiles: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(runs / "signa", tmp_path / "run")
    config = tiny_config("signa", epochs=1, batch_size=6)
    labels = read_card(run, SignaCard).labels
    chosen = thresholds.read(run, labels).model_copy(update={"rule": rule})
    thresholds.write(run, chosen)
    part = SignaPart(run, config, tiles)
    assert isinstance(part.head, LabelsHead)
    expected = [0.5] * len(labels) if rule == "half" else [chosen.tuned[name] for name in labels]
    assert part.head.thresholds == expected
    # A score between 0.5 and the tuned thresholds tells which of them decide.
    between = (np.array([0.5] * len(labels)) + chosen.of(labels)) / 2
    scores = np.broadcast_to(between, (len(part.shown.tiles), len(labels))).astype(np.float32)
    found = part.measure({"scores": scores}, "test")
    everywhere = (between >= np.array(expected)).sum() * len(scores)
    truth = read_part(tiles, "test", config.image_size).truth
    right = truth[:, between >= np.array(expected)].sum()
    assert found["precision_micro"] == pytest.approx(right / max(everywhere, 1))


def test_a_question_head_is_measured_through_its_encoder(repository: Path, tiles: Path) -> None:
    folder = repository / HEAD / "1"
    with pytest.raises(BundleError, match=f"{HEAD}@1: reads no tile, and has no encoder"):
        measure(read(folder), Session(folder / "model.onnx"), tiles)


def test_missing_tiles_are_named(repository: Path, tmp_path: Path) -> None:
    folder = repository / "signa" / "1"
    with pytest.raises(DataError, match=str(tmp_path)):
        measure(read(folder), Session(folder / "model.onnx"), tmp_path)
