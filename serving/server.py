"""The process around the app: one uvicorn server, which finishes what was begun before it ends."""

import asyncio
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from socket import socket
from types import FrameType

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving import heap
from serving.app import create_app
from serving.drain import Drain
from serving.logs import configure
from serving.process import Process
from serving.settings import Settings
from tilesight.cores import usable_cores
from tilesight.errors import TilesightError

log = logging.getLogger("tilesight.server")

_LOOK_S = 0.05
# A thread that has decoded a tile or run a model asks the event loop for the interpreter. At
# Python's 5 ms it waited about as long as a model runs: a core was idle for a tenth of the time.
_SWITCH_S = 0.0005


def run(settings: Settings) -> None:
    """Serves until it is told to stop, then answers what it has begun.

    Raises:
        TilesightError: the models cannot be served.
    """
    configure()
    log.info("settings", extra=settings.model_dump(mode="json"))
    serve(settings, Process())


def serve(
    settings: Settings,
    process: Process,
    listeners: Sequence[socket] | None = None,
    patient: bool = False,
) -> None:
    """Serves in this process, on its own socket or on the given ones.

    Args:
        settings: what to serve.
        process: what the app gets from this process.
        listeners: sockets that other workers may accept connections from too.
        patient: whether to wait for the models before the first connection is accepted; for a
            worker beside others that answer meanwhile.

    Raises:
        TilesightError: the models cannot be served.
    """
    sys.setswitchinterval(_SWITCH_S)
    heap.limit_arenas(usable_cores())
    failures: list[TilesightError] = []

    def stop(failure: TilesightError) -> None:
        failures.append(failure)
        server.should_exit = True

    app: ASGIApp = create_app(settings, stop, process)
    if patient:
        app = _Patient(app, lambda: process.ready or process.drain.leaving or bool(failures))
    server = GatewayServer(
        uvicorn.Config(
            app,
            http=process.wire(settings),
            ws="none",
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=False,
            server_header=False,
            # uvicorn would believe whoever asks from this machine.
            proxy_headers=bool(settings.trusted_proxies),
            forwarded_allow_ips=[str(one) for one in settings.trusted_proxies],
        ),
        process,
        settings,
    )
    server.run(list(listeners) if listeners else None)
    if failures:
        raise failures[0]


class GatewayServer(uvicorn.Server):
    """A uvicorn server that stops in steps: not ready, then no new requests, then the end."""

    def __init__(self, config: uvicorn.Config, process: Process, settings: Settings) -> None:
        """A server whose app shares the process's drain."""
        super().__init__(config)
        self._metrics = process.metrics
        self._drain: Drain = process.drain
        self._patience = settings.drain_wait_s, settings.drain_s
        self._finish: asyncio.Task[float] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begins to leave; told a second time, it ends at once."""
        if self._drain.leaving:
            self.config.timeout_graceful_shutdown = 0
            super().handle_exit(sig, frame)
            return
        self._drain.leaving = True
        # What uvicorn notes here it raises again at the end: that ends a command with the status
        # of a failure, which is right for Ctrl-C only.
        if sig == signal.SIGINT:
            self._captured_signals.append(sig)

    async def on_tick(self, counter: int) -> bool:
        """Whether to end now; called ten times a second."""
        if self._drain.leaving:
            if self._finish is None:
                log.info("stopping", extra={"active": self._drain.active})
                self._metrics.ready.set(0)
                self._finish = asyncio.create_task(self._drain.finish(*self._patience))
            if self._finish.done():
                # Answers that are on their way to slow readers get what is left.
                self.config.timeout_graceful_shutdown = int(self._finish.result())
                self.should_exit = True
        return await super().on_tick(counter)


class _Patient:
    """An app that says it has started only once `until` holds; requests go straight on."""

    def __init__(self, app: ASGIApp, until: Callable[[], bool]) -> None:
        self._app = app
        self._until = until

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Holds the message back that lets the server accept connections."""

        async def patient(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                while not self._until():
                    await asyncio.sleep(_LOOK_S)
            await send(message)

        await self._app(scope, receive, patient if scope["type"] == "lifespan" else send)
