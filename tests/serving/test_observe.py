"""The middleware around a small app: ids, headers, metrics and the log line of each request."""

import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from starlette.requests import ClientDisconnect
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from serving import logs
from serving.answers import Model
from serving.errors import OverloadedError
from serving.metrics import Metrics
from serving.observe import Logged, Observe
from serving.problems import respond
from serving.timing import Timing
from tests.serving.command import samples, total

MODEL = Model(name="signa", version=3, digest="sha256:0", precision="int8", backend="onnxruntime")
TRACE = "0af7651916cd43dd8448eb211c80319c"
COUNT = "tilesight_request_duration_seconds_count"


class Route:
    path = "/labels"


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers by the path."""
    if scope["path"] == "/gone":
        raise ClientDisconnect
    if scope["path"] == "/broken":
        raise ValueError("secret reason")
    if scope["path"] == "/full":
        scope["state"]["timing"] = Timing("backfill", MODEL, 0.001)
        await respond(scope, OverloadedError("full", retry_after=1))(scope, receive, send)
        return
    if scope["path"] == "/labels":
        scope["route"] = Route
        scope["state"]["timing"] = Timing("backfill", MODEL, 0.001, 0.002, 0.003, 0.004, 0.005)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture(autouse=True)
def log_is_off_afterwards() -> Iterator[None]:
    """Undoes what `observed` does to the log."""
    yield
    for name in ("tilesight", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.NOTSET)


def observed(metrics: Metrics, logged: Logged = "all") -> Observe:
    """The app under watch, in a process that has a log."""
    logs.configure()
    return Observe(app, metrics, logged)


def client(metrics: Metrics, logged: Logged = "all") -> TestClient:
    watched = observed(metrics, logged)
    return TestClient(watched, raise_server_exceptions=False, client=("192.0.2.1", 5))


@pytest.fixture(autouse=True)
def nothing_waits(capfd: pytest.CaptureFixture[str]) -> None:
    """What other tests left to be written is not this test's."""
    logs.flush()
    capfd.readouterr()


def lines(captured: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """The lines about requests."""
    logs.flush()
    found = [json.loads(line) for line in captured.readouterr().err.splitlines()]
    return [line for line in found if line["event"] == "request"]


def test_the_line_says_what_was_asked_and_where_the_time_went(
    metrics: Metrics, capfd: pytest.CaptureFixture[str]
) -> None:
    headers = {"X-Request-ID": "mine-1", "traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
    client(metrics).post("/labels?question=secret", headers=headers)
    (line,) = lines(capfd)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line.pop("time"))
    assert 0 <= line.pop("duration_ms") < 10_000
    assert line == {
        "level": "info",
        "logger": "tilesight.request",
        "event": "request",
        "request_id": "mine-1",
        "method": "POST",
        "path": "/labels",
        "status": 200,
        "client": "192.0.2.1",
        "trace_id": TRACE,
        "lane": "backfill",
        "model": "signa",
        "version": 3,
        "admission_ms": 1.0,
        "decode_ms": 2.0,
        "queue_ms": 3.0,
        "infer_ms": 4.0,
        "postprocess_ms": 5.0,
    }


def test_the_answer_carries_its_id_and_its_stages(metrics: Metrics) -> None:
    answer = client(metrics).post("/labels", headers={"X-Request-ID": "mine-1"})
    assert answer.headers["X-Request-ID"] == "mine-1"
    stages = dict(re.findall(r"(\w+);dur=([\d.]+)", answer.headers["Server-Timing"]))
    assert float(stages.pop("total")) >= 0
    assert stages == {
        "admission": "1.00",
        "decode": "2.00",
        "queue": "3.00",
        "infer": "4.00",
        "postprocess": "5.00",
    }
    assert "Server-Timing" not in client(metrics).get("/healthz").headers


@pytest.mark.parametrize("given", ["", "a b", 'x"y', "x" * 129, "é", "<script>"])
def test_an_id_that_could_do_harm_is_replaced(metrics: Metrics, given: str) -> None:
    answer = client(metrics).get("/", headers={"X-Request-ID": given.encode()})
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["X-Request-ID"])


