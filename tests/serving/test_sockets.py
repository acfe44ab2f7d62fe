"""What only a real server behind a real socket can show: requests that are large, slow or wrong."""

import json
import socket
import time
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pytest
import uvicorn

from serving.app import create_app
from serving.errors import OverloadedError
from serving.process import Process
from serving.refusals import Ready
from tests.serving.bad_requests import BAD, Bad
from tests.serving.gateway import get, listening, running, settings_for, tile, wait_for

MIB = 1 << 20
HEAD = b"POST /labels HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
Gateway = tuple[tuple[str, int], uvicorn.Server]


@pytest.fixture(scope="module")
def gateway(shared_repository: Path) -> Iterator[Gateway]:
    settings = settings_for(
        shared_repository,
        body_timeout_s=0.5,
        header_timeout_s=0.4,
        max_header_bytes=4096,
        spool_bytes=64 * 1024,
    )
    with running(settings) as found:
        yield found


@pytest.fixture
def address(gateway: Gateway) -> Iterator[tuple[str, int]]:
    """Whatever the test did, the next request is answered and no connection is left over."""
    address, server = gateway
    yield address
    assert alive(address)
    wait_for(lambda: not server.server_state.connections, 15)
    wait_for(lambda: not server.server_state.tasks, 15)


def read(connection: socket.socket) -> HTTPResponse:
    answer = HTTPResponse(connection, method="POST")
    answer.begin()
    return answer


def alive(address: tuple[str, int]) -> bool:
    connection = HTTPConnection(*address, timeout=10)
    connection.request("POST", "/labels", tile("blue"), {"Content-Type": "image/png"})
    status = connection.getresponse().status
    connection.close()
    return status == 200


