"""The size and the patience that a request body gets, before anything parses it."""

import asyncio

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import BodyTooLargeError, RequestError, SlowBodyError
from serving.problems import respond

# A client that is still sending when it is answered often reads the answer only after its last
# byte, and loses it if the connection is closed under it. So the rest is read and thrown away,
# up to these bounds.
_LINGER_BYTES = 256 << 20
_LINGER_S = 20.0
_QUIET_S = 2.0
# Longer than any body is waited for; beyond some years an event loop cannot count.
_FOREVER_S = 86400.0


class BodyLimit:
    """Middleware that refuses bodies that are too large or too slow."""

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_s: float) -> None:
        """The app behind the limit."""
        self._app = app
        self._max_bytes = max_bytes
        self._clock = _Clock(min(timeout_s, _FOREVER_S))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, its body counted on the way."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared, framed, expects = b"", False, False
        for name, value in scope["headers"]:
            if name == b"content-length":
                declared, framed = value, True
            elif name == b"transfer-encoding":
                framed = True
            elif name == b"expect":
                expects = True
        if not framed and scope["method"] == "GET":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(receive, send, self._max_bytes, self._clock, expects)
        try:
            if declared.isdigit() and int(declared) > self._max_bytes:
                error = too_large(self._max_bytes, int(declared))
                await respond(scope, error)(scope, exchange.receive, exchange.send)
            else:
                await self._app(scope, exchange.receive, exchange.send)
        finally:
            self._clock.drop(exchange)


def too_large(limit: int, declared: int | None = None) -> BodyTooLargeError:
    """The failure that names the limit."""
    size = f"the body has {declared} bytes" if declared is not None else "the body goes on"
    return BodyTooLargeError(f"{size}, the limit is {limit} bytes", limit=limit)


class _Exchange:
    """One request and its answer: counts what comes in, and holds the end back meanwhile."""

    __slots__ = (
        "_clock",
        "_complete",
        "_expects",
        "_late",
        "_max_bytes",
        "_reader",
        "_receive",
        "_received",
        "_send",
        "_timed",
    )

    def __init__(
        self, receive: Receive, send: Send, max_bytes: int, clock: "_Clock", expects: bool
    ) -> None:
        """An exchange of which nothing is known; `expects` says that the client waits for a 100."""
        self._receive = receive
        self._send = send
        self._max_bytes = max_bytes
        self._clock = clock
        self._expects = expects
        self._received = 0
        self._timed = self._late = self._complete = False
        self._reader: asyncio.Task[object] | None = None

    async def receive(self) -> Message:
        """The next message; fails when the body has grown too large or too old."""
        if self._complete:
            return await self._receive()
        if not self._timed:
            self._timed = True
            self._clock.add(self)
        # As `asyncio.timeout` does it, but with one timer for all.
        self._reader = asyncio.current_task()
        try:
            if self._late:
                raise self._slow()
            message = await self._receive()
        except asyncio.CancelledError:
            if self._late and self._reader is not None and not self._reader.uncancel():
                raise self._slow() from None
            raise
        finally:
            self._reader = None
        self._count(message)
        if self._received > self._max_bytes:
            raise too_large(self._max_bytes)
        return message

    async def send(self, message: Message) -> None:
        """Sends the message; the end of the answer waits for the end of the body."""
        if self._complete or message["type"] != "http.response.body" or message.get("more_body"):
            await self._send(message)
        elif self._expects and not self._received:
            # Who was never told to go on does not send the body, and what comes is no part of it.
            await self._send(message)
        else:
            await self._send({**message, "more_body": True})
            await self._linger()
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    def expire(self) -> None:
        """The time is up."""
        self._late = True
        if self._reader is not None:
            self._reader.cancel()

    def _slow(self) -> SlowBodyError:
        # Whoever was too slow for the body is not waited for again after the answer.
        self._complete = True
        limit = self._clock.seconds
        return SlowBodyError(f"the body was not complete after {limit:g} s", limit=limit)

    def _count(self, message: Message) -> None:
        if message["type"] == "http.request":
            self._received += len(message.get("body", b""))
            self._complete = not message.get("more_body", False)
        else:
            self._complete = True
        if self._complete:
            self._clock.drop(self)

    async def _linger(self) -> None:
        self._clock.drop(self)
        bound = self._received + _LINGER_BYTES
        with anyio.move_on_after(_LINGER_S):
            while not self._complete and self._received <= bound:
                with anyio.move_on_after(_QUIET_S) as quiet:
                    try:
                        self._count(await self._receive())
                    except RequestError:
                        # The rest of the body is damaged; nobody needs it.
                        return
                if quiet.cancelled_caught:
                    return


class _Clock:
    """Tells exchanges that their time is up; as all have the same, one timer serves all.

    A timer for each would cost an ordinary request more than all else here.
    """

    def __init__(self, seconds: float) -> None:
        """A clock that nobody looks at."""
        self.seconds = seconds
        # In the order in which they are due.
        self._due: dict[_Exchange, float] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def add(self, exchange: _Exchange) -> None:
        """Tells the exchange, so many seconds from now."""
        loop = asyncio.get_running_loop()
        self._due[exchange] = loop.time() + self.seconds
        if self._loop is not loop:
            self._loop = loop
            loop.call_later(self.seconds, self._ring)

    def drop(self, exchange: _Exchange) -> None:
        """Does not tell it any more."""
        self._due.pop(exchange, None)

    def _ring(self) -> None:
        assert self._loop is not None
        now = self._loop.time()
        while self._due:
            exchange, due = next(iter(self._due.items()))
            if due > now:
                self._loop.call_at(due, self._ring)
                return
            del self._due[exchange]
            exchange.expire()
        self._loop = None