def test_ids_are_never_the_same(metrics: Metrics) -> None:
    one = client(metrics)
    assert len({one.get("/").headers["X-Request-ID"] for _ in range(20)}) == 20


@pytest.mark.parametrize(
    "given",
    [
        f"00-{TRACE}-b7ad6b7169203331",
        f"00-{'0' * 32}-b7ad6b7169203331-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-b7ad6b7169203331-01",
        'x"}\n{"event": "forged',
    ],
)
def test_a_trace_that_is_none_is_not_logged(
    metrics: Metrics, capfd: pytest.CaptureFixture[str], given: str
) -> None:
    client(metrics).get("/", headers={"traceparent": given.encode()})
    (line,) = lines(capfd)
    assert "trace_id" not in line


def test_a_path_cannot_forge_a_line(metrics: Metrics, capfd: pytest.CaptureFixture[str]) -> None:
    path = '/a"}\n{"event": "forged"}\x00\x7f\u2028\ud800'
    scope: Scope = {"type": "http", "method": "GET", "path": path, "headers": [], "client": None}

    async def ask() -> None:
        async def sent(message: object) -> None:
            return

        await observed(metrics)(scope, None, sent)  # type: ignore[arg-type]

    anyio.run(ask)
    logs.flush()
    text = capfd.readouterr().err
    assert text.count("\n") == 1
    assert json.loads(text)["path"] == path


@pytest.mark.parametrize(
    ("logged", "paths"),
    [("all", ["/labels", "/full", "/broken"]), ("errors", ["/full", "/broken"]), ("none", [])],
)
def test_which_requests_get_a_line(
    metrics: Metrics, capfd: pytest.CaptureFixture[str], logged: Logged, paths: list[str]
) -> None:
    for path in ("/labels", "/full", "/broken"):
        client(metrics, logged).post(path)
    assert [line["path"] for line in lines(capfd)] == paths
    found = samples(metrics.page().decode())
    assert total(found, COUNT) == 3


def test_a_problem_is_named_and_counted_and_its_stages_are_not(
    metrics: Metrics, capfd: pytest.CaptureFixture[str]
) -> None:
    assert client(metrics).post("/full").status_code == 503
    (line,) = lines(capfd)
    assert (line["status"], line["problem"], line["lane"]) == (503, "overloaded", "backfill")
    found = samples(metrics.page().decode())
    assert total(found, "tilesight_rejections_total", type="overloaded") == 1
    assert total(found, "tilesight_stage_duration_seconds_count") == 0
    assert total(found, COUNT, status="503", lane="backfill") == 1


def test_a_failure_that_nothing_caught_is_a_problem_without_its_reason(
    metrics: Metrics, capfd: pytest.CaptureFixture[str]
) -> None:
    answer = client(metrics).get("/broken")
    assert (answer.status_code, answer.json()["type"]) == (500, "/problems/internal-error")
    assert "secret" not in answer.text
    assert answer.json()["request_id"] == answer.headers["X-Request-ID"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "secret reason" in capfd.readouterr().err


def test_a_client_that_left_is_499(metrics: Metrics, capfd: pytest.CaptureFixture[str]) -> None:
    client(metrics).get("/gone")
    (line,) = lines(capfd)
    assert line["status"] == 499
    assert total(samples(metrics.page().decode()), COUNT, status="499") == 1


def test_paths_share_the_series_of_their_route(metrics: Metrics) -> None:
    one = client(metrics)
    for path in ("/labels", "/a", "/b"):
        one.get(path)
    found = samples(metrics.page().decode())
    assert total(found, COUNT, endpoint="/labels", lane="backfill") == 1
    assert total(found, COUNT, endpoint="other", lane="") == 2
    name = "tilesight_stage_duration_seconds_count"
    assert total(found, name, stage="total", model="signa", version="3") == 1


def test_a_log_that_cannot_be_written_fails_no_request(
    metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(descriptor: int, line: bytes) -> int:
        raise BrokenPipeError

    monkeypatch.setattr("serving.logs.os.write", broken)
    assert client(metrics).get("/").status_code == 200
    logs.flush()
