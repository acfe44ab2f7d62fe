"""What all kinds of users send, the clumsy ones too, and what each request has to be answered.

The expected status travels in the request's id, which every answer carries.
"""

import base64
import json
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from loadtest.payload import Address, image_type, post, tiles_request
from loadtest.scenario import body_of

QUESTIONS = (
    "Are there buildings?",
    "How many cars are there?",
    "What is the theme of this tile?",
    "Is there a road next to the water?",
)
_REFUSED = (429, 503)
_ID = re.compile(rb"\r\nx-request-id:[ \t]*mix-(\w+)-(\d+)", re.IGNORECASE)
_ROUNDS = 4
_BATCH = 4


def mixed(url: str, tiles: Sequence[bytes], seed: int = 0) -> list[bytes]:
    """Requests to all endpoints, about 4 % of them wrong.

    Of each 100: 50 /labels, 15 /caption, 15 /vqa, 8 of several tiles in the backfill lane, 4 in
    JSON, 4 that operators ask, 4 wrong ones.
    """
    choose = random.Random(seed)
    found: list[bytes] = []
    for round_ in range(_ROUNDS):
        some = [choose.choice(tiles) for _ in range(100)]
        found += [_tile(url, "/labels", tile) for tile in some[:40]]
        found += [_tile(url, "/labels?explain=true&top_k=3", tile) for tile in some[40:50]]
        found += [_tile(url, "/caption?candidates=2", tile) for tile in some[50:65]]
        found += [_asked(url, tile, choose) for tile in some[65:80]]
        found += [_several(url, choose.sample(tiles, min(_BATCH, len(tiles)))) for _ in range(8)]
        found += [_json(url, tile) for tile in some[88:92]]
        found += [get(url, path) for path in ("/readyz", "/healthz", "/models", "/metrics")]
        bad = wrong(some[96])
        found += [_refused(url, bad[(4 * round_ + n) % len(bad)]) for n in range(4)]
    return found


class Wrong(NamedTuple):
    """A request that has to be refused, and how."""

    name: str
    path: str
    body: bytes
    content_type: str
    status: int


def wrong(tile: bytes) -> list[Wrong]:
    """Requests that have to be refused, each for a reason of its own."""
    kind = image_type(tile)
    return [
        Wrong("halved", "/labels", tile[: len(tile) // 2], kind, 400),
        Wrong("empty", "/labels", b"", kind, 400),
        Wrong("noise", "/caption", b"\xff\xd8 no image at all", kind, 415),
        Wrong("gif", "/labels", b"GIF89a" + bytes(40), "image/gif", 415),
        Wrong("text", "/labels", tile, "text/plain", 415),
        Wrong("misspelt", "/labels?tok_p=1", tile, kind, 422),
        Wrong("threshold", "/labels?threshold=2", tile, kind, 422),
        Wrong("beams", "/caption?beams=0", tile, kind, 422),
        Wrong("speechless", "/vqa", tile, kind, 422),
        Wrong("question", "/vqa?question=", tile, kind, 422),
        Wrong("json", "/labels", b'{"image": 1', "application/json", 400),
        Wrong("base64", "/labels", b'{"image": "####"}', "application/json", 400),
        Wrong("nowhere", "/nowhere", tile, kind, 404),
        Wrong("method", "/models", b"", kind, 405),
    ]


def get(url: str, path: str) -> bytes:
    """A GET, as it goes over the wire."""
    address = Address.of(url)
    return (
        f"GET {path} HTTP/1.1\r\nHost: {address.host}:{address.port}\r\n"
        f"X-Request-ID: mix-{path.strip('/')}-200\r\n\r\n"
    ).encode()


class Expectation:
    """Counts the answers, and those that are not what was expected."""

    def __init__(self) -> None:
        """Nothing was answered yet."""
        self.answers: Counter[str] = Counter()
        self.unexpected: Counter[str] = Counter()

    def __call__(self, status: int, answer: bytes) -> None:
        """Takes one answer."""
        found = _ID.search(answer)
        if found is None:
            self.unexpected[f"{status}: {(body_of(answer) or answer)[:120]!r}"] += 1
            return
        name, expected = found[1].decode(), int(found[2])
        self.answers[f"{name} {status}"] += 1
        # Whoever is refused for the load is told nothing of the request.
        if status != expected and status not in _REFUSED:
            detail = body_of(answer)[:200].decode(errors="replace")
            self.unexpected[f"{name}: {status} for {expected}: {detail}"] += 1


def _tile(url: str, path: str, tile: bytes) -> bytes:
    name = path.strip("/").partition("?")[0]
    return _post(url, path, tile, image_type(tile), 200, name)


def _refused(url: str, one: Wrong) -> bytes:
    return _post(url, one.path, one.body, one.content_type, one.status, one.name)


def _asked(url: str, tile: bytes, choose: random.Random) -> bytes:
    questions = choose.sample(QUESTIONS, choose.randint(1, 3))
    return tiles_request(f"{url}/vqa", [tile], questions, _id("vqa", 200))


def _several(url: str, tiles: Sequence[bytes]) -> bytes:
    headers = {**_id("several", 200), "Tilesight-Lane": "backfill"}
    return tiles_request(f"{url}/labels", tiles, (), headers)


def _json(url: str, tile: bytes) -> bytes:
    body = json.dumps({"image": base64.b64encode(tile).decode()}).encode()
    return _post(url, "/labels", body, "application/json", 200, "json64")


def _post(url: str, path: str, body: bytes, kind: str, status: int, name: str) -> bytes:
    return post(Address.of(url + path), body, kind, _id(name, status))


def _id(name: str, status: int) -> Mapping[str, str]:
    return {"X-Request-ID": f"mix-{name}-{status}"}
