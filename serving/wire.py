"""HTTP/1.1 as it comes over the wire: what uvicorn's protocol leaves unbounded has bounds here.

A header has a size, a number of lines and a time; there is a most of connections and of requests
that wait on one of them; a message whose end two servers would not find in the same place is
refused; and so is, before anything is made for it, a request that there is no place for. What is
refused gets a problem document. Whatever follows it on the connection is never read as a request.

How bytes become requests is the parser's affair (llhttp), and what becomes of a request is
uvicorn's.
"""

import asyncio
from collections.abc import Callable
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT

from serving import refusals
from serving.connection import (
    BODY,
    HEADER,
    IDLE,
    LINGER_BYTES,
    RETRY_S,
    Connection,
    Cycle,
    Shed,
    Terms,
)
from serving.errors import (
    HeaderTooLargeError,
    MalformedRequestError,
    OverloadedError,
    TransferCodingError,
)
from serving.settings import Settings

MAX_HEADERS = 100
MAX_PIPELINED = 32
# Of the body of a request that was shed; a larger one costs its connection.
MAX_DISCARDED_BYTES = 256 * 1024

_FRAMING = frozenset({b"host", b"content-length", b"transfer-encoding", b"expect"})


def protocol(
    settings: Settings,
    shed: Shed | None = None,
    on_shed: Callable[[bytes], None] | None = None,
    on_refusal: Callable[[str], None] | None = None,
) -> type[asyncio.Protocol]:
    """The protocol for `uvicorn.Config(http=...)`.

    Args:
        settings: its bounds.
        shed: asked at the end of each header, in the event loop: it has microseconds.
        on_shed: told the path of each request that was answered so.
        on_refusal: told the type of each problem that was answered without the app.
    """
    common = Terms(
        settings.max_header_bytes,
        settings.header_timeout_s,
        settings.max_connections,
        shed,
        on_shed or (lambda path: None),
        on_refusal or (lambda slug: None),
    )

    class Bound(Wire):
        terms = common

    return Bound


