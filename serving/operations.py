"""What operators and their machines ask: alive, ready, which models, how much, how fast."""

from typing import Any

import anyio.to_thread
from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from serving.answers import Health, ModelDetails, ModelList, Ready, TileInput
from serving.drain import Drain
from serving.engine import Engine
from serving.problems import responses
from serving.repository import Bundle
from tilesight.manifest import AnswerHead, CaptionHead, EncodingHead, Head, LabelsHead


def router(engine: Engine, drain: Drain) -> APIRouter:
    """GET /healthz, /readyz, /models and /metrics."""
    routes = APIRouter(tags=["operations"], responses=responses(422, 500))

    @routes.get("/healthz", summary="Whether the process runs")
    async def healthz() -> Health:
        return Health()

    @routes.get("/readyz", summary="Whether every model answers", responses=responses(503))
    async def readyz() -> Ready:
        drain.require_staying()
        engine.models.require_ready()
        return Ready()

    @routes.get("/models", summary="The models that are served", responses=responses(503))
    async def models() -> ModelList:
        engine.models.require_ready()
        return ModelList(models=[_details(engine, bundle) for bundle in engine.models.served.all()])

    @routes.get("/metrics", summary="Metrics for Prometheus", response_class=Response)
    async def metrics() -> Response:
        engine.metrics.publish()
        # Milliseconds of work: not in the event loop.
        page = await anyio.to_thread.run_sync(engine.metrics.page)
        return Response(page, media_type=CONTENT_TYPE_LATEST)

    return routes


def _details(engine: Engine, bundle: Bundle[Any]) -> ModelDetails:
    manifest = bundle.manifest
    tile = manifest.input
    return ModelDetails(
        **engine.models.info(bundle).model_dump(),
        title=manifest.title,
        task=manifest.head.task,
        input=TileInput(**tile.model_dump(include=set(TileInput.model_fields))) if tile else None,
        names=_names(manifest.head),
        split=f"{manifest.metrics.dataset} {manifest.metrics.split}",
        metrics=manifest.metrics.values,
        runtime=engine.models.runtime_details(bundle),
    )


def _names(head: Head) -> list[str]:
    """All that the model can say."""
    match head:
        case LabelsHead():
            return head.labels
        case CaptionHead():
            return head.attributes
        case EncodingHead():
            return head.land_use
        case AnswerHead():
            return head.answers
