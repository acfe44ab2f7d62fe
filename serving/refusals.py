"""Problem documents as bytes of HTTP/1.1, for requests that never reach the app."""

from http import HTTPStatus
from typing import NamedTuple

from starlette.types import Scope

from serving import request_ids
from serving.problems import respond
from serving.security_headers import ANSWER

REQUEST_ID = b"x-request-id"
# Stands where an id will stand.
_NO_ID = "0" * 32
# Paths for which an answer is kept ready; callers make up as many as they like.
_MOST_PATHS = 64


class Refusal(NamedTuple):
    """An answer, and what the log and the metrics say of it."""

    slug: str
    status: int
    request_id: str
    answer: bytes


def refusal(error: Exception, path: str) -> Refusal:
    """The whole answer that the failure of a request for the path gets."""
    return _refusal(error, path, request_ids.new())


class Ready:
    """One refusal that is answered again and again; only the request id is new each time."""

    def __init__(self, error: Exception) -> None:
        """The answers that the failure gets."""
        self._error = error
        self._parts: dict[bytes, list[bytes]] = {}

    def __call__(self, path: bytes) -> bytes:
        """The whole answer to a request for the path."""
        parts = self._parts.get(path)
        if parts is None:
            if len(self._parts) >= _MOST_PATHS:
                self._parts.clear()
            whole = _refusal(self._error, path.decode("latin-1"), _NO_ID).answer
            parts = self._parts[path] = whole.split(_NO_ID.encode())
        return request_ids.new().encode().join(parts)


def closing(answer: bytes) -> bytes:
    """The same answer as the last one of its connection."""
    return answer.replace(b"\r\n", b"\r\nconnection: close\r\n", 1)


def _refusal(error: Exception, path: str, request_id: str) -> Refusal:
    scope: Scope = {"path": path, "state": {"request_id": request_id}}
    made = respond(scope, error)
    status = HTTPStatus(made.status_code)
    headers = [*made.raw_headers, (REQUEST_ID, request_id.encode()), *ANSWER]
    lines = [
        f"HTTP/1.1 {status} {status.phrase}".encode(),
        *(name + b": " + value for name, value in headers if name != b"connection"),
        b"",
        bytes(made.body),
    ]
    return Refusal(scope["state"]["problem"], status, request_id, b"\r\n".join(lines))
