"""Whether a backfill at full rate is felt by the people who ask in between.

Interactive requests come at Poisson times, at a part of the capacity; alone (A), then beside a
backfill that sends as fast as it is answered (B), then alone again: A B A B ... Each B is compared
with the A right before it, and all B with all A. What has to hold: the interactive p99 beside the
backfill is less than 1.2 times the one alone, and the backfill still gets on.

Latency counts from the time at which a request was due.
"""

import argparse
import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import uvloop
from numpy.typing import NDArray

from loadtest.client import Load, Plan
from loadtest.gateway import Gateway, reached
from loadtest.outcome import Outcome, percentiles
from loadtest.payload import tile_requests, tiles_request
from loadtest.picture import lanes_picture
from loadtest.scenario import Check, arguments, end, finish, show, spread, tiles_of
from loadtest.share import Share, Shares

LANE = "Tilesight-Lane"
_P99_RATIO = 1.20


@dataclass(frozen=True)
class Turn:
    """Interactive requests for some seconds, with or without a backfill beside them."""

    latencies: NDArray[np.float64]  # seconds, of those answered 200
    failed: int  # interactive requests that were not
    backfill_rate: float  # tiles a second, 0 without
    backfill_answered: int  # requests, those that were answered after the end too
    share: Share | None

    def ms(self, rank: float) -> float:
        """A percentile of the latencies in milliseconds."""
        return float(np.percentile(self.latencies, rank) * 1e3) if len(self.latencies) else np.nan


class Run:
    """The turns against one gateway."""

    def __init__(self, gateway: Gateway, given: argparse.Namespace) -> None:
        """Nothing is sent yet."""
        self._gateway, self._batch = gateway, given.batch
        url = gateway.url + given.path
        tiles = tiles_of(given)
        self._interactive = tile_requests(url, tiles, given.question, {LANE: "interactive"})
        self._backfill = _backfill(url, tiles, given)
        self._plan = Plan(
            url=url, seconds=given.seconds, warmup_s=min(2.0, given.seconds / 4), drain_s=15.0
        )
        self._workers = given.backfill_connections

    def capacity(self) -> float:
        """Interactive answers a second in a closed loop."""
        plan = replace(self._plan, seconds=min(5.0, self._plan.seconds), connections=16)
        return uvloop.run(Load(plan, self._interactive).run()).summary().goodput_rps

    def backfill_alone(self) -> float:
        """Tiles a second when nobody else asks."""

        async def run() -> float:
            return self._filled(await self._fill().run())[0]

        return uvloop.run(run())

    def turn(self, rate: float, beside_backfill: bool) -> Turn:
        """Interactive requests at the rate."""
        return uvloop.run(self._turn(rate, beside_backfill))

    async def _turn(self, rate: float, beside_backfill: bool) -> Turn:
        loads = [Load(replace(self._plan, rate=rate, connections=128), self._interactive)]
        loads += [self._fill()] if beside_backfill else []
        with Shares(self._gateway.pid) as shares:
            outcomes = await asyncio.gather(*(load.run() for load in loads))
        latencies, failed = _answered(outcomes[0])
        filled, answered = self._filled(outcomes[1]) if beside_backfill else (0.0, 0)
        return Turn(latencies, failed, filled, answered, shares.share)

    def _fill(self) -> Load:
        return Load(replace(self._plan, connections=self._workers, seed=7), self._backfill)

    def _filled(self, outcome: Outcome) -> tuple[float, int]:
        """Tiles a second, and requests that were answered."""
        summary = outcome.summary()
        if refused := {one: n for one, n in summary.statuses.items() if one != "200"}:
            raise ValueError(f"backfill requests were not answered with 200: {refused}")
        return summary.goodput_rps * self._batch, summary.answers


def _backfill(url: str, tiles: Sequence[bytes], given: argparse.Namespace) -> list[bytes]:
    headers = {LANE: "backfill"}
    if given.batch == 1:
        return tile_requests(url, tiles, given.question, headers)
    groups = [
        [tiles[(start + k) % len(tiles)] for k in range(given.batch)]
        for start in range(0, len(tiles), given.batch)
    ]
    return [tiles_request(url, group, given.question, headers) for group in groups]


def _answered(outcome: Outcome) -> tuple[NDArray[np.float64], int]:
    """Latencies of what was due in the window and answered; how many were not answered with 200."""
    begin = outcome.started + outcome.warmup_s
    intended, done = np.frombuffer(outcome.intended), np.frombuffer(outcome.done)
    due = (intended >= begin) & (intended < begin + outcome.seconds)
    good = np.frombuffer(outcome.status, dtype=np.uint16) == 200
    return (done - intended)[due & good], int((due & ~good).sum())


