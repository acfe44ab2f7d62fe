"""A load generator that stays: plans go in and figures come out, without a start for each."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import IO

import uvloop

from loadtest.client import Load, Plan
from loadtest.outcome import Summary
from loadtest.payload import tile_requests
from loadtest.tiles import load_tiles

_read_tiles = cache(load_tiles)


class Generator:
    """The process behind `generating`."""

    def __init__(self, into: IO[str], out: IO[str]) -> None:
        """Its two pipes."""
        self._into, self._out = into, out

    def measure(self, plan: Plan) -> Summary:
        """The figures of the plan.

        Raises:
            RuntimeError: the process has ended; what it printed stands above.
        """
        self._into.write(json.dumps(asdict(plan), default=str) + "\n")
        self._into.flush()
        line = self._out.readline()
        if not line:
            raise RuntimeError("the load generator has ended")
        return Summary(**json.loads(line))


@contextmanager
def generating() -> Iterator[Generator]:
    """A generator in a process of its own, which ends with the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "loadtest.generator"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for who started it
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        yield Generator(process.stdin, process.stdout)
    finally:
        process.stdin.close()
        process.wait(60)
        process.stdout.close()


def main() -> None:
    """Makes each plan that comes as a line of JSON, and prints its figures as another."""
    for line in sys.stdin:
        given = json.loads(line)
        folder = given["tiles"]
        plan = Plan(
            **given
            | {
                "tiles": Path(folder) if folder is not None else None,
                "questions": tuple(given["questions"]),
            }
        )
        tiles = _read_tiles(plan.tiles, plan.tiles_limit, plan.seed)
        requests = tile_requests(plan.url, tiles, plan.questions, plan.headers)
        outcome = uvloop.run(Load(plan, requests).run())
        print(json.dumps(outcome.summary().as_json()), flush=True)


if __name__ == "__main__":
    main()
