"""The models in `model_repository`: whole, served as they are, and worth what they say."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from export.certificate import read_certificate
from export.onnx_file import Session
from export.verify import verify
from serving.settings import Settings
from tests import miniature
from tests.conftest import ROOT
from tests.serving.gateway import started
from tilesight.manifest import CERTIFICATE_NAME, MODEL_NAME, LabelsHead, Manifest
from tilesight.repository import Repository
from training import metrics
from training.tasks import signa

REPOSITORY = ROOT / "model_repository"
# What each model has to reach on the test tiles of its own sets: for SIGNA these are harder since
# AID is among them; what was asked for on UC Merced has a test of its own.
ASKED = {
    "signa": {"f1_samples": 0.88, "map": 0.90},
    "jtts": {"cider": 2.75},
    "spatialnet_vit_encoder": {"land_use": 0.90},
    "spatialnet_vit_head": {"presence": 0.88, "theme": 0.80},
}
MEGABYTE = 1_000_000


def promoted(model: str) -> tuple[Manifest, Path]:
    repository = Repository(REPOSITORY)
    version = repository.current(model)
    return repository.verified(model, version), repository.folder(model, version)


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with started(Settings(model_repository=REPOSITORY)) as client:
        yield client


def test_all_models_are_there_and_promoted() -> None:
    repository = Repository(REPOSITORY)
    assert repository.models() == sorted(ASKED)
    assert set(repository.state().promoted) == set(ASKED)


@pytest.mark.parametrize("model", ASKED)
def test_a_version_is_what_its_manifest_says(model: str) -> None:
    assert len(list(verify(REPOSITORY, model))) >= 6


@pytest.mark.parametrize("model", ASKED)
def test_the_served_form_passed_its_gates(model: str) -> None:
    manifest, folder = promoted(model)
    certificate = read_certificate(folder / CERTIFICATE_NAME)
    forms, metric = certificate.forms, certificate.task_metric
    served = next(form for form in forms.values() if form.verdict == "served")
    loss = (forms["torch"].metrics[metric] - served.metrics[metric]) * 100
    assert loss <= 0.5
    assert served.metrics[metric] == pytest.approx(manifest.metrics.values[metric])
    for exact in ("onnx", "torchscript"):
        assert max(one.maximum for one in forms[exact].differences.values()) <= 1e-3
        assert all(one.differing == 0 for one in forms[exact].decisions.values())
    assert forms["triton"].verdict == "kept"


def test_all_of_them_are_small() -> None:
    sizes = [file.stat().st_size for file in REPOSITORY.rglob("*") if file.is_file()]
    assert sum(sizes) < 80 * MEGABYTE
    assert max(sizes) < 40 * MEGABYTE


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
@pytest.mark.java
@pytest.mark.parametrize("model", ASKED)
def test_a_model_is_as_good_as_its_manifest_says(model: str, data: Path) -> None:
    if model == "jtts" and metrics.tokenizer_name() != "ptb":
        pytest.skip("needs Java: the manifest's figures are of PTB tokens")
    manifest, _ = promoted(model)
    checked = list(verify(REPOSITORY, model, data))
    for name, least in ASKED[model].items():
        assert manifest.metrics.values[name] >= least
        assert any(line.startswith(f"{name} ") for line in checked)


@pytest.mark.slow
def test_the_labels_of_uc_merced_are_as_good_as_was_asked_for(ucm_real: Path) -> None:
    manifest, folder = promoted("signa")
    assert isinstance(manifest.head, LabelsHead)
    part = signa.read_part(ucm_real, "test", 224)
    scores = Session(folder / MODEL_NAME).run_in_batches(32, tiles=part.tiles)["scores"]
    thresholds = np.array(manifest.head.thresholds)
    found = metrics.label_metrics(part.truth, scores, thresholds)
    assert found["f1_samples"] >= 0.90
    assert found["map"] >= 0.95


@pytest.mark.slow
def test_an_answer_does_not_depend_on_the_tiles_beside_it(ucm_real: Path) -> None:
    _, folder = promoted("signa")
    session = Session(folder / MODEL_NAME)
    tiles = signa.read_part(ucm_real, "test", 224).tiles[::30]
    together = session.run(tiles=tiles)["scores"]
    alone = np.concatenate([session.run(tiles=tiles[[row]])["scores"] for row in range(len(tiles))])
    np.testing.assert_allclose(alone, together, atol=1e-5)
