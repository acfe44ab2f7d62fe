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
"""

import argparse
import asyncio
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import uvloop

from loadtest.client import Load, Plan
from loadtest.gateway import Gateway, reached
from loadtest.memory import MIB, Watch
from loadtest.outcome import Summary
from loadtest.payload import tile_requests
from loadtest.picture import overload_picture
from loadtest.scenario import (
    Check,
    arguments,
    end,
    finish,
    head_of,
    show,
    spread,
    tiles_of,
)
from loadtest.share import Share, Shares

FACTORS = (0.7, 1.0, 3.0, 10.0)
_CONNECTIONS = (4, 8, 16, 32)  # of the closed loops that look for the capacity
_REFUSALS = ("429", "503")
_GOODPUT = 0.95
_MEMORY_GROWTH_MB = 64.0


@dataclass(frozen=True)
class Stage:
    """One load: its factor (0: closed loop), figures, and who had the cores."""

    factor: float
    summary: Summary
    share: Share | None
    capacity: float = 0.0  # of the closed loop right before
    capacity_per_core: float = 0.0
    without_retry_after: int = 0
    rss_mb: tuple[float, float, float] | None = None  # before, most, after

    @property
    def raw(self) -> float:
        """Answers 200 a second."""
        return self.summary.goodput_rps

    @property
    def per_core(self) -> float:
        """Answers 200 for each second of a core that was left to the gateway."""
        return self.raw / self.share.left if self.share else self.raw

    @property
    def due(self) -> float:
        """What could have been answered, as a part of the capacity."""
        return min(1.0, self.factor)

    def ratio(self, per_core: bool) -> float:
        """Answered, of what could have been."""
        if self.factor < 1:  # nothing is short: what was offered has to be answered
            return self.raw / max(self.summary.offered_rps, 1e-9)
        if per_core:
            return self.per_core / max(self.capacity_per_core, 1e-9)
        return self.raw / max(self.capacity, 1e-9)


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
        return replace(found, capacity=closed.raw, capacity_per_core=closed.per_core)

    def _load(self, factor: float, plan: Plan) -> Stage:
        bare: Counter[int] = Counter()

        def note(status: int, answer: bytes) -> None:
            if status in (429, 503) and b"\r\nretry-after:" not in head_of(answer):
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


def criteria(stages: Sequence[Stage], deadline_s: float) -> list[Check]:
    """What has to hold of the open loops, by factor."""
    checks = []
    for factor in sorted({one.factor for one in stages}):
        some = [one for one in stages if one.factor == factor]
        ratios = [one.ratio(per_core=True) for one in some]
        what = "of offered" if factor < 1 else "of peak, per core left"
        checks.append(
            Check(
                f"{factor:g}x: goodput {what}",
                spread(ratios),
                f">= {_GOODPUT}",
                statistics.median(ratios) >= _GOODPUT,
            )
        )
    slowest = max(one.summary.service_ms.get("p99", 0.0) for one in stages)
    statuses: Counter[str] = Counter()
    for one in stages:
        statuses.update(one.summary.statuses)
    others = {
        status: count
        for status, count in statuses.items()
        if not status.startswith("2") and status not in _REFUSALS
    }
    bare = sum(one.without_retry_after for one in stages)
    return [
        *checks,
        Check(
            "p99 of what was accepted, worst stage",
            f"{slowest:.0f} ms",
            f"<= {1e3 * deadline_s:.0f} ms",
            slowest <= 1e3 * deadline_s,
        ),
        Check(
            "answers other than 200, 429, 503",
            str(others or "none"),
            "none",
            not others,
        ),
        Check("429 and 503 without Retry-After", str(bare), "0", not bare),
        _memory(stages),
    ]


def _memory(stages: Sequence[Stage]) -> Check:
    """The first stage may still take what it needs; later ones have nothing more to take."""
    sizes = [one.rss_mb for one in stages if one.rss_mb]
    if not sizes:
        return Check("memory under overload", "no process on this machine", "", None)
    before, most, after = sizes[0][0], max(one[1] for one in sizes), sizes[-1][2]
    return Check(
        "memory: before, most, after",
        f"{before:.0f}, {most:.0f}, {after:.0f} MiB",
        f"<= before + {_MEMORY_GROWTH_MB:.0f}",
        most <= before + _MEMORY_GROWTH_MB,
    )


def rows(stages: Sequence[Stage]) -> list[dict[str, object]]:
    """A line for each open loop."""
    return [_row(one) for one in stages]


def _row(one: Stage) -> dict[str, object]:
    summary, share = one.summary, one.share
    refused = {s: n for s, n in summary.statuses.items() if not s.startswith("2")}
    return {
        "load": f"{one.factor:g}x",
        "asked/s": f"{one.factor * one.capacity:.0f}",
        "offered/s": f"{summary.offered_rps:.0f}",
        "peak/s": f"{one.capacity:.0f}",
        "raw/s": f"{one.raw:.0f}",
        "raw/peak": f"{one.ratio(per_core=False):.2f}",
        "per core/peak": f"{one.ratio(per_core=True):.2f}",
        "p50, p99 ms": _pair(summary.service_ms),
        "refused p50, p99 ms": _pair(summary.refused_ms),
        "refused": ", ".join(f"{status}: {count}" for status, count in refused.items()) or "-",
        "cores server+load+rest": (
            f"{share.server:.2f}+{share.generator:.2f}+{share.others:.2f}" if share else "-"
        ),
    }


def _pair(figures: dict[str, float]) -> str:
    return f"{figures['p50']:.1f}, {figures['p99']:.1f}" if figures else "-"


def as_json(one: Stage) -> dict[str, Any]:
    """The stage with what follows from it."""
    return {
        **asdict(one),
        "raw_of_peak": one.ratio(per_core=False),
        "per_core_of_peak": one.ratio(per_core=True),
    }


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
    stages.sort(key=lambda one: one.factor)
    show("Open loops", rows(stages))
    if given.out is not None:
        overload_picture(stages, given.out.with_suffix(".png"))
    found = {"closed": [asdict(one) for one in closed], "stages": [as_json(s) for s in stages]}
    return finish(given, criteria(stages, given.deadline), found)


if __name__ == "__main__":
    end(main)
