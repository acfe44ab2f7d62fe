"""HTTP as bytes on a real socket, in front of an app that only tells what it was given."""

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse

import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from serving import wire
from serving.errors import OverloadedError, RequestError
from serving.limits import BodyLimit
from serving.problems import respond
from serving.refusals import Ready
from serving.settings import Settings
from serving.shedding import Shedding
from tests.serving.gateway import listening, wait_for

KIB = 1024
ALIVE = b"GET /alive HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
SETTINGS = Settings(max_header_bytes=4 * KIB, header_timeout_s=0.4, max_connections=4)
POST = b"POST /labels HTTP/1.1\r\nHost: x\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Tells path and body; fails as the gateway does."""
    request = Request(scope, receive)
    try:
        if scope["path"] == "/early":
            told = {"early": True}
        else:
            told = {
                "path": scope["path"],
                "body": (await request.body()).decode("latin-1"),
                "headers": sorted(request.headers.keys()),
            }
        answer = JSONResponse(told)
    except RequestError as error:
        answer = respond(scope, error)  # type: ignore[assignment]
    await answer(scope, receive, send)


def bounded(app: ASGIApp) -> ASGIApp:
    """The app behind the limit of bodies."""
    limited = BodyLimit(app, 64 * KIB, 0.5)

    async def known(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["state"] = {"request_id": "0"}
            await limited(scope, receive, send)

    return known


class Lane:
    """What the shedding asks of a lane."""

    def __init__(self, full: Callable[[], bool]) -> None:
        self._full = full

    @property
    def full(self) -> bool:
        return self._full()

    def overload(self) -> OverloadedError:
        return OverloadedError("full", limit=128, retry_after=1)


class Server:
    """A server with its hooks' findings."""

    def __init__(self, address: tuple[str, int], server: uvicorn.Server) -> None:
        self.address = address
        self.server = server
        self.full = False
        self.shed: list[bytes] = []
        self.refused: list[str] = []

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, 10)

    def ask(self, request: bytes) -> list[tuple[int, dict[str, object]]]:
        """All answers to what is sent, until the server closes."""
        with self.connect() as connection:
            connection.sendall(request)
            return everything(connection)

    def settled(self) -> None:
        """Still answers, and holds no connection then."""
        # Connections that were closed a moment ago may still count.
        wait_for(lambda: self.ask(ALIVE)[0][0] == 200, 10)
        wait_for(lambda: not self.server.server_state.connections, 10)


def everything(connection: socket.socket) -> list[tuple[int, dict[str, object]]]:
    """The answers up to the end of the connection."""
    stream = connection.makefile("rb")
    answers = []
    while line := stream.readline():
        length = 0
        while (header := stream.readline()) not in (b"\r\n", b""):
            name, _, value = header.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        status = int(line.split()[1])
        answers.append((status, json.loads(stream.read(length)) if length else {}))
    return answers


@contextmanager
def serving(settings: Settings, app: ASGIApp, shed: bool = False) -> Iterator[Server]:
    found: list[Server] = []
    full, free = Lane(lambda: found[0].full), Lane(lambda: False)
    hook = Shedding({"interactive": full, "backfill": free})  # type: ignore[arg-type]
    protocol = wire.protocol(
        settings,
        hook if shed else None,
        lambda path: found[0].shed.append(path),
        lambda slug: found[0].refused.append(slug),
    )
    with listening(app, protocol) as (address, server):
        found.append(Server(address, server))
        yield found[0]


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch:
        # So that nothing ends because somebody lost patience.
        patch.setattr("serving.limits._QUIET_S", 60)
        with serving(SETTINGS, bounded(echo), shed=True) as server:
            server.server.config.timeout_keep_alive = 60
            yield server


@pytest.fixture
def server(running: Server) -> Iterator[Server]:
    """Nothing is left over from the test before, and nothing by this one."""
    running.full = False
    running.shed.clear()
    running.refused.clear()
    yield running
    running.full = False
    running.settled()


