"""A bundle that is not what it says is refused, and the message says which and why."""

from pathlib import Path

import anyio
import pytest
from fastapi.testclient import TestClient

from serving.app import create_app
from serving.engine import Engine
from serving.metrics import Metrics
from serving.repository import open_served
from tests.serving import bundles
from tests.serving.gateway import settings_for, started, wait_for
from tilesight.errors import BundleError, ManifestError, TilesightError
from tilesight.files import sha256


def refusal(repository: Path, kind: type[TilesightError] = BundleError, **options: object) -> str:
    with pytest.raises(kind) as caught:
        create_app(settings_for(repository, **options))
    return str(caught.value)


async def loading_refusal(repository: Path) -> str:
    engine = Engine(settings_for(repository), Metrics())
    with pytest.raises(BundleError) as caught:
        await engine.models.start()
    await engine.models.close()
    assert not engine.models.ready
    return str(caught.value)


def test_a_changed_byte(repository: Path) -> None:
    graph = repository / "jtts" / "1" / "model.onnx"
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    message = refusal(repository)
    assert message.startswith(f"{graph}: sha256 is ")
    assert "the manifest says" in message


def test_a_missing_graph(repository: Path) -> None:
    graph = repository / "signa" / "1" / "model.onnx"
    graph.unlink()
    assert refusal(repository).startswith(f"{graph}: missing")


def test_a_missing_manifest(repository: Path) -> None:
    manifest = repository / "signa" / "1" / "manifest.json"
    manifest.unlink()
    assert refusal(repository) == f"{manifest}: missing"


def test_a_missing_repository(tmp_path: Path) -> None:
    assert f"{tmp_path / 'nowhere'}: no such model repository" in refusal(tmp_path / "nowhere")


@pytest.mark.parametrize("name", bundles.MODELS)
def test_a_missing_model(repository: Path, name: str) -> None:
    (repository / name).rename(repository / "elsewhere")
    assert refusal(repository).startswith(f"{repository / name}: no version of this model")


def test_another_pixel_pipeline(repository: Path) -> None:
    folder = repository / "spatialnet_vit_encoder" / "1"
    bundles.edit_manifest(folder, "input", "golden_sha256", value="f" * 64)
    message = refusal(repository)
    assert message.startswith(f"{folder / 'manifest.json'}: input: golden_sha256: ")
    assert message.endswith("f" * 64)


def test_other_bands(repository: Path) -> None:
    folder = repository / "signa" / "1"
    bundles.edit_manifest(folder, "input", "bands", value=["blue", "green", "red"])
    assert "input: bands: ['blue', 'green', 'red']" in refusal(repository)


def test_an_unknown_field_in_a_manifest(repository: Path) -> None:
    bundles.edit_manifest(repository / "signa" / "1", "head", "treshold", value=0.5)
    assert "treshold" in refusal(repository, ManifestError)


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (["name"], "sigma", "name: 'sigma', the folder says 'signa'"),
        (["version"], 2, "version: 2, the folder says 1"),
        (["outputs"], [], "outputs: scores is missing"),
        (["head", "labels"], list("abcde"), "the head has 5 entries"),
    ],
)
def test_a_manifest_of_something_else(
    repository: Path, path: list[str], value: object, says: str
) -> None:
    folder = repository / "signa" / "1"
    if path == ["head", "labels"]:
        bundles.edit_manifest(folder, "head", "thresholds", value=[0.5] * 5)
    bundles.edit_manifest(folder, *path, value=value)
    assert says in refusal(repository)


def test_a_model_of_another_task(repository: Path) -> None:
    assert "task is 'caption', 'labels' is needed here" in refusal(repository, labels_model="jtts")


def test_a_head_of_another_encoder(repository: Path) -> None:
    folder = repository / "spatialnet_vit_head" / "1"
    other = {"name": "memory", "dtype": "float32", "shape": [-1, 50, 3]}
    question = {"name": "question", "dtype": "int64", "shape": [-1, 12]}
    bundles.edit_manifest(folder, "inputs", value=[other, question])
    assert "spatialnet_vit_encoder makes [-1, 49, 3]" in refusal(repository)


