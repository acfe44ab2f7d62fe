"""Several workers behind one port: started, replaced when they die, stopped together."""

import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from serving.channel import Failure, Inbox, Ready
from serving.errors import WorkerError
from serving.listeners import listen
from serving.logs import configure
from serving.settings import PREFIX, Settings
from serving.sharing import Shared
from tilesight.errors import TilesightError

log = logging.getLogger("tilesight.supervisor")

# What `tilesight serve` takes as options reaches the workers as variables, as all else does.
OPTIONS = ("host", "port", "model_repository", "workers")
# Ends in a row before any model has answered: it will not go better the next time.
_HOPELESS = 3
_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
# Beyond the drain: to unload models and to send what is left of the traces.
_GRACE_S = 15.0


def run(settings: Settings) -> None:
    """Serves with several workers until told to stop.

    Raises:
        TilesightError: the models cannot be served, or nobody can listen at the address.
    """
    configure()
    log.info("settings", extra=settings.model_dump(mode="json"))
    with ExitStack() as stack:
        listeners = [stack.enter_context(one) for one in listen(settings.host, settings.port)]
        settings = settings.model_copy(update={"port": listeners[0].getsockname()[1]})
        log.info("listening", extra={"url": settings.url, "workers": settings.workers})
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="tilesight-metrics-"))
        Supervisor(settings, listeners, Path(folder)).run()


@dataclass
class _Worker:
    """One slot: the process in it, and how those in it fared."""

    shared: Shared
    process: subprocess.Popen[bytes] | None = None
    ready: bool = False
    # How many processes ended one after the other without ever being ready.
    ends: int = 0
    again: float = 0.0


@dataclass
class Supervisor:
    """The parent of the workers; it answers no request itself."""

    settings: Settings
    listeners: Sequence[socket.socket]
    folder: Path
    _selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    _signals: list[int] = field(default_factory=list)
    _failure: TilesightError | None = None
    _served: bool = False
    _stopping: bool = False
    _hurried: bool = False
    _killing: float = 0.0

    def run(self) -> None:
        """Returns when all workers have ended after SIGTERM.

        Raises:
            TilesightError: the models cannot be served.
            KeyboardInterrupt: it was SIGINT.
        """
        workers = [_Worker(Shared(self.folder, slot)) for slot in range(self.settings.workers)]
        with self._listening_to_signals():
            while not self._stopping or any(one.process for one in workers):
                if not self._stopping:
                    self._start_due(workers)
                for key, _ in self._selector.select(self._patience(workers)):
                    if key.data:
                        self._hear(*key.data)
                    else:
                        os.read(key.fd, 4096)
                self._obey(workers)
        if self._failure:
            raise self._failure
        if signal.SIGINT in self._signals:
            raise KeyboardInterrupt

    def _start_due(self, workers: Sequence[_Worker]) -> None:
        for worker in workers:
            if worker.process is None and worker.again <= time.monotonic():
                self._start(worker)

    def _start(self, worker: _Worker) -> None:
        ours, theirs = socket.socketpair()
        passed = [theirs.fileno(), *(one.fileno() for one in self.listeners)]
        with theirs:
            worker.process = subprocess.Popen(
                [sys.executable, "-m", "serving.worker", *self._arguments(worker, *passed)],
                env=os.environ | self._variables(),
                pass_fds=passed,
                stdin=subprocess.DEVNULL,
                # Ctrl-C is for the supervisor, which stops the workers itself.
                process_group=0,
            )
        worker.ready = False
        self._selector.register(ours, selectors.EVENT_READ, (worker, Inbox(ours)))
        log.info("worker started", extra=_told(worker))

    def _arguments(self, worker: _Worker, channel: int, *listeners: int) -> Iterator[str]:
        yield from ("--slot", str(worker.shared.slot), "--folder", str(self.folder))
        yield from ("--channel", str(channel))
        for one in listeners:
            yield from ("--listener", str(one))
        # At the start the first worker says that it is not ready; the others accept no connection
        # until they are, or /readyz would change its mind from one connection to the next.
        if self._served or worker.shared.slot:
            yield "--patient"

    def _variables(self) -> dict[str, str]:
        return {f"{PREFIX}{name.upper()}": str(getattr(self.settings, name)) for name in OPTIONS}

    def _hear(self, worker: _Worker, inbox: Inbox) -> None:
        for message in inbox.read():
            match message:
                case Ready():
                    worker.ready, worker.ends, self._served = True, 0, True
                case Failure(reason):
                    # While others serve, what stops one is no reason to stop them too.
                    if not self._served and not self._failure:
                        self._failure = WorkerError(reason)
                case None:
                    self._selector.unregister(inbox.channel)
                    inbox.channel.close()
                    self._bury(worker)

    def _bury(self, worker: _Worker) -> None:
        assert worker.process
        status = _ended(worker.process)
        worker.shared.gone()
        (log.info if self._stopping else log.error)(
            "worker ended", extra={**_told(worker), "exit_status": status}
        )
        worker.process = None
        if not worker.ready:
            worker.ends += 1
        pause = min(_LONGEST_PAUSE_S, _PAUSE_S * 2**worker.ends) if worker.ends else 0.0
        worker.again = time.monotonic() + pause
        if not self._served and worker.ends >= _HOPELESS and not self._failure:
            self._failure = WorkerError(
                f"worker {worker.shared.slot} ended {worker.ends} times before its models "
                f"answered, at last with status {status}"
            )

    def _obey(self, workers: Sequence[_Worker]) -> None:
        """Stops the workers if a signal or a failure says so; at once if it is said again."""
        told = len(self._signals)
        if not self._stopping and (told or self._failure):
            self._stopping = True
            grace = self.settings.drain_wait_s + self.settings.drain_s + _GRACE_S
            self._killing = time.monotonic() + grace
            self._send(workers, signal.SIGTERM)
        elif self._stopping and told > 1 and not self._hurried:
            self._hurried = True
            self._send(workers, signal.SIGTERM)
        elif self._stopping and time.monotonic() > self._killing:
            self._send(workers, signal.SIGKILL)

    def _send(self, workers: Sequence[_Worker], number: signal.Signals) -> None:
        for worker in workers:
            if worker.process:
                worker.process.send_signal(number)

    def _patience(self, workers: Sequence[_Worker]) -> float | None:
        """How long nothing has to be done unless something happens."""
        if self._stopping:
            return max(0.0, self._killing - time.monotonic()) + 0.1
        due = [worker.again for worker in workers if worker.process is None]
        return max(0.0, min(due) - time.monotonic()) if due else None

    @contextmanager
    def _listening_to_signals(self) -> Iterator[None]:
        """A block in which SIGTERM and SIGINT are noted, and wake the selector."""

        def note(number: int, frame: FrameType | None) -> None:
            self._signals.append(number)

        woken, waker = socket.socketpair()
        with woken, waker, self._selector:
            waker.setblocking(False)
            self._selector.register(woken, selectors.EVENT_READ)
            before = {one: signal.signal(one, note) for one in (signal.SIGTERM, signal.SIGINT)}
            previous = signal.set_wakeup_fd(waker.fileno())
            try:
                yield
            finally:
                signal.set_wakeup_fd(previous)
                for number, handler in before.items():
                    signal.signal(number, handler)


def _ended(process: subprocess.Popen[bytes]) -> int:
    """The exit status of a process that has closed its channel: it has ended, or is about to."""
    try:
        return process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _told(worker: _Worker) -> dict[str, int]:
    assert worker.process
    return {"worker": worker.shared.slot, "pid": worker.process.pid}
