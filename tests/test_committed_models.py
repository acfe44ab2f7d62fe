"""The models in `model_repository`: whole, served as they are, and worth what they say."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from export.onnx_file import Session, tensor_specs
from export.spatialnet_vit import ask
from export.triton_config import config_text
from serving.settings import Settings
from tests import miniature
from tests.conftest import ROOT
from tests.serving.gateway import started
from tilesight import manifest as manifests
from tilesight.manifest import AnswerHead, CaptionHead, LabelsHead, Manifest
from tilesight.questions import sentence
from training import metrics
from training.tasks import jtts, signa, spatialnet_vit

REPOSITORY = ROOT / "model_repository"
MODELS = ("signa", "jtts", "spatialnet_vit_encoder", "spatialnet_vit_head")
SIZE = 224
BATCH = 32


def newest(model: str) -> Path:
    return max((REPOSITORY / model).glob("[0-9]*"), key=lambda folder: int(folder.name))


def read(model: str) -> tuple[Manifest, Session]:
    folder = newest(model)
    return manifests.read(folder), Session(folder / "model.onnx")


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with started(Settings(model_repository=REPOSITORY)) as client:
        yield client


@pytest.mark.parametrize("model", MODELS)
def test_a_bundle_is_what_its_manifest_says(model: str) -> None:
    folder = newest(model)
    manifest = manifests.read(folder)
    inputs, outputs = tensor_specs(folder / "model.onnx")
    assert (manifest.inputs, manifest.outputs) == (inputs, outputs)
    generated = config_text(model, inputs, outputs)
    assert (REPOSITORY / model / "config.pbtxt").read_text(encoding="utf-8") == generated


def test_all_of_them_are_small() -> None:
    sizes = [file.stat().st_size for file in REPOSITORY.rglob("*") if file.is_file()]
    assert sum(sizes) < 60e6
    assert max(sizes) < 40e6


def test_the_gateway_answers_with_them(client: TestClient, tmp_path: Path) -> None:
    data = miniature.draw(tmp_path)
    tile = next((data / "images" / "forest").iterdir()).read_bytes()
    jpeg = {"Content-Type": "image/jpeg"}
    labels = client.post("/labels", content=tile, headers=jpeg).json()["labels"]
    assert len(labels) == 17
    assert [one["score"] for one in labels] == sorted((o["score"] for o in labels), reverse=True)
    caption = client.post("/caption", content=tile, headers=jpeg).json()
    assert len(caption["caption"].split()) >= 3
    asked = {"question": ["Are there trees?", "What is the theme of this picture?"]}
    answers = client.post("/vqa", params=asked, content=tile, headers=jpeg).json()["answers"]
    assert [one["type"] for one in answers] == ["presence", "theme"]


@pytest.mark.slow
def test_labels_are_as_good_as_the_manifest_says(ucm_real: Path) -> None:
    manifest, session = read("signa")
    assert isinstance(manifest.head, LabelsHead)
    part = signa.read_part(ucm_real, "test", SIZE)
    scores = session.run_in_batches(BATCH, tiles=part.tiles)["scores"]
    values = metrics.label_metrics(part.truth, scores, np.array(manifest.head.thresholds))
    assert values == pytest.approx(manifest.metrics.values, abs=1e-3)
    assert values["f1_samples"] >= 0.90
    assert values["map"] >= 0.95


@pytest.mark.slow
@pytest.mark.java
def test_captions_are_as_good_as_the_manifest_says(ucm_real: Path) -> None:
    manifest, session = read("jtts")
    head = manifest.head
    assert isinstance(head, CaptionHead)
    if metrics.tokenizer_name() != "ptb":
        pytest.skip("needs Java: the manifest's figures are of PTB tokens")
    part = jtts.read_part(ucm_real, "test", SIZE)
    beams = np.full((len(part.tiles), 1), head.default_beams)
    tokens = session.run_in_batches(BATCH, tiles=part.tiles, beams=beams)["tokens"][:, 0]
    spoken = [sentence(row.tolist(), head.vocabulary, head.eos_id) for row in tokens]
    values = jtts.measure(part, spoken).values
    stated = {name: manifest.metrics.values[name] for name in values}
    assert values == pytest.approx(stated, abs=1e-3)
    assert values["cider"] >= 2.75


@pytest.mark.slow
def test_answers_are_as_good_as_the_manifest_says(ucm_real: Path) -> None:
    encoding, encoder = read("spatialnet_vit_encoder")
    manifest, session = read("spatialnet_vit_head")
    head = manifest.head
    assert isinstance(head, AnswerHead)
    assert head.encoder_sha256 == encoding.files["model.onnx"]
    part = spatialnet_vit.read_part(ucm_real, "test", SIZE, manifest.metrics.seed)
    memory = encoder.run_in_batches(BATCH, tiles=part.tiles)["memory"]
    rows, ids = spatialnet_vit.question_rows(part.stems, part.questions, head)
    chosen = ask(session, memory, rows, ids)["answers"].argmax(axis=1)
    values = metrics.answer_metrics(
        [question.kind for question in part.questions],
        [question.answer for question in part.questions],
        [head.answers[index] for index in chosen],
    )
    stated = {name: manifest.metrics.values[name] for name in values}
    assert values == pytest.approx(stated, abs=1e-3)
    assert values["presence"] >= 0.88
    assert values["theme"] >= 0.80
