"""One HTTP/1.1 connection that sends prepared bytes and reads status and length of the answer."""

import asyncio
import re
import time
from collections.abc import Callable
from typing import cast

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_CLOSES = re.compile(rb"\r\nconnection:[ \t]*close", re.IGNORECASE)


class Connection(asyncio.Protocol):
    """Carries one request at a time; tells `answered(self, status, answer)` when it is over.

    The status is 0 where no answer came, and `answer` then is the reason. An answer without
    Content-Length counts as such: reading chunks would cost what the load has to leave alone.
    """

    __slots__ = ("_answer", "_answered", "_missing", "_transport", "freed", "intended", "sent")

    def __init__(self, answered: Callable[["Connection", int, bytes], None]) -> None:
        """Not connected yet."""
        self._answered = answered
        self._transport: asyncio.Transport | None = None
        self._answer = b""
        self._missing = 0  # bytes of the body to come; 0 while the head is awaited
        self.intended = 0.0
        self.sent = 0.0  # 0 between requests
        self.freed = 0.0  # since when it waits for the next

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport; uvloop's has the methods and not the class of asyncio's."""
        self._transport = cast(asyncio.Transport, transport)

    @property
    def usable(self) -> bool:
        """Whether the next request may go this way."""
        return self._transport is not None and not self._transport.is_closing()

    def send(self, request: bytes, intended: float) -> None:
        """Send a whole request that was due at `intended`."""
        assert self._transport is not None
        self.intended, self.sent = intended, time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Collect the answer until its Content-Length is there."""
        if not self.sent:  # nothing was asked: 408 before a server closes an idle connection
            self.close()
            return
        self._answer = answer = self._answer + data if self._answer else data
        if self._missing:
            self._missing -= len(data)
        else:
            end = answer.find(b"\r\n\r\n")
            if end < 0:
                return
            length = _LENGTH.search(answer, 0, end)
            if length is None:
                self.fail(b"an answer without Content-Length")
                return
            self._missing = int(length[1]) - (len(answer) - end - 4)
        if self._missing <= 0:
            self._missing = 0
            if _CLOSES.search(answer, 0, answer.find(b"\r\n\r\n")):
                self.close()
            self._over(int(answer[9:12]), answer)

    def connection_lost(self, error: Exception | None) -> None:
        """A request under way is lost with its connection."""
        self._transport = None
        if self.sent:
            self._over(0, type(error).__name__.encode() if error else b"closed without an answer")

    def fail(self, reason: bytes) -> None:
        """Give up the request under way and the connection with it."""
        self.close()
        if self.sent:
            self._over(0, reason)

    def close(self) -> None:
        """End the connection at once."""
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()

    def _over(self, status: int, answer: bytes) -> None:
        self._answer, self._missing = b"", 0
        self._answered(self, status, answer)
