"""Who may ask: keys and their scopes, before anything of a body is read."""

import json
import logging
import socket
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path

import anyio
import pytest
from fastapi.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send
from typer.testing import CliRunner

from serving import keys, logs
from serving.guard import NEEDED, OPEN, Guard
from serving.keyring import Keyring
from tests.serving import api_keys
from tests.serving.api_keys import bearing
from tests.serving.command import Serving, send, serving
from tests.serving.door import KEYS, MADE, PNG, TOKEN, ask
from tests.serving.gateway import served, settings_for, tile, wait_for
from tilesight.cli import build

MIB = 1 << 20


@pytest.mark.parametrize("path", ["/labels", "/caption", "/models", "/metrics", "/absent"])
@pytest.mark.parametrize("name", [None, "revoked", "expired"])
def test_no_key_that_works(guarded: TestClient, path: str, name: str | None) -> None:
    assert ask(guarded, path, name) == (401, "unauthorized")


@pytest.mark.parametrize("path", [*sorted(OPEN), "/docs/assets/swagger-ui.css"])
def test_probes_and_pages_are_open(guarded: TestClient, path: str) -> None:
    assert ask(guarded, path, None) == (200, "")


def test_what_is_open_is_written_down() -> None:
    assert sorted(OPEN) == ["/", "/docs", "/healthz", "/openapi.json", "/readyz"]


@pytest.mark.parametrize(
    ("name", "path", "lane", "status"),
    [
        ("people", "/labels", "", 200),
        ("people", "/labels", "interactive", 200),
        ("people", "/labels", "backfill", 403),
        ("people", "/caption", " BackFill ", 403),
        ("people", "/models", "", 403),
        ("people", "/metrics", "", 403),
        ("jobs", "/labels", "", 200),
        ("jobs", "/labels", "backfill", 200),
        ("only-backfill", "/labels", "", 403),
        ("only-backfill", "/labels", "backfill", 403),
        ("prometheus", "/metrics", "", 200),
        ("prometheus", "/models", "", 200),
        ("prometheus", "/vqa", "", 403),
        ("people", "/absent", "", 404),
    ],
)
def test_a_key_opens_what_its_scopes_say(
    guarded: TestClient, name: str, path: str, lane: str, status: int
) -> None:
    wishes = {"Tilesight-Lane": lane} if lane else {}
    assert ask(guarded, path, name, **wishes)[0] == status


def test_a_missing_scope_is_named(guarded: TestClient) -> None:
    headers = PNG | bearing(TOKEN["people"]) | {"Tilesight-Lane": "backfill"}
    answer = guarded.post("/labels", content=tile("blue"), headers=headers)
    assert (answer.status_code, answer.json()["type"]) == (403, "/problems/forbidden")
    assert answer.json()["scope"] == "backfill"
    assert "the API key people lacks the scope backfill" in answer.json()["detail"]
    challenge = answer.headers["WWW-Authenticate"]
    assert challenge.startswith("Bearer ")
    assert 'error="insufficient_scope", scope="backfill"' in challenge


def test_two_lanes_of_which_one_is_backfill_need_the_scope(guarded: TestClient) -> None:
    lanes = [("Tilesight-Lane", "interactive"), ("Tilesight-Lane", "backfill")]
    headers = [*PNG.items(), *bearing(TOKEN["people"]).items(), *lanes]
    assert guarded.post("/labels", content=tile("blue"), headers=headers).status_code == 403


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (None, ""),
        ("", ""),
        ("Bearer", ""),
        ("Bearer ", ""),
        (TOKEN["people"], ""),
        (f"Basic {TOKEN['people']}", ""),
        (f"Bearer {TOKEN['people'][:-1]}", "invalid_token"),
        (f"Bearer {TOKEN['people']}x", "invalid_token"),
        (f"Bearer {TOKEN['people'].swapcase()}", "invalid_token"),
        (f"Bearer {MADE['people'][1].sha256}", "invalid_token"),
        (f"Bearer {TOKEN['people']}, Bearer {TOKEN['people']}", "invalid_token"),
        ("Bearer " + "x" * 8000, "invalid_token"),
        (b"Bearer \xff\xfe", "invalid_token"),
    ],
)
def test_what_is_no_key(guarded: TestClient, sent: str | bytes | None, error: str) -> None:
    headers = {} if sent is None else {"Authorization": sent}
    answer = guarded.get("/models", headers=headers)
    assert (answer.status_code, answer.json()["type"]) == (401, "/problems/unauthorized")
    challenge = answer.headers["WWW-Authenticate"]
    assert challenge.startswith('Bearer realm="tilesight"')
    assert (f'error="{error}"' in challenge) if error else ("error" not in challenge)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", " Bearer ", "Bearer   "])
