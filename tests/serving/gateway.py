"""Gateways to test: in the process, or behind a real socket; and tiles to send them."""

import asyncio
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import uvicorn
from fastapi.testclient import TestClient
from PIL import Image
from starlette.types import ASGIApp

from serving.app import create_app
from serving.process import Process
from serving.settings import Settings


def settings_for(repository: Path, **options: object) -> Settings:
    """Small limits over the tiny models."""
    limits = {"max_body_bytes": 1 << 20, "max_images": 4, "max_questions": 5, "max_batch": 2}
    # Of graphs as small as these nothing can be found, and nothing is to be kept in a home folder.
    limits["autotune_s"] = 0
    return Settings(model_repository=repository, device="cpu", **(limits | options))


@contextmanager
def started(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        wait_for(lambda: client.get("/readyz").status_code == 200)
        yield client


@contextmanager
def served(settings: Settings) -> Iterator[tuple[str, int]]:
    """The address of a ready gateway behind a real socket."""
    with running(settings) as (address, _):
        yield address


@contextmanager
def running(settings: Settings) -> Iterator[tuple[tuple[str, int], uvicorn.Server]]:
    """The address of a ready gateway behind a real socket, and its server."""
    process = Process()
    app = create_app(settings, process=process)
    with listening(app, process.wire(settings)) as (address, server):
        wait_for(lambda: _answers(address, b"GET /readyz HTTP/1.0\r\n\r\n", b" 200 "))
        yield address, server


@contextmanager
def listening(
    app: ASGIApp, wire: type[asyncio.Protocol]
) -> Iterator[tuple[tuple[str, int], uvicorn.Server]]:
    """The address of a server in a thread, and the server."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, http=wire, ws="none", log_config=None, server_header=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        wait_for(lambda: server.started)
        yield listener.getsockname(), server
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()
    assert not thread.is_alive()


def post(
    address: tuple[str, int], path: str, body: bytes, timeout: float = 60
) -> tuple[int, dict[str, Any]]:
    """Status and document of the answer to an image sent over a connection of its own."""
    connection = HTTPConnection(*address, timeout=timeout)
    try:
        connection.request("POST", path, body, {"Content-Type": "image/png"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def get(address: tuple[str, int], path: str) -> str:
    """The text of the answer."""
    connection = HTTPConnection(*address, timeout=60)
    try:
        connection.request("GET", path)
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def in_flight(requests: int) -> str:
    """The sample that says so many requests of people are worked on."""
    return f'tilesight_requests_in_flight{{lane="interactive"}} {requests}.0'


def versions(address: tuple[str, int]) -> dict[str, int]:
    """The version of each model that is served."""
    return {one["name"]: one["version"] for one in json.loads(get(address, "/models"))["models"]}


def rounded(value: object) -> object:
    """The answer with its numbers cut to what a batch may change."""
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return round(value, 5) if isinstance(value, float) else value


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


def _answers(address: tuple[str, int], request: bytes, wanted: bytes) -> bool:
    with socket.create_connection(address, 10) as connection:
        connection.sendall(request)
        return wanted in connection.recv(1000)


def tile(colour: str | tuple[int, int, int], kind: str = "PNG", size: int = 256) -> bytes:
    """The bytes of an image of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(buffer, format=kind)
    return buffer.getvalue()
