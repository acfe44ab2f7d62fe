"""Starts `tilesight serve` as a process of its own on a free port, and stops it again.

`with serving(follow_s=0.2) as gateway:` has one whose `url` answers and whose `pid` can be watched.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil

PREFIX = "TILESIGHT_"
# The command without its script, which need not be on the path.
SERVE = ("-c", "from tilesight.cli import main; main()", "serve")
ROOT = Path(__file__).resolve().parents[1]
MODELS = ROOT / "model_repository"
_HOST = "127.0.0.1"
_STOP_S = 45.0  # the gateway itself lets requests end for half a minute
_LAST_LINES = 15


class GatewayError(Exception):
    """A gateway that does not start, or is not there."""


@dataclass(frozen=True)
class Gateway:
    """A gateway that answers; `pid` is None where its process is not on this machine."""

    url: str
    pid: int | None
    log: Path | None = None


@contextmanager
def serving(
    *, command: Sequence[str] = SERVE, ready_s: float = 120.0, **settings: object
) -> Iterator[Gateway]:
    """A gateway that is ready, with exactly these settings; those of the environment do not count.

    It serves the committed models unless told otherwise. `command` is what Python runs, so that
    another module can serve the same gateway changed.

    Raises:
        GatewayError: it ended or was not ready in time; the end of its log is in the message.
    """
    port = settings.pop("port", None) or _free_port()
    environment = {name: value for name, value in os.environ.items() if not _ours(name)}
    settings = {"model_repository": MODELS} | settings
    environment |= {
        PREFIX + name.upper(): str(value) for name, value in settings.items() if value is not None
    }
    environment |= {PREFIX + "HOST": _HOST, PREFIX + "PORT": str(port)}
    # Wherever this was started, it is this checkout that is served.
    path = (str(ROOT), environment.get("PYTHONPATH"))
    environment["PYTHONPATH"] = os.pathsep.join(one for one in path if one)
    with tempfile.TemporaryDirectory(prefix="tilesight-gateway-") as folder:
        log = Path(folder) / "gateway.log"
        with log.open("wb") as lines:
            process = subprocess.Popen(
                [sys.executable, *command],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=lines,
                stderr=lines,
                start_new_session=True,  # Ctrl-C is for the load; the gateway is stopped here
            )
        gateway = Gateway(f"http://{_HOST}:{port}", process.pid, log)
        try:
            _wait_until_ready(gateway, process, ready_s)
            yield gateway
        finally:
            _stop(process)


@contextmanager
def reached(url: str | None, **options: object) -> Iterator[Gateway]:
    """The running gateway at the address, or, without one, a new one with the options."""
    if url is None:
        with serving(**options) as gateway:  # type: ignore[arg-type]
            yield gateway
        return
    if not ready(url):
        raise GatewayError(f"{url}/readyz: not ready")
    yield Gateway(url.rstrip("/"), _listening(url))


def ready(url: str) -> bool:
    """Whether the gateway says that it can answer."""
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=10) as response:
            return bool(response.status == 200)
    except OSError:  # refused, reset, timed out, or an answer that is an error
        return False


def _ours(name: str) -> bool:
    return name.upper().startswith(PREFIX)


def _free_port() -> int:
    with socket.create_server((_HOST, 0)) as listener:
        return int(listener.getsockname()[1])


def _listening(url: str) -> int | None:
    """The process behind a local address; None where it is elsewhere or not to be seen."""
    parts = urlsplit(url)
    if parts.hostname not in ("127.0.0.1", "localhost", "::1"):
        return None
    try:
        found = {
            one.pid
            for one in psutil.net_connections("tcp")
            if one.status == psutil.CONN_LISTEN and one.laddr.port == parts.port and one.pid
        }
    except psutil.AccessDenied:
        return None
    # Workers listen on their parent's socket: the parent is the one whose parent does not.
    return next((pid for pid in found if psutil.Process(pid).ppid() not in found), None)


def _wait_until_ready(
    gateway: Gateway, process: subprocess.Popen[bytes], patience_s: float
) -> None:
    deadline = time.monotonic() + patience_s
    while not ready(gateway.url):
        if process.poll() is not None:
            raise GatewayError(f"it ended with {process.returncode}:\n{_end_of(gateway.log)}")
        if time.monotonic() > deadline:
            raise GatewayError(f"not ready after {patience_s:g} s:\n{_end_of(gateway.log)}")
        time.sleep(0.05)
    # Whoever took the port in between answers in its place, and ours has ended or will.
    if process.poll() is not None:
        raise GatewayError(f"it ended with {process.returncode}:\n{_end_of(gateway.log)}")


def _end_of(log: Path | None) -> str:
    lines = log.read_text(errors="replace").splitlines() if log else []
    return "\n".join(lines[-_LAST_LINES:])


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Asks it to end, as a service manager does; what does not end is killed, workers too."""
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
