"""A corpus of requests that no honest client sends, each with the answer that it gets."""

import base64
import gzip
from collections.abc import Iterable
from dataclasses import dataclass

from tests.serving.gateway import tile

TILE = tile("blue", size=16)
B64 = base64.b64encode(TILE)
BOUNDARY = b"multipart/form-data; boundary=x"
# A file of this many bytes is 1,000 times smaller while it is packed.
BOMB = gzip.compress(bytes(8 << 20))


@dataclass(frozen=True)
class Bad:
    """One bad request: what is sent, with pauses between, and what comes back."""

    name: str
    pieces: Iterable[bytes]
    status: int
    slug: str
    says: str = ""
    limit: float | None = None
    closes: bool = False
    pause_s: float = 0.0


def post(
    body: bytes, kind: bytes = b"image/png", *headers: bytes, path: bytes = b"/labels"
) -> bytes:
    """A whole request."""
    lines = [
        b"POST %s HTTP/1.1" % path,
        b"Host: x",
        b"Content-Type: " + kind,
        b"Content-Length: %d" % len(body),
        *headers,
    ]
    return b"\r\n".join([*lines, b"", body])


def part(name: bytes, value: bytes, *headers: bytes, file: bool = False) -> bytes:
    """One part of a multipart body."""
    disposition = b'Content-Disposition: form-data; name="%s"' % name
    if file:
        disposition += b'; filename="a.png"'
    return b"\r\n".join([b"--x", disposition, *headers, b"", value, b""])


def multipart(*parts: bytes, path: bytes = b"/vqa", kind: bytes = BOUNDARY) -> bytes:
    """A request with these parts."""
    return post(b"".join(parts) + b"--x--\r\n", kind, path=path)


def as_json(body: bytes, path: bytes = b"/vqa") -> bytes:
    """A request with this JSON."""
    return post(body, b"application/json", path=path)


START = b"POST /labels HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
CHUNKED = START + b"Transfer-Encoding: chunked\r\n\r\n"
IMAGE = part(b"image", TILE, file=True)

SLOW = [
    Bad(
        "header, byte by byte",
        [START[index : index + 1] for index in range(len(START))],
        408,
        "slow-header",
        limit=0.4,
        closes=True,
        pause_s=0.1,
    ),
    Bad(
        "body, byte by byte",
        [START + b"Content-Length: 100\r\n\r\n", *[b"0"] * 100],
        408,
        "slow-body",
        limit=0.5,
        closes=True,
        pause_s=0.1,
    ),
    Bad(
        "JSON, byte by byte",
        [as_json(B64 + bytes(100))[:-100], *[b"0"] * 100],
        408,
        "slow-body",
        limit=0.5,
        closes=True,
        pause_s=0.1,
    ),
    Bad(
        "multipart, byte by byte",
        [multipart(IMAGE, IMAGE)[:-100], *[b"0"] * 100],
        408,
        "slow-body",
        limit=0.5,
        closes=True,
        pause_s=0.1,
    ),
    Bad(
        "chunks, byte by byte",
        [CHUNKED, *[b"1\r\n0\r\n"] * 100],
        408,
        "slow-body",
        limit=0.5,
        closes=True,
        pause_s=0.1,
    ),
    Bad(
        "a Content-Length that is too long",
        [START + b"Content-Length: 1000\r\n\r\nonly this"],
        408,
        "slow-body",
        limit=0.5,
        closes=True,
    ),
]

LARGE = [
    Bad(
        "10,000 lines of header",
        [START + b"X: y\r\n" * 10_000 + b"\r\n"],
        431,
        "header-too-large",
        closes=True,
    ),
    Bad(
        "one line of a megabyte",
        [START + b"X: " + b"y" * (1 << 20) + b"\r\n\r\n"],
        431,
        "header-too-large",
        limit=4096,
        closes=True,
    ),
    Bad(
        "a declared size beyond the limit",
        [START + b"Content-Length: 99999999999\r\n\r\n"],
        413,
        "body-too-large",
        limit=1 << 20,
    ),
    Bad(
        "chunks without end",
        [CHUNKED, *[b"10000\r\n" + bytes(0x10000) + b"\r\n"] * 20],
        413,
        "body-too-large",
        limit=1 << 20,
    ),
    Bad(
        "10,000 small parts",
        [multipart(*[part(b"question", b"trees")] * 10_000)],
        422,
        "invalid-request",
        "Too many fields",
        limit=5,
    ),
    Bad(
        "1,000 small files",
        [multipart(*[part(b"image", b"x", file=True)] * 1_000)],
        422,
        "invalid-request",
        "Too many files",
        limit=4,
    ),
    Bad(
        "a part with 10,000 headers",
        [multipart(part(b"image", TILE, *[b"X: y"] * 10_000, file=True))],
        400,
        "malformed-body",
    ),
    Bad(
        "a part with a header of 100 kB",
        [multipart(part(b"image", TILE, b"X: " + b"y" * 100_000, file=True))],
        400,
        "malformed-body",
    ),
    Bad(
        "a question of 100 kB",
        [multipart(IMAGE, part(b"question", b"y" * 100_000))],
        422,
        "invalid-request",
        limit=16 * 1024,
    ),
    Bad(
        "JSON with 10,000 images",
        [as_json(b'{"images": [' + b",".join([b'"aGk="'] * 10_000) + b"]}")],
        422,
        "invalid-request",
        limit=4,
    ),
    Bad(
        "JSON with 10,000 unknown names",
        [as_json(b"{" + b",".join(b'"%d": 1' % index for index in range(10_000)) + b"}")],
        422,
        "invalid-request",
        "and 9995 more",
    ),
    Bad(
        "JSON with a name of 100 kB",
        [as_json(b'{"' + b"x" * 100_000 + b'": 1}')],
        422,
        "invalid-request",
        "xxx...: Extra inputs",
    ),
    Bad("JSON in JSON in JSON", [as_json(b'{"image":' * 100_000)], 400, "malformed-body"),
]

