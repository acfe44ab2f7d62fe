"""The gateway as an ASGI app."""

import gc
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
from fastapi import Depends, FastAPI
from starlette.types import ASGIApp

import tilesight
from serving import keeper, lag, operations, page, problems, tasks
from serving.clients import Clients
from serving.drain import Draining
from serving.engine import Engine
from serving.express import Express
from serving.guard import Guard, describe
from serving.keyring import Keyring
from serving.limits import BodyLimit
from serving.models import Models
from serving.observe import Observe
from serving.parameters import refuse_unknown, state_bounds
from serving.problems import Problem
from serving.process import Process
from serving.settings import Settings
from serving.shedding import Shedding
from serving.tracing import Tracing
from serving.tracing import tracing as make_tracing
from tilesight.errors import TilesightError

log = logging.getLogger("tilesight.app")

_DESCRIPTION = """
Words for aerial and satellite tiles: the land-cover **labels** of a tile, a **caption**, and
answers to **questions** about it. A tile is sent as it is (`Content-Type: image/jpeg`, ...), as
multipart, or in JSON as base64. Failures are RFC 9457 problem documents.
"""


def create_app(
    settings: Settings,
    on_failure: Callable[[TilesightError], None] | None = None,
    process: Process | None = None,
) -> ASGIApp:
    """The gateway over the models that the settings name.

    The bundles are verified here; they are loaded once the app has started, and until then
    `/readyz` answers 503. `on_failure` is told when a model cannot be loaded; `process` is what
    runs the app, where that is more than a test.

    Raises:
        BundleError: a bundle is missing or is not what its manifest promises.
        ConfigError: the API keys cannot be read.
        MissingExtraError: traces are wanted, and OpenTelemetry is not installed.
    """
    process = process or Process()
    tracing = make_tracing(settings, process.worker)
    process.metrics.limits(settings.deadline_s, settings.max_queue_s)
    engine = Engine(settings, process.metrics)
    process.shed = Shedding(engine.lanes)
    keyring, clients = Keyring.of(settings), Clients.of(settings)
    app = _Gateway(
        engine.models,
        partial(describe, keyring=keyring, clients=clients),
        title="Tilesight",
        description=_DESCRIPTION,
        version=tilesight.__version__,
        lifespan=partial(_lifespan, engine, process, tracing, on_failure),
        dependencies=[Depends(refuse_unknown)],
        docs_url=None,
        redoc_url=None,
    )
    tiles = tasks.router(engine)
    app.include_router(tiles)
    app.include_router(operations.router(engine, process.drain))
    page.add(app)
    problems.install(app)
    # Around the app and not in its own list of middlewares: what FastAPI has there beside ours
    # costs each request as much as all of these together, and answers nothing that they do not.
    inner = Draining(Express(app, tiles.routes), process.drain)
    limited = BodyLimit(inner, settings.max_body_bytes, settings.body_timeout_s)
    guarded = Guard(limited, keyring, clients, settings.cors_origins)
    return Observe(guarded, process.metrics, settings.log_requests, tracing)


class _Gateway(FastAPI):
    """A FastAPI app whose OpenAPI document knows the problem document and the served bounds."""

    def __init__(
        self,
        models: Models,
        describe: Callable[[dict[str, Any]], None],
        **options: Any,  # noqa: ANN401
    ) -> None:
        """An app over the models; `describe` adds to the document who may ask."""
        super().__init__(**options)
        self._models = models
        self._describe = describe

    def openapi(self) -> dict[str, Any]:
        # Each request's parameters are checked against the document, so it is made once.
        if self.openapi_schema is None:
            schema = super().openapi()
            schema["components"]["schemas"]["Problem"] = Problem.model_json_schema()
            self._describe(schema)
        document = super().openapi()
        state_bounds(document, self._models.served)
        return document


@asynccontextmanager
async def _lifespan(
    engine: Engine,
    process: Process,
    tracing: Tracing | None,
    on_failure: Callable[[TilesightError], None] | None,
    app: FastAPI,
) -> AsyncIterator[None]:
    """Loads the models beside the running server, and keeps them until it stops."""
    async with anyio.create_task_group() as group:
        group.start_soon(lag.watch, process.metrics)
        group.start_soon(_serve, engine, process.now_ready, on_failure)
        try:
            yield
        finally:
            group.cancel_scope.cancel()
    await engine.models.close()
    if tracing:
        await anyio.to_thread.run_sync(tracing.close)


async def _serve(
    engine: Engine,
    on_ready: Callable[[], None],
    on_failure: Callable[[TilesightError], None] | None,
) -> None:
    try:
        await keeper.start(engine.models)
    except TilesightError as error:
        log.error("cannot serve", extra={"reason": str(error)})
        if on_failure:
            on_failure(error)
    else:
        # What the start has made stays: no collection of garbage has to look through it again.
        gc.collect()
        gc.freeze()
        log.info("ready", extra={"url": engine.settings.url})
        on_ready()
        await keeper.keep(engine.models, engine.metrics, engine.settings.follow_s)
