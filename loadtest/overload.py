"""Offers a gateway more than it can do, and looks whether it still does what it can.

First the capacity: a closed loop, the best of several numbers of connections. Then open loops
(Poisson) at 0.7, 1, 3 and 10 times that, each right after a closed loop of its own, so that both
meet the same machine. What has to hold: the gateway answers as much as in the closed loop, what it
accepts it answers within the deadline, what it refuses it refuses with 429 or 503 and Retry-After,
and its memory stays.

The load runs on the cores of the gateway. Refusals cost it, but so does every request that is only
made up here, so two figures are given: `raw`, answers 200 a second, and `per core`, answers 200 for
each second of a core that the load and the rest of the machine left to the gateway. The criterion
is the second one; with the load on another machine both are the same.

At the end the same number of requests meets `loadtest.refuser`, a server that does nothing but
refuse: what a refusal costs at least, on this machine and in this language.
"""

import argparse
import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace

import uvloop

from loadtest.client import Load, Plan
from loadtest.gateway import Gateway, reached, serving
from loadtest.memory import MIB, Watch
from loadtest.overload_report import criteria, refusals, rows
from loadtest.payload import tile_requests
from loadtest.picture import overload_picture
from loadtest.scenario import arguments, end, finish, head_of, show, tiles_of
from loadtest.share import Shares
from loadtest.stage import REFUSALS, Stage, as_json

FACTORS = (0.7, 1.0, 3.0, 10.0)
_CONNECTIONS = (4, 8, 16, 32)  # of the closed loops that look for the capacity


class Run:
    """The stages against one gateway."""

    def __init__(self, gateway: Gateway, given: argparse.Namespace) -> None:
        """Nothing is sent yet."""
        self._gateway, self._given = gateway, given
        url = gateway.url + given.path
        headers = {"Tilesight-Deadline": f"{given.deadline:g}"}
        self._requests = tile_requests(url, tiles_of(given), given.question, headers)
        self._plan = Plan(
            url=url,
            seconds=given.seconds,
            warmup_s=min(1.0, given.seconds / 4),
            timeout_s=given.deadline + 30,
            drain_s=given.deadline + 2,
        )

    def best_connections(self) -> int:
        """The number of connections that gets most out of the gateway in a closed loop."""
        found = {count: self._closed(count, self._given.seconds / 2).raw for count in _CONNECTIONS}
        show(
            "Capacity, closed loop",
            [{"connections": count, "answers/s": f"{raw:.0f}"} for count, raw in found.items()],
        )
        return max(found, key=found.__getitem__)

    def stage(self, factor: float, connections: int) -> tuple[Stage, Stage]:
        """The closed loop and the open one after it."""
        closed = self._closed(connections, self._given.seconds)
        if not closed.raw:
            raise ValueError(f"nothing was answered: {closed.summary.statuses}")
        return closed, self._open(factor, closed)

    def _closed(self, connections: int, seconds: float) -> Stage:
        return self._load(0, replace(self._plan, connections=connections, seconds=seconds))

    def _open(self, factor: float, closed: Stage) -> Stage:
        plan = replace(self._plan, rate=factor * closed.raw, connections=self._given.connections)
        found = self._load(factor, plan)
        answer_ms = 1e3 * closed.share.server / closed.raw if closed.share else 0.0
        return replace(
            found, capacity=closed.raw, capacity_per_core=closed.per_core, answer_ms=answer_ms
        )

    def refuser(self, rate: float) -> float | None:
        """CPU in milliseconds that a server takes for a refusal if it does nothing else."""
        with serving(command=("-m", "loadtest.refuser")) as other:
            url = other.url + self._given.path
            requests = tile_requests(url, tiles_of(self._given), self._given.question)
            plan = replace(self._plan, url=url, rate=rate, connections=self._given.connections)
            with Shares(other.pid) as shares:
                summary = uvloop.run(Load(plan, requests).run()).summary()
        return 1e3 * shares.share.server / summary.throughput_rps if shares.share else None

    def _load(self, factor: float, plan: Plan) -> Stage:
        bare: Counter[int] = Counter()

        def note(status: int, answer: bytes) -> None:
            if str(status) in REFUSALS and b"\r\nretry-after:" not in head_of(answer):
                bare[status] += 1

        async def run() -> Stage:
            load = Load(plan, self._requests, note)
            with Shares(self._gateway.pid) as shares:
                outcome = await load.run()
            return Stage(factor, outcome.summary(), shares.share, without_retry_after=bare.total())

        if self._gateway.pid is None:
            return uvloop.run(run())
        with Watch(self._gateway.pid, every_s=0.5) as watch:
            stage = uvloop.run(run())
            uvloop.run(asyncio.sleep(0.6))  # a sample after the last answer
        sizes = [one.rss / MIB for one in watch.samples]
        return replace(stage, rss_mb=(sizes[0], max(sizes), sizes[-1]))


def main(words: Sequence[str] | None = None) -> int:
    """Runs it."""
    parser = arguments("overload", __doc__)
    parser.add_argument("--path", default="/labels", help="what is asked [%(default)s]")
    parser.add_argument("--question", action="append", default=[], help="for /vqa; repeatable")
    parser.add_argument("--factors", type=float, nargs="+", default=list(FACTORS), metavar="X")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each load [%(default)s]")
    parser.add_argument("--repeats", type=int, default=3, help="of each factor [%(default)s]")
    parser.add_argument("--deadline", type=float, default=2.0, metavar="SECONDS")
    parser.add_argument(
        "--connections", type=int, default=256, help="most of an open loop [%(default)s]"
    )
    given = parser.parse_args(words)
    with reached(given.url, deadline_s=given.deadline) as gateway:
        run = Run(gateway, given)
        connections = run.best_connections()
        closed, stages = [], []
        for _ in range(given.repeats):
            for factor in given.factors:
                before, stage = run.stage(factor, connections)
                closed.append(before)
                stages.append(stage)
        most = max(one.summary.offered_rps for one in stages)
        floor_ms = run.refuser(most) if gateway.pid is not None else None
    stages.sort(key=lambda one: one.factor)
    show("Open loops", rows(stages))
    show("What a refusal costs", refusals(stages, floor_ms))
    if given.out is not None:
        overload_picture(stages, given.out.with_suffix(".png"))
    found = {
        "closed": [asdict(one) for one in closed],
        "stages": [as_json(one) for one in stages],
        "refuser_ms": floor_ms,
    }
    return finish(given, criteria(stages, given.deadline), found)


if __name__ == "__main__":
    end(main)
