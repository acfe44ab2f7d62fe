"""A running tritonserver: started, waited for, and stopped without leaving anything behind."""

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal, Self

from tilesight.errors import TritonError
from tilesight.triton.installation import Installation, find
from tilesight.triton.ports import free_ports, is_free

Control = Literal["explicit", "none"]

_SHARED_MEMORY = Path("/dev/shm")
_TAIL_LINES = 40
_POLL_S = 0.05
# What Triton may take to end on top of the time that requests in flight get.
_STOP_MARGIN_S = 5.0
# Outlives this process, whatever ends it: the pipe closes, and the server goes with all it holds.
_GUARDIAN = 'read -r _; kill -s KILL -- "-$1"; rm -rf "$2" /dev/shm/"$3"*'


class TritonServer:
    """The real tritonserver over a model repository; a context manager.

    `models` are loaded at the start: None takes all that have a config.pbtxt. With control
    "explicit" a client loads and unloads through the model control API, with "none" nobody does.
    A port of 0 is replaced by a free one, which stays the same when the server starts again.
    `log` keeps the log; without it the log goes when the server is closed. Requests in flight get
    `exit_timeout_s` to end when it stops. `options` are further flags of tritonserver.
    """

    def __init__(
        self,
        repository: Path,
        models: Sequence[str] | None = None,
        *,
        host: str = "127.0.0.1",
        grpc_port: int = 0,
        http_port: int = 0,
        metrics_port: int = 0,
        control: Control = "explicit",
        log: Path | None = None,
        options: Sequence[str] = (),
        start_timeout_s: float = 120.0,
        exit_timeout_s: int = 5,
    ) -> None:
        if not repository.is_dir():
            raise TritonError(f"{repository}: no such folder")
        if control == "none" and models is not None:
            raise TritonError("models: with control none Triton loads all models of the repository")
        self._repository = repository.resolve()
        self._models = _configured(self._repository) if models is None else list(models)
        self._host = host
        self._ports = _chosen(host, [grpc_port, http_port, metrics_port])
        self._control = control
        self._log = log
        self._options = list(options)
        self._start_timeout_s = start_timeout_s
        self._exit_timeout_s = exit_timeout_s
        # Names the shared memory of the stubs: what a killed server leaves is found by it.
        self._prefix = f"tilesight_triton_{secrets.token_hex(8)}_"
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._guardian: subprocess.Popen[bytes] | None = None

    @property
    def grpc_url(self) -> str:
        """Host and port of gRPC, as tritonclient wants them."""
        return f"{self._host}:{self._ports[0]}"

    @property
    def http_url(self) -> str:
        """Host and port of HTTP, as tritonclient wants them."""
        return f"{self._host}:{self._ports[1]}"

    @property
    def metrics_url(self) -> str:
        """Address of the metrics, as Prometheus wants it."""
        return f"http://{self._host}:{self._ports[2]}/metrics"

    @property
    def models(self) -> list[str]:
        """The models that are loaded at the start."""
        return list(self._models)

    @property
    def log_path(self) -> Path:
        """The file that Triton writes its log to."""
        if self._log is not None:
            return self._log
        if self._folder is None:
            raise TritonError("Triton is closed, and its log is gone with it")
        return self._folder / "triton.log"

    @property
    def pid(self) -> int:
        """The process id of the tritonserver, which leads a process group with its stubs."""
        return self._running().pid

    def start(self) -> Self:
        """This server, ready; also again after `stop`, on the same ports.

        Raises:
            TritonMissingError: no Triton is installed.
            TritonError: it ended or was not ready in time; the end of its log is in the message.
        """
        if self._process is not None:
            raise TritonError(f"Triton runs already, as process {self._process.pid}")
        installation = find()
        try:
            self._launch(installation)
            self._wait_until_ready()
        except BaseException:
            self.close()
            raise
        return self

    def stop(self) -> None:
        """Ends the server and its stubs, also where they hang or were stopped by a signal."""
        if self._process is None:
            return
        process, self._process = self._process, None
        process.terminate()
        # A process that a signal has stopped takes no other one before it goes on.
        _signal_group(process.pid, signal.SIGCONT)
        try:
            process.wait(self._exit_timeout_s + _STOP_MARGIN_S)
        except subprocess.TimeoutExpired:
            pass
        _signal_group(process.pid, signal.SIGKILL)
        process.wait()
        self._dismiss_guardian()
        for region in _SHARED_MEMORY.glob(f"{self._prefix}*"):
            region.unlink(missing_ok=True)

    def close(self) -> None:
        """Stops the server and removes its folder, the log included unless `log` names one."""
        self.stop()
        if self._folder is not None:
            shutil.rmtree(self._folder)
            self._folder = None

    def wait(self) -> None:
        """Returns never while Triton runs.

        Raises:
            TritonError: it has ended by itself.
        """
        status = self._running().wait()
        raise TritonError(f"Triton has ended, status {status}; the end of its log:\n{self._tail()}")

    def __enter__(self) -> Self:
        """This server, ready."""
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leaves nothing behind."""
        self.close()

    def _launch(self, installation: Installation) -> None:
        # Another Triton there would answer for this one.
        for port in self._ports:
            if not is_free(self._host, port):
                raise TritonError(f"{self._host}:{port}: something listens there already")
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="tilesight-triton-"))
            installation.write_backends(self._folder / "backends")
        with self._opened_log() as log:
            self._process = subprocess.Popen(
                [str(installation.binary), *self._flags(self._folder / "backends")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=installation.environment(),
                start_new_session=True,
            )
        self._guardian = subprocess.Popen(
            ["sh", "-c", _GUARDIAN, "sh", str(self.pid), str(self._folder), self._prefix],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _opened_log(self) -> BinaryIO:
        try:
            return self.log_path.open("ab")
        except OSError as error:
            raise TritonError(f"{self.log_path}: cannot be written: {error.strerror}") from error

    def _flags(self, backends: Path) -> list[str]:
        grpc, http, metrics = map(str, self._ports)
        explicit = [f"--load-model={name}" for name in self._models]
        return [
            f"--model-repository={self._repository}",
            f"--backend-directory={backends}",
            f"--model-control-mode={self._control}",
            *(explicit if self._control == "explicit" else []),
            *(f"--grpc-address={self._host}", f"--grpc-port={grpc}"),
            *(f"--http-address={self._host}", f"--http-port={http}"),
            *(f"--metrics-address={self._host}", f"--metrics-port={metrics}"),
            # Settings of the Python backend hold for every backend that is written in Python.
            f"--backend-config=python,shm-region-prefix-name={self._prefix}",
            "--disable-auto-complete-config",
            "--exit-on-error=true",
            "--strict-readiness=true",
            f"--exit-timeout-secs={self._exit_timeout_s}",
            "--allow-sagemaker=false",
            "--allow-vertex-ai=false",
            "--allow-gpu-metrics=false",
            *self._options,
        ]

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self._start_timeout_s
        while not self._ready():
            status = self._running().poll()
            if status is not None:
                raise TritonError(
                    f"Triton did not start, status {status}; the end of its log:\n{self._tail()}"
                )
            if time.monotonic() > deadline:
                raise TritonError(
                    f"Triton was not ready after {self._start_timeout_s:g} s; "
                    f"the end of its log:\n{self._tail()}"
                )
            time.sleep(_POLL_S)

    def _ready(self) -> bool:
        connection = HTTPConnection(self._host, self._ports[1], timeout=1.0)
        try:
            connection.request("GET", "/v2/health/ready")
            return connection.getresponse().status == 200
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise TritonError("Triton is not running")
        return self._process

    def _dismiss_guardian(self) -> None:
        """Ends the guardian before its pipe closes: nothing is left that it should end."""
        if self._guardian is not None and self._guardian.stdin is not None:
            self._guardian.kill()
            self._guardian.wait()
            self._guardian.stdin.close()
            self._guardian = None

    def _tail(self) -> str:
        lines = self.log_path.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-_TAIL_LINES:])


def _configured(repository: Path) -> list[str]:
    """Names of the models of the repository; a hidden folder is an export under way."""
    configs = repository.glob("*/config.pbtxt")
    return sorted(c.parent.name for c in configs if not c.parent.name.startswith("."))


def _chosen(host: str, wanted: Sequence[int]) -> list[int]:
    """The wanted ports, a free one in the place of each 0."""
    free = iter(free_ports(host, len(wanted)))
    return [port or next(free) for port in wanted]


def _signal_group(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        pass  # all of it has ended
