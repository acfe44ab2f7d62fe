"""What only a real server behind a real socket can show: bodies that are large, slow or endless."""

import socket
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pytest

from tests.serving.gateway import served, settings_for, tile, wait_for

MIB = 1 << 20
HEAD = b"POST /labels HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"


@pytest.fixture(scope="module")
def address(shared_repository: Path) -> Iterator[tuple[str, int]]:
    settings = settings_for(shared_repository, body_timeout_s=0.5, max_in_flight=1)
    with served(settings) as found:
        yield found


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
    assert alive(address)


def test_a_declared_size_is_refused_before_the_body_comes(address: tuple[str, int]) -> None:
    with socket.create_connection(address, 10) as connection:
        connection.sendall(HEAD + b"Content-Length: 99999999999\r\n\r\n")
        assert read(connection).status == 413
    assert alive(address)


def test_an_undeclared_body_is_refused_once_it_is_too_large(address: tuple[str, int]) -> None:
    chunk = b"10000\r\n" + b"0" * 0x10000 + b"\r\n"
    with socket.create_connection(address, 30) as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(40 * MIB // 0x10000):
            connection.sendall(chunk)
        answer = read(connection)
        assert answer.status == 413
        assert b"body-too-large" in answer.read()
    assert alive(address)


def test_a_body_just_within_the_limit_is_read(address: tuple[str, int]) -> None:
    with socket.create_connection(address, 10) as connection:
        connection.sendall(HEAD + f"Content-Length: {MIB}\r\n\r\n".encode() + b"0" * MIB)
        answer = read(connection)
        assert answer.status in (400, 415)
        assert b"body-too-large" not in answer.read()


def test_a_body_that_never_comes_is_not_waited_for(address: tuple[str, int]) -> None:
    with socket.create_connection(address, 10) as connection:
        connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\nonly this")
        answer = read(connection)
        assert answer.status == 408
        assert b"slow-body" in answer.read()
        assert connection.recv(1) == b"", "the connection is closed"
    assert alive(address)


def test_a_request_over_the_limit_of_held_ones_is_told_to_come_back(
    address: tuple[str, int],
) -> None:
    with socket.create_connection(address, 10) as holder:
        holder.sendall(HEAD + b"Content-Length: 1000\r\n\r\nonly this")
        statuses = set()
        for _ in range(100):
            connection = HTTPConnection(*address, timeout=10)
            connection.request("POST", "/labels", tile("blue"), {"Content-Type": "image/png"})
            answer = connection.getresponse()
            statuses.add(answer.status)
            connection.close()
            if answer.status == 503:
                assert answer.headers["Retry-After"] == "1"
                break
        assert 503 in statuses
        assert read(holder).status == 408
    assert alive(address)


def test_a_client_that_leaves_is_forgotten(shared_repository: Path) -> None:
    patient = settings_for(shared_repository, body_timeout_s=60, max_in_flight=1)
    with served(patient) as address:
        with socket.create_connection(address, 10) as connection:
            connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\nonly this")
        # The one place is free again long before the body's time is up.
        wait_for(lambda: alive(address), 10)


def test_a_connection_is_usable_after_a_refusal(address: tuple[str, int]) -> None:
    connection = HTTPConnection(*address, timeout=10)
    connection.request("POST", "/labels", b"x" * 500_000, {"Content-Type": "text/plain"})
    refused = connection.getresponse()
    refused.read()
    assert refused.status == 415
    connection.request("POST", "/labels", tile("blue"), {"Content-Type": "image/png"})
    assert connection.getresponse().status == 200
    connection.close()
