import re
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from tests.serving import bundles
from tests.serving.gateway import settings_for, started, tile

PNG = {"Content-Type": "image/png"}


def count(client: TestClient, name: str, **labels: str) -> float:
    """The sum of the samples that have these labels, whatever others they have."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    return sum(
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def test_models_tells_what_is_served(client: TestClient) -> None:
    models = {one["name"]: one for one in client.get("/models").json()["models"]}
    assert models.keys() == bundles.MODELS.keys()
    signa = models["signa"]
    assert (signa["task"], signa["names"]) == ("labels", bundles.LABELS)
    assert signa["input"]["bands"] == ["red", "green", "blue"]
    assert (signa["split"], signa["metrics"]) == ("colours test", {"f1": 1.0})
    assert signa["runtime"]["provider"] == "CPUExecutionProvider"
    assert models["spatialnet_vit_head"]["input"] is None


def test_durations_are_counted_by_endpoint_and_stage(client: TestClient) -> None:
    request = {"endpoint": "/labels", "status": "200"}
    stages = [{"stage": stage, "model": "signa"} for stage in ("decode", "queue", "infer")]
    request_name = "tilesight_request_duration_seconds_count"
    stage_name = "tilesight_stage_duration_seconds_count"
    before = count(client, request_name, **request)
    stages_before = [count(client, stage_name, **one) for one in stages]
    client.post("/labels", content=tile("blue"), headers=PNG)
    assert count(client, request_name, **request) == before + 1
    assert [count(client, stage_name, **one) for one in stages] == [x + 1 for x in stages_before]


def test_rejections_are_counted_by_type(client: TestClient) -> None:
    before = count(client, "tilesight_rejections_total", type="empty-image")
    client.post("/labels", headers=PNG)
    assert count(client, "tilesight_rejections_total", type="empty-image") == before + 1


def test_paths_that_do_not_exist_share_one_series(client: TestClient) -> None:
    name, labels = "tilesight_request_duration_seconds_count", {"endpoint": "other"}
    before = count(client, name, status="404", **labels)
    client.get("/a")
    client.get("/b")
    assert count(client, name, status="404", **labels) == before + 2


def test_the_encoder_runs_once_for_all_questions(client: TestClient) -> None:
    name, encoder = "tilesight_batch_rows_sum", {"model": "spatialnet_vit_encoder"}
    before = count(client, name, **encoder)
    query = {"question": ["Are there trees?"] * 5}
    assert client.post("/vqa", params=query, content=tile("blue"), headers=PNG).is_success
    assert count(client, name, **encoder) == before + 1


def test_the_model_info_names_the_digest(client: TestClient) -> None:
    families = text_string_to_metric_families(client.get("/metrics").text)
    (family,) = [one for one in families if one.name == "tilesight_model_info"]
    infos = [sample.labels for sample in family.samples]
    assert {one["name"] for one in infos} == bundles.MODELS.keys()
    assert all(re.fullmatch("sha256:[0-9a-f]{64}", one["digest"]) for one in infos)


def test_two_gateways_count_for_themselves(client: TestClient, shared_repository: Path) -> None:
    client.post("/labels", headers=PNG)
    with started(settings_for(shared_repository)) as other:
        assert count(other, "tilesight_rejections_total", type="empty-image") == 0


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_the_pages_load_nothing_from_elsewhere(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/html")
    sources = re.findall(r'(?:src|href)="([^"#]+)"', answer.text)
    assert not [one for one in sources if re.match("(?:https?:)?//", one)]
    for one in sources:
        if not one.startswith("data:"):
            assert client.get(one if one.startswith("/") else f"/{one}").is_success, one


def test_the_page_may_load_nothing_from_elsewhere(client: TestClient) -> None:
    policy = client.get("/").headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy


def test_openapi_tells_the_bounds_of_the_models(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    labels = document["paths"]["/labels"]["post"]
    (top_k,) = [one for one in labels["parameters"] if one["name"] == "top_k"]
    assert {"type": "integer", "minimum": 1, "maximum": 4} in top_k["schema"]["anyOf"]
    assert set(labels["requestBody"]["content"]) == {
        "image/jpeg",
        "image/png",
        "image/webp",
        "image/tiff",
        "multipart/form-data",
        "application/json",
    }


def test_openapi_tells_failures_as_problem_documents(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert "Problem" in document["components"]["schemas"]
    assert "HTTPValidationError" not in document["components"]["schemas"]
    for path in ("/labels", "/caption", "/vqa"):
        responses = document["paths"][path]["post"]["responses"]
        for status in ("400", "408", "413", "415", "422", "500", "503", "504"):
            assert list(responses[status]["content"]) == ["application/problem+json"]
