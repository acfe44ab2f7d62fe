"""One connection, and how it ends: in time, told why, and not in the middle of an answer."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

from uvicorn._types import ASGIReceiveEvent, ASGISendEvent
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.utils import get_remote_addr

from serving import refusals
from serving.errors import (
    ConnectionsError,
    HeaderTooLargeError,
    MalformedBodyError,
    RequestError,
    SlowHeaderError,
)

log = logging.getLogger("tilesight.wire")

Headers = list[tuple[bytes, bytes]]
# A whole answer for a POST that there is no place for, by its path and headers, or None.
Shed = Callable[[bytes, Headers], bytes | None]

RETRY_S = 1
# After the last answer of a connection, so that a client that is still sending gets to read it.
LINGER_BYTES = 16 << 20
_LINGER_S = 2.0
# Nothing of an answer was taken for so long: its reader has gone to sleep.
_WRITE_TIMEOUT_S = 30.0

# What the parser is in: nothing, the header of a request, its body.
IDLE, HEADER, BODY = range(3)


@dataclass(frozen=True)
class Terms:
    """What all connections of one server have in common."""

    max_header_bytes: int
    header_timeout_s: float
    max_connections: int
    shed: Shed | None
    on_shed: Callable[[bytes], None]
    on_refusal: Callable[[str], None]
    turned_away: set["Connection"] = field(default_factory=set)

    @property
    def max_turned_away(self) -> int:
        """How many connections too many are told so at once; others are only cut off."""
        return 16 + self.max_connections // 8


class Cycle(RequestResponseCycle):
    """A request and its answer; a body that turns out to be damaged is no complete body."""

    failure: RequestError | None = None

    async def send(self, message: ASGISendEvent) -> None:
        """Sends the message; the head of an answer goes out together with what follows it.

        Two writes would be two packets, and wake the client twice: what costs as much as all that
        is done to make the answer.
        """
        connection: object = self.transport
        if not isinstance(connection, _Joining):
            connection = _Joining(self.transport)
            self.transport = cast(asyncio.Transport, connection)
        connection.holds = message["type"] == "http.response.start"
        await super().send(message)
        if not connection.holds:
            connection.flush()

    async def receive(self) -> ASGIReceiveEvent:
        """The next message; raises what was found to be wrong with the body."""
        if self.failure is None:
            message = await super().receive()
        if self.failure is not None:
            raise self.failure
        return message


class _LastAnswer:
    """What a damaged request's answer is written to: closes once the client has read it."""

    def __init__(self, connection: "Connection") -> None:
        self._connection = connection
        self.write = connection.transport.write
        self.is_closing = connection.transport.is_closing

    def close(self) -> None:
        self._connection.last_answer_written()


class _Joining:
    """What a cycle writes to: holds the head of an answer back until its body comes."""

    __slots__ = ("_held", "_transport", "holds")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._held = b""
        self.holds = False

    def write(self, data: bytes) -> None:
        held, self._held = self._held + data, b""
        if self.holds:
            self._held = held
        else:
            self._transport.write(held)

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def flush(self) -> None:
        if self._held:
            held, self._held = self._held, b""
            self._transport.write(held)

    def close(self) -> None:
        self.flush()
        self._transport.close()


