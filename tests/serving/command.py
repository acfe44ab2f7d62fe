"""`tilesight serve` as an operator runs it: a process of its own, a socket, a log."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from tests.serving.gateway import get, wait_for

PNG = {"Content-Type": "image/png"}
Address = tuple[str, int]
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@dataclass
class Serving:
    """A gateway that runs."""

    process: subprocess.Popen[bytes]
    log: Path

    def events(self, name: str) -> list[dict[str, Any]]:
        """The lines of the log with this event."""
        lines = self.log.read_text(encoding="utf-8").splitlines(keepends=True)
        found = [json.loads(line) for line in lines if line.startswith("{") and line[-1] == "\n"]
        return [line for line in found if line["event"].startswith(name)]

    @property
    def address(self) -> Address:
        """Where it listens."""
        lines = self.events("listening")
        url = lines[0]["url"] if lines else self.events("Uvicorn running")[0]["event"].split()[3]
        parts = urlsplit(url)
        assert parts.hostname and parts.port
        return parts.hostname, parts.port

    def samples(self) -> Samples:
        """What /metrics tells at this moment."""
        return samples(get(self.address, "/metrics"))


@contextmanager
def serving(
    repository: Path, folder: Path, *arguments: str, ready: int = 1, **variables: str
) -> Iterator[Serving]:
    """A gateway, once so many processes of it are ready; killed at the end if it still runs."""
    log = folder / "log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "tilesight.cli", "serve", "--port", "0", *arguments],
            cwd=folder,
            env=os.environ
            | {
                "PYTHONPATH": os.pathsep.join(sys.path),
                "TILESIGHT_MODEL_REPOSITORY": str(repository),
                "TILESIGHT_DEVICE": "cpu",
                "TILESIGHT_AUTOTUNE_S": "0",
            }
            | variables,
            stderr=stderr,
        )
    one = Serving(process, log)
    try:
        wait_for(lambda: process.poll() is not None or len(one.events("ready")) >= ready, 60)
        assert process.poll() is None, log.read_text(encoding="utf-8")
        yield one
    finally:
        process.terminate()
        try:
            process.wait(30)
        finally:
            process.kill()


def send(
    address: Address, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the answer to a request over a connection of its own."""
    connection = HTTPConnection(*address, timeout=60)
    try:
        return exchange(connection, method, path, body, **headers)
    finally:
        connection.close()


def exchange(
    connection: HTTPConnection,
    method: str,
    path: str,
    body: bytes | None = None,
    **headers: str,
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers (their names in lower case) and body of the answer."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, (PNG if body else {}) | named)
    answer = connection.getresponse()
    told = {name.lower(): value for name, value in answer.getheaders()}
    return answer.status, told, answer.read()


def samples(page: str) -> Samples:
    """The values of a page of metrics."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def total(found: Samples, name: str, /, **labels: str) -> float:
    """The sum of the samples that have these labels, whatever others they have."""
    return sum(
        value
        for (one, told), value in found.items()
        if one == name and labels.items() <= dict(told).items()
    )
