"""Whether an answer is the answer of one whole version, while versions change."""

import json
import re
import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from loadtest.follower import Follower
from loadtest.payload import Address, image_type, post
from loadtest.scenario import body_of

TOLERANCE = 1e-3
"""What a batch, or another number of threads, may move a score."""
_TIMEOUT_S = 60.0
_ID = re.compile(rb"\r\nx-request-id:[ \t]*tile-(\d+)", re.IGNORECASE)

Scores: TypeAlias = dict[str, float]
Reference: TypeAlias = dict[int, Scores]
"""A tile's scores by version; empty where the versions answer too much alike to be told apart."""


@dataclass
class Seen:
    """What the answers under change were."""

    by_version: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


class Jury:
    """Holds every answer against what its version answers when nothing changes."""

    def __init__(self, known: Sequence[Reference]) -> None:
        """`known` has each tile's scores, by version."""
        self._known = known
        self.seen = Seen()

    def __call__(self, status: int, answer: bytes) -> None:
        """Takes one answer."""
        if status != 200:
            self.seen.wrong.append(f"{status}: {body_of(answer)[:200] or answer[:200]!r}")
            return
        found = _ID.search(answer)
        document = json.loads(body_of(answer))
        version = document["model"]["version"]
        self.seen.by_version[version] += 1
        if found is None:
            self.seen.wrong.append("an answer without the request's X-Request-ID")
            return
        tile = int(found[1])
        expected = self._known[tile].get(version)
        if expected is None or not _same(document, expected):
            self.seen.wrong.append(f"tile {tile}: not what version {version} answers")


def _same(document: dict[str, object], expected: dict[str, float]) -> bool:
    labels = document["labels"]
    assert isinstance(labels, list)
    scores = {one["name"]: one["score"] for one in labels}
    return scores.keys() == expected.keys() and all(
        abs(scores[name] - score) <= TOLERANCE for name, score in expected.items()
    )


def tagged(url: str, tiles: Sequence[bytes], known: Sequence[Reference]) -> list[bytes]:
    """A request for each tile that tells the versions apart; its id says which tile it is."""
    address = Address.of(url)
    return [
        post(address, tile, image_type(tile), {"X-Request-ID": f"tile-{number}"})
        for number, tile in enumerate(tiles)
        if known[number]
    ]


def references(
    url: str, follower: Follower, tiles: Sequence[bytes], difference: float = 10 * TOLERANCE
) -> list[Reference]:
    """What both versions answer of each tile, where some score differs by so much.

    Raises:
        ValueError: they answer alike on all tiles.
    """
    found: list[Reference] = [{} for _ in tiles]
    first, second = follower.first, follower.second
    for version in (second, first):
        follower.serve(version)
        for known, tile in zip(found, tiles, strict=True):
            known[version] = _scores(url, tile)
    for known in found:
        if all(
            abs(known[first][name] - score) < difference for name, score in known[second].items()
        ):
            known.clear()
    if not any(found):
        raise ValueError(
            f"versions {first} and {second} differ by less than {difference:g} on every tile"
        )
    return found


def _scores(url: str, tile: bytes) -> Scores:
    request = urllib.request.Request(f"{url}/labels", tile, {"Content-Type": image_type(tile)})
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
        answer: dict[str, Any] = json.load(response)
    return {one["name"]: one["score"] for one in answer["labels"]}