@pytest.mark.parametrize(
    ("request_", "status", "slug"),
    [
        (POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc", 400, "malformed-request"),
        (POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400, "malformed-request"),
        (POST + b"Content-Length: 3, 3\r\n\r\nabc", 400, "malformed-request"),
        (POST + b"Content-Length: +3\r\n\r\nabc", 400, "malformed-request"),
        (POST + b"Content-Length: -3\r\n\r\nabc", 400, "malformed-request"),
        (POST + b"Content-Length: " + b"9" * 30 + b"\r\n\r\nabc", 400, "malformed-request"),
        (POST + b"Content-Length: 3\r\n" + CHUNKED[len(POST) :], 400, "malformed-request"),
        (CHUNKED[:-2] + b"Content-Length: 3\r\n\r\nabc", 400, "malformed-request"),
        (POST + b"Transfer-Encoding : chunked\r\n\r\n", 400, "malformed-request"),
        (POST + b"Transfer-Encoding: gzip\r\n\r\n", 501, "transfer-coding"),
        (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 501, "transfer-coding"),
        (POST + b"Transfer-Encoding: identity\r\n" + CHUNKED[len(POST) :], 501, "transfer-coding"),
        (CHUNKED[:-2] + b"Transfer-Encoding: chunked\r\n\r\n", 400, "malformed-request"),
        (
            b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
            "malformed-request",
        ),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "malformed-request"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "malformed-request"),
        (b"GET / HTTP/1.1\nHost: a\n\n", 400, "malformed-request"),
        (b"GET / HTTP/3.7\r\nHost: a\r\n\r\n", 400, "malformed-request"),
        (b"GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n", 400, "malformed-request"),
        (b"GET /\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n", 400, "malformed-request"),
        (b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 400, "malformed-request"),
        (POST + b"X: a\x00b\r\n\r\n", 400, "malformed-request"),
        (POST + b"X: a\r\n b\r\n\r\n", 400, "malformed-request"),
        (POST + b"X: a\rb\r\n\r\n", 400, "malformed-request"),
        (POST + b": a\r\n\r\n", 400, "malformed-request"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "malformed-request"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), 400, "malformed-request"),
        (bytes(range(256)), 400, "malformed-request"),
        (POST + b"X: y\r\n" * 101 + b"\r\n", 431, "header-too-large"),
        (POST + b"X: y\r\n" * 10_000 + b"\r\n", 431, "header-too-large"),
        (POST + b"X: " + b"y" * 5000 + b"\r\n\r\n", 431, "header-too-large"),
        (POST + b"X: " + b"y" * (1 << 20) + b"\r\n\r\n", 431, "header-too-large"),
        (POST + b"X: " + b"y" * (1 << 20), 431, "header-too-large"),
        (b"GET /" + b"y" * 5000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431, "header-too-large"),
    ],
)
def test_what_is_no_request_is_refused(
    server: Server, request_: bytes, status: int, slug: str
) -> None:
    # Whatever follows is no request: of two answers the second would be the smuggled one's.
    ((answered, document),) = server.ask(request_ + b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answered == status
    assert document["type"] == f"/problems/{slug}"
    assert document["status"] == status
    assert server.refused == [slug]
    if status == 431:
        assert document["limit"] in (4 * KIB, wire.MAX_HEADERS)


@pytest.mark.parametrize(
    "body",
    [
        b"FFFFFFFFFFFFFFFFF\r\nabc",
        b"-1\r\nabc",
        b"0x3\r\nabc\r\n0\r\n\r\n",
        b"3\r\nabcdef\r\n0\r\n\r\n",
        b"3\nabc\n0\n\n",
        b"3\r\nabc\r\n0\r\nX: a\x00\r\n\r\n",
        b"3;" + b"x" * (1 << 19) + b"\r\nabc\r\n0\r\n\r\n",
        b"3\r\nabc\r\n0\r\nX: " + b"y" * (1 << 19) + b"\r\n\r\n",
    ],
)
def test_a_damaged_body_is_no_body(server: Server, body: bytes) -> None:
    ((status, document),) = server.ask(
        CHUNKED + body + b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
    )
    assert (status, document["type"]) == (400, "/problems/malformed-body")


def test_a_damaged_body_is_noticed_while_the_app_waits_for_it(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(CHUNKED + b"3\r\nabc\r\n")
        assert socket_is_quiet(connection, 0.1)
        connection.sendall(b"nonsense\r\n")
        assert everything(connection)[0][0] == 400


def test_a_chunk_without_end_is_refused_by_its_size(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(CHUNKED + b"FFFFFFFFFFFFFFFF\r\n" + b"x" * (1 << 20))
        answer = read(connection)
        assert answer.status == 413
        assert json.loads(answer.read())["limit"] == 64 * KIB


def test_what_follows_a_chunked_body_is_no_header(server: Server) -> None:
    request = CHUNKED[:-2] + b"Connection: close\r\n\r\n3\r\nabc\r\n0\r\nX-Late: 1\r\n\r\n"
    ((status, document),) = server.ask(request)
    assert (status, document["body"]) == (200, "abc")
    assert "x-late" not in document["headers"]  # type: ignore[operator]


def test_a_whole_url_is_its_path(server: Server) -> None:
    request = b"GET http://elsewhere/a%20b?c HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert server.ask(request)[0][1]["path"] == "/a b"


def test_an_offer_of_another_protocol_is_passed_over(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(
            POST + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
            b"HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\nContent-Length: 34\r\n\r\n"
        )
        # The body comes later and looks like a request.
        assert socket_is_quiet(connection, 0.1)
        connection.sendall(b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"[:34])
        answer = read(connection)
        assert (answer.status, len(json.loads(answer.read())["body"])) == (200, 34)


def test_requests_are_answered_in_the_order_sent(server: Server) -> None:
    requests = b"".join(
        b"POST /%d HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc" % index
        for index in range(20)
    )
    closing = b"GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answers = server.ask(requests + closing)
    assert [document["path"] for _, document in answers] == [
        *(f"/{index}" for index in range(20)),
        "/last",
    ]


def test_damage_behind_a_request_does_not_touch_its_answer(server: Server) -> None:
    request = b"GET /first HTTP/1.1\r\nHost: x\r\n\r\n"
    (first, second) = server.ask(request + b"nonsense\r\n\r\n")
    assert (first[0], first[1]["path"]) == (200, "/first")
    assert second[0] == 400


def test_requests_that_wait_on_one_connection_are_counted(server: Server) -> None:
    request = b"GET /one HTTP/1.1\r\nHost: x\r\n\r\n"
    answers = server.ask(request * 10_000)
    assert [status for status, _ in answers] == [200] * (wire.MAX_PIPELINED + 1) + [503]
    assert answers[-1][1]["limit"] == wire.MAX_PIPELINED


def test_a_slow_header_is_not_waited_for(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX: ")
        # A byte now and then changes nothing.
        while socket_is_quiet(connection, 0.05):
            connection.sendall(b"y")
        ((status, document),) = everything(connection)
    assert (status, document["type"]) == (408, "/problems/slow-header")
    assert document["limit"] == 0.4


def test_whoever_says_nothing_is_left_without_a_word(server: Server) -> None:
    with server.connect() as connection:
        assert everything(connection) == []
    with server.connect() as connection:
        while True:
            try:
                connection.sendall(b"\r\n")
            except OSError:
                break
            if not socket_is_quiet(connection, 0.05):
                break


def test_a_slow_second_header_is_not_waited_for_either(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(b"GET /first HTTP/1.1\r\nHost: x\r\n\r\nGET /sec")
        statuses = [status for status, _ in everything(connection)]
    assert statuses == [200, 408]


def test_connections_beyond_the_limit_are_told_to_come_back(server: Server) -> None:
    held = [server.connect() for _ in range(4)]
    try:
        wait_for(lambda: len(server.server.server_state.connections) == 4)
        with server.connect() as connection:
            answer = read(connection)
            assert answer.status == 503
            assert answer.headers["Retry-After"] == "1"
            assert json.loads(answer.read())["limit"] == 4
    finally:
        for one in held:
            one.close()


def test_many_connections_beyond_the_limit_are_cut_off() -> None:
    with serving(Settings(max_connections=1), bounded(echo)) as server:
        with server.connect():
            wait_for(lambda: len(server.server.server_state.connections) == 1)
            crowd = [server.connect() for _ in range(60)]
            told = 0
            for one in crowd:
                try:
                    told += one.recv(12) == b"HTTP/1.1 503"
                except ConnectionResetError:
                    continue
            assert 16 <= told < 60
            for one in crowd:
                one.close()
        server.settled()


def test_a_body_is_sent_once_it_is_asked_for(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(POST + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"abc")
        assert json.loads(read(connection).read())["body"] == "abc"


@pytest.mark.parametrize("length", [3, 10 * KIB * KIB])
def test_a_body_that_was_never_asked_for_is_not_waited_for(server: Server, length: int) -> None:
    path = b"/early" if length == 3 else b"/large"
    answers = server.ask(
        POST.replace(b"/labels", path)
        + f"Expect: 100-continue\r\nContent-Length: {length}\r\n\r\n".encode()
    )
    assert [status for status, _ in answers] == [200 if length == 3 else 413]


def test_a_half_closed_connection_is_left(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(POST + b"Content-Length: 100\r\n\r\nabc")
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""


def test_shedding_costs_the_client_nothing_but_the_request(server: Server) -> None:
    connection = HTTPConnection(*server.address, timeout=10)
    server.full = True
    for _ in range(3):
        connection.request("POST", "/labels", b"x" * 100 * KIB)
        answer = connection.getresponse()
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        document = json.loads(answer.read())
        assert document["type"] == "/problems/overloaded"
        assert document["limit"] == 128
        assert document["request_id"] == answer.headers["X-Request-ID"] != "0" * 32
    assert server.shed == [b"/labels"] * 3
    # The same connection, and nothing of the bodies was read as a request.
    server.full = False
    connection.request("POST", "/labels", b"abc")
    assert json.loads(connection.getresponse().read())["body"] == "abc"
    connection.close()


def test_only_requests_with_tiles_in_the_full_lane_are_shed(server: Server) -> None:
    server.full = True
    close = b"Connection: close\r\n"
    for request, status in [
        (POST + close, 503),
        (POST + close + b"Tilesight-Lane: interactive\r\n", 503),
        (POST + close + b"Tilesight-Lane: backfill\r\n", 200),
        (POST.replace(b"/labels", b"/models") + close, 200),
        (POST.replace(b"POST", b"GET") + close, 200),
        (POST.replace(b"1.1", b"1.0"), 503),
    ]:
        assert [one for one, _ in server.ask(request + b"\r\n")] == [status]


@pytest.mark.parametrize(
    "request_",
    [
        POST + b"Content-Length: 1000000\r\n\r\n" + b"x" * 1_000_000,
        POST + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n",
        CHUNKED + b"10000\r\n" + (b"x" * 0x10000 + b"\r\n10000\r\n") * 10,
        CHUNKED + b"nonsense\r\n",
        POST + b"Connection: close\r\nContent-Length: 3\r\n\r\nabc",
    ],
)
def test_a_shed_body_that_cannot_be_thrown_away_ends_the_connection(
    server: Server, request_: bytes
) -> None:
    server.full = True
    answers = server.ask(request_ + b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n")
    assert [status for status, _ in answers] == [503]


def test_a_large_body_need_not_be_sent_to_be_shed(server: Server) -> None:
    server.full = True
    with server.connect() as connection:
        connection.sendall(POST + b"Content-Length: 1000000\r\n\r\n")
        answer = read(connection)
        assert (answer.status, answer.headers["Connection"]) == (503, "close")
        answer.read()
        assert connection.recv(1) == b""


def test_shed_requests_keep_their_place_in_the_pipeline(server: Server) -> None:
    server.full = True
    other = b"GET /other HTTP/1.1\r\nHost: x\r\n\r\n"
    shed = POST + b"Content-Length: 3\r\n\r\nabc"
    last = b"GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    statuses = [status for status, _ in server.ask(shed + shed + other + shed + last)]
    # The one behind an answer that is still to come goes the long way.
    assert statuses == [503, 503, 200, 200, 200]


def test_a_shed_body_that_never_comes_is_not_waited_for() -> None:
    with serving(Settings(), bounded(echo), shed=True) as server:
        server.server.config.timeout_keep_alive = 1
        server.full = True
        with server.connect() as connection:
            connection.sendall(POST + b"Content-Length: 1000\r\n\r\nonly this")
            assert [status for status, _ in everything(connection)] == [503]
        server.full = False
        server.settled()


def test_whoever_reads_no_answers_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.connection._WRITE_TIMEOUT_S", 0.3)

    async def large(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = [(b"content-length", b"%d" % (32 << 20))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for _ in range(32):
            await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})
        await send({"type": "http.response.body"})

    with serving(Settings(), large) as server, server.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_for(lambda: len(server.server.server_state.connections) == 1)
        wait_for(lambda: not server.server.server_state.connections, 10)


def test_an_answer_that_is_kept_ready_is_new_each_time() -> None:
    ready = Ready(OverloadedError("full", limit=3, retry_after=1))
    first, second = ready(b"/labels"), ready(b"/labels")
    assert first != second
    assert len(first) == len(second)
    for index in range(200):
        head, _, body = ready(b"/%d" % index).partition(b"\r\n\r\n")
        assert json.loads(body)["instance"] == f"/{index}"
        assert b"content-length: %d\r\n" % len(body) in head


def read(connection: socket.socket) -> HTTPResponse:
    answer = HTTPResponse(connection)
    answer.begin()
    return answer


def socket_is_quiet(connection: socket.socket, seconds: float) -> bool:
    """Whether nothing can be read for so long."""
    connection.settimeout(seconds)
    try:
        connection.recv(1, socket.MSG_PEEK)
    except TimeoutError:
        return True
    except OSError:
        return False
    finally:
        connection.settimeout(10)
    return False