def ended(connection: socket.socket) -> bool:
    """Whether the other side ended it; with a reset where bytes came that it never read."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_a_bad_request_gets_its_answer(address: tuple[str, int], bad: Bad) -> None:
    with socket.create_connection(address, 10) as connection:
        for piece in bad.pieces:
            connection.sendall(piece)
            if bad.pause_s and _readable(connection, bad.pause_s):
                break
        answer = read(connection)
        assert answer.headers["Content-Type"] == "application/problem+json"
        document = json.loads(answer.read())
        assert (answer.status, document["type"]) == (bad.status, f"/problems/{bad.slug}")
        assert bad.says in document["detail"]
        if bad.limit is not None:
            assert document["limit"] == bad.limit
        if bad.closes:
            assert ended(connection), "the connection is closed"


def test_an_answer_can_be_read_while_a_large_body_is_still_sent(
    address: tuple[str, int],
) -> None:
    size = 80 * MIB
    with socket.create_connection(address, 30) as connection:
        connection.sendall(HEAD + f"Content-Length: {size}\r\n\r\n".encode())
        for _ in range(size // MIB):
            connection.sendall(b"0" * MIB)
        answer = read(connection)
        assert answer.status == 413
        body = answer.read()
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["Connection"] == "close"
    assert b'"limit":1048576' in body


def test_an_undeclared_body_is_refused_once_it_is_too_large(address: tuple[str, int]) -> None:
    chunk = b"10000\r\n" + b"0" * 0x10000 + b"\r\n"
    with socket.create_connection(address, 30) as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(40 * MIB // 0x10000):
            connection.sendall(chunk)
        answer = read(connection)
        assert answer.status == 413
        assert b"body-too-large" in answer.read()


def test_a_body_just_within_the_limit_is_read(address: tuple[str, int]) -> None:
    with socket.create_connection(address, 10) as connection:
        connection.sendall(HEAD + f"Content-Length: {MIB}\r\n\r\n".encode() + b"0" * MIB)
        answer = read(connection)
        assert answer.status in (400, 415)
        assert b"body-too-large" not in answer.read()


def test_a_body_that_goes_by_way_of_the_disk_is_the_same(address: tuple[str, int]) -> None:
    # Bytes behind the image's end are no harm, so this is a tile of half a megabyte.
    body = tile("blue") + bytes(MIB // 2)
    with socket.create_connection(address, 10) as connection:
        connection.sendall(HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode())
        for start in range(0, len(body), 100_000):
            connection.sendall(body[start : start + 100_000])
        spooled = read(connection)
        assert spooled.status == 200
        labels = json.loads(spooled.read())["labels"]
    whole = HTTPConnection(*address, timeout=10)
    whole.request("POST", "/labels", tile("blue"), {"Content-Type": "image/png"})
    assert json.loads(whole.getresponse().read())["labels"] == labels
    whole.close()


def test_what_is_behind_a_body_is_never_part_of_the_next_request(address: tuple[str, int]) -> None:
    """A Content-Length that is too short: the rest of the tile is no HTTP."""
    body = tile("blue")
    with socket.create_connection(address, 10) as connection:
        connection.sendall(HEAD + f"Content-Length: {len(body) - 50}\r\n\r\n".encode() + body)
        connection.sendall(HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        everything = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    assert everything.count(b"HTTP/1.1 ") == 2
    assert b"/problems/undecodable-image" in everything
    assert b"/problems/malformed-request" in everything


@pytest.mark.parametrize("sent", [b"", b"POST /lab", HEAD, HEAD + b"Content-Length: 9\r\n\r\nabc"])
def test_a_half_closed_connection_is_left(address: tuple[str, int], sent: bytes) -> None:
    """Whoever ends the sending before the request is whole has left: no answer, no waiting."""
    with socket.create_connection(address, 10) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""


def test_a_client_that_leaves_is_forgotten(shared_repository: Path) -> None:
    patient = settings_for(shared_repository, body_timeout_s=60)
    with running(patient) as (address, server):
        with socket.create_connection(address, 10) as connection:
            connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\nonly this")
            wait_for(lambda: len(server.server_state.tasks) == 1)
        # Long before the body's time is up.
        wait_for(lambda: not server.server_state.tasks, 10)
        wait_for(lambda: not server.server_state.connections, 10)


def test_a_connection_is_usable_after_a_refusal(address: tuple[str, int]) -> None:
    connection = HTTPConnection(*address, timeout=10)
    connection.request("POST", "/labels", b"x" * 500_000, {"Content-Type": "text/plain"})
    refused = connection.getresponse()
    refused.read()
    assert refused.status == 415
    connection.request("POST", "/labels", tile("blue"), {"Content-Type": "image/png"})
    assert connection.getresponse().status == 200
    connection.close()


def test_a_whole_url_is_its_path(address: tuple[str, int]) -> None:
    with socket.create_connection(address, 10) as connection:
        connection.sendall(b"GET http://elsewhere.example/readyz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read(connection).status == 200


def test_deadlines_and_lanes_that_can_be_kept_are(address: tuple[str, int]) -> None:
    for wishes in ({"Tilesight-Deadline": "10.5"}, {"Tilesight-Lane": "backfill"}):
        connection = HTTPConnection(*address, timeout=10)
        headers = {"Content-Type": "image/png", **wishes}
        connection.request("POST", "/labels", tile("blue"), headers)
        assert connection.getresponse().status == 200
        connection.close()


def test_what_never_reaches_the_app_is_counted(shared_repository: Path) -> None:
    settings, process = settings_for(shared_repository), Process()
    app = create_app(settings, process=process)
    ready = Ready(OverloadedError("full", limit=1, retry_after=1))
    process.shed = lambda path, headers: ready(path) if path == b"/labels" else None
    with listening(app, process.wire(settings)) as (address, _):
        for request, status in ((HEAD + b"Content-Length: 0\r\n\r\n", 503), (b"x\r\n\r\n", 400)):
            with socket.create_connection(address, 10) as connection:
                connection.sendall(request)
                assert read(connection).status == status
        page = get(address, "/metrics")
    assert 'tilesight_rejections_total{type="overloaded"} 1.0' in page
    assert 'tilesight_rejections_total{type="malformed-request"} 1.0' in page
    assert 'endpoint="/labels"' in page


def _readable(connection: socket.socket, seconds: float) -> bool:
    """Whether an answer came meanwhile."""
    connection.settimeout(seconds)
    began = time.monotonic()
    try:
        connection.recv(1, socket.MSG_PEEK)
    except TimeoutError:
        assert time.monotonic() - began >= seconds / 2
        return False
    finally:
        connection.settimeout(10)
    return True
