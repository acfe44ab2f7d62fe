"""What is known of each request afterwards: its id, a line in the log, its place in the metrics."""

import re
import time
from http import HTTPStatus
from typing import Any, Literal

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving import request_ids
from serving.logs import Lines
from serving.metrics import Metrics
from serving.problems import respond
from serving.security_headers import fortified
from serving.timing import Timing
from serving.tracing import Tracing

REQUEST_ID = "X-Request-ID"
_SANE = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
# https://www.w3.org/TR/trace-context/#traceparent-header
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
# What nginx logs for a client that left before it was answered.
_CLIENT_LEFT = 499

Logged = Literal["all", "errors", "none"]


class Observe:
    """Middleware that gives each request an id, and counts and logs it; nothing gets past it."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        logged: Logged = "all",
        tracing: Tracing | None = None,
    ) -> None:
        """The app that is watched."""
        self._app = app
        self._metrics = metrics
        # The lowest status that gets a line.
        self._logged_from = {"all": 0, "errors": 400, "none": 1000}[logged]
        self._lines = Lines("tilesight.request", "request")
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on; a failure that nothing else caught is answered here."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        state = scope.setdefault("state", {})
        request_id = _identify(scope, state)
        begun = self._tracing.begin(scope) if self._tracing else None
        status, seconds = 0, 0.0

        async def watched(message: Message) -> None:
            nonlocal status, seconds
            if message["type"] == "http.response.start":
                status, seconds = message["status"], time.perf_counter() - started
                headers = message["headers"] = [*message.get("headers", ()), request_id]
                if timing := state.get("timing"):
                    headers.append((b"server-timing", _server_timing(timing, seconds)))
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except ClientDisconnect:
            status = status or _CLIENT_LEFT
        except Exception as error:
            if status:
                raise
            await respond(scope, error)(scope, receive, fortified(scope, watched))
        finally:
            status = status or HTTPStatus.INTERNAL_SERVER_ERROR
            seconds = seconds or time.perf_counter() - started
            if self._tracing and begun:
                self._tracing.end(begun, scope, status)
            self._record(scope, state, status, seconds)

    def _record(self, scope: Scope, state: dict[str, Any], status: int, seconds: float) -> None:
        # The route's path, not the caller's: a scanner must not make a thousand time series.
        endpoint = getattr(scope.get("route"), "path", "other")
        timing: Timing | None = state.get("timing")
        problem = state.get("problem")
        self._metrics.request(endpoint, status, seconds, timing.lane if timing else "")
        if problem:
            self._metrics.rejection(problem)
        elif timing and status < HTTPStatus.BAD_REQUEST:
            # Of a request that failed on its way, the stages are not those of the others.
            self._metrics.stages(timing, seconds)
        if status >= self._logged_from:
            self._log(scope, state, status, seconds)

    def _log(self, scope: Scope, state: dict[str, Any], status: int, seconds: float) -> None:
        client = scope.get("client")
        self._lines.write(
            request_id=state["request_id"],
            method=scope["method"],
            path=scope["path"],
            status=int(status),
            problem=state.get("problem"),
            duration_ms=round(seconds * 1000, 2),
            client=client[0] if client else None,
            key=state.get("key"),
            trace_id=state.get("trace_id"),
            **_told(state.get("timing")),
        )


def _identify(scope: Scope, state: dict[str, Any]) -> tuple[bytes, bytes]:
    """Notes the ids of the request, and gives the header that tells its own.

    The caller's id if it can do no harm in a log, a new one otherwise.
    """
    request_id = b""
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            request_id = value
        elif name == b"traceparent" and (found := _TRACEPARENT.fullmatch(value)):
            state["trace_id"] = found[1].decode()
    if not _SANE.fullmatch(request_id):
        request_id = request_ids.new().encode()
    state["request_id"] = request_id.decode()
    return b"x-request-id", request_id


def _server_timing(timing: Timing, total_s: float) -> bytes:
    """The stages for the developer's tools of a browser, in milliseconds."""
    return (
        f"admission;dur={timing.admission * 1e3:.2f}, decode;dur={timing.decode * 1e3:.2f}, "
        f"queue;dur={timing.queue * 1e3:.2f}, infer;dur={timing.infer * 1e3:.2f}, "
        f"postprocess;dur={timing.postprocess * 1e3:.2f}, total;dur={total_s * 1e3:.2f}"
    ).encode()


def _told(timing: Timing | None) -> dict[str, str | float]:
    """What the log says of a request with tiles."""
    if timing is None:
        return {}
    fields: dict[str, str | float] = {"lane": timing.lane}
    if model := timing.model:
        fields["model"] = model.name
        fields["version"] = model.version
    fields["admission_ms"] = round(timing.admission * 1e3, 2)
    fields["decode_ms"] = round(timing.decode * 1e3, 2)
    fields["queue_ms"] = round(timing.queue * 1e3, 2)
    fields["infer_ms"] = round(timing.infer * 1e3, 2)
    fields["postprocess_ms"] = round(timing.postprocess * 1e3, 2)
    return fields
