"""Whole HTTP requests as bytes, made before the load begins."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

_BOUNDARY = "tilesight-7MA4YWxkTrZu0gW"
_IMAGE_TYPES = {b"\xff\xd8": "image/jpeg", b"\x89P": "image/png", b"RI": "image/webp"}


@dataclass(frozen=True, slots=True)
class Address:
    """Where a URL leads: host and port to connect to, and what stands in the request line."""

    host: str
    port: int
    path: str

    @classmethod
    def of(cls, url: str) -> "Address":
        """The address of an http URL; raises ValueError for any other scheme."""
        parts = urlsplit(url)
        if parts.scheme != "http" or parts.hostname is None:
            raise ValueError(f"{url}: the generator speaks http, as http://HOST:PORT/PATH")
        query = f"?{parts.query}" if parts.query else ""
        return cls(parts.hostname, parts.port or 80, (parts.path or "/") + query)


def image_type(tile: bytes) -> str:
    """The content type of a tile by its first bytes; TIFF where none is recognised."""
    return _IMAGE_TYPES.get(tile[:2], "image/tiff")


def post(address: Address, body: bytes, content_type: str, headers: Mapping[str, str]) -> bytes:
    """A POST with this body, as it goes over the wire."""
    lines = {
        "Host": f"{address.host}:{address.port}",
        "Content-Type": content_type,
        "Content-Length": str(len(body)),
        **headers,
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST {address.path} HTTP/1.1\r\n{head}\r\n".encode() + body


def tile_requests(
    url: str,
    tiles: Sequence[bytes],
    questions: Sequence[str] = (),
    headers: Mapping[str, str] | None = None,
) -> list[bytes]:
    """A request for each tile: the tile as the body, or multipart with all the questions."""
    address, headers = Address.of(url), headers or {}
    if not questions:
        return [post(address, tile, image_type(tile), headers) for tile in tiles]
    return [tiles_request(url, [tile], questions, headers) for tile in tiles]


def tiles_request(
    url: str,
    tiles: Sequence[bytes],
    questions: Sequence[str] = (),
    headers: Mapping[str, str] | None = None,
) -> bytes:
    """One multipart request with all the tiles and questions."""
    kind, body = multipart(tiles, questions)
    return post(Address.of(url), body, kind, headers or {})


def multipart(tiles: Sequence[bytes], questions: Sequence[str] = ()) -> tuple[str, bytes]:
    """Content type and body of a form with the questions and the tiles."""
    start = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="'
    parts = [f'{start}question"\r\n\r\n{question}\r\n'.encode() for question in questions]
    for tile in tiles:
        kind = f"Content-Type: {image_type(tile)}\r\n\r\n"
        parts.append(f'{start}image"; filename="tile"\r\n{kind}'.encode() + tile + b"\r\n")
    body = b"".join(parts) + f"--{_BOUNDARY}--\r\n".encode()
    return f"multipart/form-data; boundary={_BOUNDARY}", body
