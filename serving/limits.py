"""The size and the patience that a request body gets, before anything parses it."""

import time

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import BodyTooLargeError, SlowBodyError
from serving.problems import respond

# A client that is still sending when it is answered often reads the answer only after its last
# byte, and loses it if the connection is closed under it. So the rest is read and thrown away,
# up to these bounds.
_LINGER_BYTES = 256 << 20
_LINGER_S = 20.0


class BodyLimit:
    """Middleware that refuses bodies that are too large or too slow."""

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_s: float) -> None:
        """The app behind the limit."""
        self._app = app
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, its body counted on the way."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(receive, send, self._max_bytes, self._timeout_s)
        declared = dict(scope["headers"]).get(b"content-length", b"")
        if declared.isdigit() and int(declared) > self._max_bytes:
            error = too_large(self._max_bytes, int(declared))
            await respond(scope, error)(scope, exchange.receive, exchange.send)
        else:
            await self._app(scope, exchange.receive, exchange.send)


def too_large(limit: int, declared: int | None = None) -> BodyTooLargeError:
    """The failure that names the limit."""
    size = f"the body has {declared} bytes" if declared is not None else "the body goes on"
    return BodyTooLargeError(f"{size}, the limit is {limit} bytes", limit=limit)


class _Exchange:
    """One request and its answer: counts what comes in, and holds the end back meanwhile."""

    def __init__(self, receive: Receive, send: Send, max_bytes: int, timeout_s: float) -> None:
        self._receive = receive
        self._send = send
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._received = 0
        self._complete = False

    async def receive(self) -> Message:
        """The next message; fails when the body has grown too large or too old."""
        if self._complete:
            return await self._receive()
        try:
            with anyio.fail_after(max(0.0, self._deadline - time.monotonic())):
                message = await self._next()
        except TimeoutError:
            # Whoever was too slow for the body is not waited for again after the answer.
            self._complete = True
            raise SlowBodyError(
                f"the body was not complete after {self._timeout_s:g} s", limit=self._timeout_s
            ) from None
        if self._received > self._max_bytes:
            raise too_large(self._max_bytes)
        return message

    async def send(self, message: Message) -> None:
        """Sends the message; the end of the answer waits for the end of the body."""
        last = message["type"] == "http.response.body" and not message.get("more_body", False)
        if not last or self._complete:
            await self._send(message)
            return
        await self._send({**message, "more_body": True})
        await self._linger()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _next(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._received += len(message.get("body", b""))
            self._complete = not message.get("more_body", False)
        else:
            self._complete = True
        return message

    async def _linger(self) -> None:
        bound = self._received + _LINGER_BYTES
        with anyio.move_on_after(_LINGER_S):
            while not self._complete and self._received <= bound:
                await self._next()
