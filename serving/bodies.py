"""The tiles and questions of a request, in whichever of the three forms they came."""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import anyio.to_thread
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from serving.errors import MalformedBodyError, MediaTypeError, RequestError
from serving.settings import Settings

IMAGE_TYPES = ("image/jpeg", "image/png", "image/webp", "image/tiff")
MULTIPART = "multipart/form-data"
JSON = "application/json"
MEDIA_TYPES = (*IMAGE_TYPES, MULTIPART, JSON)

_MAX_FIELD_BYTES = 16 * 1024
# How Starlette's parser begins its message when a limit is broken; otherwise the body is damaged.
_LIMIT_MESSAGES = ("Too many", "Part exceeded")


@dataclass(frozen=True)
class Body:
    """What a request brought."""

    images: Sequence[bytes]
    questions: Sequence[str] = ()


class TilesJson(BaseModel):
    """One of `image` and `images`, in base64."""

    model_config = ConfigDict(extra="forbid")

    image: str | None = Field(default=None, description="the file of one tile, in base64")
    images: list[str] | None = Field(default=None, description="the files of several tiles")

    def body(self) -> Body:
        """The tiles, decoded from base64."""
        images = _one_of("image", self.image, "images", self.images)
        return Body([_from_base64(image, index) for index, image in enumerate(images)])


class QuestionsJson(TilesJson):
    """Tiles with one of `question` and `questions`."""

    question: str | None = None
    questions: list[str] | None = None

    def body(self) -> Body:
        """The tiles, decoded from base64, and the questions."""
        questions = _one_of("question", self.question, "questions", self.questions)
        return Body(super().body().images, questions)


async def read(request: Request, settings: Settings, form: type[TilesJson]) -> Body:
    """The request's tiles and questions; `form` says whether questions belong to it.

    Raises:
        MediaTypeError: the body's type is none of `MEDIA_TYPES`.
        MalformedBodyError: the body is not what its type says.
        RequestError: no image, too many of them, or a field that does not belong.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise MediaTypeError(f"Content-Encoding: {encoding} is not read; send the body as it is")
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type in IMAGE_TYPES:
        body = Body([await request.body()])
    elif media_type == MULTIPART:
        body = await _multipart(request, settings, form)
    elif media_type == JSON:
        data = await request.body()
        # Megabytes of base64 would hold up every other request.
        body = await anyio.to_thread.run_sync(_json, data, form)
    else:
        raise MediaTypeError(
            f"Content-Type: {media_type or 'none'} is not read; send one of "
            f"{', '.join(MEDIA_TYPES)}",
            allowed=list(MEDIA_TYPES),
        )
    _check_count(len(body.images), settings.max_images)
    return body


def schema(form: type[TilesJson]) -> dict[str, Any]:
    """The request body for OpenAPI."""
    binary = {"type": "string", "format": "binary"}
    fields: dict[str, Any] = {"image": {"type": "array", "items": binary, "minItems": 1}}
    if form is QuestionsJson:
        fields["question"] = {"type": "array", "items": {"type": "string"}}
    multipart = {
        "type": "object",
        "properties": fields,
        "required": ["image"],
        "additionalProperties": False,
    }
    content: dict[str, Any] = {media_type: {"schema": binary} for media_type in IMAGE_TYPES}
    content[MULTIPART] = {"schema": multipart}
    content[JSON] = {"schema": form.model_json_schema()}
    return {"requestBody": {"required": True, "content": content}}


async def _multipart(request: Request, settings: Settings, form: type[TilesJson]) -> Body:
    """The parts named `image` and `question`; the parser stops at the first one too many."""
    try:
        async with request.form(
            max_files=settings.max_images,
            max_fields=settings.max_questions,
            max_part_size=_MAX_FIELD_BYTES,
        ) as parts:
            return await _sorted(parts, form)
    except HTTPException as error:
        if error.detail.startswith(_LIMIT_MESSAGES):
            raise RequestError(f"multipart: {error.detail}") from error
        raise MalformedBodyError(f"multipart: {error.detail}") from error


async def _sorted(parts: FormData, form: type[TilesJson]) -> Body:
    """The parts by what they are."""
    fields = ["image", "question"] if form is QuestionsJson else ["image"]
    images: list[bytes] = []
    questions: list[str] = []
    for name, value in parts.multi_items():
        if name not in fields:
            raise RequestError(f"{name}: unknown part; the parts are {', '.join(fields)}")
        if name == "image":
            images.append(await _file(value))
        else:
            questions.append(_text(value))
    return Body(images, questions)


async def _file(value: UploadFile | str) -> bytes:
    if isinstance(value, str):
        raise RequestError("image: sent as text; give the part a file name")
    return await value.read()


def _text(value: UploadFile | str) -> str:
    if isinstance(value, UploadFile):
        raise RequestError("question: sent as a file; leave out the file name")
    return value


def _json(data: bytes, form: type[TilesJson]) -> Body:
    try:
        parsed = form.model_validate_json(data)
    except ValidationError as error:
        problems = error.errors(include_input=False, include_url=False)
        message = "; ".join(
            f"{'.'.join(str(part) for part in one['loc']) or 'body'}: {one['msg']}"
            for one in problems
        )
        if any(one["type"] == "json_invalid" for one in problems):
            raise MalformedBodyError(f"JSON: {message}") from error
        raise RequestError(f"JSON: {message}", allowed=list(form.model_fields)) from error
    return parsed.body()


def _one_of(
    single_name: str, single: str | None, several_name: str, several: list[str] | None
) -> list[str]:
    if single is not None and several is not None:
        raise RequestError(f"{single_name}, {several_name}: give one of the two")
    return [single] if single is not None else several or []


def _from_base64(text: str, index: int) -> bytes:
    try:
        # Line breaks, as command line tools make them, are no damage.
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedBodyError(f"image {index + 1}: not base64: {error}") from error


def _check_count(count: int, limit: int) -> None:
    if count == 0:
        raise RequestError("image: missing", parameter="image")
    if count > limit:
        raise RequestError(
            f"image: {count} were sent, the limit is {limit}", parameter="image", limit=limit
        )
