"""What is known of each request afterwards: its id, a line in the log, its place in the metrics."""

import logging
import re
import time
import uuid
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.metrics import Metrics
from serving.problems import respond

log = logging.getLogger("tilesight.request")

REQUEST_ID = "X-Request-ID"
_SANE = re.compile(r"[A-Za-z0-9._:-]{1,128}")
# What nginx logs for a client that left before it was answered.
_CLIENT_LEFT = 499


class Observe:
    """Middleware that gives each request an id, and counts and logs it; nothing gets past it."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        """The app that is watched."""
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on; a failure that nothing else caught is answered here."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(Headers(scope=scope))
        scope.setdefault("state", {})["request_id"] = request_id
        started = time.perf_counter()
        answered: dict[str, float] = {}

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                answered["status"] = message["status"]
                answered["seconds"] = time.perf_counter() - started
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID] = request_id
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except ClientDisconnect:
            answered.setdefault("status", _CLIENT_LEFT)
        except Exception as error:
            if answered:
                raise
            await respond(scope, error)(scope, receive, watched)
        finally:
            seconds = answered.get("seconds", time.perf_counter() - started)
            status = int(answered.get("status", HTTPStatus.INTERNAL_SERVER_ERROR))
            self._record(scope, status, seconds)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        # The route's path, not the caller's: a scanner must not make a thousand time series.
        endpoint = getattr(scope.get("route"), "path", "other")
        self._metrics.request(endpoint, status, seconds)
        if problem := scope["state"].get("problem"):
            self._metrics.rejection(problem)
        log.info(
            "request",
            extra={
                "request_id": scope["state"]["request_id"],
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "problem": problem,
                "duration_ms": round(seconds * 1000, 2),
                "client": scope["client"][0] if scope.get("client") else None,
            },
        )


def _request_id(headers: Headers) -> str:
    """The caller's id if it can do no harm in a log, a new one otherwise."""
    given = headers.get(REQUEST_ID, "")
    return given if _SANE.fullmatch(given) else uuid.uuid4().hex
