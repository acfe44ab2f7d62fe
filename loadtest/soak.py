"""Asks a gateway for hours, and looks whether it holds more and more.

Requests of all kinds, a few per cent of them wrong (`loadtest.mix`), come at Poisson times at 70 %
of the capacity, and now and then a client leaves before it is answered. Once a second the memory,
the file descriptors and the threads of the gateway are noted in `--samples`. What has to hold: no
unexpected answer, and the verdict `flat` (`loadtest.trend` says how it is found).

A run that was cut off can be taken up: with `--url` of the gateway that still runs and the same
`--samples`, whose lines it appends to. `--judge FILE` only looks at such a file. `--control` runs
the gateway with a leak of two kilobytes a request in place of the real one, and holds if the same
check calls it `leaking`.
"""

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import uvloop
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from loadtest.client import Load, Plan
from loadtest.gateway import SERVE, Gateway, reached
from loadtest.leak import BYTES
from loadtest.memory import MIB, Sample, Watch
from loadtest.mix import Expectation, mixed
from loadtest.payload import Address
from loadtest.picture import memory_picture
from loadtest.scenario import Check, arguments, end, finish, show, tiles_of
from loadtest.trend import FLAT, LEAKING, Limits, Trend, judge

CONTROL = ("-m", "loadtest.leak")
_CONNECTIONS = 64
_SAMPLES = Path(tempfile.gettempdir()) / "tilesight-soak.jsonl"
_LEAVING_S = 1.0  # between two clients that leave
_LEAVES_AFTER_S = 0.002
_STARTED_WITH: dict[str, object] = {}  # settings of a gateway that is started here


@dataclass(frozen=True)
class Soaked:
    """What came of the load."""

    capacity: float
    rate: float
    answered: int
    expectation: Expectation
    errors: dict[str, int]