def test_a_scheme_is_read_as_http_has_it(guarded: TestClient, scheme: str) -> None:
    sent = {"Authorization": f"{scheme} {TOKEN['prometheus']} "}
    assert guarded.get("/models", headers=sent).status_code == 200


def test_unknown_revoked_and_expired_are_one_answer(guarded: TestClient) -> None:
    """Who finds a token learns nothing of it."""
    told = set()
    for token in (keys.new_token(), TOKEN["revoked"], TOKEN["expired"]):
        answer = guarded.get("/models", headers=bearing(token))
        told.add((answer.json()["detail"], answer.headers["WWW-Authenticate"]))
    assert len(told) == 1


def test_two_keys_in_one_request_are_none(guarded: TestClient) -> None:
    twice = [*bearing(TOKEN["prometheus"]).items(), *bearing(TOKEN["prometheus"]).items()]
    answer = guarded.get("/models", headers=twice)
    assert (answer.status_code, answer.json()["type"]) == (400, "/problems/ambiguous-key")
    assert answer.json()["limit"] == 1
    assert "Authorization" in answer.json()["detail"]


def test_no_route_is_forgotten(guarded: TestClient) -> None:
    document = guarded.get("/openapi.json").json()
    assert set(document["paths"]) <= set(NEEDED) | OPEN
    for path, scope in NEEDED.items():
        for operation in document["paths"][path].values():
            assert operation["security"] == [{"key": [scope]}]
            assert {"400", "401", "403"} <= operation["responses"].keys()
    assert "security" not in document["paths"]["/healthz"]["get"]
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"


def test_without_keys_all_is_open(client: TestClient) -> None:
    for path in ("/labels", "/models", "/metrics"):
        assert ask(client, path, None)[0] == 200
    # A header that nobody looks at does no harm.
    assert ask(client, "/models", "revoked")[0] == 200
    document = client.get("/openapi.json").json()
    assert "securitySchemes" not in document["components"]
    assert "security" not in document["paths"]["/labels"]["post"]


def test_the_log_knows_the_key_and_never_the_token(
    guarded: TestClient, capfd: pytest.CaptureFixture[str]
) -> None:
    logs.configure()
    try:
        for name in MADE:
            ask(guarded, "/models", name)
        ask(guarded, "/models", None, Authorization=f"Basic {TOKEN['people']}")
        logs.flush()
    finally:
        for name in ("tilesight", "uvicorn"):
            logger = logging.getLogger(name)
            logger.handlers.clear()
            logger.propagate = True
            logger.setLevel(logging.NOTSET)
    text = capfd.readouterr().err
    lines = [json.loads(line) for line in text.splitlines()]
    told = {(one.get("key"), one["status"]) for one in lines if one["event"] == "request"}
    assert told == {
        ("people", 403),
        ("jobs", 403),
        ("only-backfill", 403),
        ("prometheus", 200),
        (None, 401),
    }
    assert not [name for name, token in TOKEN.items() if token[4:] in text]


# --- Before the body


def test_nothing_is_read_and_nobody_is_asked_before_a_refusal(keys_file: Path) -> None:
    happened: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        happened.append("app")

    async def receive() -> Message:
        happened.append("receive")
        return {"type": "http.request", "body": b"x", "more_body": False}

    async def sent(message: Message) -> None:
        happened.append(f"{message['type']} {message.get('status', '')}".strip())

    scope: Scope = {
        "type": "http",
        "method": "POST",
        "path": "/labels",
        "headers": [(b"content-length", b"1")],
        "state": {"request_id": "x"},
    }
    anyio.run(Guard(app, Keyring(keys_file, None)), scope, receive, sent)
    assert happened[:2] == ["http.response.start 401", "http.response.body"]
    assert "app" not in happened


@pytest.fixture(scope="module")
def address(shared_repository: Path, keys_file: Path) -> Iterator[tuple[str, int]]:
    """The same behind a real socket; a body may take longer than this test waits."""
    settings = settings_for(shared_repository, api_keys_file=keys_file, body_timeout_s=600)
    with served(settings) as found:
        yield found


def head(length: int, *more: str) -> bytes:
    lines = ["POST /labels HTTP/1.1", "Host: x", "Content-Type: image/png", *more]
    return "\r\n".join([*lines, f"Content-Length: {length}", "", ""]).encode()


