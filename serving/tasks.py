"""The three questions that one can ask of a tile, as endpoints."""

import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from serving import bodies, wishes
from serving.answers import AnswerT, CaptionAnswer, LabelsAnswer, Results, VqaAnswer, one_or_many
from serving.caption import CaptionOptions, caption
from serving.engine import Engine
from serving.jobs import Ask
from serving.labels import LabelsOptions, label
from serving.patience import in_time
from serving.problems import responses
from serving.settings import Settings
from serving.tile_route import TileRoute
from serving.vqa import VqaOptions, answer

PATHS = ("/labels", "/caption", "/vqa")

_PROBLEMS = responses(400, 401, 403, 408, 413, 415, 422, 429, 500, 503, 504)


def router(engine: Engine) -> APIRouter:
    """POST /labels, /caption and /vqa; the models that answer set the upper bounds."""
    routes = APIRouter(tags=["tiles"], responses=_PROBLEMS, route_class=TileRoute)

    @routes.post(
        "/labels",
        summary="The land-cover labels of a tile",
        response_model_exclude_none=True,
        openapi_extra=_described(bodies.TilesJson, engine.settings),
    )
    async def post_labels(
        request: Request, options: Annotated[LabelsOptions, Query()]
    ) -> LabelsAnswer | Results[LabelsAnswer]:
        return await _answered(
            engine,
            request,
            bodies.TilesJson,
            lambda body, ask: label(engine, body.images, options, ask),
        )

    @routes.post(
        "/caption",
        summary="A sentence about a tile",
        openapi_extra=_described(bodies.TilesJson, engine.settings),
    )
    async def post_caption(
        request: Request, options: Annotated[CaptionOptions, Query()]
    ) -> CaptionAnswer | Results[CaptionAnswer]:
        return await _answered(
            engine,
            request,
            bodies.TilesJson,
            lambda body, ask: caption(engine, body.images, options, ask),
        )

    @routes.post(
        "/vqa",
        summary="Answers to questions about a tile",
        openapi_extra=_described(bodies.QuestionsJson, engine.settings),
    )
    async def post_vqa(
        request: Request, options: Annotated[VqaOptions, Query()]
    ) -> VqaAnswer | Results[VqaAnswer]:
        return await _answered(
            engine,
            request,
            bodies.QuestionsJson,
            lambda body, ask: answer(
                engine, body.images, [*(options.question or []), *body.questions], ask
            ),
        )

    return routes


async def _answered(
    engine: Engine,
    request: Request,
    form: type[bodies.TilesJson],
    work: Callable[[bodies.Body, Ask], Awaitable[list[AnswerT]]],
) -> AnswerT | Results[AnswerT]:
    """The answer to one request, from its header on: refused as early as can be."""
    arrived = time.monotonic()
    wish = wishes.read(request.scope["headers"], engine.settings)
    lane = engine.lanes[wish.lane]
    engine.models.require_ready()
    lane.require_place()
    body = await bodies.read(request, engine.settings, form)
    with lane.places(len(body.images)):
        ask = engine.ask(wish.lane, wish.deadline_s)
        request.scope["state"]["timing"] = ask.timing
        ask.timing.admission = time.monotonic() - arrived
        return one_or_many(await in_time(request, wish.deadline_s, work(body, ask)))


def _described(form: type[bodies.TilesJson], settings: Settings) -> dict[str, Any]:
    """What OpenAPI says of the body and of the headers."""
    return {**bodies.schema(form), "parameters": wishes.parameters(settings)}
