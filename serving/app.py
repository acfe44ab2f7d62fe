"""The gateway as an ASGI app."""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
from fastapi import Depends, FastAPI

import tilesight
from serving import keeper, operations, page, problems, tasks
from serving.engine import Engine
from serving.limits import BodyLimit
from serving.metrics import Metrics
from serving.models import Models
from serving.observe import Observe
from serving.parameters import refuse_unknown, state_bounds
from serving.problems import Problem
from serving.settings import Settings
from tilesight.errors import TilesightError

log = logging.getLogger("tilesight.app")

_DESCRIPTION = """
Words for aerial and satellite tiles: the land-cover **labels** of a tile, a **caption**, and
answers to **questions** about it. A tile is sent as it is (`Content-Type: image/jpeg`, ...), as
multipart, or in JSON as base64. Failures are RFC 9457 problem documents.
"""


def create_app(
    settings: Settings, on_failure: Callable[[TilesightError], None] | None = None
) -> FastAPI:
    """The gateway over the models that the settings name.

    The bundles are verified here; they are loaded once the app has started, and until then
    `/readyz` answers 503. `on_failure` is told when a model cannot be loaded.

    Raises:
        BundleError: a bundle is missing or is not what its manifest promises.
    """
    metrics = Metrics()
    engine = Engine(settings, metrics)
    app = _Gateway(
        engine.models,
        title="Tilesight",
        description=_DESCRIPTION,
        version=tilesight.__version__,
        lifespan=partial(_lifespan, engine, on_failure),
        dependencies=[Depends(refuse_unknown)],
        docs_url=None,
        redoc_url=None,
    )
    app.include_router(tasks.router(engine))
    app.include_router(operations.router(engine))
    page.add(app)
    problems.install(app)
    # Added last, runs first.
    app.add_middleware(
        BodyLimit, max_bytes=settings.max_body_bytes, timeout_s=settings.body_timeout_s
    )
    app.add_middleware(Observe, metrics=metrics)
    return app


class _Gateway(FastAPI):
    """A FastAPI app whose OpenAPI document knows the problem document and the served bounds."""

    def __init__(self, models: Models, **options: Any) -> None:  # noqa: ANN401
        """An app over the models."""
        super().__init__(**options)
        self._models = models

    def openapi(self) -> dict[str, Any]:
        # Each request's parameters are checked against the document, so it is made once.
        if self.openapi_schema is None:
            schema = super().openapi()
            schema["components"]["schemas"]["Problem"] = Problem.model_json_schema()
        document = super().openapi()
        state_bounds(document, self._models.served)
        return document


@asynccontextmanager
async def _lifespan(
    engine: Engine, on_failure: Callable[[TilesightError], None] | None, app: FastAPI
) -> AsyncIterator[None]:
    """Loads the models beside the running server, and keeps them until it stops."""
    async with anyio.create_task_group() as group:
        group.start_soon(_serve, engine, on_failure)
        try:
            yield
        finally:
            group.cancel_scope.cancel()
    await engine.models.close()


async def _serve(engine: Engine, on_failure: Callable[[TilesightError], None] | None) -> None:
    try:
        await keeper.start(engine.models)
    except TilesightError as error:
        log.error("cannot serve", extra={"reason": str(error)})
        if on_failure:
            on_failure(error)
    else:
        log.info("ready", extra={"url": engine.settings.url})
        await keeper.keep(engine.models, engine.metrics, engine.settings.follow_s)
