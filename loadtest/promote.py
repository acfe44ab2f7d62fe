"""Asks a running gateway for labels while versions of signa are promoted and rolled back under it.

python loadtest/promote.py --url http://127.0.0.1:8000 --repository REPOSITORY TILE [TILE ...]

The repository is the gateway's, with signa@1 and signa@2. Every answer has to be, to the last of
four digits, what the version that it names answers when nothing changes. Exit status 1 otherwise.
"""

import argparse
import json
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

from tilesight.repository import Repository

MODEL = "signa"
CLIENTS = 8
ROUNDS = 3
REQUESTS = 200
_TIMEOUT_S = 60

Labels = dict[str, float]


class Gateway:
    """The gateway and the repository that it follows."""

    def __init__(self, url: str, repository: Path) -> None:
        """Nothing is asked yet."""
        self._url, self._repository = url, Repository(repository)

    def ask(self, tile: bytes) -> tuple[int, Labels]:
        """The version that answered, and the score of each label."""
        request = urllib.request.Request(
            f"{self._url}/labels", tile, {"Content-Type": "image/jpeg"}
        )
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
            answer = json.load(response)
        scores = {one["name"]: round(one["score"], 4) for one in answer["labels"]}
        return answer["model"]["version"], scores

    def serve(self, version: int) -> float:
        """Promotes the version, or rolls back to it; seconds until the gateway serves it."""
        if version in self._repository.state().promoted[MODEL].previous:
            self._repository.rollback([MODEL])
        else:
            self._repository.promote({MODEL: version})
        started = time.perf_counter()
        while self._served() != version:
            time.sleep(0.02)
        return time.perf_counter() - started

    def _served(self) -> int:
        with urllib.request.urlopen(f"{self._url}/models", timeout=_TIMEOUT_S) as response:
            models = json.load(response)["models"]
        return int(next(one["version"] for one in models if one["name"] == MODEL))


def under_change(gateway: Gateway, tiles: Sequence[bytes]) -> bool:
    """Whether every request was answered, by one whole version; prints what was seen."""
    expected: dict[tuple[int, int], Labels] = {}
    for version in (2, 1):
        gateway.serve(version)
        for index, tile in enumerate(tiles):
            expected[index, version] = gateway.ask(tile)[1]
    done = threading.Event()
    answered: Counter[int] = Counter()
    wrong: list[str] = []

    def ask(first: int) -> None:
        for number in count(first):
            if done.is_set():
                return
            index = number % len(tiles)
            try:
                version, scores = gateway.ask(tiles[index])
            except OSError as error:
                wrong.append(str(error))
                continue
            answered[version] += 1
            if scores != expected[index, version]:
                wrong.append(f"tile {index}: not what version {version} answers")

    with ThreadPoolExecutor(CLIENTS) as clients:
        for client in range(CLIENTS):
            clients.submit(ask, client)
        followed = []
        for version in (2, 1) * ROUNDS:
            followed.append(gateway.serve(version))
            time.sleep(0.5)
        while answered.total() < REQUESTS:
            time.sleep(0.1)
        done.set()
    print(f"{answered.total()} requests, by version {dict(sorted(answered.items()))}")
    print(f"{len(followed)} changes, followed in {min(followed):.2f} to {max(followed):.2f} s")
    print(f"{len(wrong)} failed or mixed", *wrong[:3], sep="\n")
    return not wrong


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tiles", nargs="+", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--repository", required=True, type=Path)
    given = parser.parse_args()
    tiles = [tile.read_bytes() for tile in given.tiles]
    sys.exit(0 if under_change(Gateway(given.url, given.repository), tiles) else 1)


if __name__ == "__main__":
    main()