class Soak:
    """The load against one gateway."""

    def __init__(self, gateway: Gateway, given: argparse.Namespace, tiles: Sequence[bytes]) -> None:
        """Nothing is sent yet."""
        self._gateway, self._given = gateway, given
        self._requests = mixed(gateway.url, tiles)
        self._leaving = self._requests[0]
        self._plan = Plan(url=gateway.url, connections=_CONNECTIONS, warmup_s=0.5)

    def run(self, samples: Path) -> Soaked:
        """Finds the capacity and soaks; every sample is in the file at once."""
        capacity = self._given.capacity or self._capacity()
        rate = self._given.load * capacity
        print(f"capacity {capacity:.0f} requests/s of the mix; load {rate:.0f}/s")
        expectation = Expectation()
        plan = replace(self._plan, rate=rate, seconds=60 * self._given.minutes, drain_s=30.0)
        load = Load(plan, self._requests, expectation)
        answered = before = _requests_in(samples)

        def count() -> int:
            return before + len(load.outcome.status)

        assert self._gateway.pid is not None
        with Watch(self._gateway.pid, self._given.every, count, samples) as watch:
            uvloop.run(self._run(load, watch))
        answered = len(load.outcome.status)
        return Soaked(capacity, rate, answered, expectation, dict(load.outcome.errors))

    def _capacity(self) -> float:
        plan = replace(self._plan, connections=16, seconds=self._given.capacity_seconds)
        return uvloop.run(Load(plan, self._requests).run()).summary().throughput_rps

    async def _run(self, load: Load, watch: Watch) -> None:
        beside = [asyncio.ensure_future(self._leave()), asyncio.ensure_future(self._tell(watch))]
        try:
            await load.run()
        finally:
            for one in beside:
                one.cancel()

    async def _leave(self) -> None:
        """Clients that send a request and are gone before the answer."""
        address = Address.of(self._gateway.url)
        while True:
            await asyncio.sleep(_LEAVING_S)
            try:
                _, writer = await asyncio.open_connection(address.host, address.port)
                writer.write(self._leaving)
                await writer.drain()
                await asyncio.sleep(_LEAVES_AFTER_S)
                writer.transport.abort()
            except OSError:
                continue  # the load counts what is not answered

    async def _tell(self, watch: Watch) -> None:
        """The progress on the terminal."""
        total = 60 * self._given.minutes
        columns = (BarColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
        with Progress(*columns) as progress:
            task = progress.add_task("", total=total)
            started = time.monotonic()
            while True:
                last = watch.samples[-1]
                text = f"{last.requests} requests, {last.anonymous / MIB:.1f} MiB"
                progress.update(task, completed=time.monotonic() - started, description=text)
                await asyncio.sleep(min(5.0, total / 10))


def read_samples(path: Path) -> list[Sample]:
    """The samples of a file; a last line that was cut off is left out.

    Raises:
        ValueError: there is no such file.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file of samples")
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [Sample(**json.loads(line)) for line in lines if line.endswith("\n")]


def _requests_in(path: Path) -> int:
    """How many requests the last sample of the file knows of."""
    found = read_samples(path) if path.is_file() else []
    return found[-1].requests if found else 0


def criteria(trend: Trend, limits: Limits, wanted: str, soaked: Soaked | None) -> list[Check]:
    """What has to hold of the soak."""
    slope = trend.slope
    checks = [
        Check(
            "memory",
            f"{trend.verdict}: {slope.middle:+.3f} ({slope.low:+.3f} to {slope.high:+.3f}) "
            f"MiB for 10,000 requests, {trend.per_hour:+.1f} MiB an hour at this rate",
            f"{wanted}; the limit is {trend.limit:.3f} MiB for 10,000 requests",
            trend.verdict == wanted,
        ),
        _count("file descriptors", trend.fds, limits.fds, wanted),
        _count("threads", trend.threads, limits.threads, wanted),
    ]
    if soaked is not None:
        wrong = soaked.expectation.unexpected
        checks.append(
            Check("unexpected answers", f"{wrong.total()} of {soaked.answered}", "0", not wrong)
        )
    return checks


def _count(what: str, growth: int, limit: int, wanted: str) -> Check:
    holds = growth <= limit or wanted == LEAKING
    return Check(f"{what}, growth of the least", f"{growth:+d}", f"<= {limit}", holds)


def main(words: Sequence[str] | None = None) -> int:
    """Runs it."""
    parser = arguments("soak", __doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="[%(default)s]")
    parser.add_argument("--load", type=float, default=0.7, help="of the capacity [%(default)s]")
    parser.add_argument("--capacity", type=float, help="requests/s of the mix; else it is measured")
    parser.add_argument("--capacity-seconds", type=float, default=15.0, help="[%(default)s]")
    parser.add_argument("--every", type=float, default=1.0, help="seconds between samples")
    parser.add_argument("--samples", type=Path, default=_SAMPLES, help="[%(default)s]")
    parser.add_argument("--mb-per-10k", type=float, default=Limits.mb_per_10k, help="[%(default)s]")
    parser.add_argument("--mb-per-hour", type=float, default=Limits.mb_per_hour)
    parser.add_argument("--judge", type=Path, metavar="FILE", help="only judge these samples")
    parser.add_argument("--control", action="store_true", help="the leaking gateway")
    parser.add_argument("--leak", type=int, default=BYTES, help="bytes a request [%(default)s]")
    given = parser.parse_args(words)
    soaked = None if given.judge else _soak(given)
    samples = read_samples(given.judge or given.samples)
    limits = Limits(
        mb_per_10k=given.mb_per_10k,
        mb_per_hour=given.mb_per_hour,
        # The load opens connections when it needs them, and keeps them.
        fds=Limits.fds + _CONNECTIONS,
    )
    trend = judge(samples, limits)
    _tell(samples, trend, soaked)
    if given.out is not None:
        memory_picture(samples, trend, given.out.with_suffix(".png"))
    found: dict[str, object] = {
        "trend": trend.as_json(),
        "samples": [asdict(one) for one in samples],
    }
    if soaked is not None:
        found |= {
            "capacity_rps": soaked.capacity,
            "rate_rps": soaked.rate,
            "answers": soaked.expectation.answers,
            "unexpected": soaked.expectation.unexpected,
            "unanswered": soaked.errors,
        }
    wanted = LEAKING if given.control else FLAT
    return finish(given, criteria(trend, limits, wanted, soaked), found)


def _soak(given: argparse.Namespace) -> Soaked:
    if given.url is None:
        given.samples.unlink(missing_ok=True)  # another process: its memory begins anew
    command = (*CONTROL, "--bytes", str(given.leak)) if given.control else SERVE
    with reached(given.url, command=command, **_STARTED_WITH) as gateway:
        if gateway.pid is None:
            raise ValueError(f"{given.url}: its process is not on this machine, or not ours to see")
        return Soak(gateway, given, tiles_of(given)).run(given.samples)


def _tell(samples: Sequence[Sample], trend: Trend, soaked: Soaked | None) -> None:
    show(
        "Gateway",
        [
            {
                "": name,
                "requests": one.requests,
                "anonymous MiB": f"{one.anonymous / MIB:.1f}",
                "resident MiB": f"{one.rss / MIB:.1f}",
                "descriptors": one.fds,
                "threads": one.threads,
            }
            for name, one in (
                ("at the start", samples[0]),
                ("after the warm-up", samples[-trend.samples]),
                ("at the end", samples[-1]),
            )
        ],
    )
    if soaked is not None:
        answers = sorted(soaked.expectation.answers.items())
        print("answers:", ", ".join(f"{name}: {count}" for name, count in answers))
        for what, count in soaked.expectation.unexpected.most_common(5):
            print(f"unexpected, {count} times: {what}")


if __name__ == "__main__":
    end(main)
