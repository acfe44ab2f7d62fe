"""SIGTERM to a real gateway: what was begun is answered, what comes later is sent elsewhere."""

import json
import signal
import socket
import time
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

from tests.serving.command import Serving, exchange, send, serving
from tests.serving.gateway import tile, wait_for

HEAD = b"POST /labels HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nExpect: 100-continue\r\n"


def begin(gateway: Serving, body: bytes) -> socket.socket:
    """A request whose header was read and whose body is awaited."""
    connection = socket.create_connection(gateway.address, 30)
    connection.sendall(HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode())
    assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
    return connection


def finish(connection: socket.socket, body: bytes) -> HTTPResponse:
    connection.sendall(body)
    answer = HTTPResponse(connection, method="POST")
    answer.begin()
    return answer


def test_what_was_begun_is_answered_and_what_comes_later_is_not(
    shared_repository: Path, tmp_path: Path
) -> None:
    body = tile("blue")
    with serving(shared_repository, tmp_path) as gateway:
        open_before = HTTPConnection(*gateway.address, timeout=30)
        assert exchange(open_before, "POST", "/labels", body)[0] == 200
        begun = begin(gateway, body)
        gateway.process.terminate()
        wait_for(lambda: send(gateway.address, "GET", "/readyz")[0] == 503)
        wait_for(lambda: bool(gateway.events("stopping")))
        # The steps after SIGTERM begin with the next tick of the server.
        wait_for(lambda: _refused(gateway, body))
        status, headers, document = exchange(open_before, "POST", "/labels", body)
        assert (status, headers["retry-after"], headers["connection"]) == (503, "1", "close")
        assert json.loads(document)["detail"] == "the gateway is stopping"
        # As long as one request is begun, whoever asks is still answered: longer than some ticks.
        until = time.monotonic() + 1
        while time.monotonic() < until:
            assert send(gateway.address, "GET", "/healthz")[0] == 200
        answer = finish(begun, body)
        assert answer.status == 200
        assert json.loads(answer.read())["labels"][0]["name"] == "water"
        begun.close()
        assert gateway.process.wait(30) == 0


def test_with_a_wait_it_still_serves_while_it_is_not_ready(
    shared_repository: Path, tmp_path: Path
) -> None:
    with serving(shared_repository, tmp_path, TILESIGHT_DRAIN_WAIT_S="3") as gateway:
        gateway.process.terminate()
        wait_for(lambda: send(gateway.address, "GET", "/readyz")[0] == 503)
        status, headers, _ = send(gateway.address, "POST", "/labels", tile("blue"))
        assert (status, headers["connection"]) == (200, "close")
        assert gateway.process.wait(30) == 0


def test_nobody_is_waited_for_longer_than_the_limit(
    shared_repository: Path, tmp_path: Path
) -> None:
    with serving(shared_repository, tmp_path, TILESIGHT_DRAIN_S="0.5") as gateway:
        begun = begin(gateway, tile("blue"))
        told = time.monotonic()
        gateway.process.terminate()
        assert gateway.process.wait(30) == 0
        assert 0.5 <= time.monotonic() - told < 20
        begun.close()


def test_told_twice_it_ends_at_once(shared_repository: Path, tmp_path: Path) -> None:
    with serving(shared_repository, tmp_path, TILESIGHT_DRAIN_S="3600") as gateway:
        begun = begin(gateway, tile("blue"))
        gateway.process.terminate()
        wait_for(lambda: bool(gateway.events("stopping")))
        gateway.process.send_signal(signal.SIGTERM)
        gateway.process.wait(30)
        begun.close()


def test_all_workers_drain(shared_repository: Path, tmp_path: Path) -> None:
    body = tile("blue")
    with serving(shared_repository, tmp_path, "--workers", "2", ready=2) as gateway:
        begun = [begin(gateway, body) for _ in range(6)]
        gateway.process.terminate()
        wait_for(lambda: len(gateway.events("stopping")) == 2)
        for connection in begun:
            assert finish(connection, body).status == 200
            connection.close()
        assert gateway.process.wait(30) == 0


def _refused(gateway: Serving, body: bytes) -> bool:
    return send(gateway.address, "POST", "/labels", body)[0] == 503
