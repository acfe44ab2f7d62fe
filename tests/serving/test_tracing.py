"""Traces: a real gateway sends them to a small collector that reads OpenTelemetry's own format."""

import gzip
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from serving.settings import Settings
from serving.tracing import carried, tracing
from tests.serving.command import send, serving
from tests.serving.gateway import settings_for, tile, wait_for
from tilesight.errors import MissingExtraError

otlp = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
pytest.importorskip("opentelemetry.sdk", reason="the extra otel is not installed")

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
STAGES = ["admission", "decode", "queue", "infer", "postprocess"]


class Collector(ThreadingHTTPServer):
    """Takes what an exporter sends."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.paths: list[str] = []
        self.spans: list[tuple[dict[str, str], object]] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def named(self, name: str) -> list:
        """The spans of this name."""
        return [span for _, span in self.spans if span.name == name]


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        request = otlp.ExportTraceServiceRequest.FromString(body)
        self.server.paths.append(self.path)
        for group in request.resource_spans:
            resource = {one.key: one.value.string_value for one in group.resource.attributes}
            for scope in group.scope_spans:
                self.server.spans += [(resource, span) for span in scope.spans]
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.end_headers()
        self.wfile.write(otlp.ExportTraceServiceResponse().SerializeToString())

    def log_message(self, *arguments: object) -> None:
        """Says nothing."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    server = Collector()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def attributes(span: object) -> dict[str, object]:
    return {
        one.key: getattr(one.value, one.value.WhichOneof("value"))
        for one in span.attributes  # type: ignore[attr-defined]
    }


def test_a_request_is_a_span_and_its_stages_are_within(
    collector: Collector, shared_repository: Path, tmp_path: Path
) -> None:
    variables = {"TILESIGHT_OTLP_ENDPOINT": collector.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "100"}
    with serving(shared_repository, tmp_path, **variables) as gateway:
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "X_Request_ID": "mine"}
        assert send(gateway.address, "POST", "/labels", tile("blue"), **headers)[0] == 200
        assert send(gateway.address, "POST", "/labels", b"no tile")[0] == 415
        wait_for(lambda: len(collector.named("POST /labels")) == 2)
        gateway.process.terminate()
        assert gateway.process.wait(30) == 0
    (line, _) = [one for one in gateway.events("request") if one["path"] == "/labels"]
    assert line["trace_id"] == TRACE
    assert set(collector.paths) == {"/v1/traces"}
    resource, _ = collector.spans[0]
    assert resource["service.name"] == "tilesight"
    (span,) = [one for one in collector.named("POST /labels") if one.trace_id.hex() == TRACE]
    assert span.parent_span_id.hex() == PARENT
    told = attributes(span)
    assert told["http.response.status_code"] == 200
    assert told["http.route"] == "/labels"
    assert told["tilesight.request_id"] == "mine"
    assert told["tilesight.lane"] == "interactive"
    assert (told["tilesight.model.name"], told["tilesight.model.version"]) == ("signa", 1)
    inner = [one for _, one in collector.spans if one.parent_span_id == span.span_id]
    inner.sort(key=lambda one: (one.start_time_unix_nano, one.end_time_unix_nano))
    assert [one.name for one in inner] == STAGES
    moment = span.start_time_unix_nano
    for one in inner:
        assert one.start_time_unix_nano == moment
        moment = one.end_time_unix_nano
    assert span.start_time_unix_nano < moment <= span.end_time_unix_nano
    for name in STAGES:
        (one,) = [x for x in inner if x.name == name]
        lasted = (one.end_time_unix_nano - one.start_time_unix_nano) / 1e6
        assert lasted == pytest.approx(line[f"{name}_ms"], abs=0.01)
    (refused,) = [one for one in collector.named("POST /labels") if one.trace_id.hex() != TRACE]
    assert attributes(refused)["error.type"] == "unsupported-format"
    assert refused.parent_span_id == b""


def test_what_was_not_sent_yet_is_sent_at_the_end(
    collector: Collector, shared_repository: Path, tmp_path: Path
) -> None:
    variables = {"TILESIGHT_OTLP_ENDPOINT": collector.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "600000"}
    with serving(shared_repository, tmp_path, **variables) as gateway:
        assert send(gateway.address, "POST", "/labels", tile("blue"))[0] == 200
        assert collector.spans == []
    assert len(collector.named("POST /labels")) == 1


def test_of_those_that_nobody_asked_for_none_are_traced_at_ratio_0(
    collector: Collector, shared_repository: Path, tmp_path: Path
) -> None:
    variables = {"TILESIGHT_OTLP_ENDPOINT": collector.endpoint, "TILESIGHT_TRACE_RATIO": "0"}
    with serving(shared_repository, tmp_path, **variables) as gateway:
        for _ in range(5):
            assert send(gateway.address, "GET", "/healthz")[0] == 200
        asked = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
        assert send(gateway.address, "GET", "/healthz", **asked)[0] == 200
    assert [span.trace_id.hex() for span in collector.named("GET /healthz")] == [TRACE]


def test_a_collector_that_is_away_harms_no_request(shared_repository: Path, tmp_path: Path) -> None:
    variables = {
        "TILESIGHT_OTLP_ENDPOINT": "http://127.0.0.1:9",
        "OTEL_BSP_SCHEDULE_DELAY": "10",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
    }
    with serving(shared_repository, tmp_path, **variables) as gateway:
        for _ in range(5):
            assert send(gateway.address, "POST", "/labels", tile("blue"))[0] == 200
        gateway.process.terminate()
        assert gateway.process.wait(30) == 0


def test_the_next_server_learns_which_trace_it_is(shared_repository: Path) -> None:
    traced = tracing(settings_for(shared_repository, otlp_endpoint="http://127.0.0.1:9"))
    assert traced
    headers = [(b"traceparent", f"00-{TRACE}-{PARENT}-01".encode()), (b"tracestate", b"a=b")]
    scope = {"method": "POST", "path": "/labels", "headers": headers, "state": {"request_id": "x"}}
    assert carried() == {}
    begun = traced.begin(scope)
    onward = carried()
    span = begun.span.get_span_context().span_id
    assert onward == {"traceparent": f"00-{TRACE}-{span:016x}-01", "tracestate": "a=b"}
    assert f"{span:016x}" != PARENT


def test_without_a_collector_nothing_is_imported(shared_repository: Path) -> None:
    code = (
        "import sys, json\n"
        "from pathlib import Path\n"
        "from serving.app import create_app\n"
        "from serving.settings import Settings\n"
        "create_app(Settings(model_repository=Path(sys.argv[1]), device='cpu'))\n"
        "print(json.dumps([x for x in sys.modules if x.startswith('opentelemetry.sdk')]))\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code, str(shared_repository)], capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout) == []


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'tilesight\[otel\]'"):
        tracing(Settings(otlp_endpoint="http://127.0.0.1:4318"))
