"""Multipart bodies: each part is refused as soon as its header says that it does not belong."""

from collections.abc import AsyncGenerator, Sequence

from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from serving.errors import MalformedBodyError, MediaTypeError, RequestError
from serving.settings import Settings
from serving.spool import no_storage

FILE = "image"
MAX_FIELD_BYTES = 16 * 1024
# Python knows codecs that take seconds for some kilobytes.
_CHARSETS = (b"utf-8", b"us-ascii")


async def read(
    request: Request, settings: Settings, fields: Sequence[str]
) -> tuple[list[bytes], list[str]]:
    """The files and the texts of the parts named `fields`, in the order sent.

    Raises:
        MediaTypeError: the texts are in a charset that is not read.
        MalformedBodyError: the body is no multipart.
        RequestError: a part too many, too large, or one that does not belong.
        StorageError: the disk does not take what is too large for the memory.
    """
    _check_charset(request.headers["content-type"])
    parser = _Parser(request.headers, request.stream(), settings, fields)
    try:
        parts = await parser.parse()
        try:
            return await _sorted(parts)
        finally:
            await parts.close()
    except MultiPartException as error:
        raise _refusal(error.message, settings) from error
    except OSError as error:
        raise no_storage() from error


class _Parser(MultiPartParser):
    """Starlette's parser, with one bound on the memory of all parts, that knows the fields."""

    def __init__(
        self,
        headers: Headers,
        stream: AsyncGenerator[bytes, None],
        settings: Settings,
        fields: Sequence[str],
    ) -> None:
        super().__init__(
            headers,
            stream,
            max_files=settings.max_images,
            max_fields=settings.max_questions,
            max_part_size=MAX_FIELD_BYTES,
        )
        self._fields = fields
        self._memory = settings.spool_bytes
        self._arrived = 0

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._arrived += end - start
        super().on_part_data(data, start, end)

    def on_headers_finished(self) -> None:
        # What the parts before have left; 0 would be a file that never goes to the disk.
        self.spool_max_size = max(1, self._memory - self._arrived)
        super().on_headers_finished()
        part = self._current_part
        name, is_file = part.field_name, part.file is not None
        if name not in self._fields:
            raise RequestError(
                f"{_shown(name)}: unknown part; the parts are {', '.join(self._fields)}",
                allowed=list(self._fields),
            )
        if is_file and name != FILE:
            raise RequestError(f"{name}: sent as a file; leave out the file name")
        if name == FILE and not is_file:
            raise RequestError(f"{name}: sent as text; give the part a file name")


async def _sorted(parts: FormData) -> tuple[list[bytes], list[str]]:
    images: list[bytes] = []
    texts: list[str] = []
    for _, value in parts.multi_items():
        if isinstance(value, UploadFile):
            images.append(await value.read())
        else:
            texts.append(value)
    return images, texts


def _check_charset(content_type: str) -> None:
    _, options = parse_options_header(content_type)
    charset = options.get(b"charset", _CHARSETS[0]).lower()
    if charset not in _CHARSETS:
        raise MediaTypeError(
            f"Content-Type: charset={_shown(charset.decode('latin-1'))} is not read",
            allowed=[one.decode() for one in _CHARSETS],
        )


def _refusal(message: str, settings: Settings) -> RequestError:
    """What the parser's message means; only its words tell a broken limit from damage."""
    if message.startswith("Too many files"):
        return RequestError(f"multipart: {message}", limit=settings.max_images)
    if message.startswith("Too many fields"):
        return RequestError(f"multipart: {message}", limit=settings.max_questions)
    if message.startswith("Part exceeded"):
        return RequestError(f"multipart: {message}", limit=MAX_FIELD_BYTES)
    return MalformedBodyError(f"multipart: {message}")


def _shown(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}..."
