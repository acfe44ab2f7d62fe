"""The three questions that one can ask of a tile, as endpoints."""

from typing import Annotated

from fastapi import APIRouter, Query, Request

from serving import bodies
from serving.answers import CaptionAnswer, LabelsAnswer, Results, VqaAnswer, one_or_many
from serving.caption import CaptionOptions, caption
from serving.engine import Engine
from serving.labels import LabelsOptions, label
from serving.patience import in_time
from serving.problems import responses
from serving.vqa import answer

_PROBLEMS = responses(400, 408, 413, 415, 422, 500, 503, 504)


def router(engine: Engine) -> APIRouter:
    """POST /labels, /caption and /vqa; the models that answer set the upper bounds."""
    routes = APIRouter(tags=["tiles"], responses=_PROBLEMS)
    settings = engine.settings

    @routes.post(
        "/labels",
        summary="The land-cover labels of a tile",
        response_model_exclude_none=True,
        openapi_extra=bodies.schema(bodies.TilesJson),
    )
    async def post_labels(
        request: Request,
        threshold: Annotated[
            float | None, Query(ge=0, le=1, description="in place of each label's own threshold")
        ] = None,
        top_k: Annotated[
            int | None, Query(ge=1, description="only the best labels; default all")
        ] = None,
        explain: Annotated[
            bool, Query(description="adds to each present label where on the tile it was seen")
        ] = False,
    ) -> LabelsAnswer | Results[LabelsAnswer]:
        async with engine.admitted():
            body = await bodies.read(request, settings, bodies.TilesJson)
            options = LabelsOptions(threshold, top_k, explain)
            work = label(engine, body.images, options)
            return one_or_many(await in_time(request, settings.deadline_s, work))

    @routes.post(
        "/caption",
        summary="A sentence about a tile",
        openapi_extra=bodies.schema(bodies.TilesJson),
    )
    async def post_caption(
        request: Request,
        beams: Annotated[
            int | None, Query(ge=1, description="how many sentences the search keeps")
        ] = None,
        candidates: Annotated[
            int | None,
            Query(ge=1, description="how many sentences to return; at most `beams`"),
        ] = None,
        explain: Annotated[
            bool, Query(description="lists every attribute, not only the sampled ones")
        ] = False,
    ) -> CaptionAnswer | Results[CaptionAnswer]:
        async with engine.admitted():
            body = await bodies.read(request, settings, bodies.TilesJson)
            options = CaptionOptions(beams, candidates, explain)
            work = caption(engine, body.images, options)
            return one_or_many(await in_time(request, settings.deadline_s, work))

    @routes.post(
        "/vqa",
        summary="Answers to questions about a tile",
        openapi_extra=bodies.schema(bodies.QuestionsJson),
    )
    async def post_vqa(
        request: Request,
        question: Annotated[
            list[str] | None,
            Query(description="a question, repeatable; before those of the body, if there are"),
        ] = None,
    ) -> VqaAnswer | Results[VqaAnswer]:
        async with engine.admitted():
            body = await bodies.read(request, settings, bodies.QuestionsJson)
            questions = [*(question or []), *body.questions]
            work = answer(engine, body.images, questions)
            return one_or_many(await in_time(request, settings.deadline_s, work))

    return routes