def read(connection: socket.socket) -> HTTPResponse:
    answer = HTTPResponse(connection, method="POST")
    answer.begin()
    return answer


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ([], 401),
        ([f"Authorization: Bearer {TOKEN['revoked']}"], 401),
        ([f"Authorization: Bearer {TOKEN['prometheus']}"], 403),
        (["Authorization: Bearer a", "Authorization: Bearer b"], 400),
        (["Expect: 100-continue"], 401),
    ],
)
@pytest.mark.parametrize("length", [1000, 1 << 40])
def test_a_refusal_waits_for_no_body(
    address: tuple[str, int], more: list[str], status: int, length: int
) -> None:
    """None is sent; one that is too large anyway is refused for its key all the same."""
    with socket.create_connection(address, 30) as connection:
        connection.sendall(head(length, *more))
        answer = read(connection)
        assert answer.status == status
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert json.loads(answer.read())["status"] == status


def test_a_refusal_can_be_read_behind_a_large_body(address: tuple[str, int]) -> None:
    size = 40 * MIB
    with socket.create_connection(address, 60) as connection:
        connection.sendall(head(size))
        for _ in range(size // MIB):
            connection.sendall(bytes(MIB))
        answer = read(connection)
        assert answer.status == 401
        answer.read()
        # All of it was thrown away, so what comes now is the next request.
        body = tile("blue")
        connection.sendall(head(len(body), f"Authorization: Bearer {TOKEN['people']}") + body)
        assert read(connection).status == 200


def test_a_body_that_never_comes_does_not_hold_the_connection(address: tuple[str, int]) -> None:
    with socket.create_connection(address, 60) as connection:
        connection.sendall(head(1 << 40))
        assert read(connection).read()
        assert connection.recv(1) == b"", "the gateway ends it"


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "OPTIONS"])
@pytest.mark.parametrize(
    "target",
    [
        "/labels",
        "/labels/",
        "//labels",
        "/Labels",
        "/%6cabels",
        "/healthz/",
        "/healthz/../models",
        "/docs/assets",
        "/docs/assets/%2e%2e/%2e%2e/models",
        "/docs/assets/../../labels",
        "/metrics?x=/docs/assets/",
        "http://x/models",
    ],
)
def test_no_other_way_leads_past_the_keys(
    address: tuple[str, int], method: str, target: str
) -> None:
    body = tile("blue")
    lines = [f"{method} {target} HTTP/1.1", "Host: x", "Content-Type: image/png"]
    with socket.create_connection(address, 30) as connection:
        text = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""])
        connection.sendall(text.encode() + body)
        answer = read(connection)
        answer.read()
    # Below the assets nothing is found but assets; all else is asked for its key.
    wanted = (404, 405) if target.startswith("/docs/assets/") else (401,)
    assert answer.status in wanted


# --- A gateway that runs


@pytest.fixture(scope="module")
def process(
    shared_repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Serving, Path, str]]:
    """`tilesight serve` with a file of keys and one in the environment; the token of the latter."""
    folder = tmp_path_factory.mktemp("running")
    file = api_keys.write(folder / "keys.json", *KEYS)
    token, given = api_keys.made("given")
    variables = {
        "TILESIGHT_API_KEYS_FILE": str(file),
        "TILESIGHT_API_KEYS": api_keys.document(given),
    }
    with serving(shared_repository, folder, **variables) as one:
        yield one, file, token


def status_of(one: Serving, token: str) -> int:
    return send(one.address, "POST", "/labels", tile("blue"), **bearing(token))[0]


def test_a_running_gateway_follows_its_keys(process: tuple[Serving, Path, str]) -> None:
    one, file, given = process
    run = CliRunner()
    assert status_of(one, TOKEN["people"]) == 200

    revoked = run.invoke(build(), ["keys", "revoke", "--file", str(file), "people"])
    assert revoked.exit_code == 0, revoked.output
    wait_for(lambda: status_of(one, TOKEN["people"]) == 401)

    arguments = ["keys", "new", "--file", str(file), "--name", "later", "--scope", "tiles"]
    token = run.invoke(build(), arguments).stdout.strip()
    wait_for(lambda: status_of(one, token) == 200)

    whole = file.read_text()
    file.write_text(whole[:-20])
    wait_for(lambda: status_of(one, token) == 200 and bool(one.events("keys not read")))
    assert status_of(one, TOKEN["people"]) == 401
    assert str(file) in one.events("keys not read")[0]["reason"]

    file.write_text(whole)
    count = len(one.events("keys read"))
    wait_for(lambda: status_of(one, given) == 200 and len(one.events("keys read")) > count)
    tokens = [*TOKEN.values(), token, given]
    text = one.log.read_text()
    assert not [secret for secret in tokens if secret[4:] in text]
    # Not even the list of the environment, which the settings hold.
    assert keys.digest(given.encode()) not in text
    assert '"key": "later"' in text