class Wire(Connection):
    """A connection on which HTTP is read."""

    def data_received(self, data: bytes) -> None:
        """Reads on."""
        if self._over:
            self._discarded += len(data)
            if self._discarded > LINGER_BYTES:
                self.transport.abort()
            return
        self._quiet += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._read_again(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            self._refuse(_reason(error))
        else:
            if self._phase == IDLE or self._over:
                return
            if self._quiet > self.terms.max_header_bytes:
                what = (
                    "header goes on" if self._phase == HEADER else "text around its chunks goes on"
                )
                self._refuse(self._too_large(what))
            elif self._phase == HEADER and self._timer is None:
                self._ring(self.terms.header_timeout_s, self._header_late)

    # --- What the parser finds

    def on_message_begin(self) -> None:
        """A new request begins."""
        if self._over:
            raise MalformedRequestError("the connection is over")
        super().on_message_begin()
        self._unset_keepalive_if_required()
        self._phase = HEADER
        self._quiet = self._discarded = 0
        self._discarding = False
        self._header_bytes = self._hosts = self._declared = 0
        self._chunked = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """A line of the header; what comes behind a chunked body is no header and is dropped."""
        if self._phase != HEADER:
            return
        name = name.lower()
        if name in _FRAMING:
            self._frame(name, value)
        headers = self.headers
        headers.append((name, value))
        self._header_bytes += len(name) + len(value)
        if len(headers) > MAX_HEADERS:
            raise HeaderTooLargeError(
                f"the header has more than {MAX_HEADERS} lines, the limit", limit=MAX_HEADERS
            )

    def on_headers_complete(self) -> None:
        """The request is known: it is shed, or the app is told of it."""
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise MalformedRequestError("CONNECT: this is no proxy")
            return
        self._ring()
        version = self.parser.get_http_version()
        keep_alive = version != "1.0" and self.parser.should_keep_alive()
        self._check_framing(version)
        path, query = self._target()
        busy = self._busy
        if self.terms.shed is not None and not busy and self.parser.get_method() == b"POST":
            answer = self.terms.shed(path, self.headers)
            if answer is not None:
                self._phase = BODY
                self.terms.on_shed(path)
                self._shed(answer, keep_alive)
                return
        if len(self.pipeline) >= MAX_PIPELINED:
            raise OverloadedError(
                f"{MAX_PIPELINED} requests wait on this connection, the limit",
                limit=MAX_PIPELINED,
                retry_after=RETRY_S,
            )
        self._describe(version, path, query)
        self._begin(keep_alive, busy)
        self._phase = BODY

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._quiet = 0
        self.expect_100_continue = False
        if self._discarding:
            self._discarded += len(body)
            if self._discarded > MAX_DISCARDED_BYTES and not self._over:
                self._close_with(b"")
            return
        cycle = self.cycle
        if not cycle.response_complete:
            cycle.body += body
            if len(cycle.body) > HIGH_WATER_LIMIT:
                self.flow.pause_reading()
            cycle.message_event.set()

    def on_message_complete(self) -> None:
        """The end of the request."""
        if self.parser.should_upgrade():
            return
        self._phase = IDLE
        self.expect_100_continue = False
        if not self._discarding and not self.cycle.response_complete:
            self.cycle.more_body = False
            self.cycle.message_event.set()

    # --- Requests

    def _frame(self, name: bytes, value: bytes) -> None:
        if name == b"content-length":
            # Of digits, and there is one: the parser sees to that.
            self._declared = int(value)
        elif name == b"host":
            self._hosts += 1
        elif name == b"expect":
            self.expect_100_continue = value.lower() == b"100-continue"
        else:
            if self._chunked or value.lower() != b"chunked":
                raise TransferCodingError(
                    "Transfer-Encoding: only chunked is read, once", allowed=["chunked"]
                )
            self._chunked = True

    def _check_framing(self, version: str) -> None:
        if len(self.url) + self._header_bytes > self.terms.max_header_bytes:
            raise self._too_large(f"header has {len(self.url) + self._header_bytes} bytes")
        if version == "1.0":
            if self._chunked:
                raise MalformedRequestError("Transfer-Encoding: HTTP/1.0 has none")
        elif self._hosts != 1:
            raise MalformedRequestError(f"Host: sent {self._hosts} times; it has to be once")

    def _target(self) -> tuple[bytes, bytes]:
        """Path and query that are asked for; of a whole URL its host is left aside."""
        try:
            url = httptools.parse_url(self.url)
        except httptools.HttpParserInvalidURLError as error:
            raise MalformedRequestError("the request's target is no URL") from error
        return url.path or b"/", url.query or b""

    def _describe(self, version: str, path: bytes, query: bytes) -> None:
        scope = self.scope
        scope["method"] = self.parser.get_method().decode("ascii")
        if version != "1.1":
            scope["http_version"] = version
        text = path.decode("ascii")
        scope["path"] = self.root_path + (unquote(text) if "%" in text else text)
        scope["raw_path"] = self.root_path.encode("ascii") + path
        scope["query_string"] = query

    def _begin(self, keep_alive: bool, busy: bool) -> None:
        self.cycle = Cycle(
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=keep_alive,
            on_response=self.on_response_complete,
        )
        if busy:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))
        else:
            self._start_asgi_task(self.cycle, self.app)

    def _read_again(self, rest: bytes) -> None:
        """Reads a request that offers another protocol as if it did not: none is spoken here.

        The parser skips the body of such a request, and would take it for the next one.
        """
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self._version())]
        lines += [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"\r\n".join([*lines, b"", b""]) + rest)

    def _version(self) -> bytes:
        return self.parser.get_http_version().encode("ascii")

    # --- Refusals

    def _shed(self, answer: bytes, keep_alive: bool) -> None:
        """Answers at once, and throws the body away as it comes."""
        self._discarding = True
        self.server_state.total_requests += 1
        if keep_alive and self._declared <= MAX_DISCARDED_BYTES and not self.expect_100_continue:
            self.transport.write(answer)
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        else:
            self._close_with(refusals.closing(answer))


def _reason(error: httptools.HttpParserError) -> Exception:
    """What a callback raised while the parser was at work, or what the parser says itself."""
    if isinstance(error, httptools.HttpParserCallbackError) and error.__context__ is not None:
        assert isinstance(error.__context__, Exception)
        return error.__context__
    return MalformedRequestError(f"{error}")
