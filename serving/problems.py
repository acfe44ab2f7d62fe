"""From a failure to an HTTP answer: one table, RFC 9457 documents."""

import logging
from http import HTTPStatus
from typing import Any, NamedTuple

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.types import Scope

from serving import errors as ours
from tilesight import errors

log = logging.getLogger("tilesight.problems")

MEDIA_TYPE = "application/problem+json"


class Kind(NamedTuple):
    """What a failure is called: HTTP status, the end of its type, and a title."""

    status: int
    slug: str
    title: str


# The one place that knows which failure is which answer. A class not listed is its base's kind.
KINDS: dict[type[Exception], Kind] = {
    errors.EmptyImageError: Kind(400, "empty-image", "No image was sent"),
    errors.UndecodableImageError: Kind(400, "undecodable-image", "The image cannot be decoded"),
    errors.UnsupportedFormatError: Kind(415, "unsupported-format", "The image format is not read"),
    errors.ImageTooLargeError: Kind(413, "image-too-large", "The image is too large"),
    errors.ImageTooSmallError: Kind(422, "image-too-small", "The image is too small"),
    errors.AnimatedImageError: Kind(422, "animated-image", "The image has several frames"),
    errors.BandError: Kind(422, "wrong-bands", "The image has not the bands of the model"),
    errors.QuestionError: Kind(422, "bad-question", "The question cannot be asked"),
    ours.RequestError: Kind(422, "invalid-request", "The request cannot be fulfilled"),
    ours.MalformedBodyError: Kind(400, "malformed-body", "The body cannot be read"),
    ours.AmbiguousKeyError: Kind(400, "ambiguous-key", "Several API keys were sent"),
    ours.UnauthorizedError: Kind(401, "unauthorized", "A valid API key is needed"),
    ours.ForbiddenError: Kind(403, "forbidden", "The API key may not do this"),
    ours.TooManyRequestsError: Kind(429, "too-many-requests", "The client asks too often"),
    ours.MediaTypeError: Kind(415, "unsupported-media-type", "The body's type is not read"),
    ours.BodyTooLargeError: Kind(413, "body-too-large", "The body is too large"),
    ours.SlowBodyError: Kind(408, "slow-body", "The body took too long to arrive"),
    ours.WishError: Kind(422, "invalid-header", "A header is not allowed"),
    ours.MalformedRequestError: Kind(400, "malformed-request", "The request is not valid HTTP"),
    ours.TransferCodingError: Kind(
        501, "transfer-coding", "The body's transfer coding is not read"
    ),
    ours.HeaderTooLargeError: Kind(431, "header-too-large", "The header is too large"),
    ours.SlowHeaderError: Kind(408, "slow-header", "The header took too long to arrive"),
    ours.ConnectionsError: Kind(503, "too-many-connections", "Too many connections are open"),
    ours.StorageError: Kind(503, "no-storage", "The body cannot be stored"),
    ours.NotReadyError: Kind(503, "not-ready", "The gateway is not ready"),
    ours.OverloadedError: Kind(503, "overloaded", "The gateway is overloaded"),
    ours.BackendUnavailableError: Kind(
        503, "backend-unavailable", "What runs the models does not answer"
    ),
    ours.DeadlineError: Kind(504, "deadline-exceeded", "The answer was not ready in time"),
    ours.UnknownParameterError: Kind(422, "unknown-parameter", "There is no such parameter"),
    RequestValidationError: Kind(422, "invalid-parameter", "A parameter is not allowed"),
    errors.TilesightError: Kind(500, "internal-error", "The gateway failed"),
}
INTERNAL = KINDS[errors.TilesightError]


class Problem(BaseModel):
    """An RFC 9457 problem document."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description="stable name of the failure, e.g. /problems/body-too-large")
    title: str
    status: int
    detail: str
    instance: str = Field(description="the path that was asked")
    request_id: str = Field(description="as in the X-Request-ID header and in the log")


def kind_of(error: Exception) -> Kind:
    """The failure's row of the table, or its nearest base's."""
    if isinstance(error, HTTPException):
        status = HTTPStatus(error.status_code)
        return Kind(status, status.phrase.lower().replace(" ", "-"), status.phrase)
    return next((KINDS[base] for base in type(error).__mro__ if base in KINDS), INTERNAL)


def respond(scope: Scope, error: Exception) -> Response:
    """The problem document for the failure; what went wrong inside stays in the log."""
    kind = kind_of(error)
    scope["state"]["problem"] = kind.slug
    extensions, headers = _extensions(scope, error)
    if kind.status == HTTPStatus.INTERNAL_SERVER_ERROR:
        log.error(
            "request failed", exc_info=error, extra={"request_id": scope["state"]["request_id"]}
        )
    elif kind.status > HTTPStatus.INTERNAL_SERVER_ERROR and error.__cause__:
        log.warning(
            "request failed",
            extra={
                "request_id": scope["state"]["request_id"],
                "reason": str(error.__cause__),
            },
        )
    document = Problem(
        type=f"/problems/{kind.slug}",
        title=kind.title,
        status=kind.status,
        detail=_detail(kind, error),
        instance=scope["path"],
        request_id=scope["state"]["request_id"],
        **extensions,
    )
    return JSONResponse(document.model_dump(), kind.status, headers, MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """From now on the app answers failures with problem documents."""

    async def handle(request: Request, error: Exception) -> Response:
        return respond(request.scope, error)

    for failure in (errors.TilesightError, RequestValidationError, HTTPException):
        app.add_exception_handler(failure, handle)


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The entries for OpenAPI that say which problems an endpoint answers with."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {MEDIA_TYPE: {"schema": schema}},
        }
        for status in statuses
    }


def _detail(kind: Kind, error: Exception) -> str:
    if kind.status == HTTPStatus.INTERNAL_SERVER_ERROR:
        return "The gateway failed; the request id finds the reason in its log."
    if isinstance(error, RequestValidationError):
        return "; ".join(f"{_parameter(one)}: {one['msg']}" for one in error.errors())
    if isinstance(error, HTTPException):
        return str(error.detail)
    return str(error)


def _extensions(scope: Scope, error: Exception) -> tuple[dict[str, Any], dict[str, str]]:
    """The further members of the document and the headers that belong to the failure."""
    if isinstance(error, HTTPException):
        return {}, dict(error.headers or {})
    if isinstance(error, RequestValidationError):
        wrong = [
            {"parameter": _parameter(one), "problem": one["msg"], **_limits(one)}
            for one in error.errors()
        ]
        return {"errors": wrong}, {}
    if isinstance(error, ours.RequestError):
        extensions = dict(error.extensions)
        headers = {}
        if "retry_after" in extensions:
            headers["Retry-After"] = str(extensions.pop("retry_after"))
        if "challenge" in extensions:
            headers["WWW-Authenticate"] = str(extensions.pop("challenge"))
        if isinstance(error, ours.BodyTooLargeError | ours.SlowBodyError):
            # What is left of the body would be read as the next request.
            headers["Connection"] = "close"
        return extensions, headers
    if isinstance(error, errors.LimitError) and error.limit is not None:
        return {"limit": error.limit, "unit": error.unit}, {}
    return {}, {}


def _parameter(one: dict[str, Any]) -> str:
    return ".".join(str(part) for part in one["loc"][1:])


def _limits(one: dict[str, Any]) -> dict[str, Any]:
    """The bound that was broken, as pydantic names it: ge, le, gt, ..."""
    return {name: value for name, value in one.get("ctx", {}).items() if name != "error"}
