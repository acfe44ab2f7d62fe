"""The servers that are compared: how each is started, with which settings, and what it answers."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loadtest.kinds import Kind, Place, Setting
from loadtest.machine import Tree
from loadtest.payload import image_type, multipart

PEERS = Path(__file__).parent / "peers"
ROOT = Path(__file__).resolve().parents[1]
_HOST = "127.0.0.1"
_TILESIGHT = (sys.executable, "-c", "from tilesight.cli import main; main()")
_READY_S = 120.0
_STOP_S = 10.0
_TAIL = 12


class ServerError(Exception):
    """A server that does not start, or answers something else."""


class Server:
    """A server that runs: started and ready, until `stop`."""

    def __init__(self, kind: Kind, setting: Setting, place: Place, endpoint: str) -> None:
        """Starts it and waits until it answers."""
        self.kind, self.setting = kind, setting
        self._log = place.logs / f"{kind.name}.log"
        self._processes: list[subprocess.Popen[bytes]] = []
        port = _free_port()
        self.url = f"http://{_HOST}:{port}{endpoint}"
        try:
            if kind.script is not None:
                self._start_peer(kind.script, port, place)
            else:
                self._start_gateway(port, place)
        except BaseException:
            self.stop()
            raise

    # --- While it is measured

    def trees(self) -> list[Tree]:
        """Its processes."""
        return [Tree(process.pid) for process in self._processes]

    def cpu_s(self) -> float:
        """CPU seconds of all its processes so far."""
        return sum(tree.cpu_s() for tree in self.trees())

    def rss_mib(self) -> float:
        """Resident memory of all its processes."""
        return sum(tree.rss_mib() for tree in self.trees())

    def pause(self) -> None:
        """Nothing of it runs until `resume`."""
        for tree in self.trees():
            tree.pause()

    def resume(self) -> None:
        """It runs again."""
        for tree in self.trees():
            tree.resume()

    def ask(
        self, tile: bytes, questions: Sequence[str] = (), timeout_s: float = 30.0
    ) -> dict[str, Any]:
        """What it answers to a tile; raises OSError, also for a status that is no success."""
        kind, body = multipart([tile], questions) if questions else (image_type(tile), tile)
        request = urllib.request.Request(self.url, body, {"Content-Type": kind})
        with urllib.request.urlopen(request, timeout=timeout_s) as response:
            answer: dict[str, Any] = json.load(response)
        return answer

    def get(self, path: str) -> dict[str, Any]:
        """What another of its addresses answers."""
        base = self.url[: self.url.index("/", len("http://"))]
        with urllib.request.urlopen(base + path, timeout=30) as response:
            answer: dict[str, Any] = json.load(response)
        return answer

    def wait_ready(self, tile: bytes, questions: Sequence[str] = ()) -> None:
        """Returns when it answers the tile.

        Raises:
            ServerError: it has ended, or does not answer in time; with the end of its log.
        """
        deadline = time.monotonic() + _READY_S
        while True:
            try:
                self.ask(tile, questions, 10.0)
                return
            except (OSError, ValueError) as error:
                if any(process.poll() is not None for process in self._processes):
                    raise ServerError(f"it has ended:\n{self._tail()}") from None
                if time.monotonic() > deadline:
                    raise ServerError(f"not ready in time: {error}\n{self._tail()}") from None
            time.sleep(0.1)

    def stop(self) -> None:
        """Ends it, first by asking; nothing of it is left."""
        trees = self.trees()
        members = [member for tree in trees for member in tree.members()]
        for process in reversed(self._processes):
            process.send_signal(signal.SIGCONT)
            process.terminate()
        for process in reversed(self._processes):
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for member in members:
            if member.is_running():
                member.kill()
        self._processes.clear()

    # --- How it is started

    def _start(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        with self._log.open("ab") as log:
            self._processes.append(
                subprocess.Popen(
                    command,
                    env={**os.environ, **environment},
                    cwd=ROOT,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C is for the comparison, which stops it
                )
            )

    def _start_peer(self, script: str, port: int, place: Place) -> None:
        python = Path(sys.executable) if self.kind.own_python else place.peers_python
        if python is None:
            raise ServerError("no environment of the peers (--peers-python)")
        if self.kind.own_python and place.run is None:
            raise ServerError("no run folder of the training (--run)")
        options = {
            "model": str(place.graph.resolve()),
            "run": str(place.run.resolve()) if place.run else None,
            "labels": list(place.labels),
            "height": place.height,
            "width": place.width,
            "port": port,
            **self.setting,
        }
        self._start(
            [str(python), str(PEERS / script)],
            {
                "PEER_OPTIONS": json.dumps(options),
                "PYTHONPATH": str(ROOT) if self.kind.own_python else "",
                "PYTHONWARNINGS": "ignore",
                "BENTOML_DO_NOT_TRACK": "True",
                "BENTOML_HOME": str(place.logs.resolve() / "bentoml"),
            },
        )

    def _start_gateway(self, port: int, place: Place) -> None:
        environment = {
            "TILESIGHT_MODEL_REPOSITORY": str(place.repository.resolve()),
            "TILESIGHT_PORT": str(port),
            "TILESIGHT_RUNTIME": self.kind.runtime,
            **self.kind.environment,
        }
        if self.kind.runtime == "triton":
            ports = [_free_port() for _ in range(3)]
            flags = ("--grpc-port", "--http-port", "--metrics-port")
            options = [word for pair in zip(flags, map(str, ports), strict=True) for word in pair]
            self._start([*_TILESIGHT, "triton", *options], environment)
            self._wait_listening(ports[0])
            environment["TILESIGHT_TRITON_URL"] = f"{_HOST}:{ports[0]}"
        self._start([*_TILESIGHT, "serve"], environment)

    def _wait_listening(self, port: int) -> None:
        deadline = time.monotonic() + _READY_S
        while time.monotonic() < deadline:
            if self._processes[-1].poll() is not None:
                raise ServerError(f"it has ended:\n{self._tail()}")
            with socket.socket() as probe:
                if probe.connect_ex((_HOST, port)) == 0:
                    return
            time.sleep(0.1)
        raise ServerError(f"not ready in time:\n{self._tail()}")

    def _tail(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines() if self._log.is_file() else []
        return "\n".join(lines[-_TAIL:])


def disagreement(
    answer: Mapping[str, Any], expected: Mapping[str, float], tolerance: float
) -> str | None:
    """What in the answer is not as expected; None where each label has its score."""
    found = {one["name"]: one["score"] for one in answer.get("labels", [])}
    if set(found) != set(expected):
        return f"labels are {sorted(found)}"
    worst = max(expected, key=lambda name: abs(found[name] - expected[name]))
    if abs(found[worst] - expected[worst]) > tolerance:
        return f"{worst} is {found[worst]:.4f}, not {expected[worst]:.4f}"
    return None


def _free_port() -> int:
    with socket.create_server((_HOST, 0)) as listener:
        return int(listener.getsockname()[1])
