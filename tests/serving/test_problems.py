import json
import logging
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from serving import problems
from serving.app import create_app
from serving.observe import REQUEST_ID
from tests.serving.gateway import settings_for, tile, wait_for
from tilesight import errors

PNG = {"Content-Type": "image/png"}


@pytest.mark.parametrize(
    ("method", "path", "status", "slug"),
    [
        ("GET", "/nowhere", 404, "not-found"),
        ("GET", "/labels", 405, "method-not-allowed"),
        ("POST", "/labels?treshold=1", 422, "unknown-parameter"),
        ("POST", "/labels?question=x", 422, "unknown-parameter"),
        ("GET", "/healthz?verbose=1", 422, "unknown-parameter"),
        ("POST", "/labels?threshold=1.5", 422, "invalid-parameter"),
        ("POST", "/labels?threshold=nan", 422, "invalid-parameter"),
        ("POST", "/labels?top_k=0", 422, "invalid-parameter"),
        ("POST", "/labels?top_k=5", 422, "invalid-parameter"),
        ("POST", "/labels?explain=maybe", 422, "invalid-parameter"),
        ("POST", "/caption?beams=4", 422, "invalid-parameter"),
        ("POST", "/labels", 400, "empty-image"),
    ],
)
def test_a_failure_is_a_problem_document(
    client: TestClient, method: str, path: str, status: int, slug: str
) -> None:
    answer = client.request(method, path, headers=PNG)
    assert answer.status_code == status
    assert answer.headers["Content-Type"] == problems.MEDIA_TYPE
    document = answer.json()
    assert document["type"] == f"/problems/{slug}"
    assert document["status"] == status
    assert document["instance"] == path.partition("?")[0]
    assert document["request_id"] == answer.headers[REQUEST_ID]


def test_an_unknown_parameter_is_named_with_the_known_ones(client: TestClient) -> None:
    document = client.post("/labels?treshold=1", content=tile("blue"), headers=PNG).json()
    assert document["allowed"] == ["threshold", "top_k", "explain"]
    assert document["detail"].startswith("treshold: unknown parameter")


def test_a_value_out_of_range_is_named_with_its_bound(client: TestClient) -> None:
    document = client.post("/labels?top_k=5", content=tile("blue"), headers=PNG).json()
    (wrong,) = document["errors"]
    assert (wrong["parameter"], wrong["le"]) == ("top_k", 4)


def test_the_allowed_method_is_told(client: TestClient) -> None:
    assert client.get("/labels").headers["Allow"] == "POST"


def test_a_truncated_tile_is_the_senders_fault(client: TestClient) -> None:
    whole = tile("blue", "JPEG")
    answer = client.post(
        "/labels", content=whole[: len(whole) // 2], headers={"Content-Type": "image/jpeg"}
    )
    assert answer.status_code == 400


def test_each_class_of_failure_has_a_type_of_its_own() -> None:
    slugs = [kind.slug for kind in problems.KINDS.values()]
    assert len(slugs) == len(set(slugs))
    assert all(kind.status >= 400 for kind in problems.KINDS.values())


def test_a_class_that_is_not_listed_is_its_bases_kind() -> None:
    class SpecialImageError(errors.EmptyImageError):
        pass

    assert problems.kind_of(SpecialImageError()) == problems.KINDS[errors.EmptyImageError]
    assert problems.kind_of(errors.BundleError("x")).status == 500
    assert problems.kind_of(KeyError("x")).status == 500


def test_an_unexpected_failure_leaks_nothing_and_is_logged(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def break_down(*args: object) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr("serving.tasks.label", break_down)
    caplog.set_level(logging.INFO, "tilesight")
    answer = client.post("/labels", content=tile("blue"), headers={**PNG, REQUEST_ID: "broken-one"})
    assert answer.status_code == 500
    assert answer.json()["type"] == "/problems/internal-error"
    assert "secret" not in answer.text
    (failed,) = [one for one in caplog.records if one.exc_info]
    assert failed.request_id == "broken-one"  # type: ignore[attr-defined]
    assert "secret detail" in str(failed.exc_info[1])  # type: ignore[index]


@pytest.mark.parametrize("given", ["abc-1.2:3", "x" * 128])
def test_a_sane_request_id_is_kept(client: TestClient, given: str) -> None:
    assert client.get("/healthz", headers={REQUEST_ID: given}).headers[REQUEST_ID] == given


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "a\tb", '"}'])
def test_any_other_request_id_is_replaced(client: TestClient, given: str) -> None:
    answered = client.get("/healthz", headers={REQUEST_ID: given}).headers[REQUEST_ID]
    assert answered != given
    assert len(answered) == 32


def test_each_request_is_one_line_of_the_log(
    client: TestClient, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO, "tilesight.request")
    client.post("/labels?treshold=1", headers={**PNG, REQUEST_ID: "logged"})
    client.get("/healthz", headers={REQUEST_ID: "after"})
    # The requests of earlier tests, and the gateway itself, log to the same place; its event loop
    # writes, from another thread, so it is waited for and not flushed from here.
    written: list[dict[str, Any]] = []

    def all_there() -> bool:
        written.extend(json.loads(line) for line in capfd.readouterr().err.splitlines())
        return any(line.get("request_id") == "after" for line in written)

    wait_for(all_there)
    (line,) = [line for line in written if line.get("request_id") == "logged"]
    assert (line["status"], line["path"]) == (422, "/labels")
    assert line["problem"] == "unknown-parameter"
    assert line["level"] == "info"
    assert line["duration_ms"] > 0


def test_before_the_models_are_loaded(shared_repository: Path) -> None:
    # Outside a `with` block the app is not started, so nothing loads the models.
    client = TestClient(create_app(settings_for(shared_repository)))
    assert client.get("/healthz").json() == {"status": "alive"}
    for answer in (
        client.get("/readyz"),
        client.get("/models"),
        client.post("/labels", content=tile("blue"), headers=PNG),
    ):
        assert answer.status_code == 503
        assert answer.json()["type"] == "/problems/not-ready"
        assert answer.headers["Retry-After"] == "1"
    assert "tilesight_ready 0.0" in client.get("/metrics").text
