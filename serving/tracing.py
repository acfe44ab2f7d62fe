"""OpenTelemetry: a span for each request and one for each of its stages, sent to a collector.

Without TILESIGHT_OTLP_ENDPOINT nothing of OpenTelemetry is imported. The spans of the stages are
made when the request is answered, from what was measured for the metrics anyway; stages that
overlap lie one after the other there.
"""

import time
from contextvars import ContextVar
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from starlette.types import Scope

import tilesight
from serving.settings import Settings
from serving.timing import Timing
from tilesight.errors import MissingExtraError

if TYPE_CHECKING:
    from opentelemetry.trace import Span

_STAGES = ("admission", "decode", "queue", "infer", "postprocess")
_PATH = "/v1/traces"
_NS = 1_000_000_000
_carried: ContextVar[dict[str, str] | None] = ContextVar("carried", default=None)


class Begun(NamedTuple):
    """A request's span that has not ended yet."""

    span: "Span"
    start_ns: int


def tracing(settings: Settings, worker: int | None = None) -> "Tracing | None":
    """What traces the requests; None where no collector is named.

    Raises:
        MissingExtraError: OpenTelemetry is not installed.
    """
    if settings.otlp_endpoint is None:
        return None
    try:
        return Tracing(settings.otlp_endpoint, settings.trace_ratio, worker)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"TILESIGHT_OTLP_ENDPOINT needs the package {error.name}, which is not installed: "
            "pip install 'tilesight[otel]'"
        ) from error


def carried() -> dict[str, str]:
    """The headers that tell the next server which trace this request belongs to; often none."""
    return _carried.get() or {}


class Tracing:
    """Makes the spans of requests, and hands them to a thread that sends them."""

    def __init__(self, endpoint: str, ratio: float, worker: int | None = None) -> None:
        """Sends to the collector, a share of the requests unless their callers have decided."""
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        attributes = {"service.name": "tilesight", "service.version": tilesight.__version__}
        if worker is not None:
            attributes["service.instance.id"] = str(worker)
        self._provider = TracerProvider(
            sampler=ParentBasedTraceIdRatio(ratio),
            resource=Resource.create(attributes),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(OTLPSpanExporter(endpoint=_traces_url(endpoint)))
        )
        self._tracer = self._provider.get_tracer("tilesight", tilesight.__version__)
        self._propagator = TraceContextTextMapPropagator()
        self._server, self._within = SpanKind.SERVER, set_span_in_context
        self._failed = Status(StatusCode.ERROR)

    def begin(self, scope: Scope) -> Begun:
        """The request's span, within that of the caller if it names one."""
        carrier = {
            name.decode(): value.decode("latin-1")
            for name, value in scope["headers"]
            if name in (b"traceparent", b"tracestate")
        }
        start_ns = time.time_ns()
        span = self._tracer.start_span(
            scope["method"],
            self._propagator.extract(carrier),
            self._server,
            {"http.request.method": scope["method"], "url.path": scope["path"]},
            start_time=start_ns,
        )
        context = span.get_span_context()
        scope["state"]["trace_id"] = f"{context.trace_id:032x}"
        onward: dict[str, str] = {}
        self._propagator.inject(onward, self._within(span))
        _carried.set(onward)
        return Begun(span, start_ns)

    def end(self, begun: Begun, scope: Scope, status: int) -> None:
        """Ends the request's span and adds those of its stages."""
        span = begun.span
        if not span.is_recording():
            return
        route = getattr(scope.get("route"), "path", None)
        if route:
            span.update_name(f"{scope['method']} {route}")
            span.set_attribute("http.route", route)
        span.set_attribute("http.response.status_code", int(status))
        span.set_attribute("tilesight.request_id", scope["state"]["request_id"])
        if problem := scope["state"].get("problem"):
            span.set_attribute("error.type", problem)
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            span.set_status(self._failed)
        if timing := scope["state"].get("timing"):
            self._stages(begun, timing)
        span.end()

    def close(self) -> None:
        """Sends what was not sent yet; waits for the collector, though not for ever."""
        self._provider.shutdown()

    def _stages(self, begun: Begun, timing: Timing) -> None:
        span, start_ns = begun
        attributes: dict[str, Any] = {"tilesight.lane": timing.lane}
        if model := timing.model:
            attributes["tilesight.model.name"] = model.name
            attributes["tilesight.model.version"] = model.version
            attributes["tilesight.model.digest"] = model.digest
            attributes["tilesight.backend"] = model.backend
        span.set_attributes(attributes)
        context = self._within(span)
        for name in _STAGES:
            stage = self._tracer.start_span(name, context, start_time=start_ns)
            start_ns += int(getattr(timing, name) * _NS)
            stage.end(start_ns)


def _traces_url(endpoint: str) -> str:
    """The address for spans; a bare host and port is completed."""
    return endpoint if urlsplit(endpoint).path.strip("/") else endpoint.rstrip("/") + _PATH
