"""Requests from many clients while versions are promoted and rolled back under them."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

from tests.serving.gateway import post, rounded, settings_for, started, tile, versions, wait_for
from tilesight.repository import Repository

PATHS = ("/labels", "/caption", "/vqa?question=Are+there+trees%3F&question=What+is+this%3F")
COLOUR = (40, 90, 60)
MODELS = ("signa", "jtts", "spatialnet_vit_head")
_CLIENTS = 12

Address = tuple[str, int]
Reply = tuple[str, int, dict[str, Any]]


def references(repository: Path) -> dict[tuple[str, int], object]:
    """What a gateway that serves one version answers, for each path and version."""
    found = {}
    for version in (1, 2):
        Repository(repository).promote(dict.fromkeys(MODELS, version))
        with started(settings_for(repository)) as client:
            for path in PATHS:
                found[path, version] = said(_ask(client, path))
    Repository(repository).rollback(MODELS)
    return found


def said(answer: dict[str, Any]) -> object:
    """The answer without what names its weights and its runtime."""
    return rounded({name: value for name, value in answer.items() if name != "model"})


def under_change(address: Address, repository: Path, count: int, changes: int) -> list[Reply]:
    """The replies to at least so many requests, of which some meet each of the changes."""
    body = tile(COLOUR)
    replies: list[Reply] = []
    done = threading.Event()

    def ask(first: int) -> None:
        for path in islice(cycle(PATHS), first, None):
            replies.append((path, *post(address, path, body)))
            if done.is_set():
                return

    with ThreadPoolExecutor(_CLIENTS) as clients:
        asking = [clients.submit(ask, first) for first in range(_CLIENTS)]
        try:
            for index in range(changes):
                change(repository, address, forward=index % 2 == 0)
            wait_for(lambda: len(replies) >= count)
        finally:
            done.set()
    for one in asking:
        one.result()
    return replies


def change(repository: Path, address: Address, forward: bool) -> None:
    """Promotes version 2 of all models, or rolls them back; returns when they are served."""
    shelf = Repository(repository)
    act: Callable[[], object] = (
        (lambda: shelf.promote(dict.fromkeys(MODELS, 2)))
        if forward
        else (lambda: shelf.rollback(MODELS))
    )
    act()
    wanted = {2 if forward else 1}
    wait_for(lambda: set(versions(address).values()) == wanted)


def _ask(client: TestClient, path: str) -> dict[str, Any]:
    answer = client.post(path, content=tile(COLOUR), headers={"Content-Type": "image/png"})
    assert answer.status_code == 200, answer.text
    return answer.json()