def criteria(alone: Sequence[Turn], beside: Sequence[Turn], backfill_alone: float) -> list[Check]:
    """What has to hold of the turns, each of `beside` after its fellow of `alone`."""
    pooled = _pooled(beside, 99) / _pooled(alone, 99)
    pairs = [b.ms(99) / a.ms(99) for a, b in zip(alone, beside, strict=True)]
    failed = sum(one.failed for one in (*alone, *beside))
    filled = [one.backfill_rate for one in beside]
    return [
        Check(
            "interactive p99 beside the backfill / alone, all turns",
            f"{pooled:.2f} (pairs: {spread(pairs)})",
            f"< {_P99_RATIO:.2f}",
            pooled < _P99_RATIO,
        ),
        Check("interactive requests not answered with 200", str(failed), "0", not failed),
        Check(
            "backfill beside them, tiles/s",
            f"{spread(filled, 0)}; alone {backfill_alone:.0f}",
            "> 0",
            min(filled) > 0,
        ),
    ]


def _pooled(turns: Sequence[Turn], rank: float) -> float:
    return float(np.percentile(np.concatenate([one.latencies for one in turns]), rank))


def rows(turns: Sequence[tuple[str, Turn]]) -> list[dict[str, object]]:
    """A line for each turn."""
    return [
        {
            "turn": name,
            "answered": len(one.latencies),
            "p50 ms": f"{one.ms(50):.1f}",
            "p90 ms": f"{one.ms(90):.1f}",
            "p99 ms": f"{one.ms(99):.1f}",
            "backfill tiles/s": f"{one.backfill_rate:.0f}" if one.backfill_rate else "-",
            "cores server+load+rest": (
                f"{one.share.server:.2f}+{one.share.generator:.2f}+{one.share.others:.2f}"
                if one.share
                else "-"
            ),
        }
        for name, one in turns
    ]


def as_json(name: str, turn: Turn) -> dict[str, Any]:
    """The turn without its single latencies."""
    return {
        "turn": name,
        "latency_ms": percentiles(turn.latencies),
        "answered": len(turn.latencies),
        "failed": turn.failed,
        "backfill_tiles_per_s": turn.backfill_rate,
        "backfill_answered": turn.backfill_answered,
        "share": turn.share,
    }


def main(words: Sequence[str] | None = None) -> int:
    """Runs it."""
    parser = arguments("lanes", __doc__)
    parser.add_argument("--path", default="/labels", help="what is asked [%(default)s]")
    parser.add_argument("--question", action="append", default=[], help="for /vqa; repeatable")
    parser.add_argument("--load", type=float, default=0.3, help="of the capacity [%(default)s]")
    parser.add_argument("--rate", type=float, help="requests a second, in place of --load")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each turn [%(default)s]")
    parser.add_argument("--turns", type=int, default=4, help="of each kind [%(default)s]")
    parser.add_argument(
        "--batch", type=int, default=16, help="tiles of a backfill request [%(default)s]"
    )
    parser.add_argument("--backfill-connections", type=int, default=4, help="[%(default)s]")
    given = parser.parse_args(words)
    with reached(given.url) as gateway:
        run = Run(gateway, given)
        capacity = run.capacity()
        rate = given.rate or given.load * capacity
        print(f"capacity {capacity:.0f} requests/s; interactive load {rate:.0f}/s")
        backfill_alone = run.backfill_alone()
        alone, beside = [], []
        for _ in range(given.turns):
            alone.append(run.turn(rate, beside_backfill=False))
            beside.append(run.turn(rate, beside_backfill=True))
    if not all(len(one.latencies) for one in (*alone, *beside)):
        raise ValueError("no interactive request was answered with 200 in one of the turns")
    turns = [
        pair
        for a, b in zip(alone, beside, strict=True)
        for pair in (("alone", a), ("beside a backfill", b))
    ]
    show("Interactive requests", rows(turns))
    p50 = _pooled(beside, 50) / _pooled(alone, 50)
    print(f"interactive p50 beside the backfill / alone: {p50:.2f}")
    if given.out is not None:
        lanes_picture(alone, beside, given.out.with_suffix(".png"))
    found = {
        "capacity_rps": capacity,
        "interactive_rps": rate,
        "backfill_alone_tiles_per_s": backfill_alone,
        "p50_ratio": p50,
        "turns": [as_json(name, one) for name, one in turns],
    }
    return finish(given, criteria(alone, beside, backfill_alone), found)


if __name__ == "__main__":
    end(main)