PACKED = [
    Bad(
        "a gzip bomb",
        [post(BOMB, b"image/png", b"Content-Encoding: gzip")],
        415,
        "unsupported-media-type",
        "Content-Encoding: gzip",
    ),
    Bad("a gzip bomb that does not say so", [post(BOMB)], 415, "unsupported-format"),
    Bad(
        "a gzip bomb as transfer coding",
        [START + b"Transfer-Encoding: gzip, chunked\r\n\r\n"],
        501,
        "transfer-coding",
        closes=True,
    ),
    Bad(
        "a charset that takes Python seconds",
        [multipart(IMAGE, kind=BOUNDARY + b"; charset=punycode")],
        415,
        "unsupported-media-type",
        "charset=punycode",
    ),
]

TWICE = [
    Bad(
        "an image twice in JSON",
        [as_json(b'{"image": "%s", "image": "aGk="}' % B64)],
        422,
        "invalid-request",
        "image: given twice",
        limit=1,
    ),
    Bad(
        "a question twice in JSON",
        [as_json(b'{"image": "%s", "question": "a", "question": "b"}' % B64)],
        422,
        "invalid-request",
        "question: given twice",
        limit=1,
    ),
    Bad(
        "one and several images in JSON",
        [as_json(b'{"image": "%s", "images": ["%s"]}' % (B64, B64))],
        422,
        "invalid-request",
        "image, images: give one of the two",
    ),
    Bad(
        "Content-Type twice",
        [post(TILE, b"image/png", b"Content-Type: application/json")],
        415,
        "unsupported-media-type",
        "Content-Type: sent twice",
        limit=1,
    ),
    Bad(
        "Content-Length twice",
        [post(TILE, b"image/png", b"Content-Length: 3")],
        400,
        "malformed-request",
        closes=True,
    ),
    Bad(
        "Content-Length and Transfer-Encoding",
        [post(TILE, b"image/png", b"Transfer-Encoding: chunked")],
        400,
        "malformed-request",
        closes=True,
    ),
    Bad(
        "Tilesight-Lane twice",
        [post(TILE, b"image/png", *[b"Tilesight-Lane: backfill"] * 2)],
        422,
        "invalid-header",
        "Tilesight-Lane: sent twice",
        limit=1,
    ),
]

WRONG = [
    Bad("bytes that mean nothing", [bytes(range(256)) * 10], 400, "malformed-request", closes=True),
    Bad(
        "TLS",
        [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500)],
        400,
        "malformed-request",
        closes=True,
    ),
    Bad("NUL in a header", [START + b"X: a\x00b\r\n\r\n"], 400, "malformed-request", closes=True),
    Bad(
        "a chunk size that overflows",
        [CHUNKED + b"F" * 17 + b"\r\nabc"],
        400,
        "malformed-body",
        closes=True,
    ),
    Bad(
        "a chunk longer than it says",
        [CHUNKED + b"3\r\nabcdef\r\n0\r\n\r\n"],
        400,
        "malformed-body",
        closes=True,
    ),
    Bad(
        "half a character in JSON",
        [as_json(b'{"image": "%s", "question": "\\ud800"}' % B64)],
        422,
        "bad-question",
        "half a character",
    ),
    Bad(
        "half a character as a name in JSON",
        [as_json(b'{"image": "%s", "\\ud800": 1}' % B64)],
        422,
        "invalid-request",
        "body: Input should be a valid string",
    ),
    Bad(
        "half a character twice as a name in JSON",
        [as_json(b'{"\\ud800": 1, "\\ud800": 1}')],
        422,
        "invalid-request",
        "\\ud800: given twice",
    ),
    Bad("a number of 10,000 digits", [as_json(b"1" * 10_000)], 400, "malformed-body"),
    Bad("JSON that is not UTF-8", [as_json(b'{"image": "\xff"}')], 400, "malformed-body"),
    *[
        Bad(
            f"a deadline of {value}",
            [post(TILE, b"image/png", b"Tilesight-Deadline: " + value.encode())],
            422,
            "invalid-header",
            "Tilesight-Deadline: ",
            limit=300,
        )
        for value in ("0", "-1", "0.0", "nan", "inf", "1e3", "31536000", "300.001", "soon", "")
    ],
    *[
        Bad(
            f"a lane called {value!r}",
            [post(TILE, b"image/png", b"Tilesight-Lane: " + value.encode())],
            422,
            "invalid-header",
            "the lanes are interactive, backfill",
        )
        for value in ("fast", "", "Backfill", "interactive, backfill")
    ],
]

BAD = [*SLOW, *LARGE, *PACKED, *TWICE, *WRONG]