class Connection(HttpToolsProtocol):
    """A connection as uvicorn has it, with an end; what is said over it is for a subclass."""

    terms: ClassVar[Terms]

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """A connection that is not made yet; the arguments are uvicorn's."""
        super().__init__(*args, **kwargs)
        self._phase = IDLE
        self._timer: asyncio.TimerHandle | None = None
        # Nothing is read as HTTP any more.
        self._over = False
        # Nothing is said any more.
        self._closing = False
        self._last: bytes | None = None
        # Bytes of whole reads without an end of a header or a byte of a body.
        self._quiet = 0
        self._discarding = False
        self._discarded = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Waits for the first header, unless there are too many connections."""
        terms = self.terms
        if len(self.connections) >= terms.max_connections:
            self.transport = transport
            self.client = get_remote_addr(transport)
            self._turn_away()
            return
        super().connection_made(transport)
        self._ring(terms.header_timeout_s, self._header_late)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the connection."""
        self._ring()
        self._unset_keepalive_if_required()
        self.terms.turned_away.discard(self)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Reads nothing more from a client that does not read what it gets."""
        super().pause_writing()
        if not self._closing:
            self.flow.pause_reading()
            self._ring(_WRITE_TIMEOUT_S, self.transport.abort)

    def resume_writing(self) -> None:
        """Goes on."""
        super().resume_writing()
        self.flow.resume_reading()
        if not self._closing:
            self._ring()
            if self._phase == HEADER and not self._over:
                self._ring(self.terms.header_timeout_s, self._header_late)

    def timeout_keep_alive_handler(self) -> None:
        """No other request came."""
        self._close()

    def on_response_complete(self) -> None:
        """The next request gets its turn; or the connection ends as it was decided before."""
        super().on_response_complete()
        if self.transport.is_closing() or self._busy:
            return
        if self._last is not None:
            self._unset_keepalive_if_required()
            self._close_with(self._last)
        elif self.expect_100_continue:
            # The client was not told to send the body: what comes may be one, or not.
            self._close()

    @property
    def _busy(self) -> bool:
        """Whether an answer is still to come."""
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, error: Exception) -> None:
        """Makes an end of the connection, after what was asked before is answered."""
        if self._over:
            return
        self._over = True
        self._ring()
        if self._phase == BODY:
            self._damage(error)
            return
        refusal = self._refusal(error)
        if self._busy:
            self._last = refusals.closing(refusal.answer)
        else:
            self._close_with(refusals.closing(refusal.answer))

    def _damage(self, error: Exception) -> None:
        """Fails the request whose body this is, in the app: that knows how to answer."""
        if self._discarding or self.cycle.response_complete:
            self._close_with(b"")
            return
        cycle = self.cycle
        assert isinstance(cycle, Cycle)
        cycle.failure = MalformedBodyError(f"the body is damaged: {error}")
        cycle.keep_alive = False
        cycle.transport = _LastAnswer(self)  # type: ignore[assignment]
        cycle.message_event.set()

    def last_answer_written(self) -> None:
        """Ends the connection with the answer to a damaged request."""
        self._close_with(b"")

    def _turn_away(self) -> None:
        terms = self.terms
        if len(terms.turned_away) >= terms.max_turned_away:
            self._over = True
            self.transport.abort()
            return
        terms.turned_away.add(self)
        error = ConnectionsError(
            f"{terms.max_connections} connections are open, the limit",
            limit=terms.max_connections,
            retry_after=RETRY_S,
        )
        self._close_with(refusals.closing(self._refusal(error).answer))

    def _refusal(self, error: Exception) -> refusals.Refusal:
        refusal = refusals.refusal(error, "")
        self.terms.on_refusal(refusal.slug)
        client = self.client[0] if self.client else None
        log.info(
            "refused",
            extra={
                "request_id": refusal.request_id,
                "status": refusal.status,
                "problem": refusal.slug,
                "client": client,
            },
        )
        return refusal

    def _close_with(self, answer: bytes) -> None:
        """The last that is sent; what still comes is read and thrown away for a while."""
        self._over = self._closing = True
        self._discarded = 0
        if answer:
            self.transport.write(answer)
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self._ring(_LINGER_S, self._close)
        else:
            self._close()

    def _close(self) -> None:
        """Closes, which waits until all is sent: not for ever."""
        self._closing = True
        self.transport.close()
        self._ring(_WRITE_TIMEOUT_S, self.transport.abort)

    def _too_large(self, what: str) -> HeaderTooLargeError:
        limit = self.terms.max_header_bytes
        return HeaderTooLargeError(f"the {what}, the limit is {limit} bytes", limit=limit)

    def _ring(self, seconds: float = 0.0, then: Callable[[], None] | None = None) -> None:
        """Calls `then` in so many seconds, and forgets what was to be called before."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if then is not None:
            self._timer = self.loop.call_later(seconds, then)

    def _header_late(self) -> None:
        self._timer = None
        limit = self.terms.header_timeout_s
        if self._phase == HEADER and self.flow.read_paused:
            # The rest may lie here unread while requests before it are answered.
            self._ring(limit, self._header_late)
        elif self._phase == HEADER:
            self._refuse(
                SlowHeaderError(f"the header was not complete after {limit:g} s", limit=limit)
            )
        elif not self._busy:
            self._close()
