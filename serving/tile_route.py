"""The routes that carry the load: documented by FastAPI, read and answered without its detours."""

from collections.abc import Callable, Coroutine
from types import UnionType
from typing import Any, Union, get_args, get_origin

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter, ValidationError

from serving.errors import UnknownParameterError

_EXTRA = "extra_forbidden"


class TileRoute(APIRoute):
    """A route whose endpoint takes the request and one model of all query parameters.

    FastAPI derives the OpenAPI document from the endpoint's signature as it does anywhere. At run
    time the query goes straight into the model, and the answer's model straight into JSON: what
    was made here need not be validated again.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What answers a request, for FastAPI."""
        answering = self.answering()

        async def handle(request: Request) -> Response:
            return Response(await answering(request), media_type="application/json")

        return handle

    def answering(self) -> Callable[[Request], Coroutine[Any, Any, bytes]]:
        """What answers a request: the JSON."""
        endpoint = self.endpoint
        (field,) = self.dependant.query_params
        model = field.field_info.annotation
        assert isinstance(model, type) and issubclass(model, BaseModel)
        query = _Query(model)
        # One for each type: a union would try them in turn.
        writers = {get_origin(one) or one: TypeAdapter(one) for one in _parts(self.response_model)}
        exclude_none = self.response_model_exclude_none

        async def answer(request: Request) -> bytes:
            found = await endpoint(request, query.of(request))
            return writers[type(found)].dump_json(found, exclude_none=exclude_none)

        return answer


class _Query:
    """The query parameters of one route."""

    def __init__(self, model: type[BaseModel]) -> None:
        self._model = model
        self._none_given = model()
        self._lists = {
            name
            for name, field in model.model_fields.items()
            if any(get_origin(one) is list for one in _parts(field.annotation))
        }

    def of(self, request: Request) -> BaseModel:
        """The parameters of the request.

        Raises:
            UnknownParameterError: one that the endpoint does not have; names those that it has.
            RequestValidationError: one whose value is not allowed.
        """
        if not request.scope["query_string"]:
            return self._none_given
        given: dict[str, Any] = {}
        for name, value in request.query_params.multi_items():
            if name in self._lists:
                given.setdefault(name, []).append(value)
            else:
                given[name] = value
        try:
            return self._model.model_validate(given)
        except ValidationError as error:
            raise self._failure(error) from error

    def _failure(self, error: ValidationError) -> Exception:
        problems = error.errors(include_url=False)
        unknown = sorted(str(one["loc"][0]) for one in problems if one["type"] == _EXTRA)
        if unknown:
            allowed = list(self._model.model_fields)
            return UnknownParameterError(
                f"{', '.join(unknown)}: unknown parameter; the parameters are {', '.join(allowed)}",
                allowed=allowed,
            )
        return RequestValidationError([{**one, "loc": ("query", *one["loc"])} for one in problems])


def _parts(annotation: object) -> tuple[Any, ...]:
    """The types of a union, or the type itself."""
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
