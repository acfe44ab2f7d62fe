"""The users of a gateway, as they mix in a day.

    locust -f loadtest/locustfile.py --headless -u 20 -r 5 -t 30s --host http://127.0.0.1:8000

Of 20 users 14 look at a map: for each tile that they click they want its labels, sometimes they
ask about it or want a sentence, and then they think. 3 are the scripts of analysts, which fill a
table in the backfill lane, 16 tiles a request, each as soon as the one before is answered. 2 are
clumsy and have to be told so with a 4xx. One is a monitor. `--tiles FOLDER` sends real tiles.

A refusal for the load (429, 503) counts as a failure here; Locust lists them by their reason.
"""

import random
from argparse import ArgumentParser
from pathlib import Path

from locust import FastHttpUser, between, constant, events, task
from locust.env import Environment

from loadtest.mix import QUESTIONS, wrong
from loadtest.payload import image_type, multipart
from loadtest.tiles import load_tiles

_BATCH = 16
_TILES: list[bytes] = []


@events.init_command_line_parser.add_listener
def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--tiles", default="", help="Folder of tiles; without it they are drawn")


@events.init.add_listener
def _load(environment: Environment, **_: object) -> None:
    options = environment.parsed_options
    folder = Path(options.tiles) if options and options.tiles else None
    _TILES[:] = load_tiles(folder)


class MapUser(FastHttpUser):
    """Clicks on tiles: labels mostly, then questions about the same tile, or a caption."""

    weight = 14
    wait_time = between(0.2, 2.0)

    def on_start(self) -> None:
        """Looks at a first tile."""
        self.tile = random.choice(_TILES)

    @task(6)
    def click(self) -> None:
        """Another tile: what is on it."""
        self.tile = random.choice(_TILES)
        self._ask("/labels", self.tile, image_type(self.tile))

    @task(2)
    def ask(self) -> None:
        """One to three questions about the tile that is looked at."""
        questions = random.sample(QUESTIONS, random.randint(1, 3))
        kind, body = multipart([self.tile], questions)
        self._ask("/vqa", body, kind)

    @task(2)
    def caption(self) -> None:
        """A sentence about the tile that is looked at."""
        self._ask("/caption", self.tile, image_type(self.tile))

    @task(1)
    def explain(self) -> None:
        """Where on the tile the labels are."""
        self._ask("/labels?explain=true", self.tile, image_type(self.tile))

    def _ask(self, path: str, body: bytes, kind: str) -> None:
        self.client.post(path, data=body, headers={"Content-Type": kind})


class Analyst(FastHttpUser):
    """A script that goes through an archive, and does not mind to wait behind people."""

    weight = 3
    wait_time = constant(0)

    @task
    def fill(self) -> None:
        """The next tiles."""
        kind, body = multipart(random.choices(_TILES, k=_BATCH))
        headers = {"Content-Type": kind, "Tilesight-Lane": "backfill"}
        name = f"/labels, {_BATCH} tiles, backfill"
        self.client.post("/labels", data=body, headers=headers, name=name)


class Clumsy(FastHttpUser):
    """Sends what is not right, and has to get the status that says why."""

    weight = 2
    wait_time = between(0.5, 2.0)

    @task
    def blunder(self) -> None:
        """One of many mistakes."""
        one = random.choice(wrong(random.choice(_TILES)))
        with self.client.post(
            one.path,
            data=one.body,
            headers={"Content-Type": one.content_type},
            name=f"wrong: {one.name} ({one.status})",
            catch_response=True,
        ) as answer:
            if answer.status_code == one.status:
                answer.success()
            else:
                answer.failure(f"{answer.status_code} for {one.status}")


class Monitor(FastHttpUser):
    """What watches the gateway."""

    fixed_count = 1
    wait_time = constant(5)

    @task
    def look(self) -> None:
        """Whether it is ready, and its metrics."""
        self.client.get("/readyz")
        self.client.get("/metrics")
