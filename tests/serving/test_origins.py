"""Pages of other origins."""

from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError

from serving.origins import origins
from tests.serving.api_keys import bearing
from tests.serving.door import PAGE, TOKEN
from tests.serving.gateway import settings_for, started


def preflight(client: TestClient, origin: str, path: str = "/labels") -> dict[str, str]:
    """The CORS headers of the answer that a browser gets before it asks."""
    wanted = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type, tilesight-lane",
    }
    return cors(dict(client.options(path, headers=wanted).headers))


def cors(headers: dict[str, str]) -> dict[str, str]:
    return {name: one for name, one in headers.items() if name.startswith("access-control-")}


def test_a_preflight_needs_no_key(guarded: TestClient) -> None:
    told = preflight(guarded, PAGE)
    assert told["access-control-allow-origin"] == PAGE
    assert "POST" in told["access-control-allow-methods"]
    allowed = told["access-control-allow-headers"].lower()
    for name in ("authorization", "content-type", "tilesight-lane", "tilesight-deadline"):
        assert name in allowed
    # With it a page could use what a browser keeps; nothing here looks at cookies.
    assert "access-control-allow-credentials" not in told


@pytest.mark.parametrize(
    "origin", ["https://other.example", "http://map.example", f"{PAGE}.evil.example", "null"]
)
def test_no_other_origin_may_ask(guarded: TestClient, origin: str) -> None:
    assert "access-control-allow-origin" not in preflight(guarded, origin)
    answer = guarded.get("/healthz", headers={"Origin": origin})
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("name", ["prometheus", "people", None])
def test_a_page_may_read_answers_and_refusals(guarded: TestClient, name: str | None) -> None:
    given = bearing(TOKEN[name]) if name else {}
    answer = guarded.get("/models", headers={"Origin": PAGE} | given)
    assert answer.status_code == {"prometheus": 200, "people": 403, None: 401}[name]
    assert answer.headers["Access-Control-Allow-Origin"] == PAGE
    assert "Retry-After" in answer.headers["Access-Control-Expose-Headers"]
    # A cache must not give this answer to another origin.
    assert "Origin" in answer.headers["Vary"]


def test_by_default_no_other_origin_may_ask(client: TestClient) -> None:
    assert preflight(client, PAGE) == {}
    assert cors(dict(client.get("/healthz", headers={"Origin": PAGE}).headers)) == {}


def test_any_origin_may_ask_when_the_operator_says_so(shared_repository: Path) -> None:
    with started(settings_for(shared_repository, cors_origins="*")) as client:
        assert preflight(client, "https://other.example")["access-control-allow-origin"] == "*"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", ()),
        ("*", ("*",)),
        (" https://a.example , http://b.example:8080,", ("https://a.example", "http://b.example:8080")),
        ("http://[2001:db8::1]:90", ("http://[2001:db8::1]:90",)),
        ("http://localhost:3000", ("http://localhost:3000",)),
    ],
)  # fmt: skip
def test_origins(text: str, found: tuple[str, ...]) -> None:
    assert origins(text) == found


@pytest.mark.parametrize(
    "wrong",
    [
        "https://a.example/",
        "https://a.example/path",
        "https://A.example",
        "HTTPS://a.example",
        "https://a.example:443",
        "https://a.example:99999",
        "https://user@a.example",
        "https://bücher.example",
        "https://*.example",
        "https://a example",
        "http://[0:0::1]",
        "http://[::1",
        "a.example",
        "null",
        "ftp://a.example",
        "https://",
        "*, https://a.example",
    ],
)
def test_what_no_browser_sends_as_an_origin_is_refused(shared_repository: Path, wrong: str) -> None:
    with pytest.raises(ValueError):
        origins(wrong)
    with pytest.raises(ValidationError, match="cors_origins"):
        settings_for(shared_repository, cors_origins=wrong)
