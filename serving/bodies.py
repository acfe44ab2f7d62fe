"""The tiles and questions of a request, in whichever of the three forms they came."""

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import anyio.to_thread
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from serving import multipart
from serving.errors import MalformedBodyError, MediaTypeError, RequestError
from serving.settings import Settings
from serving.spool import Spool

IMAGE_TYPES = ("image/jpeg", "image/png", "image/webp", "image/tiff")
MULTIPART = "multipart/form-data"
JSON = "application/json"
MEDIA_TYPES = (*IMAGE_TYPES, MULTIPART, JSON)

_KNOWN = {media_type.encode(): media_type for media_type in MEDIA_TYPES}
# Smaller JSON is parsed in less time than a worker thread takes to begin.
_INLINE_BYTES = 64 * 1024
# Of what a client sent, an answer repeats no more than this.
_SHOWN_CHARACTERS = 40
_SHOWN_PROBLEMS = 5


@dataclass(frozen=True, slots=True)
class Body:
    """What a request brought."""

    images: Sequence[bytes]
    questions: Sequence[str] = ()


class TilesJson(BaseModel):
    """One of `image` and `images`, in base64."""

    model_config = ConfigDict(extra="forbid")

    image: str | None = Field(default=None, description="the file of one tile, in base64")
    images: list[str] | None = Field(default=None, description="the files of several tiles")

    def sent(self) -> list[str]:
        """The tiles, as they came."""
        return _one_of("image", self.image, "images", self.images)

    def asked(self) -> list[str]:
        """The questions; there are none here."""
        return []


class QuestionsJson(TilesJson):
    """Tiles with one of `question` and `questions`."""

    question: str | None = None
    questions: list[str] | None = None

    def asked(self) -> list[str]:
        """The questions."""
        return _one_of("question", self.question, "questions", self.questions)


async def read(request: Request, settings: Settings, form: type[TilesJson]) -> Body:
    """The request's tiles and questions; `form` says whether questions belong to it.

    Raises:
        MediaTypeError: the body's type is none of `MEDIA_TYPES`.
        MalformedBodyError: the body is not what its type says.
        RequestError: no image, too many of them, or a field that does not belong.
        StorageError: the disk does not take a large body.
        ClientDisconnect: the client left before the body was complete.
    """
    media_type = _media_type(request.scope["headers"])
    if media_type == JSON:
        data = await _whole(request, settings.spool_bytes)
        if len(data) <= _INLINE_BYTES:
            return _json(data, form, settings.max_images)
        # Megabytes of base64 would hold up every other request.
        return await anyio.to_thread.run_sync(_json, data, form, settings.max_images)
    if media_type == MULTIPART:
        fields = [multipart.FILE, "question"] if form is QuestionsJson else [multipart.FILE]
        images, questions = await multipart.read(request, settings, fields)
        _check_count(len(images), settings.max_images)
        return Body(images, questions)
    return Body((await _whole(request, settings.spool_bytes),))


def schema(form: type[TilesJson]) -> dict[str, Any]:
    """The request body for OpenAPI."""
    binary = {"type": "string", "format": "binary"}
    fields: dict[str, Any] = {"image": {"type": "array", "items": binary, "minItems": 1}}
    if form is QuestionsJson:
        fields["question"] = {"type": "array", "items": {"type": "string"}}
    parts = {
        "type": "object",
        "properties": fields,
        "required": ["image"],
        "additionalProperties": False,
    }
    content: dict[str, Any] = {media_type: {"schema": binary} for media_type in IMAGE_TYPES}
    content[MULTIPART] = {"schema": parts}
    content[JSON] = {"schema": form.model_json_schema()}
    return {"requestBody": {"required": True, "content": content}}


def _media_type(headers: list[tuple[bytes, bytes]]) -> str:
    """The body's media type, one of `MEDIA_TYPES`."""
    sent: bytes | None = None
    for name, value in headers:
        if name == b"content-type":
            if sent is not None:
                raise MediaTypeError("Content-Type: sent twice, the limit is once", limit=1)
            sent = value
        elif name == b"content-encoding" and value.lower() != b"identity":
            raise MediaTypeError(
                f"Content-Encoding: {_shown(value.decode('latin-1'))} is not read; "
                "send the body as it is",
                allowed=["identity"],
            )
    plain = (sent or b"").partition(b";")[0].strip().lower()
    media_type = _KNOWN.get(plain)
    if media_type is None:
        raise MediaTypeError(
            f"Content-Type: {_shown(plain.decode('latin-1')) or 'none'} is not read; send one of "
            f"{', '.join(MEDIA_TYPES)}",
            allowed=list(MEDIA_TYPES),
        )
    return media_type


async def _whole(request: Request, most: int) -> bytes:
    """All bytes of the body; beyond `most` it waits on the disk until it is complete."""
    message = await request.receive()
    data = _data(message)
    if not message.get("more_body", False):
        return data
    with Spool(most) as spool:
        await spool.write(data)
        while message.get("more_body", False):
            message = await request.receive()
            await spool.write(_data(message))
        return await spool.whole()


def _data(message: Message) -> bytes:
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    data: bytes = message.get("body", b"")
    return data


def _json(data: bytes, form: type[TilesJson], max_images: int) -> Body:
    try:
        # Not the JSON reader of pydantic: of a name that is given twice it drops the first value.
        document = json.loads(data.decode(), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise MalformedBodyError(f"JSON: {error}") from error
    if not isinstance(document, dict):
        raise RequestError("JSON: body: Input should be an object", allowed=list(form.model_fields))
    try:
        parsed = form.model_validate(document)
    except ValidationError as error:
        raise RequestError(f"JSON: {_problems(error)}", allowed=list(form.model_fields)) from error
    sent = parsed.sent()
    # Before the base64 is read: a thousand tiles cost no more than one too many.
    _check_count(len(sent), max_images)
    images = [_from_base64(image, index) for index, image in enumerate(sent)]
    return Body(images, parsed.asked())


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise RequestError(
                f"JSON: {_shown(name)}: given twice, the limit is once",
                parameter=_shown(name),
                limit=1,
            )
        found[name] = value
    return found


def _problems(error: ValidationError) -> str:
    problems = error.errors(include_input=False, include_url=False, include_context=False)
    said = [
        f"{'.'.join(_shown(str(part)) for part in one['loc']) or 'body'}: {one['msg']}"
        for one in problems[:_SHOWN_PROBLEMS]
    ]
    if len(problems) > _SHOWN_PROBLEMS:
        said.append(f"and {len(problems) - _SHOWN_PROBLEMS} more")
    return "; ".join(said)


def _shown(text: str) -> str:
    """The text in a form and a length that an answer can hold; half characters are spelt out."""
    short = text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
    return short.encode("utf-8", "backslashreplace").decode()


def _one_of(
    single_name: str, single: str | None, several_name: str, several: list[str] | None
) -> list[str]:
    if single is not None and several is not None:
        raise RequestError(f"{single_name}, {several_name}: give one of the two")
    return [single] if single is not None else several or []


def _from_base64(text: str, index: int) -> bytes:
    try:
        # Line breaks, as command line tools make them, are no damage.
        return base64.b64decode(text.encode("ascii").translate(None, b" \t\r\n"), validate=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedBodyError(f"image {index + 1}: not base64: {error}") from error


def _check_count(count: int, limit: int) -> None:
    if count == 0:
        raise RequestError("image: missing", parameter="image")
    if count > limit:
        raise RequestError(
            f"image: {count} were sent, the limit is {limit}", parameter="image", limit=limit
        )