def test_a_head_of_another_training(repository: Path) -> None:
    folder = repository / "spatialnet_vit_head" / "1"
    bundles.edit_manifest(folder, "head", "encoder_sha256", value="f" * 64)
    assert f"head: encoder_sha256: made for {'f' * 64}" in refusal(repository)


def test_the_highest_version_is_served(repository: Path) -> None:
    bundles.write_bundle(repository, "signa", version=2)
    bundles.write_bundle(repository, "signa", version=10)
    (repository / "signa" / "notes").mkdir()
    (repository / "signa" / "011").mkdir()
    assert open_served(settings_for(repository)).labels.manifest.version == 10


def test_a_damaged_highest_version_is_not_passed_over(repository: Path) -> None:
    folder = bundles.write_bundle(repository, "signa", version=2)
    (folder / "model.onnx").unlink()
    assert str(folder) in refusal(repository)


@pytest.mark.anyio
async def test_a_graph_that_is_none(repository: Path) -> None:
    folder = bundles.replace_graph(repository, "signa", b"no graph")
    message = await loading_refusal(repository)
    assert message.startswith(f"{folder / 'model.onnx'}: ONNX Runtime cannot load it")


@pytest.mark.anyio
async def test_a_graph_with_other_tensors(repository: Path) -> None:
    graph, _, _ = bundles.caption_graph()
    bundles.replace_graph(repository, "signa", graph)
    assert "inputs are ['beams', 'tiles'], the manifest says ['tiles']" in await loading_refusal(
        repository
    )


@pytest.mark.anyio
async def test_a_tensor_of_another_type(repository: Path) -> None:
    folder = repository / "signa" / "1"
    bundles.edit_manifest(folder, "inputs", value=[bundles.TILES.model_dump() | {"dtype": "int32"}])
    assert "tiles is tensor(uint8)" in await loading_refusal(repository)


@pytest.mark.anyio
async def test_an_older_onnx_runtime(repository: Path) -> None:
    folder = repository / "signa" / "1"
    bundles.edit_manifest(folder, "graph", "minimum_onnxruntime", value="99.0")
    assert "needs ONNX Runtime 99.0" in await loading_refusal(repository)


@pytest.mark.anyio
async def test_a_graph_that_answers_with_no_number(repository: Path) -> None:
    folder = bundles.replace_graph(repository, "signa", bundles.labels_graph(bias=float("nan"))[0])
    message = await loading_refusal(repository)
    assert message.startswith(f"{folder / 'model.onnx'}: does not answer the golden tile")
    assert "scores holds a value that is not a number" in message


def test_the_gateway_says_whom_it_waits_for(repository: Path) -> None:
    told: list[TilesightError] = []
    folder = bundles.replace_graph(repository, "jtts", b"no graph")
    app = create_app(settings_for(repository), told.append)
    with TestClient(app) as client:
        wait_for(lambda: bool(told))
        assert client.get("/readyz").status_code == 503
    (failure,) = told
    assert str(folder) in str(failure)


def test_the_whole_repository_starts(shared_repository: Path) -> None:
    with started(settings_for(shared_repository)) as client:
        assert len(client.get("/models").json()["models"]) == 4


@pytest.mark.parametrize("wrong", ["model.onnx", "model.batch1.onnx"])
def test_both_graphs_of_a_version_are_asked_about_the_golden_tile(
    wrong: str, repository: Path
) -> None:
    folder = repository / "signa" / "1"
    right = (folder / "model.onnx").read_bytes()
    for name in ("model.onnx", "model.batch1.onnx"):
        graph = bundles.labels_graph(bias=1.0)[0] if name == wrong else right
        (folder / name).write_bytes(graph)
        bundles.edit_manifest(folder, "files", name, value=sha256(folder / name))
    message = anyio.run(loading_refusal, repository)
    assert "answers the golden tile otherwise: scores" in message
